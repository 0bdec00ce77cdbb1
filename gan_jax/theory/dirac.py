"""The Dirac-GAN (Mescheder et al., arXiv:1801.04406, section 2): the smallest GAN, with the losses that training uses.

The data is a point at 0, the generator a point at theta, the discriminator linear: its logit is undecided + psi x,
where `undecided` is the objective's optimal logit for p_data = p_g. The equilibrium is (theta, psi) = (0, 0). How
training behaves near it is read off the eigenvalues of a 2 x 2 Jacobian: that of the vector field tells of small
steps, that of the update tells of the step size at hand.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.objectives import OBJECTIVES
from gan_jax.penalties import PENALTIES

# Probabilists' Gauss-Hermite quadrature: the expectation over N(0, 1) of a polynomial of degree up to 39 is exact.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
WEIGHTS = WEIGHTS / np.sum(WEIGHTS)


class Game(NamedTuple):
    """The losses of both players and what stabilises them."""

    objective: str
    penalty: str = "none"
    weight: float = 0.0  # of the penalty
    clip: float = 0.0  # psi is kept within this bound after each of its updates; 0: no bound
    noise: float = 0.0  # standard deviation of instance noise on real and fake examples (arXiv:1610.04490)
    steps: int = 1  # of the discriminator for each of the generator, where they alternate


def losses(game: Game, point):
    """[generator's loss, discriminator's loss] at point = (theta, psi): [2] -> [2]. Expectations are exact."""
    objective = OBJECTIVES[game.objective]
    theta, psi = point
    shifts, weights = (NODES, WEIGHTS) if game.noise else (np.zeros(1), np.ones(1))
    shifts, weights = jnp.asarray(game.noise * shifts, theta.dtype), jnp.asarray(weights, theta.dtype)
    # All pairs of a real example, along the first axis, and a fake one.
    real, fake = jnp.meshgrid(shifts, theta + shifts, indexing="ij")
    real_logits, fake_logits = objective.undecided + psi * real, objective.undecided + psi * fake
    pairs = weights[:, None] * weights[None, :]
    generator = jnp.sum(pairs * objective.generator(fake_logits, real_logits))
    discriminator = jnp.sum(pairs * objective.discriminator(real_logits, fake_logits))
    return jnp.stack([generator, discriminator + game.weight * _penalty(game, theta, psi)])


def _penalty(game: Game, theta, psi):
    # The slope of a linear critic is psi wherever a penalty looks, so that its random keys say nothing.
    keys = jax.random.split(jax.random.key(0), 1)
    real, fake = jnp.zeros((1, 1), theta.dtype), jnp.reshape(theta, (1, 1))
    return PENALTIES[game.penalty](lambda x: psi * x[:, 0], keys, real, fake)[0]


def vector_field(game: Game, point):
    """(-d generator's loss / d theta, -d discriminator's loss / d psi), where both players want to go: [2] -> [2]."""
    return -jnp.diagonal(jax.jacobian(lambda point: losses(game, point))(point))


def simultaneous(game: Game, rate: float, point):
    """One gradient step of both players from the same point: [2] -> [2]."""
    return _clipped(game, point + rate * vector_field(game, point))


def flow(game: Game, time: float, point):
    """Both players along the field for a time, by one step of Runge-Kutta's fourth-order rule: [2] -> [2]."""
    first = vector_field(game, point)
    second = vector_field(game, point + time / 2 * first)
    third = vector_field(game, point + time / 2 * second)
    fourth = vector_field(game, point + time * third)
    return _clipped(game, point + time / 6 * (first + 2 * second + 2 * third + fourth))


def alternating(game: Game, rate: float, point):
    """The steps of the discriminator, then one of the generator who sees them, as in `train_step`: [2] -> [2]."""
    for _ in range(game.steps):
        point = _clipped(game, point.at[1].add(rate * vector_field(game, point)[1]))
    return point.at[0].add(rate * vector_field(game, point)[0])


def _clipped(game: Game, point):
    return point.at[1].set(jnp.clip(point[1], -game.clip, game.clip)) if game.clip else point


def eigenvalues(function: Callable):
    """Those of the Jacobian at the equilibrium of `function`, [2] -> [2], on the CPU: [2] complex.

    Gradient flow along a vector field converges where all real parts are negative; an update converges where all
    moduli are below 1 (arXiv:1801.04406, section 2.1). On the border, real part 0 or modulus 1, the linear terms do not
    decide. The penalties whose norm has a kink at psi = 0 (`wgan_gp`, `dragan`) have no Jacobian there.
    """
    return jnp.linalg.eigvals(jax.jacobian(function)(jnp.zeros(2)))


def trajectory(update: Callable, start, steps: int):
    """The points that `update`, [2] -> [2], visits from `start` [2], which is the first: [steps + 1, 2]."""

    def body(point, _):
        return update(point), point

    last, points = jax.lax.scan(body, jnp.asarray(start, jnp.float32), None, length=steps)
    return jnp.concatenate([points, last[None]])
