"""The registry of scores: a score is one entry of SCORES; what several share is computed once, by `Examples`."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy  # by itself it loads none of its parts until they are used

from gan_jax.data import Source, independent
from gan_jax.evaluation.features.extractors import EXTRACTORS, NONE, Features
from gan_jax.evaluation.metrics.bootstrap import frechet_interval, mean_interval
from gan_jax.evaluation.metrics.classes import class_labels, inception_score, label_scores, mode_scores
from gan_jax.evaluation.metrics.distances import frechet_distance, gaussian, kernel_distance, sliced_wasserstein
from gan_jax.evaluation.metrics.neighbours import Memorisation, NeighbourScores, neighbour_scores

LEVEL, NORMAL = 0.95, 1.96  # of the intervals, and the standard errors on either side for that level
SPLITS = 10  # of the Inception score
LEAST = 10  # examples of either side, for all of the scores
SEED = 0  # of the bootstrap

LOWER, HIGHER = -1, 1  # which is better


class Need(Enum):
    """What a score is computed from."""

    SAMPLES = "samples, and draws from the data"
    MIXTURE = "samples of a mixture whose modes are known"
    FEATURES = "features of images"
    LABELS = "one class for each image"
    MODES = "classes that are those of the data"
    COPIES = "the nearest training example of each sample"


class Score(NamedTuple):
    """A number, and where one is known the interval in which it would lie for other samples."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass
class Examples:
    """Samples and what they are compared with; what no score of interest needs may be missing."""

    source: Source | None = None
    samples: np.ndarray | None = None  # [n, *shape] float32
    key: Any = None  # of the draws from the data
    real: Features | None = None  # of the reference
    fake: Features | None = None  # of the samples
    copies: Memorisation | None = None  # of the samples in the training set

    @cached_property
    def draws(self) -> tuple[np.ndarray, np.ndarray]:
        """Two independent sets of real examples from what one trains on, each as many as the samples."""
        keys = jax.random.split(self.key, 2 * len(self.samples))
        return tuple(np.split(np.asarray(independent(self.source, keys)["image"]), 2))

    @cached_property
    def mixture(self) -> dict[str, float]:
        return mode_scores(self.samples, self.source.modes)

    @cached_property
    def kernel(self) -> tuple[float, float]:
        return kernel_distance(self.real.values, self.fake.values)

    @cached_property
    def neighbours(self) -> NeighbourScores:
        return neighbour_scores(self.real.values, self.fake.values)

    @cached_property
    def labels(self) -> dict[str, float]:
        return label_scores(*class_labels(self.fake.logits))


class Metric(NamedTuple):
    """A score. Intervals are for other samples, but those of recall and coverage for other real examples."""

    needs: Need
    better: int  # LOWER or HIGHER; 0: a number to compare a score with
    measure: Callable  # (Examples) -> a number, or an array whose mean it is
    interval: Callable | None = None  # (Examples, what `measure` gave, resamples or 0) -> (low, high) or None
    text: str = ""  # what it is, in a line


def _frechet(x: Examples) -> float:
    return frechet_distance(gaussian(x.real.values), gaussian(x.fake.values))


def _frechet_interval(x: Examples, value: float, resamples: int):
    return frechet_interval(x.real.values, x.fake.values, resamples, LEVEL, SEED) if resamples else None


def _kernel_interval(x: Examples, value: float, resamples: int):
    return value - NORMAL * x.kernel[1], value + NORMAL * x.kernel[1]


def _mean_interval(x: Examples, rows: np.ndarray, resamples: int):
    return mean_interval(rows, resamples, LEVEL, SEED) if resamples else None


def _inception_score(x: Examples) -> float:
    # Without an interval: it falls as examples repeat, so that resamples lie beside it.
    return inception_score(scipy.special.softmax(x.fake.logits.astype(np.float64), axis=-1), SPLITS)[0]


# By the name in files and in evaluation.best; {} is the extractor: with another one it is another score.
SCORES = {
    "sliced_wasserstein": Metric(
        Need.SAMPLES,
        LOWER,
        lambda x: sliced_wasserstein(x.samples, x.draws[0]),
        text="sliced Wasserstein distance of samples from as many real examples",
    ),
    "sliced_wasserstein_floor": Metric(
        Need.SAMPLES,
        0,
        lambda x: sliced_wasserstein(x.draws[1], x.draws[0]),
        text="the same between two draws of real examples",
    ),
    "high_quality": Metric(
        Need.MIXTURE,
        HIGHER,
        lambda x: x.mixture["high_quality"],
        text="share of samples within 3 sigma of a mode (arXiv:1705.07761)",
    ),
    "high_quality_ceiling": Metric(
        Need.MIXTURE, 0, lambda x: x.mixture["high_quality_ceiling"], text="the same of perfect samples"
    ),
    "modes": Metric(Need.MIXTURE, HIGHER, lambda x: x.mixture["modes"], text="modes with a sample within 3 sigma"),
    "modes_total": Metric(Need.MIXTURE, 0, lambda x: x.mixture["modes_total"], text="modes of the mixture"),
    "reverse_kl": Metric(
        Need.MIXTURE,
        LOWER,
        lambda x: x.mixture["reverse_kl"],
        text="KL in nats of the modes' shares to uniform (arXiv:1712.04086)",
    ),
    "reverse_kl_floor": Metric(
        Need.MIXTURE, 0, lambda x: x.mixture["reverse_kl_floor"], text="the same of perfect samples"
    ),
    "fid_{}": Metric(
        Need.FEATURES,
        LOWER,
        _frechet,
        _frechet_interval,
        text="Fréchet distance of Gaussians fitted to features (arXiv:1706.08500)",
    ),
    "kid_{}": Metric(
        Need.FEATURES,
        LOWER,
        lambda x: x.kernel[0],
        _kernel_interval,
        text="squared maximum mean discrepancy of features, cubic kernel, unbiased (arXiv:1801.01401)",
    ),
    "precision_{}": Metric(
        Need.FEATURES,
        HIGHER,
        lambda x: x.neighbours.precision,
        _mean_interval,
        text="share of samples in the balls of real images, 3 neighbours (arXiv:1904.06991)",
    ),
    "recall_{}": Metric(
        Need.FEATURES,
        HIGHER,
        lambda x: x.neighbours.recall,
        _mean_interval,
        text="share of real images in the balls of samples (arXiv:1904.06991)",
    ),
    "density_{}": Metric(
        Need.FEATURES,
        HIGHER,
        lambda x: x.neighbours.density,
        _mean_interval,
        text="balls of real images around a sample, divided by 5, the neighbours (arXiv:2002.09797)",
    ),
    "coverage_{}": Metric(
        Need.FEATURES,
        HIGHER,
        lambda x: x.neighbours.coverage,
        _mean_interval,
        text="share of real images with a sample in their ball (arXiv:2002.09797)",
    ),
    "inception_score_{}": Metric(
        Need.LABELS,
        HIGHER,
        _inception_score,
        text="exp of the mutual information of class and image (arXiv:1606.03498)",
    ),
    "modes_{}": Metric(Need.MODES, HIGHER, lambda x: x.labels["modes"], text="classes found among the samples"),
    "modes_total_{}": Metric(Need.MODES, 0, lambda x: x.labels["modes_total"], text="classes of the data"),
    "reverse_kl_{}": Metric(
        Need.MODES, LOWER, lambda x: x.labels["reverse_kl"], text="KL in nats of the classes' shares to uniform"
    ),
    "reverse_kl_floor_{}": Metric(
        Need.MODES, 0, lambda x: x.labels["reverse_kl_floor"], text="the same of perfect samples"
    ),
    "reverse_kl_real_{}": Metric(
        Need.MODES,
        0,
        lambda x: label_scores(*class_labels(x.real.logits))["reverse_kl"],
        text="the same of the real images",
    ),
    "authenticity_{}": Metric(
        Need.COPIES,
        HIGHER,
        lambda x: x.copies.authentic,
        _mean_interval,
        text="share of samples that are no copies of training examples (arXiv:2102.08921)",
    ),
}


def needs_met(extractor: str, source: Source) -> set[Need]:
    """What can be scored of a run on this data with this extractor, or NONE."""
    met = {Need.SAMPLES} if source.modes is None else {Need.SAMPLES, Need.MIXTURE}
    if extractor == NONE:
        return met
    kind, channels = EXTRACTORS[extractor], source.shape[-1]
    by_channel = kind.channels not in (0, channels)  # each channel of an image is labelled by itself
    if kind.classes and not by_channel:
        met.add(Need.LABELS)
    if kind.channels and len(source.classes) == kind.classes ** (channels if by_channel else 1):
        met.add(Need.MODES)
    return met | {Need.FEATURES}


def better(extractor: str, source: Source) -> dict[str, int]:
    """The scores by which a run's steps can be ranked, and whether LOWER or HIGHER is better."""
    met = needs_met(extractor, source)
    metrics = ((name.format(extractor), metric) for name, metric in SCORES.items() if metric.needs in met)
    return {name: metric.better for name, metric in metrics if metric.better}


def compare(examples: Examples, met: set[Need], resamples: int, extractor: str = NONE) -> dict[str, Score]:
    """The scores whose needs are met, by name; `resamples` of the bootstrap, 0: no intervals by it."""
    scores = {}
    for name, metric in SCORES.items():
        if metric.needs in met:
            value = metric.measure(examples)
            spread = metric.interval(examples, value, resamples) if metric.interval else None
            value = value if isinstance(value, (int, float)) else float(np.mean(value))
            scores[name.format(extractor)] = Score(value, spread)
    return scores


def data_scores(source: Source, samples: np.ndarray, key) -> dict[str, float]:
    """The scores of `samples` [n, *shape] that need no features, some beside those of perfect samples.

    They are compared with draws by `key` from the source that one trains on: memorised examples are perfect samples.
    """
    scores = compare(Examples(source, samples, key), needs_met(NONE, source), resamples=0)
    return {name: score.value for name, score in scores.items()}
