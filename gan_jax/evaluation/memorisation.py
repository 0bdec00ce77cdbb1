"""Whether samples are copies of what a generator was trained on."""

from typing import NamedTuple

import numpy as np

from gan_jax.evaluation.arrays import check_features
from gan_jax.evaluation.neighbours import nearest


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
    met, places = np.unique(index, return_inverse=True)
    center = real.mean(axis=0, dtype=np.float64)  # the smaller the norms, the smaller the rounding
    centred = real - center
    two = (
        NearestNeighbors(n_neighbors=2, algorithm="brute").fit(centred).kneighbors(centred[met], return_distance=False)
    )
    other = np.where(two[:, 0] == met, two[:, 1], two[:, 0])  # where examples are equal, the first may be another
    spacing = np.linalg.norm(centred[met] - centred[other], axis=1)
    return Memorisation(index, distance, spacing[places])
