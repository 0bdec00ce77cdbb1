"""Scores of a generator: pure functions of samples and of what is known about the data."""

from typing import Annotated, NamedTuple

from gan_jax.evaluation.metrics.classes import mode_scores
from gan_jax.evaluation.metrics.comparison import (
    better,
    compare,
    data_scores,
    higher_is_better,
    lower_is_better,
)
from gan_jax.evaluation.metrics.distances import sliced_wasserstein
from gan_jax.utils.keys import COUNT, PATHS, POSITIVE_INT, TEXT

__all__ = [
    "Evaluation",
    "better",
    "compare",
    "data_scores",
    "higher_is_better",
    "lower_is_better",
    "mode_scores",
    "sliced_wasserstein",
]


class Evaluation(NamedTuple):
    """How a run is scored: the config keys `evaluation.*` beside the extractor and its own keys."""

    num_samples: Annotated[int, POSITIVE_INT, "examples that are made and scored"] = 2_500
    num_real: Annotated[int, COUNT, "real images whose features they are compared with; 0: all of the split"] = 10_000
    split: Annotated[str, TEXT, "the split of the data in which these images are"] = "train"
    resamples: Annotated[int, COUNT, "of the bootstrap behind each interval"] = 200
    scores: Annotated[str, PATHS, "scores of one's own, beside those of the package; empty: none"] = ""
    best: Annotated[str, TEXT, "the score whose best checkpoint is kept beside the newest; empty: none is"] = ""
