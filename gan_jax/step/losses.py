"""The losses that the players descend, as pure functions of a recipe, numbers, a state, parameters, examples and keys.

The other player is held constant, and so are all running statistics: new ones are returned beside the loss.
`numbers` are the run's hyperparameters as they are in this step. A loss is a mean over this shard of the batch, the
examples that the code is given: all of them under jit, one device's under pmap. The step averages over the shards.
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.parallel.devices import Devices
from gan_jax.step import regularizers
from gan_jax.step.state import Recipe, TrainState
from gan_jax.utils.keys import NON_NEGATIVE, POSITIVE_INT, SCHEDULED, TRACED, Needs

NEEDS_PENALTY = Needs("penalty.name")


class ObjectiveKeys(NamedTuple):
    """The config key of the term in G's loss that any objective may have."""

    feature_matching: Annotated[
        float, NON_NEGATIVE, "weight in G's loss of the distance of D's mean features, real from fake", TRACED
    ] = 0.0


class PenaltyKeys(NamedTuple):
    """The config keys of every penalty, beside its own."""

    weight: Annotated[float, NON_NEGATIVE, "weight of the penalty in D's loss", SCHEDULED] = 0.0
    every: Annotated[
        int, POSITIVE_INT, "lazy: the penalty is paid in every n-th step only, n times over", NEEDS_PENALTY
    ] = 1


@jax.named_scope("discriminator_loss")  # a name that traces and profiles show
def discriminator_loss(recipe: Recipe, numbers: Mapping, state: TrainState, params, real, latent_keys, penalty_keys):
    """What D descends in its `params`, the rest of `state` held constant, on the batch `real` {"image": [n, ...]}.

    Args:
      latent_keys, penalty_keys: [n], one of either for each example.

    Returns: (the mean of objective.discriminator(a, b) + the penalty's weight * penalty + the weighted terms of
      `regularizers`, over this shard of the batch; a lazy penalty has penalty_every times its weight in every such step
      and 0 in the others, (new running statistics, metrics, the largest |logit|)). G's statistics of this pass are
      dropped.
    """
    real, labels, old_stats = real["image"], labels_of(recipe, real), state.discriminator.stats
    fake, _ = recipe.generator.apply(
        state.generator.params, state.generator.stats, recipe.prior(latent_keys), True, *labels
    )

    def critic(x):
        return recipe.discriminator.apply(params, old_stats, x, True, *labels)[0]

    transformed = [partial(transformed_logits, recipe, critic, latent_keys, i, x) for i, x in enumerate((real, fake))]
    real, fake = augment_and_pack(recipe, numbers, state, latent_keys, real, fake)
    real_logits, fake_logits, stats = _both(recipe, recipe.discriminator.apply, params, old_stats, real, fake, labels)
    objective = recipe.objective(numbers)
    total = jnp.mean(objective.discriminator(real_logits, fake_logits))
    metrics = {"d_loss": total, "penalty": jnp.float32(0)} | logit_metrics(objective, real_logits, fake_logits)
    if recipe.penalty is not None:
        weight, metrics["penalty"] = _penalty(recipe, numbers, state.step, critic, penalty_keys, real, fake)
        total = total + weight * metrics["penalty"]
    if state.regularizers is not None and state.regularizers.adaptive is not None:
        metrics["augment_probability"] = state.regularizers.adaptive.probability
    if regularizers.WEIGHTS & numbers.keys():
        terms = regularizers.terms(numbers, state.regularizers, real_logits, fake_logits, *transformed)
        for name, (weight, value) in terms.items():
            total, metrics[name] = total + weight * value, value
    return total, (stats, metrics, _largest(real_logits, fake_logits))


@jax.named_scope("generator_loss")
def generator_loss(recipe: Recipe, devices: Devices, numbers: Mapping, state: TrainState, params, real, latent_keys):
    """What G descends in its `params`, the rest of `state` held constant, at the latents of these keys [n].

    `real` {"image": [n, ...]} gives the labels, and the real logits where an objective compares with them
    (elsewhere XLA drops the pass that makes them, unless `one_pass` normalises over both).

    Returns: (the mean of objective.generator(b, a) over this shard of the batch + feature_matching * the distance of
      `_feature_distance` over all of it, (new running statistics, metrics, the largest |logit| of a fake)). D's
      statistics of this pass are dropped.
    """
    real, labels, discriminator = real["image"], labels_of(recipe, real), state.discriminator
    fake, stats = recipe.generator.apply(params, state.generator.stats, recipe.prior(latent_keys), True, *labels)
    real, fake = augment_and_pack(recipe, numbers, state, latent_keys, real, fake)
    inputs = discriminator.params, discriminator.stats, real, fake, labels
    objective, weight = recipe.objective(numbers), numbers.get("objective.feature_matching")
    if weight is None:
        real_logits, fake_logits, _ = _both(recipe, recipe.discriminator.apply, *inputs)
        loss = jnp.mean(objective.generator(fake_logits, real_logits))
        return loss, (stats, {"g_loss": loss}, _largest(fake_logits))
    (real_logits, real_features), (fake_logits, fake_features), _ = _both(
        recipe, recipe.discriminator.features, *inputs
    )
    loss = jnp.mean(objective.generator(fake_logits, real_logits))
    distance = _feature_distance(devices, real_features, fake_features)
    return loss + weight * distance, (stats, {"g_loss": loss, "feature_matching": distance}, _largest(fake_logits))


def logit_metrics(objective, real_logits, fake_logits) -> dict:
    """What D's logits [n], [n] say of the game: their means, the estimated divergence, D's accuracy."""
    return {
        "d_real": jnp.mean(real_logits),
        "d_fake": jnp.mean(fake_logits),
        "divergence": jnp.mean(objective.divergence(real_logits, fake_logits)),
        "d_accuracy_real": jnp.mean(real_logits > objective.undecided),
        "d_accuracy_fake": jnp.mean(fake_logits < objective.undecided),
    }


def labels_of(recipe: Recipe, batch) -> tuple:
    """What both networks are called with beside their input: the batch's labels [n, ...], real and fake ones alike."""
    return (batch["label"],) if recipe.conditional else ()


def augment_and_pack(recipe: Recipe, numbers: Mapping, state: TrainState, latent_keys, real, fake):
    """What D sees of real and fake: augmented, each example by a key of its own, and packed."""
    adaptive = state.regularizers and state.regularizers.adaptive
    probability = adaptive.probability if adaptive else numbers.get("augment.probability")
    noise = numbers.get("augment.instance_noise")
    if probability is not None or noise is not None:
        keys = _keys_of_both(latent_keys, 2**32 - 1)
        real, fake = (recipe.augment(keys[:, i], x, probability, noise) for i, x in enumerate((real, fake)))
    return packed(recipe, real), packed(recipe, fake)


def transformed_logits(recipe: Recipe, critic, latent_keys, which: int, x):
    """D's logits of the real (0) or the fake (1) examples x, transformed by keys of their own."""
    keys = _keys_of_both(latent_keys, 2**32 - 2)[:, which]
    return critic(packed(recipe, recipe.transform(keys, x)))


def _keys_of_both(latent_keys, number: int):
    """[n, 2]: for each real and for each fake example a key. Latents are drawn at smaller numbers of theirs."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(latent_keys)


def packed(recipe: Recipe, x):
    """x [n, ..., c] as packs (arXiv:1712.04086): [n / m, ..., m c], each of m neighbours, so of one device."""
    if recipe.packing == 1:
        return x
    packs = jnp.moveaxis(x.reshape(-1, recipe.packing, *x.shape[1:]), 1, -2)
    return packs.reshape(*packs.shape[:-2], -1)


def _both(recipe, apply, params, stats, real, fake, labels):
    """D's `apply` at real and at fake, and its new statistics: two passes, or one over both."""
    if recipe.one_pass:
        in_turn = [_in_turn(label, label) for label in labels]
        outputs, stats = apply(params, stats, _in_turn(real, fake), True, *in_turn)
        return *(jax.tree.map(lambda x: x[first::2], outputs) for first in (0, 1)), stats  # noqa: B023
    of_real, stats = apply(params, stats, real, True, *labels)
    of_fake, stats = apply(params, stats, fake, True, *labels)
    return of_real, of_fake, stats


def _in_turn(real, fake):
    """Both [n, ...] as one batch [2 n, ...], a fake after each real one: each stays on the device that has it."""
    return jnp.stack([real, fake], axis=1).reshape(-1, *real.shape[1:])


def _feature_distance(devices, real, fake):
    """|E f(x) - E f(G(z))|^2 of features [n, d], with means over the whole batch (arXiv:1606.03498, section 3.1).

    It is no mean over examples: the shards of a batch are averaged before the square. The derivative of their mean goes
    back to each shard whole, so that, as of any other loss, the gradient is the mean over the shards.
    """
    real, fake = devices.mean((jnp.mean(real, axis=0), jnp.mean(fake, axis=0)))
    return jnp.sum(jnp.square(real - fake))


def _penalty(recipe, numbers, step, critic, keys, real, fake):
    """(its weight, the mean penalty over this shard): a lazy one is 0, and not computed, in most steps."""
    weight, every, penalty = numbers.get("penalty.weight", 0.0), recipe.penalty_every, recipe.penalty(numbers)
    keys = keys if recipe.packing == 1 else keys.reshape(-1, recipe.packing)[:, 0]  # one a pack

    def mean(*points):
        return jnp.mean(penalty(critic, *points))

    if every == 1:
        return weight, mean(keys, real, fake)
    due = (step + 1) % every == 0
    return weight * every, jax.lax.cond(due, mean, lambda *_: jnp.float32(0), keys, real, fake)


def _largest(*logits):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in logits]))
