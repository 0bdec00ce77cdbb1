"""Training on densities that are known on both sides, by the shipped step: what several studies share."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

from configs import base
from gan_jax import recipe, step
from gan_jax.config.build import Setup
from gan_jax.data import Source
from gan_jax.networks import Network
from gan_jax.parallel.devices import mesh
from gan_jax.step.state import TrainState

LIPSCHITZ = {"penalty.name": "wgan_gp_one_sided", "penalty.weight": 10.0}  # for wgan, whose critic needs a bound


class Grid(NamedTuple):
    """Equal cells that cover the mass of two distributions: sums over it are integrals."""

    points: np.ndarray  # [m, d], the centres of the cells
    volume: float  # of one cell, in units of the data to the power d

    def probabilities(self, source: Source):
        """The probability of each cell, [m], summing to 1."""
        mass = jax.jit(source.density)(self.points)
        return mass / jnp.sum(mass)


def grid(low: float, high: float, cells: int, dimension: int) -> Grid:
    """`cells` in each direction between low and high."""
    width = (high - low) / cells
    ticks = np.linspace(low + width / 2, high - width / 2, cells, dtype=np.float32)
    axes = np.meshgrid(*[ticks] * dimension, indexing="ij")
    return Grid(np.stack(axes, axis=-1).reshape(-1, dimension), width**dimension)


def setup_on(source: Source, changes: dict) -> Setup:
    """The setup of `configs/base.py` with `changes` {dotted key: value}, on a source that no config names.

    On one device: these networks are too small for several to share a batch with gain.
    """
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    return recipe.build(config.lock(), mesh(jax.devices()[:1]), source)


def against(setup: Setup, fake: Source) -> Setup:
    """The same with a generator that is the distribution of `fake` and has nothing to learn."""
    generator = Network(init=lambda key, z: ({}, {}), apply=lambda params, stats, z, train: (z, stats), convolves=False)
    prior = partial(_draw, fake)
    return setup._replace(recipe=setup.recipe._replace(generator=generator, prior=prior))


def _draw(source: Source, keys):
    return source.draw(source.data, None, keys)["image"]


def trainer(setup: Setup, steps: int) -> Callable:
    """state -> (state after `steps` train steps, their metrics, each [steps]): compiled once, donates the state."""
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, steps)
    compiled = setup.devices.compile(function, recipe.abstract_state(setup), setup.source.data)
    return lambda state: jax.block_until_ready(compiled(state, setup.source.data))


def affine_generator(setup: Setup, mean: float, scale: float) -> TrainState:
    """The state before the first step of a run whose generator is z -> mean + scale z on the line (depth 0, dim 1)."""
    state = recipe.initial_state(setup)
    params = {"Dense_0": {"bias": jnp.full(1, mean), "kernel": jnp.full((1, 1), scale)}}
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, state.generator.params):
        raise ValueError("the config's generator is not an affine map of the line")
    ema = state.ema.replace(params=jax.tree.map(jnp.copy, params))
    return setup.devices.place(state.replace(generator=state.generator.replace(params=params), ema=ema))


def mean_and_scale(params) -> tuple[float, float]:
    """Of the distribution that an affine generator with these parameters makes of standard normal latents."""
    return float(params["Dense_0"]["bias"][0]), abs(float(params["Dense_0"]["kernel"][0, 0]))


def gaussians(points, centers, sigma):
    """The probabilities, summing to 1, that equal-weight Gaussians at `centers` [c] give the points [m] of the line."""
    logs = logsumexp(norm.logpdf(points[:, None], jnp.asarray(centers), sigma), axis=1)
    return jax.nn.softmax(logs)


def logits(setup: Setup, state: TrainState, points):
    """The discriminator's logits at points [m, d]: [m]."""
    player = state.discriminator
    return jax.jit(setup.recipe.discriminator.apply, static_argnums=3)(player.params, player.stats, points, False)[0]
