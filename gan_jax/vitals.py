"""A run's vital signs, which its steps do not report: how diverse samples are, logits' ranges, singular values."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from gan_jax import step
from gan_jax.data import independent
from gan_jax.networks.spectral import matrices
from gan_jax.recipe import Setup
from gan_jax.state import Average, TrainState

EXAMPLES = 256  # of the data, and as many samples; or as many more as make whole groups for D
RESOLUTION = 1e-8  # of singular values, relative to the largest one


class Distances(NamedTuple):
    """How far examples are from each other."""

    mean: float  # of all pairs
    nearest: float  # the median over the examples, of each to its nearest other one


class Vitals:
    """Takes the vital signs of one run, by itself on this process's first device, from the state alone.

    The real examples and the latents are the same at every step. No number of the training depends on any of it.
    """

    def __init__(self, setup: Setup, like: "Vitals | None" = None):
        """Draws the real examples. Raises InputError where these cannot be read.

        Args:
          like: of another run of the same program, whose compiled function serves for this one too.
        """
        recipe = setup.recipe
        self._look = like._look if like else jax.jit(partial(_look, recipe))
        count = -(-EXAMPLES // recipe.together) * recipe.together
        real = independent(setup.source, jax.random.split(setup.keys.backdrop, count))
        self._real, self._labels = np.asarray(real["image"]), step.labels_of(recipe, real)
        self._keys, self._of_data = jax.random.split(setup.keys.pictures, count), distances(self._real)

    def signs(self, state: TrainState) -> dict[str, float]:
        """Those of this state, by their names in the metrics; what is not a finite number is left out.

        diversity, diversity_near: the mean distance of two samples, and the median distance of a sample to its nearest
          other one, over those of as many real examples;
        logit_real_min, logit_real_max, logit_fake_min, logit_fake_max: of D's logits, with its running statistics;
        g_singular_max, d_singular_max: the largest singular value among a player's weights;
        g_singular_spread, d_singular_spread: of the weight where this is most, the largest over the median one (at most
          1 / RESOLUTION).
        """
        # Through the host, where the singular values are taken; of several processes each has a copy of the state.
        generator, discriminator = jax.device_get((state.generator, state.discriminator))
        fake, *logits = self._look(self._keys, generator, discriminator, self._real, *self._labels)
        found = (
            _relative(distances(np.asarray(fake)), self._of_data)
            | _ranges(*map(np.asarray, logits))
            | _singular("g", generator.params)
            | _singular("d", discriminator.params)
        )
        return {name: value for name, value in found.items() if np.isfinite(value)}


def distances(x: np.ndarray) -> Distances:
    """The distances between examples x [n, ...], n > 1, all components of one counting alike."""
    x = x.reshape(len(x), -1).astype(np.float64)
    x = x - x.mean(axis=0)  # the smaller the norms, the smaller the rounding of the differences below
    squares = np.sum(x**2, axis=1)
    between = np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0))
    mean = between.sum() / (len(x) * (len(x) - 1))
    np.fill_diagonal(between, np.inf)
    return Distances(float(mean), float(np.median(between.min(axis=1))))


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """The singular values of a matrix [rows, columns], ascending, float64; as many as the smaller of both.

    From the eigenvalues of the smaller Gram matrix, which is quick: those below RESOLUTION of the largest are not
    exact. NaN where the matrix is not finite.
    """
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        return np.full(min(matrix.shape), np.nan)
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))


def _look(recipe, keys, generator, discriminator, real, *labels):
    """(samples, D's logits of the real examples, of the samples)."""
    fake = step.sample(recipe, Average(generator.params, generator.stats), recipe.prior(keys), *labels)
    return fake, *(step.judge(recipe, discriminator, x, *labels) for x in (real, fake))


def _relative(samples: Distances, data: Distances) -> dict[str, float]:
    ratios = zip(("diversity", "diversity_near"), samples, data, strict=True)
    return {name: of_samples / of_data for name, of_samples, of_data in ratios if of_data}


def _ranges(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    sides = {"logit_real": real, "logit_fake": fake}
    return {f"{side}_{end}": float(getattr(x, end)()) for side, x in sides.items() for end in ("min", "max")}


def _singular(player: str, params) -> dict[str, float]:
    largest, spreads = [], []
    for matrix in matrices(params).values():
        values = singular_values(matrix)
        largest.append(values[-1])
        spreads.append(values[-1] / np.maximum(np.median(values), RESOLUTION * values[-1]) if values[-1] else 1)
    return {f"{player}_singular_max": float(np.max(largest)), f"{player}_singular_spread": float(np.max(spreads))}
