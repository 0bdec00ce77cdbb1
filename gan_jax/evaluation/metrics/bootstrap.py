"""How sure a score is: intervals by the bootstrap (Efron, 1979), `level` of confidence such as 0.95."""

import numpy as np

from gan_jax.evaluation.metrics.distances import check_features, frechet_distance, gaussian
from gan_jax.utils.progress import progress


def mean_interval(values: np.ndarray, resamples: int, level: float, seed: int) -> tuple[float, float]:
    """The percentile interval of the mean of `values` [n], n > 0, from at least one resample; a thousand are usual."""
    rng = np.random.default_rng(seed)
    means = [np.mean(_resampled(values, rng)) for _ in progress(range(resamples), "resamples")]
    return _central(means, level)


def frechet_interval(
    real: np.ndarray, fake: np.ndarray, resamples: int, level: float, seed: int
) -> tuple[float, float]:
    """The basic bootstrap interval of the Frechet distance of features real [m, d], fake [n, d], drawn independently.

    The distance is biased upwards, and its resamples once more by about as much: the percentiles would lie too high.
    Reflected at the estimate, 2 estimate - percentile, they are corrected for that bias, taken to fall as 1/n: the
    interval is one of the distance of the distributions, and may lie below the estimate. In 5 dimensions, of 150
    examples each, intervals at level 0.8 held the true distance 83 times in 100, and the percentiles 33 times; with
    examples few against d, expect less.

    Raises InputError for fewer than two examples, different dimensions, NaN or infinity.
    """
    check_features(2, real=real, fake=fake)
    rng = np.random.default_rng(seed)
    estimate = frechet_distance(gaussian(real), gaussian(fake))
    # Weighting the distinct rows in place of copying takes as long: 2.6 times longer in 64 dimensions, 0.8 in 512.
    distances = [
        frechet_distance(gaussian(_resampled(real, rng)), gaussian(_resampled(fake, rng)))
        for _ in progress(range(resamples), "resamples")
    ]
    low, high = _central(distances, level)
    return max(0.0, 2 * estimate - high), max(0.0, 2 * estimate - low)


def _resampled(examples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return examples[rng.integers(len(examples), size=len(examples))]


def _central(values: list[float], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
