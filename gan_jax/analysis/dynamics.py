"""The game as a dynamical system: its vector field and the extremes of that field's spectrum, matrix-free.

Two players who descend their own losses at equal rates follow v(theta, psi) = (-grad_theta L_G, -grad_psi L_D). Near a
rest point, the eigenvalues of v's Jacobian J say what becomes of them: real parts below 0 decay, imaginary parts turn,
and x + h v(x) comes to rest where |1 + h lambda| < 1 for every eigenvalue lambda (arXiv:1705.10461, section
3; arXiv:1801.04406, section 2). J is not symmetric, since each player has a loss of its own, and never formed.

This is plain gradient descent, simultaneous and with equal rates, on a fixed set of examples: not Adam's update, not
the alternation of k critic steps with one of the generator. Networks of ReLUs have a piecewise smooth field, whose
Jacobian is that of the piece at hand.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # by itself it loads none of its parts until they are used, and training uses none
from jax.flatten_util import ravel_pytree

from gan_jax.step.losses import discriminator_loss, generator_loss
from gan_jax.step.step import discriminator_keys

TOLERANCE = 1e-4  # of an eigenvalue, relative to it: what a product in float32, right to 1e-6 of the largest, can bear
RESTARTS = 5  # of Arnoldi's method, each some forty products; what has not converged by then lies in a crowd
DENSE = 100  # parameters up to which the whole matrix costs no more than Arnoldi's method

# The end of the spectrum that each name picks, as a height to sort by.
HEIGHTS = {"LM": np.abs, "LR": np.real, "LI": lambda values: np.abs(np.imag(values))}


class Eigenvalues(NamedTuple):
    """The eigenvalues at one end of a spectrum, the outermost first."""

    values: np.ndarray  # [c] complex; fewer than asked for where the rest did not converge
    residuals: np.ndarray  # [c]: |J^T u - lambda u| of the unit vector u, in the eigenvalues' own units


class Linearised(NamedTuple):
    """A field at one point of the n parameters of both players."""

    value: np.ndarray  # [n]
    transposed: "scipy.sparse.linalg.LinearOperator"  # [n, n]: u -> J^T u


def vector_field(recipe, devices, state, batches, key):
    """The function players -> (-grad_g generator's loss, -grad_d discriminator's loss), `players` a pair of params.

    Both losses are those of `losses`, the discriminator's with its weighted penalty, and their gradients are means over
    the m minibatches `batches` {"image": [m, n, ...]}, each with a key of its own; what depends on the batch, such as
    batch normalisation, sees n examples. Everything else is that of `state` and constant, running statistics included.
    Within a minibatch both players meet the same latents: the field of a zero-sum game is then one on any sample.
    """
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(batches["image"])))
    recipe = recipe._replace(penalty_every=1)  # lazy, it is the same on average
    return partial(_field, recipe, devices, state, batches, keys)


def _field(recipe, devices, state, batches, keys, players):
    generator, discriminator = players
    state = state.replace(
        generator=state.generator.replace(params=generator),
        discriminator=state.discriminator.replace(params=discriminator),
    )

    def descend(total, batch_and_key):
        return jax.tree.map(jnp.subtract, total, _gradients(recipe, devices, state, *batch_and_key)), None

    total = jax.tree.map(jnp.zeros_like, players)
    if recipe.unroll:
        for i in range(len(keys)):
            total, _ = descend(total, jax.tree.map(lambda x, i=i: x[i], (batches, keys)))
    else:
        total, _ = jax.lax.scan(descend, total, (batches, keys))
    return jax.tree.map(lambda x: x / len(keys), total)


def _gradients(recipe, devices, state, batch, key):
    """(of the generator's loss, of the discriminator's), each in its own parameters."""
    latent_keys, penalty_keys = discriminator_keys(devices, key, len(batch["image"]))
    numbers = recipe.schedule(state.hyperparameters, state.step)
    loss = partial(generator_loss, recipe, devices, numbers, state)
    generator, _ = jax.grad(loss, has_aux=True)(state.generator.params, batch, latent_keys)
    loss = partial(discriminator_loss, recipe, numbers, state)
    discriminator, _ = jax.grad(loss, has_aux=True)(state.discriminator.params, batch, latent_keys, penalty_keys)
    return devices.mean((generator, discriminator))


def linearise(field, players) -> Linearised:
    """`field` at `players` and its transposed Jacobian there, as a map of vectors that costs a backward pass each.

    The transpose has the Jacobian's eigenvalues, and needs no forward mode, which our convolutions on a CPU lack.
    Raises FloatingPointError where the field or a product is not finite.
    """
    _, unravel = ravel_pytree(players)
    value, pullback = jax.jit(partial(jax.vjp, field))(players)
    pull = jax.jit(lambda pullback, u: ravel_pytree(pullback(unravel(u))[0])[0])
    value = _finite(ravel_pytree(value)[0], "the vector field")
    product = lambda u: _finite(pull(pullback, np.float32(u.ravel())), "the field's Jacobian")  # noqa: E731
    shape = len(value), len(value)
    return Linearised(value, scipy.sparse.linalg.LinearOperator(shape, matvec=product, dtype=np.float64))


def _finite(array, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise FloatingPointError(f"{name} is not finite")
    return np.asarray(array, np.float64)


def leading_eigenvalues(transposed: "scipy.sparse.linalg.LinearOperator", which: str, count: int) -> Eigenvalues:
    """At most `count` eigenvalues of the real matrix behind `transposed`, by implicitly restarted Arnoldi (ARPACK).

    Args:
      which: the end of the spectrum: LM, the largest modulus; LR, the largest real part; LI, the largest imaginary
        part, up or down. A conjugate pair may lose one of the two at the end of the list.
    Each is an eigenvalue to within its residual and the matrix's conditioning; where an end is crowded, as that of the
    largest real parts often is, one further out can have been missed, so that a list is a bound from inside.
    A matrix too small for Arnoldi's method is formed. The start is fixed, so that a second call gives the same numbers.
    """
    n = transposed.shape[0]
    if n <= max(DENSE, count + 1):  # Arnoldi's method wants count < n - 1
        values, vectors = np.linalg.eig(np.stack([transposed.matvec(unit) for unit in np.eye(n)], axis=1))
    else:
        values, vectors = _arnoldi(transposed, which, count)
    order = np.argsort(-HEIGHTS[which](values), kind="stable")[:count]
    values, vectors = values[order].astype(complex), vectors[:, order]
    residuals = [_residual(transposed, value, vector) for value, vector in zip(values, vectors.T, strict=True)]
    return Eigenvalues(values, np.array(residuals))


def _arnoldi(transposed, which, count):
    n = transposed.shape[0]
    start = np.random.default_rng(0).standard_normal(n)
    # A wide space costs memory but no products, and finds what a narrow one does not: the ends are often crowded.
    width = min(n, 4 * count + 20)
    try:
        return scipy.sparse.linalg.eigs(  # rng: of the vectors with which it goes on from an invariant subspace
            transposed, count, which=which, v0=start, ncv=width, maxiter=RESTARTS, tol=TOLERANCE, rng=0
        )
    except scipy.sparse.linalg.ArpackNoConvergence as stopped:
        return stopped.eigenvalues, stopped.eigenvectors


def _residual(transposed, value, vector):
    product = transposed.matvec(vector.real).astype(complex)
    if value.imag:
        product += 1j * transposed.matvec(vector.imag)
    return np.linalg.norm(product - value * vector) / np.linalg.norm(vector)
