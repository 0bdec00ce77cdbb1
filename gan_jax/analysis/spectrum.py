"""`--mode=spectrum`: the extremes of the spectrum of the game's vector field at a run's checkpoint, matrix-free.

Two players who descend their own losses at equal rates follow v(theta, psi) = (-grad_theta L_G, -grad_psi L_D). Near a
rest point, the eigenvalues of v's Jacobian J say what becomes of them: real parts below 0 decay, imaginary parts turn,
and x + h v(x) comes to rest where |1 + h lambda| < 1 for every eigenvalue lambda (arXiv:1705.10461, section
3; arXiv:1801.04406, section 2). J is not symmetric, since each player has a loss of its own, and never formed.

This is plain gradient descent, simultaneous and with equal rates, on a fixed set of examples: not Adam's update, not
the alternation of k critic steps with one of the generator. Networks of ReLUs have a piecewise smooth field, whose
Jacobian is that of the piece at hand.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # by itself it loads none of its parts until they are used, and training uses none
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from gan_jax.config import build
from gan_jax.config.build import MOST_UNROLLED, Setup
from gan_jax.data import independent
from gan_jax.parallel.devices import example_keys
from gan_jax.step.state import TrainState
from gan_jax.step.step import discriminator_gradient, generator_gradient
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import write_atomically
from gan_jax.utils.progress import progress

TOLERANCE = 1e-4  # of an eigenvalue, relative to it: what a product in float32, right to 1e-6 of the largest, can bear
RESTARTS = 5  # of Arnoldi's method, each some forty products; what has not converged by then lies in a crowd
DENSE = 100  # parameters up to which the whole matrix costs no more than Arnoldi's method
# The end of the spectrum that each name picks, as a height to sort by.
HEIGHTS = {"LM": np.abs, "LR": np.real, "LI": lambda values: np.abs(np.imag(values))}
# A product costs some three train steps for every minibatch, and a spectrum takes two to four hundred products: with
# so many examples about a minute for a DCGAN on 2 CPU cores.
EXAMPLES = 128
COUNT = 6  # eigenvalues at each end
# Of the largest modulus: an eigenvalue within this is 0 in float32. A relativistic loss or a WGAN's, which do not see
# D's last bias, always has one; that direction rests at any learning rate.
RESOLUTION = 1e-6


def spectrum_of_run(setup: Setup, state: TrainState, workdir: Path, num_samples: int) -> dict[str, float | None]:
    """Writes `spectrum.json` and `spectrum.png` into `workdir`, and returns the scalars among what it writes.

    The players are those of the checkpoint itself, not the averaged generator: that is where the game is. The field is
    the mean over num_samples (0: EXAMPLES) real examples and as many latents, rounded up to whole minibatches of
    config.batch_size (micro-batches, where they are accumulated), and the same at every checkpoint of a run; time and
    memory grow with them. It is computed in float32, whatever config.precision and config.matmul_precision say.

    `stable_learning_rate_at_most` is the largest h with |1 + h lambda| <= 1 for all eigenvalues found that float32 can
    tell from 0, which is min -2 Re(lambda) / |lambda|^2, or 0.0 where a real part is not negative. An end of the
    spectrum at which nothing converged leaves what it alone could tell at None.
    """
    exact = setup.config.to_dict() | {"precision": "float32", "matmul_precision": "highest"}
    setup = build.build_on(setup.source, ConfigDict(exact), setup.devices)
    n = setup.config.batch_size // setup.config.accumulate  # as in training: what batch normalisation averages over
    batches = -(-(num_samples or EXAMPLES) // n)
    if setup.recipe.unroll and batches > MOST_UNROLLED:
        raise InputError(
            f"--num_samples makes {batches} minibatches of {n}, which for convolutional networks on a CPU are written "
            f"out one by one and would compile for very long; ask for at most {MOST_UNROLLED * n}"
        )
    players = state.generator.params, state.discriminator.params
    try:
        with jax.default_matmul_precision("float32"):  # some devices compute in less unless told
            real = independent(setup.source, example_keys(setup.devices, setup.keys.reference, batches * n))
            real = jax.tree.map(lambda x: x.reshape(batches, n, *x.shape[1:]), real)
            field = vector_field(setup.recipe, setup.devices, state, real, setup.keys.evaluation)
            value, transposed = linearise(field, players)
            names = progress(tuple(HEIGHTS), "ends of the spectrum")
            ends = {which: leading_eigenvalues(transposed, which, COUNT) for which in names}
        if not any(len(end.values) for end in ends.values()):
            raise ArithmeticError("no eigenvalue converged; another number of samples may help")
    except (ArithmeticError, scipy.sparse.linalg.ArpackError) as error:
        raise InputError(f"{workdir} has no spectrum at step {int(state.step):,}: {error}") from None
    generator_size, discriminator_size = (sum(x.size for x in jax.tree.leaves(params)) for params in players)
    values = {which: end.values for which, end in ends.items()}
    scalars = {
        "step": int(state.step),
        "examples": batches * n,
        "generator_parameters": generator_size,
        "discriminator_parameters": discriminator_size,
        "field_norm": float(np.linalg.norm(value)),
    } | summary(values)
    written = {
        which: {"eigenvalues": [[x.real, x.imag] for x in end.values.tolist()], "residuals": end.residuals.tolist()}
        for which, end in ends.items()
    }
    content = scalars | {"asked_of_each_end": COUNT, "ends": written}
    write_atomically(workdir / "spectrum.json", (json.dumps(content, indent=2) + "\n").encode())
    picture = plots.spectrum(values, f"{setup.title}, step {int(state.step):,}")
    plots.write_png(workdir / "spectrum.png", picture)
    return scalars


def summary(ends: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Three numbers from the eigenvalues [c] of each end; None where the end that a number needs has none.

    `spectrum_of_run` says what the last one means: a bound from above, since the rest of the spectrum is not known.
    """
    values, right, turning = np.concatenate(list(ends.values())), ends["LR"].real, np.abs(ends["LI"].imag)
    moving = values[np.abs(values) > RESOLUTION * np.abs(values).max()]
    rates = -2 * moving.real / np.abs(moving) ** 2
    known = len(right) > 0 and len(moving) > 0
    return {
        "largest_real_part": float(right.max()) if len(right) else None,
        "largest_imaginary_part": float(turning.max()) if len(turning) else None,
        "stable_learning_rate_at_most": max(0.0, float(rates.min())) if known else None,
    }


class Eigenvalues(NamedTuple):
    """The eigenvalues at one end of a spectrum, the outermost first."""

    values: np.ndarray  # [c] complex; fewer than asked for where the rest did not converge
    residuals: np.ndarray  # [c]: |J^T u - lambda u| of the unit vector u, in the eigenvalues' own units


def vector_field(recipe, devices, state, batches, key):
    """The function players -> (-grad_g generator's loss, -grad_d discriminator's loss), `players` a pair of params.

    Both losses are those of `losses`, the discriminator's with its weighted penalty, and their gradients are means over
    the m minibatches `batches` {"image": [m, n, ...]}, each with a key of its own; what depends on the batch, such as
    batch normalisation, sees n examples. Everything else is that of `state` and constant, running statistics included.
    Within a minibatch both players meet the same latents: the field of a zero-sum game is then one on any sample.
    """
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(batches["image"])))
    # A lazy penalty is the same on average, and a minibatch here is a micro-batch already.
    recipe = recipe._replace(penalty_every=1, generator_penalty_every=1, accumulate=1)
    numbers = recipe.schedule(state.hyperparameters, state.step)

    def field(players):
        generator, discriminator = players
        at_players = state.replace(
            generator=state.generator.replace(params=generator),
            discriminator=state.discriminator.replace(params=discriminator),
        )

        def descend(total, batch_and_key):
            batch, key = batch_and_key
            of_generator, _ = generator_gradient(recipe, devices, numbers, at_players, batch, jax.random.split(key)[0])
            of_discriminator, _ = discriminator_gradient(recipe, devices, numbers, at_players, batch, key)
            return jax.tree.map(jnp.subtract, total, devices.mean((of_generator, of_discriminator))), None

        total = jax.tree.map(jnp.zeros_like, players)
        if recipe.unroll:
            for i in range(len(keys)):
                total, _ = descend(total, jax.tree.map(lambda x, i=i: x[i], (batches, keys)))
        else:
            total, _ = jax.lax.scan(descend, total, (batches, keys))
        return jax.tree.map(lambda x: x / len(keys), total)

    return field


def linearise(field, players) -> tuple[np.ndarray, "scipy.sparse.linalg.LinearOperator"]:
    """`field` at `players` [n], and the map u -> J^T u of its Jacobian [n, n] there, which costs a backward pass each.

    The transpose has the Jacobian's eigenvalues, and needs no forward mode, which our convolutions on a CPU lack.
    Raises FloatingPointError where the field or a product is not finite.
    """
    _, unravel = ravel_pytree(players)
    value, pullback = jax.jit(partial(jax.vjp, field))(players)
    pull = jax.jit(lambda pullback, u: ravel_pytree(pullback(unravel(u))[0])[0])
    value = _finite(ravel_pytree(value)[0], "the vector field")
    product = lambda u: _finite(pull(pullback, np.float32(u.ravel())), "the field's Jacobian")  # noqa: E731
    shape = len(value), len(value)
    return value, scipy.sparse.linalg.LinearOperator(shape, matvec=product, dtype=np.float64)


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
        values, vectors = np.linalg.eig(transposed @ np.eye(n))
    else:
        start = np.random.default_rng(0).standard_normal(n)
        # A wide space costs memory but no products, and finds what a narrow one does not: the ends are often crowded.
        # rng: of the vectors with which it goes on from an invariant subspace.
        options = {"v0": start, "ncv": min(n, 4 * count + 20), "maxiter": RESTARTS, "tol": TOLERANCE, "rng": 0}
        try:
            values, vectors = scipy.sparse.linalg.eigs(transposed, count, which=which, **options)
        except scipy.sparse.linalg.ArpackNoConvergence as stopped:
            values, vectors = stopped.eigenvalues, stopped.eigenvectors
    order = np.argsort(-HEIGHTS[which](values), kind="stable")[:count]
    values, vectors, residuals = values[order].astype(complex), vectors[:, order], []
    for value, vector in zip(values, vectors.T, strict=True):
        product = transposed.matvec(vector.real) + 1j * transposed.matvec(vector.imag)
        residuals.append(np.linalg.norm(product - value * vector) / np.linalg.norm(vector))
    return Eigenvalues(values, np.array(residuals))
