"""What trained networks say, as pure functions of the recipe and of a player or an average: samples and logits."""

import jax
import jax.numpy as jnp

from gan_jax.networks.network import keys_of_values
from gan_jax.step.losses import packed
from gan_jax.step.state import Average, Player, Recipe

COPIED = 64  # examples whose copies, or whose logits, are in memory at a time


def sample(recipe: Recipe, average: Average, latents, *labels):
    """The averaged generator at `latents` [n, d], with its running statistics: [n, ...]. Deterministic.

    A conditional one is given `labels`, int32 [n] or float32 [n, m], too. Noise of its own follows from the latents.
    """
    return _applied(recipe.generator, average, latents, *labels)


def discriminate(recipe: Recipe, player: Player, x, *labels):
    """D's logits at x [n, ...], each by itself, with its running statistics: [n].

    A conditional one is given `labels`, int32 [n] or float32 [n, m], too. A D that needs several examples together is
    shown copies of a single one.
    """
    if recipe.group_size == 1:
        return _applied(recipe.discriminator, player, x, *labels)

    def of_copies(inputs):
        copies = [jnp.broadcast_to(array, (recipe.group_size, *array.shape)) for array in inputs]
        return judge(recipe, player, *copies)[0]

    return jax.lax.map(of_copies, (x, *labels), batch_size=COPIED)


def judge(recipe: Recipe, player: Player | Average, x, *labels):
    """D's logits at x [n, ...], in packs and groups of neighbours as in training, with its running statistics.

    Returns: [n / packing]; n must be whole packs and groups, `group_size` examples each. A conditional one is given
      `labels`, int32 [n] or float32 [n, m], too.
    """
    return _applied(recipe.discriminator, player, packed(recipe, x), *labels)


def _applied(network, player: Player | Average, x, *labels):
    noise = network.keyed(lambda: keys_of_values(x))
    return network.apply(player.params, player.stats, x, False, *labels, **noise)[0]
