"""The kernel distance of features: with those of Inception, KID (arXiv:1801.01401)."""

import numpy as np

from gan_jax.evaluation.arrays import check_features, row_blocks


def kernel_distance(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The squared maximum mean discrepancy of features x [m, d], y [n, d], kernel (x.y/d + 1)^3 (arXiv:1801.01401).

    The U-statistic over all pairs of distinct examples, not a mean over subsets: unbiased, so it may be negative, and
    of the least variance. No units: features are expected of order 1.

    Returns: the value, and its standard error by the jackknife over the examples of both sides. Where the two
      distributions are equal, the statistic is degenerate and that error is too large, by up to sqrt(2).

    Raises InputError for fewer than three examples a side, different dimensions, NaN or infinity.
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
    """The part of the variance that comes from one side, of m examples: (m - 1)/m sum_i (v_i - mean v)^2.

    v_i, the value without example i, up to what does not depend on i: that example is in twice its row sum of the
    pairs within its side, and once in those across.
    """
    m = len(within)
    without = (within.sum() - 2 * within) / ((m - 1) * (m - 2)) - 2 * (across.sum() - across) / ((m - 1) * others)
    return (m - 1) * np.var(without)


def _sums_within(x: np.ndarray) -> np.ndarray:
    """sum over j != i of k(x_i, x_j), [m]; each pair of blocks is met once."""
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
