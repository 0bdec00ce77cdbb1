"""The sliced Wasserstein distance."""

import numpy as np

from gan_jax.evaluation.arrays import row_blocks


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, projections: int = 128) -> float:
    """The 2-Wasserstein distance of equally many x, y [n, ...], in root mean square over random directions.

    Along one direction the optimal coupling sorts both sides (arXiv:1804.01947, equation 2). The directions are the
    same at every call. In units of the data, per dimension averaged out: two sets shifted by a vector v are
    |v| / sqrt(d) apart, d the number of components of an example.
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
