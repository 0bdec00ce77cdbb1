"""What trained networks say, as pure functions of the recipe and of a player or an average: samples and logits."""

import jax
import jax.numpy as jnp

from gan_jax.step.losses import packed
from gan_jax.step.state import Average, Player, Recipe

COPIED = 64  # examples whose copies, or whose logits, are in memory at a time


def sample(recipe: Recipe, average: Average, latents, *labels):
    """The averaged generator at `latents` [n, d], with its running statistics: [n, ...]. Deterministic.

    A conditional one is given `labels`, int32 [n] or float32 [n, m], too.
    """
    return recipe.generator.apply(average.params, average.stats, latents, False, *labels)[0]


def discriminate(recipe: Recipe, player: Player, x):
    """An unconditional D's logits at x [n, ...], with its running statistics: [n].

    A D that needs several examples together is shown copies of a single one.
    """
    if recipe.group_size == 1:
        return recipe.discriminator.apply(player.params, player.stats, x, False)[0]

    def of_copies(example):
        packs = packed(recipe, jnp.broadcast_to(example, (recipe.group_size, *example.shape)))
        return recipe.discriminator.apply(player.params, player.stats, packs, False)[0][0]

    return jax.lax.map(of_copies, x, batch_size=COPIED)


def judge(recipe: Recipe, player: Player | Average, x, *labels):
    """D's logits at x [n, ...], in packs and groups of neighbours as in training, with its running statistics.

    Returns: [n / packing]; n must be whole packs and groups, `group_size` examples each. A conditional one is given
      `labels`, int32 [n] or float32 [n, m], too.
    """
    return recipe.discriminator.apply(player.params, player.stats, packed(recipe, x), False, *labels)[0]
