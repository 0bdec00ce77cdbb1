"""`--mode=spectrum`: the extremes of the spectrum of the game's field at a run's newest checkpoint.

What the numbers are, and are not, is said in `gan_jax.analysis.dynamics`.
"""

import json
from pathlib import Path

import jax
import numpy as np
import scipy
from ml_collections import ConfigDict

from gan_jax.analysis.dynamics import HEIGHTS, Eigenvalues, leading_eigenvalues, linearise, vector_field
from gan_jax.config import build
from gan_jax.config.build import MOST_UNROLLED, Setup
from gan_jax.data import independent
from gan_jax.parallel.devices import example_keys
from gan_jax.step.state import TrainState
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import write_atomically
from gan_jax.utils.progress import progress

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
    setup = _in_float32(setup)
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
            field, ends = _eigenvalues(setup, state, players, batches, n)
    except (ArithmeticError, scipy.sparse.linalg.ArpackError) as error:
        raise InputError(f"{workdir} has no spectrum at step {int(state.step):,}: {error}") from None
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in players]
    values = {which: end.values for which, end in ends.items()}
    scalars = {
        "step": int(state.step),
        "examples": batches * n,
        "generator_parameters": sizes[0],
        "discriminator_parameters": sizes[1],
        "field_norm": float(np.linalg.norm(field)),
    } | summary(values)
    written = {
        which: {"eigenvalues": [[x.real, x.imag] for x in end.values.tolist()], "residuals": end.residuals.tolist()}
        for which, end in ends.items()
    }
    content = scalars | {"asked_of_each_end": COUNT, "ends": written}
    write_atomically(workdir / "spectrum.json", (json.dumps(content, indent=2) + "\n").encode())
    title = f"{setup.title}, step {int(state.step):,}"
    plots.write_png(workdir / "spectrum.png", plots.spectrum(values, title))
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


def _in_float32(setup: Setup) -> Setup:
    """The same setup, or one with exact products: those in bfloat16 or TF32 are too coarse for eigenvalues."""
    config = setup.config.to_dict()
    exact = config | {"precision": "float32", "matmul_precision": "highest"}
    return setup if config == exact else build.build(ConfigDict(exact), setup.devices, setup.source)


def _eigenvalues(setup, state, players, batches: int, n: int) -> tuple[np.ndarray, dict[str, Eigenvalues]]:
    """(the field, the eigenvalues at each end of its Jacobian's spectrum), over `batches` minibatches of n examples."""
    keys = example_keys(setup.devices, setup.keys.reference, batches * n)
    real = jax.tree.map(lambda x: x.reshape(batches, n, *x.shape[1:]), independent(setup.source, keys))
    value, transposed = linearise(
        vector_field(setup.recipe, setup.devices, state, real, setup.keys.evaluation), players
    )
    names = progress(tuple(HEIGHTS), "ends of the spectrum")
    ends = {which: leading_eigenvalues(transposed, which, COUNT) for which in names}
    if not any(len(end.values) for end in ends.values()):
        raise ArithmeticError("no eigenvalue converged; another number of samples may help")
    return value, ends
