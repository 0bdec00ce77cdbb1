"""Scores by nearest neighbours in feature space: precision, recall, density, coverage, and memorised examples.

Distances are Euclidean, in float64. Neighbours are found by products of matrices, and the distances to them then taken
from the differences: those of equal points are exactly 0.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gan_jax.evaluation.metrics.arrays import check_features
from gan_jax.utils.errors import InputError

ROUNDING = 1e-12  # of a squared distance from a product of matrices, in units of the largest squared norm
BLOCK = 256  # MiB of distances at once


class PrecisionRecall(NamedTuple):
    """Per example, what the scores are the means of: rows for a bootstrap."""

    precision: np.ndarray  # bool [n]: is this fake example in the ball of a real one
    recall: np.ndarray  # bool [m]: is this real example in the ball of a fake one


class DensityCoverage(NamedTuple):
    """Per example, what the scores are the means of: rows for a bootstrap."""

    density: np.ndarray  # float64 [n]: balls of real examples around this fake one, divided by k
    coverage: np.ndarray  # bool [m]: is any fake example in the ball of this real one


def neighbour_distances(features: np.ndarray, k: int) -> np.ndarray:
    """The distances [n, k], ascending, from each of features [n, d] to its k nearest others.

    Raises InputError unless 1 <= k < n, and for NaN or infinity.
    """
    from sklearn.neighbors import NearestNeighbors  # a second, as all of scikit-learn, which training can do without

    check_features(1, the=features)
    if not 1 <= k < len(features):
        raise InputError(f"k is {k}, of {len(features)} examples: it should be at least 1 and below their number")
    x = features.astype(np.float64)
    x -= x.mean(axis=0)  # the smaller the norms, the smaller the rounding
    neighbours = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors(return_distance=False)
    distances = [np.linalg.norm(x - x[column], axis=1) for column in neighbours.T]
    return np.sort(np.stack(distances, axis=1), axis=1)


def precision_recall(
    real: np.ndarray, fake: np.ndarray, k: int = 3, *, real_distances: np.ndarray | None = None
) -> PrecisionRecall:
    """Improved precision and recall (arXiv:1904.06991) of features real [m, d], fake [n, d].

    The ball of an example reaches to its k-th nearest other of its own kind, that one included: a point outside by no
    more than rounding is inside.

    Args:
      real_distances: neighbour_distances(real, k or more), where they are known already.

    Raises InputError as neighbour_distances does, and for different dimensions.
    """
    check_features(1, real=real, fake=fake)
    of_real = _squared_radii(real, k, real_distances)
    of_fake = _squared_radii(fake, k, None)[:, None]
    precision, recall = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for rows, squared in _blocks(fake, real):
        precision[rows] = (squared <= of_real).any(axis=1)
        recall |= (squared <= of_fake[rows]).any(axis=0)
    return PrecisionRecall(precision, recall)


def density_coverage(
    real: np.ndarray, fake: np.ndarray, k: int = 5, *, real_distances: np.ndarray | None = None
) -> DensityCoverage:
    """Density and coverage (arXiv:2002.09797) of features real [m, d], fake [n, d].

    Of equal distributions the expected density is 1, and that of coverage, for large m = n, 1 - 2^-k. Balls, arguments
    and errors are those of precision_recall.
    """
    check_features(1, real=real, fake=fake)
    of_real = _squared_radii(real, k, real_distances)
    density, coverage = np.zeros(len(fake)), np.zeros(len(real), bool)
    for rows, squared in _blocks(fake, real):
        inside = squared <= of_real
        density[rows] = inside.sum(axis=1) / k
        coverage |= inside.any(axis=0)
    return DensityCoverage(density, coverage)


def nearest(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance float64 [n] from each of queries [n, d] to the nearest of references [m, d], and its index int [n].

    Of two references whose distances agree to rounding, either may be named. Raises InputError for different
    dimensions, NaN or infinity.
    """
    from sklearn.metrics import pairwise_distances_argmin

    check_features(1, queries=queries, references=references)
    center = references.mean(axis=0, dtype=np.float64)
    queries, references = queries - center, references - center
    indices = pairwise_distances_argmin(queries, references)
    return np.linalg.norm(queries - references[indices], axis=1), indices


def _squared_radii(features: np.ndarray, k: int, distances: np.ndarray | None) -> np.ndarray:
    if distances is None:
        distances = neighbour_distances(features, k)
    if len(distances) != len(features) or not 1 <= k <= distances.shape[1]:
        raise InputError(
            f"distances of shape {distances.shape} for {len(features)} examples and k = {k}:"
            f" they should be those of neighbour_distances with this k or more"
        )
    return np.square(distances[:, k - 1])


def _blocks(fake: np.ndarray, real: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of the squared distances [n, m], less their rounding."""
    from sklearn.metrics import pairwise_distances_chunked

    center = real.mean(axis=0, dtype=np.float64)
    fake, real = fake - center, real - center
    rounding = ROUNDING * max(np.square(x).sum(axis=1).max() for x in (fake, real))
    start = 0
    for squared in pairwise_distances_chunked(fake, real, metric="euclidean", squared=True, working_memory=BLOCK):
        squared -= rounding
        yield slice(start, start + len(squared)), squared
        start += len(squared)


class Memorisation(NamedTuple):
    """Per sample, its nearest training example."""

    index: np.ndarray  # int [n], of that example
    distance: np.ndarray  # float64 [n], to it
    spacing: np.ndarray  # float64 [n], from that example to its own nearest other one

    @property
    def authentic(self) -> np.ndarray:
        """bool [n]: whether it is further from the example than another example is; its mean is the authenticity.

        arXiv:2102.08921, section 3. Near 0 for copies; for fresh draws of the same distribution about 1/2.
        """
        return self.distance > self.spacing

    def or_nearer(self, other: "Memorisation") -> "Memorisation":
        """For each sample the nearer of two findings."""
        nearer = other.distance < self.distance
        return Memorisation(*(np.where(nearer, b, a) for a, b in zip(self, other, strict=True)))

    def closest(self, count: int) -> np.ndarray:
        """The `count` samples that are most like copies, int [count]: nearest in units of the spacing there."""
        spacing = np.maximum(self.spacing, np.finfo(np.float64).tiny)  # 0 where the training set repeats itself
        return np.argsort(self.distance / spacing, kind="stable")[:count]


def memorisation(real: np.ndarray, fake: np.ndarray) -> Memorisation:
    """The nearest of the training examples' features real [m, d], m > 1, for each of the features fake [n, d].

    Raises InputError for other shapes, different dimensions, NaN or infinity.
    """
    from sklearn.neighbors import NearestNeighbors  # a second, which training can do without

    check_features(2, real=real)
    distance, index = nearest(fake, real)
    originals, places = np.unique(index, return_inverse=True)
    x = real - real.mean(axis=0, dtype=np.float64)  # the smaller the norms, the smaller the rounding
    pairs = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(x).kneighbors(x[originals], return_distance=False)
    # Where examples are equal, the first of a pair may be another.
    other = np.where(pairs[:, 0] == originals, pairs[:, 1], pairs[:, 0])
    spacing = np.linalg.norm(x[originals] - x[other], axis=1)
    return Memorisation(index, distance, spacing[places])
