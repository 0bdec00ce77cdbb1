"""Networks of a few numbers, and recipes of them, that tests can follow by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import objectives
from gan_jax.data import Source
from gan_jax.networks import Network
from gan_jax.parallel.devices import mesh
from gan_jax.step import losses, schedules, step
from gan_jax.step.state import Recipe

# Short names of the numbers that tests set.
KEYS = {
    "generator_rate": "generator.optimizer.learning_rate",
    "discriminator_rate": "discriminator.optimizer.learning_rate",
    "penalty_weight": "penalty.weight",
    "label_smoothing": "objective.label_smoothing",
    "feature_matching": "objective.feature_matching",
    "ema_decay": "generator.ema_decay",
    "instance_noise": "augment.instance_noise",
    "augment_probability": "augment.probability",
    "ada_target": "augment.ada_target",
    "lecam": "discriminator.lecam",
    "consistency": "discriminator.consistency",
    "fake_consistency": "discriminator.fake_consistency",
}


def linear_discriminator(w=(1.0,), b=0.0):
    """D(x) = w x + b."""
    return Network(
        convolves=False,
        init=lambda key, x: ({"w": jnp.array(w), "b": jnp.float32(b)}, {}),
        apply=lambda params, stats, x, train: (x @ params["w"] + params["b"], stats),
    )


def shifting_generator(c=(0.0,)):
    """G(z) = z + c, with the mean of z as its statistics."""
    return Network(
        convolves=False,
        init=lambda key, z: ({"c": jnp.array(c)}, {"mean": jnp.zeros(len(c))}),
        apply=lambda params, stats, z, train: (z + params["c"], {"mean": jnp.mean(z, axis=0)} if train else stats),
    )


def numbers(**changes):
    """Hyperparameters for plain gradient descent, by config key; `changes` have the names of KEYS."""
    values = {"generator_rate": 0.5, "discriminator_rate": 0.25, "ema_decay": 0.0} | changes
    return {KEYS[name]: jnp.float32(value) for name, value in values.items()}


def noise(keys, dim=1):
    """Keys [n] -> numbers [n, dim], dim <= 2, uniform on [-1, 1): the keys' own bits, which compile in no time."""
    return jax.random.key_data(keys)[:, :dim].astype(jnp.float32) / 2.0**31 - 1


NOISE = Source(shape=(1,), draw=lambda data, indices, keys: {"image": noise(keys)}, std=1.0)


def descent(player):
    """Plain gradient descent of a player at its learning rate."""
    return lambda numbers: optax.sgd(numbers[f"{player}.optimizer.learning_rate"])


def toy_recipe(objective="non_saturating", penalty=None, batch_size=4, steps=1, **changes):
    """A recipe of the toys in one dimension, descended plainly; `changes` are fields of Recipe.

    `penalty` is a function (critic, keys, real, fake) -> [n].
    """
    fields = {
        "generator": shifting_generator(),
        "discriminator": linear_discriminator(),
        "objective": lambda numbers: objectives.NAMED[objective],
        "penalty": (lambda numbers: penalty) if penalty else None,
        "schedule": partial(schedules.at_step, 100, 100, batch_size),
        "generator_tx": descent("generator"),
        "discriminator_tx": descent("discriminator"),
        "prior": noise,
        "batch_size": batch_size,
        "discriminator_steps": steps,
        "move": step.MOVES["alternating"],
    }
    return Recipe(**(fields | changes))


def toy_state(recipe, hyperparameters=None, shape=(1,)):
    """The first state of a recipe, of `numbers()`."""
    return step.init_state(recipe, numbers() if hyperparameters is None else hyperparameters, jax.random.key(0), shape)


def constant_prior(*latents):
    """A prior that ignores its keys."""
    return lambda keys: jnp.array(latents, jnp.float32)


def image(*values):
    """A batch of examples of one component."""
    return {"image": jnp.array(values, jnp.float32)[:, None]}


def one_device():
    return mesh(jax.devices()[:1])


def raw(tree):
    """The tree with its PRNG keys as numbers."""

    def as_numbers(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(as_numbers, tree)


def assert_same_bits(actual, expected):
    jax.tree.map(assert_array_equal, raw(actual), raw(expected))


def assert_all_moved(actual, expected):
    """Every array of the trees differs."""
    jax.tree.map(lambda a, b: None if np.any(a != b) else pytest.fail(f"{a} did not move"), raw(actual), raw(expected))


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(partial(assert_allclose, rtol=rtol, atol=atol), raw(actual), raw(expected))


def discriminator_loss_of(recipe):
    """`discriminator_loss` of a recipe with the numbers of the state's own step: (state, params, real, keys, keys)."""

    def loss(state, *arguments):
        return losses.discriminator_loss(recipe, recipe.schedule(state.hyperparameters, state.step), state, *arguments)

    return loss


def generator_loss_of(recipe, devices):
    """The same of `generator_loss`: (state, params, real, keys)."""

    def loss(state, *arguments):
        numbers = recipe.schedule(state.hyperparameters, state.step)
        return losses.generator_loss(recipe, devices, numbers, state, *arguments)

    return loss
