"""The losses that the players descend, as pure functions of a recipe, numbers, a state, parameters, examples and keys.

The other player is held constant, and so are all running statistics: new ones are returned beside the loss.
`numbers` are the run's hyperparameters as they are in this step. A loss is a mean over this shard of the batch, the
examples that the code is given: all of them under jit, one device's under pmap. The step averages over the shards.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.objectives import with_metrics
from gan_jax.parallel.devices import Devices
from gan_jax.step import regularizers
from gan_jax.step.state import Recipe, TrainState
from gan_jax.step.transfer import held_constant
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import NON_NEGATIVE, POSITIVE_INT, SCHEDULED, TRACED, Needs

OF_G = "generator.penalty"  # the group of G's penalty; that of D's is "penalty"
# What a latent's key is folded with, for everything else of its example. Latents are drawn at smaller numbers.
FOR_AUGMENTING, FOR_TRANSFORMS, NOISE_OF_G, NOISE_OF_D, FOR_PENALTY, FOR_LATENTS, *FOR_CRITIC = range(
    2**32 - 1, 2**32 - 9, -1
)
LAZY = "lazy: the penalty is paid in every n-th step only, n times over"


class ObjectiveKeys(NamedTuple):
    """The config key of the term in G's loss that any objective may have."""

    feature_matching: Annotated[
        float, NON_NEGATIVE, "weight in G's loss of the distance of D's mean features, real from fake", TRACED
    ] = 0.0


class PenaltyKeys(NamedTuple):
    """The config keys of every penalty on D, beside its own."""

    weight: Annotated[float, NON_NEGATIVE, "weight of the penalty in D's loss", SCHEDULED] = 0.0
    every: Annotated[int, POSITIVE_INT, LAZY, Needs("penalty.name")] = 1


class GeneratorPenaltyKeys(NamedTuple):
    """The config keys of every penalty on G, beside its own."""

    weight: Annotated[float, NON_NEGATIVE, "weight of the penalty in G's loss", SCHEDULED, Needs(f"{OF_G}.name")] = 0.0
    every: Annotated[int, POSITIVE_INT, LAZY, Needs(f"{OF_G}.name")] = 1


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
    if recipe.frozen is not None:
        params = held_constant(recipe.frozen, params)
    fake, _ = _generated(recipe, state.generator.params, state, recipe.prior(latent_keys), labels, latent_keys)

    def critic(x, number=FOR_PENALTY):
        keys = recipe.discriminator.keyed(lambda: _one_a_pack(recipe, _folded(latent_keys, number)))
        return recipe.discriminator.apply(params, old_stats, x, True, *labels, **keys)[0]

    transformed = [partial(transformed_logits, recipe, critic, latent_keys, i, x) for i, x in enumerate((real, fake))]
    real, fake = augment_and_pack(recipe, numbers, state, latent_keys, real, fake)
    inputs = params, old_stats, real, fake, labels, latent_keys
    real_logits, fake_logits, stats = _both(recipe, recipe.discriminator.apply, *inputs)
    objective = recipe.objective(numbers)
    total, own_metrics = _mean(objective.discriminator(real_logits, fake_logits))
    metrics = {"d_loss": total, "penalty": jnp.float32(0)} | logit_metrics(objective, real_logits, fake_logits)
    if recipe.penalty is not None:
        points = _one_a_pack(recipe, penalty_keys), real, fake
        weight, metrics["penalty"], of_penalty = _penalty(recipe, "penalty", numbers, state, critic, *points)
        total, own_metrics = total + weight * metrics["penalty"], joined(own_metrics, of_penalty)
    if state.regularizers is not None and state.regularizers.adaptive is not None:
        metrics["augment_probability"] = state.regularizers.adaptive.probability
    if regularizers.WEIGHTS & numbers.keys():
        terms = regularizers.terms(numbers, state.regularizers, real_logits, fake_logits, *transformed)
        for name, (weight, value) in terms.items():
            total, metrics[name] = total + weight * value, value
    return total, (stats, joined(metrics, own_metrics), _largest(real_logits, fake_logits))


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
    latents = recipe.prior(latent_keys)
    generate = partial(_generated, recipe, params, state, labels=labels, keys=latent_keys)
    images, stats = generate(latents)
    real, fake = augment_and_pack(recipe, numbers, state, latent_keys, real, images)
    inputs = discriminator.params, discriminator.stats, real, fake, labels, latent_keys
    objective, weight = recipe.objective(numbers), numbers.get("objective.feature_matching")
    apply = recipe.discriminator.apply if weight is None else recipe.discriminator.features
    of_real, of_fake, _ = _both(recipe, apply, *inputs)
    real_logits, fake_logits = (of_real, of_fake) if weight is None else (of_real[0], of_fake[0])
    total, own_metrics = _mean(objective.generator(fake_logits, real_logits))
    metrics = {"g_loss": total}
    if weight is not None:
        metrics["feature_matching"] = _feature_distance(devices, of_real[1], of_fake[1])
        total = total + weight * metrics["feature_matching"]
    if recipe.generator_penalty is not None:
        points = _folded(latent_keys, FOR_LATENTS), latents, images
        paid = _penalty(recipe, OF_G, numbers, state, lambda z: generate(z)[0], *points)
        weight, metrics["g_penalty"], of_penalty = paid
        total, own_metrics = total + weight * metrics["g_penalty"], joined(own_metrics, of_penalty)
    return total, (stats, joined(metrics, own_metrics), _largest(fake_logits))


def _generated(recipe: Recipe, params, state: TrainState, latents, labels: tuple, keys):
    """(G's images at latents [n, d], its new running statistics), in training, with noise from keys [n]."""
    noise = recipe.generator.keyed(lambda: _folded(keys, NOISE_OF_G))
    return recipe.generator.apply(params, state.generator.stats, latents, True, *labels, **noise)


def _mean(values):
    """(the mean of a loss [n], those of what it reports): a loss is [n], or ([n], {metric: [n] or a number})."""
    values, reported = with_metrics(values)
    return jnp.mean(values), {name: jnp.mean(value) for name, value in reported.items()}


def joined(metrics: dict, others: dict) -> dict:
    """Both. Raises InputError where a part reports a metric that there is already."""
    if taken := metrics.keys() & others.keys():
        raise InputError(f"a part reports the metric {min(taken)}, which there is already; give it another name")
    return metrics | others


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
        keys = _keys_of_both(latent_keys, FOR_AUGMENTING)
        real, fake = (recipe.augment(keys[:, i], x, probability, noise) for i, x in enumerate((real, fake)))
    return packed(recipe, real), packed(recipe, fake)


def transformed_logits(recipe: Recipe, critic, latent_keys, which: int, x):
    """D's logits of the real (0) or the fake (1) examples x, transformed by keys of their own."""
    keys = _keys_of_both(latent_keys, FOR_TRANSFORMS)[:, which]
    return critic(packed(recipe, recipe.transform(keys, x)), FOR_CRITIC[which])


def _keys_of_both(latent_keys, number: int):
    """[n, 2]: for each real and for each fake example a key."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(latent_keys)


def _folded(latent_keys, number: int):
    """[n]: for each example a key."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(latent_keys)


def _one_a_pack(recipe: Recipe, keys):
    """Of the keys [n] of examples, those of the packs that they are."""
    return keys if recipe.packing == 1 else keys.reshape(-1, recipe.packing)[:, 0]


def packed(recipe: Recipe, x):
    """x [n, ..., c] as packs (arXiv:1712.04086): [n / m, ..., m c], each of m neighbours, so of one device."""
    if recipe.packing == 1:
        return x
    packs = jnp.moveaxis(x.reshape(-1, recipe.packing, *x.shape[1:]), 1, -2)
    return packs.reshape(*packs.shape[:-2], -1)


def _both(recipe, apply, params, stats, real, fake, labels, latent_keys):
    """D's `apply` at real and at fake, and its new statistics: two passes, or one over both."""

    def keys(which: int):
        return _one_a_pack(recipe, _keys_of_both(latent_keys, NOISE_OF_D)[:, which])

    keyed = recipe.discriminator.keyed
    if recipe.one_pass:
        in_turn = [_in_turn(label, label) for label in labels]
        noise = keyed(lambda: _in_turn(keys(0), keys(1)))
        outputs, stats = apply(params, stats, _in_turn(real, fake), True, *in_turn, **noise)
        return *(jax.tree.map(lambda x: x[first::2], outputs) for first in (0, 1)), stats  # noqa: B023
    of_real, stats = apply(params, stats, real, True, *labels, **keyed(lambda: keys(0)))
    of_fake, stats = apply(params, stats, fake, True, *labels, **keyed(lambda: keys(1)))
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


def _penalty(recipe: Recipe, name: str, numbers: Mapping, state: TrainState, function: Callable, *points):
    """(its weight, the mean over this shard, what it reports) of the penalty of D, "penalty", or of G, OF_G.

    It is called as penalty(function, *points). A lazy one is 0, and not computed, in most steps.
    """
    make, every = recipe.penalty, recipe.penalty_every
    if name == OF_G:
        make, every = recipe.generator_penalty, recipe.generator_penalty_every
    penalty, weight = make(numbers), numbers.get(f"{name}.weight", 0.0)
    remembered = {"state": state.own[name]} if name in recipe.own else {}

    def mean(*points):
        return _mean(penalty(function, *points, **remembered))

    if every == 1:
        return weight, *mean(*points)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(mean, *points))
    return weight * every, *jax.lax.cond(is_paid(every, state.step), mean, lambda *_: nothing, *points)


def is_paid(every: int, step):
    """Whether a lazy penalty is paid in the step that `step` steps come before."""
    return (step + 1) % every == 0


def _largest(*logits):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in logits]))
