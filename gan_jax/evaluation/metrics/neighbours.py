"""Scores by nearest neighbours in feature space: precision, recall, density, coverage, and memorised examples.

Distances are Euclidean, in float64; those to neighbours are taken from differences: of equal points they are exactly 0.
"""

from typing import NamedTuple

import numpy as np

from gan_jax.evaluation.metrics.distances import check_features
from gan_jax.utils.errors import InputError

ROUNDING = 1e-12  # of a squared distance from a product of matrices, in units of the largest squared norm
BLOCK = 256  # MiB of distances at once


class NeighbourScores(NamedTuple):
    """Per example, what the scores are the means of: rows for a bootstrap."""

    precision: np.ndarray  # bool [n]: is this fake example in the ball of a real one
    recall: np.ndarray  # bool [m]: is this real example in the ball of a fake one
    density: np.ndarray  # float64 [n]: balls of real examples around this fake one, divided by k
    coverage: np.ndarray  # bool [m]: is any fake example in the ball of this real one


def neighbour_scores(real: np.ndarray, fake: np.ndarray, precision_k: int = 3, coverage_k: int = 5) -> NeighbourScores:
    """Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797), of real [m, d], fake [n, d].

    The ball of an example reaches to its k-th nearest other of its own kind, that one included: a point outside by no
    more than rounding is inside. k is `precision_k` for the first two scores and `coverage_k` for the others. Of equal
    distributions the expected density is 1, and that of coverage, for large m = n, 1 - 2^-k.

    Raises InputError as squared_radii does, and for different dimensions.
    """
    from sklearn.metrics import pairwise_distances_chunked  # a second, as all of scikit-learn: training needs none

    check_features(1, real=real, fake=fake)
    precision_radii, coverage_radii = squared_radii(real, precision_k, coverage_k)
    (fake_radii,) = squared_radii(fake, precision_k)
    center = real.mean(axis=0, dtype=np.float64)  # the smaller the norms, the smaller the rounding
    real, fake = real - center, fake - center
    rounding = ROUNDING * max(np.square(x).sum(axis=1).max() for x in (fake, real))
    precision, density = np.zeros(len(fake), bool), np.zeros(len(fake))
    recall, coverage = np.zeros((2, len(real)), bool)
    start = 0
    for squared in pairwise_distances_chunked(fake, real, metric="euclidean", squared=True, working_memory=BLOCK):
        squared -= rounding
        rows = slice(start, start + len(squared))
        inside = squared <= coverage_radii
        precision[rows] = (squared <= precision_radii).any(axis=1)
        recall |= (squared <= fake_radii[rows, None]).any(axis=0)
        density[rows] = inside.sum(axis=1) / coverage_k
        coverage |= inside.any(axis=0)
        start = rows.stop
    return NeighbourScores(precision, recall, density, coverage)


def squared_radii(features: np.ndarray, *ks: int) -> list[np.ndarray]:
    """For each k the squared distance [n] from each of features [n, d] to its k-th nearest other.

    Raises InputError unless 1 <= k < n, and for NaN or infinity.
    """
    from sklearn.neighbors import NearestNeighbors

    check_features(1, the=features)
    if not 1 <= min(ks) <= max(ks) < len(features):
        named = " and ".join(map(str, ks))
        raise InputError(f"k is {named}, of {len(features)} examples: it should be at least 1 and below their number")
    x = features.astype(np.float64)
    x -= x.mean(axis=0)
    neighbours = NearestNeighbors(n_neighbors=max(ks), algorithm="brute").fit(x).kneighbors(return_distance=False)
    distances = np.sort([np.linalg.norm(x - x[column], axis=1) for column in neighbours.T], axis=0)
    return [np.square(distances[k - 1]) for k in ks]


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

    Of examples whose distances agree to rounding, any may be named. Raises InputError for other shapes, different
    dimensions, NaN or infinity.
    """
    from sklearn.metrics import pairwise_distances_argmin
    from sklearn.neighbors import NearestNeighbors

    check_features(2, real=real)
    check_features(1, real=real, fake=fake)
    center = real.mean(axis=0, dtype=np.float64)
    real, fake = real - center, fake - center
    index = pairwise_distances_argmin(fake, real)
    distance = np.linalg.norm(fake - real[index], axis=1)
    originals, places = np.unique(index, return_inverse=True)
    search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(real)
    pairs = search.kneighbors(real[originals], return_distance=False)
    # Where examples are equal, the first of a pair may be another.
    other = np.where(pairs[:, 0] == originals, pairs[:, 1], pairs[:, 0])
    spacing = np.linalg.norm(real[originals] - real[other], axis=1)
    return Memorisation(index, distance, spacing[places])
