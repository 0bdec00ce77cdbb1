"""The Frechet distance of Gaussians fitted to features: with those of Inception, FID (arXiv:1706.08500)."""

from typing import NamedTuple

import numpy as np

from gan_jax.errors import InputError
from gan_jax.evaluation.arrays import check_features, row_blocks


class Gaussian(NamedTuple):
    """The moments of features, float64."""

    mean: np.ndarray  # [d]
    covariance: np.ndarray  # [d, d]
    count: int  # of the examples behind it: its rank is below; of a distribution known exactly, any number above d


def gaussian(features: np.ndarray) -> Gaussian:
    """The mean and unbiased covariance of features [n, d], at least two, summed in float64.

    Raises InputError for other shapes and for NaN or infinity.
    """
    check_features(2, the=features)
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((len(mean), len(mean)))
    for rows in row_blocks(*features.shape):
        centred = features[rows] - mean  # two passes: x x^T - n m m^T would cancel
        covariance += centred.T @ centred
    return Gaussian(mean, covariance / (len(features) - 1), len(features))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared 2-Wasserstein distance |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), arXiv:1706.08500.

    In squared units of the features; the root has the eigenvalues of (A B)^1/2, and is symmetric: no imaginary parts.
    The estimate is biased upwards by about 1/n (arXiv:1911.07023): compare at equal counts only. With no more examples
    than dimensions a covariance is singular, of rank count - 1; the distance is finite still, and nearly all bias.

    Raises InputError where the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"Gaussians in {len(a.mean)} and {len(b.mean)} dimensions: they should be of one extractor")
    a, b = sorted((a, b), key=lambda each: each.count)  # of the smaller rank: the smaller product
    root = _root(a)
    eigenvalues = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    shift = np.sum(np.square(a.mean - b.mean))
    # Rounding may leave equal Gaussians slightly below 0.
    return float(max(0, shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap))


def _root(a: Gaussian) -> np.ndarray:
    """R [d, r] with R R^T = A. The symmetric root is R and a rotation, which no eigenvalue of R^T B R sees."""
    eigenvalues, eigenvectors = np.linalg.eigh(a.covariance)
    # What is beyond the rank is rounding, whose root is not small: 1e-8 for 1e-16.
    kept = slice(-min(a.count - 1, len(eigenvalues)), None)
    return eigenvectors[:, kept] * np.sqrt(np.clip(eigenvalues[kept], 0, None))
