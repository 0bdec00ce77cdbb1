"""Distances of two sets of examples: Frechet (FID), kernel (KID) and sliced Wasserstein."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gan_jax.utils.errors import InputError

NUMBERS = 2**24  # float64 numbers in a block: 128 MiB


def check_features(least: int, **features: np.ndarray) -> None:
    """Raises InputError unless each is [n, d], of one d, with at least `least` examples and finite numbers only."""
    for name, x in features.items():
        if x.ndim != 2:
            raise InputError(f"{name} features have shape {x.shape}: they should be [examples, dimensions]")
        if len(x) < least:
            raise InputError(f"{name} features have shape {x.shape}: at least {least} examples are needed")
        if not np.isfinite(x).all():
            raise InputError(f"{name} features hold NaN or infinity: they should be finite numbers")
    dimensions = {name: x.shape[1] for name, x in features.items()}
    if len(set(dimensions.values())) > 1:
        raise InputError(f"features of different dimensions, {dimensions}: they should come from one extractor")


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of `rows` such that a block of that many rows and `columns` holds about NUMBERS numbers."""
    size = max(1, NUMBERS // columns)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


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

    In squared units of the features. The estimate is biased upwards by about 1/n (arXiv:1911.07023): compare at equal
    counts only. With no more examples than dimensions it is finite still, and nearly all bias. Raises InputError where
    the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"Gaussians in {len(a.mean)} and {len(b.mean)} dimensions: they should be of one extractor")
    a, b = sorted((a, b), key=lambda moments: moments.count)  # of the smaller rank: the smaller product
    eigenvalues, eigenvectors = np.linalg.eigh(a.covariance)
    # What is beyond the rank is rounding, whose root is not small: 1e-8 for 1e-16.
    kept = slice(-min(a.count - 1, len(eigenvalues)), None)
    # R [d, r] with R R^T = A. The symmetric root is R and a rotation, which no eigenvalue of R^T B R sees.
    root = eigenvectors[:, kept] * np.sqrt(np.clip(eigenvalues[kept], 0, None))
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ b.covariance @ root), 0, None)).sum()
    shift = np.sum(np.square(a.mean - b.mean))
    # Rounding may leave equal Gaussians slightly below 0.
    return float(max(0, shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap))


def kernel_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The squared maximum mean discrepancy of features x [m, d], y [n, d], kernel (x.y/d + 1)^3 (arXiv:1801.01401).

    The U-statistic over all pairs of distinct examples, not a mean over subsets: unbiased, so it may be negative, and
    of the least variance. No units: features are expected of order 1.

    Returns the value, and its standard error by the jackknife over the examples of both sides; where the two
    distributions are equal, that error is too large, by up to sqrt(2). Raises InputError for fewer than three examples
    a side, different dimensions, NaN or infinity.
    """
    check_features(3, x=x, y=y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    m, n = len(x), len(y)
    within_x, within_y = _sums_within(x), _sums_within(y)
    across_x, across_y = _sums_across(x, y)
    value = within_x.sum() / (m * (m - 1)) + within_y.sum() / (n * (n - 1)) - 2 * across_x.sum() / (m * n)
    variance = _jackknife(within_x, across_x, n) + _jackknife(within_y, across_y, m)
    return float(value), float(np.sqrt(variance))


def _jackknife(within: np.ndarray, across: np.ndarray, others: int) -> float:
    """The part of the variance that comes from one side, of m examples: (m - 1)/m sum_i (v_i - mean v)^2."""
    m = len(within)
    # v_i, the value without example i, up to a constant: i is twice in the pairs within its side, once in those across.
    without = (within.sum() - 2 * within) / ((m - 1) * (m - 2)) - 2 * (across.sum() - across) / ((m - 1) * others)
    return (m - 1) * np.var(without)


def _sums_within(x: np.ndarray) -> np.ndarray:
    """sum over j != i of k(x_i, x_j), [m]; each pair is met once."""
    sums = -_kernel(np.einsum("id,id->i", x, x) / x.shape[1])
    for rows in row_blocks(len(x), len(x)):
        kernel = _kernel(x[rows] @ x[rows.start :].T / x.shape[1])
        sums[rows] += kernel.sum(axis=1)
        sums[rows.stop :] += kernel[:, rows.stop - rows.start :].sum(axis=0)
    return sums


def _sums_across(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row sums [m] and column sums [n] of k(x_i, y_j)."""
    of_x, of_y = np.empty(len(x)), np.zeros(len(y))
    for rows in row_blocks(len(x), len(y)):
        kernel = _kernel(x[rows] @ y.T / x.shape[1])
        of_x[rows] = kernel.sum(axis=1)
        of_y += kernel.sum(axis=0)
    return of_x, of_y


def _kernel(products: np.ndarray) -> np.ndarray:
    shifted = products + 1
    return shifted * shifted * shifted  # many times faster than a power


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, projections: int = 128) -> float:
    """The 2-Wasserstein distance of equally many x, y [n, ...], in root mean square over random directions.

    Along one direction the optimal coupling sorts both sides (arXiv:1804.01947, equation 2). The directions are the
    same at every call. In units of the data: sets of d-dimensional examples shifted by v are |v| / sqrt(d) apart.
    """
    if len(x) != len(y):
        raise ValueError(f"the two sets must have equally many examples, not {len(x)} and {len(y)}")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    directions = np.random.default_rng(0).standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    difference = _sorted_along(directions, x) - _sorted_along(directions, y)
    return float(np.sqrt(np.mean(np.square(difference))))


def _sorted_along(directions: np.ndarray, x: np.ndarray) -> np.ndarray:
    # In blocks: many images, in float64, would not fit into memory.
    along = [x[rows].astype(np.float64) @ directions for rows in row_blocks(*x.shape)]
    return np.sort(np.concatenate(along), axis=0)
