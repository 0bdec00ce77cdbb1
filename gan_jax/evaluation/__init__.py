"""Scores of a generator: pure functions of samples and of what is known about the data."""

import jax
import numpy as np

from gan_jax.data import Source, independent
from gan_jax.evaluation.modes import mode_scores
from gan_jax.evaluation.wasserstein import sliced_wasserstein


def data_scores(source: Source, samples: np.ndarray, key) -> dict[str, float]:
    """What can be said of `samples` [n, *shape] from this source, each score beside that of perfect samples.

    Mixtures get `modes`, `high_quality` and `reverse_kl`; all data gets `sliced_wasserstein` to as many real examples
    drawn with `key`, and the distance between two such draws as `sliced_wasserstein_floor`. The draws are from the
    source that one trains on: this tells how well the data is fitted, not whether it was memorised.
    """
    scores = mode_scores(samples, source.modes) if source.modes else {}
    keys = jax.random.split(key, 2 * len(samples))
    real = np.asarray(independent(source, keys)["image"])
    first, second = real[: len(samples)], real[len(samples) :]
    return scores | {
        "sliced_wasserstein": sliced_wasserstein(samples, first),
        "sliced_wasserstein_floor": sliced_wasserstein(second, first),
    }


from typing import Annotated, NamedTuple

from gan_jax.keys import COUNT, POSITIVE_INT, TEXT


class Evaluation(NamedTuple):
    """temporary"""

    weights: Annotated[str, TEXT, ""] = ""
    num_samples: Annotated[int, POSITIVE_INT, ""] = 2_500
    num_real: Annotated[int, COUNT, ""] = 10_000
    split: Annotated[str, TEXT, ""] = "train"
    resamples: Annotated[int, COUNT, ""] = 200
    best: Annotated[str, TEXT, ""] = ""
