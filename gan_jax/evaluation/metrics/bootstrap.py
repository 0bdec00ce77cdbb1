"""How sure a score is: intervals by the bootstrap."""

from collections.abc import Callable

import numpy as np

from gan_jax.evaluation.metrics.arrays import check_features
from gan_jax.evaluation.metrics.distances import Gaussian, frechet_distance, gaussian
from gan_jax.utils.errors import InputError
from gan_jax.utils.progress import progress


def interval(
    statistic: Callable, examples: tuple[np.ndarray, ...], resamples: int, level: float, seed: int
) -> tuple[float, float]:
    """The percentile bootstrap interval (Efron, 1979) of `statistic(*examples) -> float`.

    Args:
      examples: arrays of equal length, whose rows are drawn together, with replacement.
      resamples: how often; a thousand are usual.
      level: of confidence, such as 0.95.

    For means and other statistics without much bias: one that falls as examples repeat, or rises, as distances of
    distributions do, leaves the interval that it should be in (see frechet_interval).

    Raises InputError for arrays of different lengths, no examples or resamples, and a level outside (0, 1).
    """
    lengths = {len(array) for array in examples}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(f"examples of lengths {sorted(lengths)}: they should be equally many, and at least one")
    _check(resamples, level)
    rng, n = np.random.default_rng(seed), lengths.pop()
    rows = (rng.integers(n, size=n) for _ in progress(range(resamples), "resamples"))
    return _central([statistic(*(array[drawn] for array in examples)) for drawn in rows], level)


def frechet_interval(
    real: np.ndarray, fake: np.ndarray, resamples: int, level: float, seed: int
) -> tuple[float, float]:
    """The basic bootstrap interval of the Frechet distance of features real [m, d], fake [n, d], drawn independently.

    The distance is biased upwards, and its resamples once more by about as much: the percentiles would lie too high.
    Reflected at the estimate, 2 estimate - percentile, they are corrected for that bias: the interval is one of the
    distance of the distributions, and may lie below the estimate. In 5 dimensions, of 150 examples each, intervals at
    level 0.8 held the true distance 83 times in 100, and the percentiles 33 times. The bias is taken to fall as 1/n:
    with examples few against d, expect less.

    Raises InputError as gaussian and interval do.
    """
    check_features(2, real=real, fake=fake)
    _check(resamples, level)
    rng = np.random.default_rng(seed)
    estimate = frechet_distance(gaussian(real), gaussian(fake))
    turns = progress(range(resamples), "resamples")
    distances = [frechet_distance(_resampled(real, rng), _resampled(fake, rng)) for _ in turns]
    low, high = _central(distances, level)
    return max(0.0, 2 * estimate - high), max(0.0, 2 * estimate - low)


def _resampled(features: np.ndarray, rng: np.random.Generator) -> Gaussian:
    # Weighting the distinct rows in place of copying takes as long: 2.6 times longer in 64 dimensions, 0.8 in 512.
    return gaussian(features[rng.integers(len(features), size=len(features))])


def _central(values: list[float], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check(resamples: int, level: float) -> None:
    if resamples < 1 or not 0 < level < 1:
        raise InputError(f"{resamples} resamples at level {level}: at least one is needed, and a level between 0 and 1")
