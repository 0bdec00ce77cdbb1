"""What each player descends, as pure functions of (recipe, state, the player's parameters, examples, keys).

The player whose loss it is not is held constant, and so are all running statistics: new ones are returned beside the
loss. Everything is a mean over this part of the batch, which the step averages over the parts.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gan_jax import overfitting
from gan_jax.devices import Devices
from gan_jax.state import Recipe, TrainState, numbers_now


@jax.named_scope("discriminator_loss")  # a name that traces and profiles show
def discriminator_loss(recipe: Recipe, state: TrainState, params, real, latent_keys, penalty_keys):
    """What D descends in its `params`, the rest of `state` held constant, on the batch `real` {"image": [n, ...]}.

    Args:
      latent_keys, penalty_keys: [n], one of either for each example.

    Returns: (the mean of objective.discriminator(a, b) + penalty_weight * penalty + the weighted terms of
      `overfitting.regularisers`, over this part of the batch; where the penalty is lazy, that with penalty_every times
      the weight in every such step and 0 in the others, (new running statistics, metrics, the largest |logit|)). G's
      statistics of this pass are dropped.
    """
    real, labels, hyperparameters = real["image"], labels_of(recipe, real), state.hyperparameters
    objective, old_stats = recipe.objective(hyperparameters), state.discriminator.stats
    latents = recipe.prior(latent_keys)
    fake, _ = recipe.generator.apply(state.generator.params, state.generator.stats, latents, True, *labels)
    critic = _critic(recipe, params, old_stats, labels)
    again = [partial(_logits_again, recipe, critic, latent_keys, *each) for each in enumerate((real, fake))]
    real, fake = _seen(recipe, state, latent_keys, real, fake)
    real_logits, fake_logits, stats = _logits(recipe, recipe.discriminator.apply, params, old_stats, real, fake, labels)
    penalty, weight = _penalty(recipe, state, critic, _one_a_pack(recipe, penalty_keys), real, fake)
    loss = jnp.mean(objective.discriminator(real_logits, fake_logits))
    metrics = {"d_loss": loss, "penalty": penalty} | _told_by(objective, real_logits, fake_logits)
    if state.memory is not None and state.memory.adaptive is not None:
        metrics["augment_probability"] = overfitting.probability(state)
    total = loss + weight * penalty
    for name, (share, value) in overfitting.regularisers(state, real_logits, fake_logits, *again).items():
        total, metrics[name] = total + share * value, value
    return total, (stats, metrics, _largest(real_logits, fake_logits))


def _told_by(objective, real_logits, fake_logits) -> dict:
    """What D's logits say of the game."""
    return {
        "d_real": jnp.mean(real_logits),
        "d_fake": jnp.mean(fake_logits),
        "divergence": jnp.mean(objective.divergence(real_logits, fake_logits)),
        "d_accuracy_real": jnp.mean(real_logits > objective.undecided),
        "d_accuracy_fake": jnp.mean(fake_logits < objective.undecided),
    }


@jax.named_scope("generator_loss")
def generator_loss(recipe: Recipe, devices: Devices, state: TrainState, params, real, latent_keys):
    """What G descends in its `params`, the rest of `state` held constant, at the latents of these keys [n].

    `real` {"image": [n, ...]} gives the batch's size, and the real logits where an objective compares with them
    (elsewhere XLA drops the pass that makes them, unless `one_pass` normalises over both).

    Returns: (the mean of objective.generator(b, a) over this part of the batch + feature_matching * the distance of
      `_feature_distance` over all of it, (new running statistics, metrics, the largest |logit| of a fake)). D's
      statistics of this pass are dropped.
    """
    real, labels, discriminator = real["image"], labels_of(recipe, real), state.discriminator
    fake, stats = recipe.generator.apply(params, state.generator.stats, recipe.prior(latent_keys), True, *labels)
    real, fake = _seen(recipe, state, latent_keys, real, fake)
    objective, weight = recipe.objective(state.hyperparameters), state.hyperparameters.feature_matching
    network, inputs = recipe.discriminator, (discriminator.params, discriminator.stats, real, fake, labels)
    if weight is None:
        real_logits, fake_logits, _ = _logits(recipe, network.apply, *inputs)
        loss = jnp.mean(objective.generator(fake_logits, real_logits))
        return loss, (stats, {"g_loss": loss}, _largest(fake_logits))
    (real_logits, real_features), (fake_logits, fake_features), _ = _logits(recipe, network.features, *inputs)
    loss = jnp.mean(objective.generator(fake_logits, real_logits))
    distance = _feature_distance(devices, real_features, fake_features)
    return loss + weight * distance, (stats, {"g_loss": loss, "feature_matching": distance}, _largest(fake_logits))


def labels_of(recipe: Recipe, batch) -> tuple:
    """What both networks are called with beside their input: the batch's labels [n], real and fake ones alike."""
    return (batch["label"],) if recipe.conditional else ()


def _seen(recipe, state, latent_keys, real, fake):
    """What D sees of real and fake: augmented, each example by a key of its own, and packed."""
    keys, augment = _keys_of_both(latent_keys, 2**32 - 1), partial(recipe.augment, state)
    return packed(recipe, augment(keys[:, 0], real)), packed(recipe, augment(keys[:, 1], fake))


def _logits_again(recipe, critic, latent_keys, which: int, x):
    """D's logits of the real (0) or the fake (1) examples x, transformed by keys of their own."""
    keys = _keys_of_both(latent_keys, 2**32 - 2)[:, which]
    return critic(packed(recipe, recipe.transform(keys, x)))


def _keys_of_both(latent_keys, number: int):
    """[n, 2]: for each real and for each fake example a key. Latents are drawn at smaller numbers of theirs."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(latent_keys)


def packed(recipe, x):
    """x [n, ..., c] as packs (arXiv:1712.04086): [n / m, ..., m c], each of m neighbours, so of one device."""
    if recipe.packing == 1:
        return x
    packs = jnp.moveaxis(x.reshape(-1, recipe.packing, *x.shape[1:]), 1, -2)
    return packs.reshape(*packs.shape[:-2], -1)


def _one_a_pack(recipe, keys):
    """Of keys [n], one an example, one a pack."""
    return keys if recipe.packing == 1 else keys.reshape(-1, recipe.packing)[:, 0]


def _logits(recipe, apply, params, stats, real, fake, labels):
    """What D's `apply` makes of real and of fake, with its new statistics: two passes, or one over both."""
    if recipe.one_pass:
        labels = [_in_turn(each, each) for each in labels]
        outputs, stats = apply(params, stats, _in_turn(real, fake), True, *labels)
        return *(jax.tree.map(lambda x: x[first::2], outputs) for first in (0, 1)), stats  # noqa: B023
    of_real, stats = apply(params, stats, real, True, *labels)
    of_fake, stats = apply(params, stats, fake, True, *labels)
    return of_real, of_fake, stats


def _feature_distance(devices, real, fake):
    """|E f(x) - E f(G(z))|^2 of features [n, d], with means over the whole batch (arXiv:1606.03498, section 3.1).

    It is no mean over examples: the parts of a batch are averaged before the square. The derivative of their mean goes
    back to each part whole, so that, as of any other loss, the gradient is the mean over the parts.
    """
    real, fake = devices.mean((jnp.mean(real, axis=0), jnp.mean(fake, axis=0)))
    return jnp.sum(jnp.square(real - fake))


def _in_turn(real, fake):
    """Both [n, ...] as one batch [2 n, ...], a fake after each real one: each stays on the device that has it."""
    return jnp.stack([real, fake], axis=1).reshape(-1, *real.shape[1:])


def _critic(recipe, params, stats, labels):
    return lambda x: recipe.discriminator.apply(params, stats, x, True, *labels)[0]


def _penalty(recipe, state, critic, *points):
    """(the mean penalty over this part of the batch, its weight): lazy, it is 0, and not computed, in most steps."""
    weight, every = numbers_now(recipe, state).penalty_weight, recipe.penalty_every
    mean = partial(_mean_penalty, recipe, critic)
    if every == 1:
        return mean(*points), weight
    due = (state.step + 1) % every == 0
    return jax.lax.cond(due, mean, lambda *_: jnp.float32(0), *points), weight * every


def _mean_penalty(recipe, critic, *points):
    return jnp.mean(recipe.penalty(critic, *points))


def _largest(*logits):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(each)) for each in logits]))
