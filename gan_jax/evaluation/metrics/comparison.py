"""The registry of scores: a score is one entry of SCORES; what several share is computed once, by `Examples`.

A score of one's own is named in `evaluation.scores`. It is a function after `lower_is_better` or `higher_is_better`
that returns a number, or a `Metric`. The function is called with those of HANDED that it has a parameter for; its
annotated parameters are config keys, `evaluation.NAME.*` (see `gan_jax.utils.keys`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
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
from gan_jax.utils.errors import InputError, NotFiniteError, users_code
from gan_jax.utils.keys import arguments, imported, keys_of, paths

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


def _of_modes(name: str, better: int, text: str) -> Metric:
    return Metric(Need.MIXTURE, better, lambda x: x.mixture[name], text=text)


def _of_labels(name: str, better: int, text: str) -> Metric:
    return Metric(Need.MODES, better, lambda x: x.labels[name], text=text)


def _of_neighbours(name: str, text: str) -> Metric:
    return Metric(Need.FEATURES, HIGHER, lambda x: getattr(x.neighbours, name), _mean_interval, text)


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
    "high_quality": _of_modes("high_quality", HIGHER, "share of samples within 3 sigma of a mode (arXiv:1705.07761)"),
    "high_quality_ceiling": _of_modes("high_quality_ceiling", 0, "the same of perfect samples"),
    "modes": _of_modes("modes", HIGHER, "modes with a sample within 3 sigma"),
    "modes_total": _of_modes("modes_total", 0, "modes of the mixture"),
    "reverse_kl": _of_modes("reverse_kl", LOWER, "KL in nats of the modes' shares to uniform (arXiv:1712.04086)"),
    "reverse_kl_floor": _of_modes("reverse_kl_floor", 0, "the same of perfect samples"),
    "fid_{}": Metric(
        Need.FEATURES,
        LOWER,
        _frechet,
        _frechet_interval,
        "Fréchet distance of Gaussians fitted to features (arXiv:1706.08500)",
    ),
    "kid_{}": Metric(
        Need.FEATURES,
        LOWER,
        lambda x: x.kernel[0],
        _kernel_interval,
        "squared maximum mean discrepancy of features, cubic kernel, unbiased (arXiv:1801.01401)",
    ),
    "precision_{}": _of_neighbours(
        "precision", "share of samples in the balls of real images, 3 neighbours (arXiv:1904.06991)"
    ),
    "recall_{}": _of_neighbours("recall", "share of real images in the balls of samples (arXiv:1904.06991)"),
    "density_{}": _of_neighbours(
        "density", "balls of real images around a sample, divided by 5, the neighbours (arXiv:2002.09797)"
    ),
    "coverage_{}": _of_neighbours("coverage", "share of real images with a sample in their ball (arXiv:2002.09797)"),
    "inception_score_{}": Metric(
        Need.LABELS,
        HIGHER,
        _inception_score,
        text="exp of the mutual information of class and image (arXiv:1606.03498)",
    ),
    "modes_{}": _of_labels("modes", HIGHER, "classes found among the samples"),
    "modes_total_{}": _of_labels("modes_total", 0, "classes of the data"),
    "reverse_kl_{}": _of_labels("reverse_kl", LOWER, "KL in nats of the classes' shares to uniform"),
    "reverse_kl_floor_{}": _of_labels("reverse_kl_floor", 0, "the same of perfect samples"),
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
        "share of samples that are no copies of training examples (arXiv:2102.08921)",
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


HANDED = {  # parameter of a score of one's own: what it needs, and what it is given
    "samples": (Need.SAMPLES, lambda x: x.samples),  # [n, *shape] float32
    "real": (Need.SAMPLES, lambda x: x.draws[0]),  # [n, *shape] float32, draws from the data
    "features": (Need.FEATURES, lambda x: x.fake.values),  # [n, d] float32, of the samples
    "real_features": (Need.FEATURES, lambda x: x.real.values),  # [m, d] float32, of the reference
}
_TAKEN = {"step", "num_samples", "intervals", "protocol"}  # in evaluation.json, by what are no scores


def lower_is_better(score: Callable) -> Callable:
    """The function as a score of one's own, of which smaller values are better."""
    score.better = LOWER
    return score


def higher_is_better(score: Callable) -> Callable:
    """The function as a score of one's own, of which larger values are better."""
    score.better = HIGHER
    return score


def own_scores(names: str) -> dict[str, Any]:
    """What these import paths, with commas between, lead to, by the name of the score: that of the attribute.

    Raises InputError where one is no score, or has the name of another.
    """
    taken, scores = _TAKEN | {name.removesuffix("_{}") for name in SCORES}, {}
    for path in paths(names):
        name, score = path.rpartition(":")[2], imported(path)
        if name in taken | scores.keys():
            raise InputError(f"{path}: there is a score {name} already; give it another name")
        if not isinstance(score, Metric):
            if not callable(score) or not hasattr(score, "better"):
                first = "gan_jax.evaluation.lower_is_better or higher_is_better"
                raise InputError(f"{path} is no score: it must be a function after {first}, or a Metric")
            parameters = inspect.signature(score).parameters.keys() - keys_of(score).keys() - HANDED.keys()
            if parameters:
                raise InputError(f"{path} takes {', '.join(sorted(parameters))}; a score takes {', '.join(HANDED)}")
        scores[name] = score
    return scores


def scores_of(evaluation: Mapping[str, Any]) -> dict[str, Metric]:
    """SCORES and those of one's own that a run has; `evaluation`: the config values of that group, by name."""
    own = {}
    for name, score in own_scores(evaluation["scores"]).items():
        metric = score if isinstance(score, Metric) else _as_metric(score, evaluation.get(name, {}))
        by_features = metric.needs not in (Need.SAMPLES, Need.MIXTURE)
        own[f"{name}_{{}}" if by_features else name] = metric._replace(measure=partial(_measured, name, metric.measure))
    return SCORES | own


def _as_metric(score: Callable, values: Mapping[str, Any]) -> Metric:
    taken = {name: handed for name, handed in HANDED.items() if name in inspect.signature(score).parameters}
    needs = Need.FEATURES if Need.FEATURES in (need for need, _ in taken.values()) else Need.SAMPLES
    keys = arguments(score, values)
    return Metric(needs, score.better, lambda x: score(**{name: of(x) for name, (_, of) in taken.items()}, **keys))


def _measured(name: str, measure: Callable, x: Examples):
    """What a score of one's own measures. Raises InputError, one line, where it fails or gives no finite number."""
    with users_code(f"the score {name}"):
        value = measure(x)
        mean = float(np.mean(value))
    if not np.isfinite(mean):
        raise NotFiniteError(f"the score {name} is {mean}; it must be a finite number")
    return value


def better(extractor: str, source: Source, metrics: Mapping[str, Metric] = SCORES) -> dict[str, int]:
    """The scores by which a run's steps can be ranked, and whether LOWER or HIGHER is better."""
    met = needs_met(extractor, source)
    named = ((name.format(extractor), metric) for name, metric in metrics.items() if metric.needs in met)
    return {name: metric.better for name, metric in named if metric.better}


def compare(
    examples: Examples, met: set[Need], resamples: int, extractor: str = NONE, metrics: Mapping[str, Metric] = SCORES
) -> dict[str, Score]:
    """The scores whose needs are met, by name; `resamples` of the bootstrap, 0: no intervals by it."""
    scores = {}
    for name, metric in metrics.items():
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
