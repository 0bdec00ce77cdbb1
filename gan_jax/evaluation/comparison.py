"""Every score of two sets of features, with an interval: what is printed, logged and written."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # by itself it loads none of its parts until they are used

from gan_jax.data import Source
from gan_jax.evaluation.bootstrap import frechet_interval, interval
from gan_jax.evaluation.extractors import NONE, Features, counts_modes
from gan_jax.evaluation.frechet import frechet_distance, gaussian
from gan_jax.evaluation.inception_score import inception_score
from gan_jax.evaluation.kernel import kernel_distance
from gan_jax.evaluation.modes import label_scores
from gan_jax.evaluation.neighbours import density_coverage, neighbour_distances, precision_recall

LEVEL = 0.95  # of the intervals
NORMAL = 1.96  # standard errors on either side, for that level
PRECISION_K, COVERAGE_K = 3, 5  # nearest neighbours, as in the papers
SPLITS = 10  # of the Inception score
LEAST = 10  # examples of either side, for all of the scores
SEED = 0  # of the bootstrap

LOWER, HIGHER = -1, 1  # which is better
OF_ALL = {"sliced_wasserstein": LOWER}
OF_MODES = {"modes": HIGHER, "reverse_kl": LOWER}
OF_MIXTURES = {"high_quality": HIGHER} | OF_MODES
OF_FEATURES = {
    "fid": LOWER,
    "kid": LOWER,
    "precision": HIGHER,
    "recall": HIGHER,
    "density": HIGHER,
    "coverage": HIGHER,
}


class Score(NamedTuple):
    """A number, and the interval in which it would lie of other samples, where one is known."""

    value: float
    interval: tuple[float, float] | None = None


def better(extractor: str, source: Source) -> dict[str, int]:
    """The scores of a run by which its steps can be ranked, and whether LOWER or HIGHER is better."""
    is_mixture = source.modes is not None
    scores = OF_ALL | (OF_MIXTURES if is_mixture else {})
    if extractor == NONE:
        return scores
    by_features = OF_FEATURES | (OF_MODES if counts_modes(extractor, source) else {})
    if extractor == "inception":
        by_features["inception_score"] = HIGHER
    return scores | {name_with(extractor, score): sign for score, sign in by_features.items()}


def name_with(extractor: str, score: str) -> str:
    """A score's name with the extractor in it: with another one it is another score."""
    return f"{score}_{extractor}"


def compare(real: Features, fake: Features, by_modes: bool, resamples: int) -> dict[str, Score]:
    """The scores of fake features against real ones.

    Args:
      by_modes: whether the classes of the logits are the modes of the data, and every channel has one of its own.
      resamples: of the bootstrap; 0: no intervals by it.

    Returns: `fid`, `kid`, `precision`, `recall`, `density`, `coverage`; with logits `inception_score`; and where the
      classes are modes, `modes`, `modes_total`, `reverse_kl`, `reverse_kl_floor` and `reverse_kl_real`, that of the
      real images. The intervals of the shares of real examples (recall, coverage) are for these samples and other real
      ones; the rest are for other samples.
    """
    scores = _distances(real.values, fake.values, resamples) | _neighbours(real.values, fake.values, resamples)
    if fake.logits is not None:
        scores |= _by_class(real.logits, fake.logits, by_modes)
    return scores


def _distances(real: np.ndarray, fake: np.ndarray, resamples: int) -> dict[str, Score]:
    spread = frechet_interval(real, fake, resamples, LEVEL, SEED) if resamples else None
    kid, error = kernel_distance(real, fake)
    return {
        "fid": Score(frechet_distance(gaussian(real), gaussian(fake)), spread),
        "kid": Score(kid, (kid - NORMAL * error, kid + NORMAL * error)),
    }


def _neighbours(real: np.ndarray, fake: np.ndarray, resamples: int) -> dict[str, Score]:
    distances = neighbour_distances(real, COVERAGE_K)
    indicators = (
        precision_recall(real, fake, PRECISION_K, real_distances=distances)._asdict()
        | density_coverage(real, fake, COVERAGE_K, real_distances=distances)._asdict()
    )
    return {name: estimate(np.mean, each, resamples) for name, each in indicators.items()}


def _by_class(real: np.ndarray, fake: np.ndarray, by_modes: bool) -> dict[str, Score]:
    scores = {}
    if fake.ndim == 2:
        probabilities = scipy.special.softmax(fake.astype(np.float64), axis=-1)
        # Without an interval: it falls as examples repeat, so that resamples lie beside it.
        scores["inception_score"] = Score(inception_score(probabilities, SPLITS)[0])
    if by_modes:
        found = label_scores(*class_labels(fake)) | {"reverse_kl_real": label_scores(*class_labels(real))["reverse_kl"]}
        scores |= {name: Score(value) for name, value in found.items()}
    return scores


def class_labels(logits: np.ndarray) -> tuple[np.ndarray, int]:
    """The likeliest classes, int [n], of logits [n, classes] or [n, channels, classes]; how many there are.

    Those of the channels are the digits of one number, the first channel's first.
    """
    channels = logits if logits.ndim == 3 else logits[:, None]
    _, count, classes = channels.shape
    return channels.argmax(axis=-1) @ classes ** np.arange(count)[::-1], classes**count


def estimate(statistic: Callable, rows: np.ndarray, resamples: int) -> Score:
    """A statistic of examples, with its bootstrap interval; 0 resamples: without."""
    spread = interval(statistic, (rows,), resamples, LEVEL, SEED) if resamples else None
    return Score(float(statistic(rows)), spread)
