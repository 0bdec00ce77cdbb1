"""Convolutions of stride 1 by Winograd's minimal filtering: fewer multiplications, as matrix products and additions.

In one dimension F(m, r) computes m outputs of a kernel of r taps from m + r - 1 inputs with as many multiplications,
where the definition has m r: y = A^T [(G w) * (B^T x)] (Winograd 1980; for networks Lavin and Gray, arXiv:1509.09308).
Applied to rows and columns, each of the (m + r - 1)^2 products becomes one product of matrices over channels. The
multiplications per output fall to 9/16 for r = 2 and to 4/9 for r = 3; the additions around them are
not free, so that wide layers gain and thin ones do not. With m = 2 all coefficients are 0, 1, -1 or 1/2, and the
rounding errors are of the size of the direct convolution's in float32.

`x` [n, H, W, c] and `w` [r, r, c, f] give [n, h, w, f] with h = H - r + 1 ("valid"), h and w multiples of M.

The three are jitted so that a layer that a step meets ten times is traced once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

M = 2  # outputs of a tile in each direction

# By taps r: B^T [m + r - 1, m + r - 1], G [m + r - 1, r], A^T transposed [m + r - 1, m].
_INPUT = {
    2: ((1, -1, 0), (0, 1, 0), (0, -1, 1)),
    3: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
}
_KERNEL = {
    2: ((1, 0), (1, 1), (0, 1)),
    3: ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
}
_OUTPUT = {
    2: ((1, 0), (1, 1), (0, 1)),
    3: ((1, 0), (1, 1), (1, -1), (0, -1)),
}


@jax.jit
def conv(x, w):
    """The convolution: x [n, h + r - 1, w + r - 1, c], w [r, r, c, f] -> [n, h, w, f]."""
    taps = w.shape[0]
    products = [v @ u for v, u in zip(_tiles(x, taps), _kernels(w), strict=True)]
    return _outputs(products, x.shape[0], x.shape[1] - taps + 1, x.shape[2] - taps + 1, taps)


@jax.jit
def adjoint(y, w):
    """Its adjoint in x: y [n, h, w, f], w [r, r, c, f] -> [n, h + r - 1, w + r - 1, c]."""
    taps = w.shape[0]
    products = [_product(v, u, 1, 1) for v, u in zip(_outputs_adjoint(y, taps), _kernels(w), strict=True)]
    return _tiles_adjoint(products, *y.shape[:3], taps)


@partial(jax.jit, static_argnames="taps")
def kernel_gradient(x, y, taps: int):
    """Its adjoint in w: x [n, h + r - 1, w + r - 1, c], y [n, h, w, f] -> [r, r, c, f]."""
    pairs = zip(_tiles(x, taps), _outputs_adjoint(y, taps), strict=True)
    return _kernels_adjoint([_product(v, u, 0, 0) for v, u in pairs], taps)


def _product(a, b, axis_of_a: int, axis_of_b: int):
    return lax.dot_general(a, b, (((axis_of_a,), (axis_of_b,)), ((), ())))


def _combine(matrix, parts) -> list:
    """`matrix` times the vector of arrays `parts`, written out: zeros cost nothing."""
    sums = []
    for row in matrix:
        terms = [part if a == 1 else a * part for a, part in zip(row, parts, strict=True) if a]
        sums.append(sum(terms[1:], terms[0]))
    return sums


def _transposed(matrix):
    return tuple(zip(*matrix, strict=True))


def _grid(flat: list, size: int) -> list[list]:
    return [flat[i * size : (i + 1) * size] for i in range(size)]


def _tiles(x, taps: int) -> list:
    """Every tile of the input, transformed: (m + r - 1)^2 arrays [tiles, c]."""
    rows = _combine(_INPUT[taps], _windows(x, 1, taps))
    return [v.reshape(-1, x.shape[-1]) for row in rows for v in _combine(_INPUT[taps], _windows(row, 2, taps))]


def _tiles_adjoint(products: list, n: int, height: int, width: int, taps: int):
    back = _transposed(_INPUT[taps])
    tiles = [v.reshape(n, height // M, width // M, -1) for v in products]
    rows = [_overlap_add(_combine(back, row), 2, taps) for row in _grid(tiles, M + taps - 1)]
    return _overlap_add(_combine(back, rows), 1, taps)


def _windows(x, axis: int, taps: int) -> list:
    """The i-th input of every tile along `axis`, for each i: tiles begin m pixels apart and overlap by r - 1."""
    count = (x.shape[axis] - taps + 1) // M
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, M * (count + 1) - x.shape[axis])
    x = jnp.pad(x, padding)
    x = x.reshape(*x.shape[:axis], count + 1, M, *x.shape[axis + 1 :])
    starts = [lax.slice_in_dim(x, i // M, i // M + count, axis=axis) for i in range(M + taps - 1)]
    return [lax.index_in_dim(start, i % M, axis + 1, keepdims=False) for i, start in enumerate(starts)]


def _overlap_add(windows: list, axis: int, taps: int):
    """The adjoint of `_windows`: an input that two tiles share is the sum of both."""
    count = windows[0].shape[axis]
    own = [_shifted(window, axis, 0) for window in windows[:M]]
    shared = [_shifted(window, axis, 1) for window in windows[M:]]
    parts = [a + shared[i] if i < len(shared) else a for i, a in enumerate(own)]
    x = jnp.stack(parts, axis + 1)
    x = x.reshape(*x.shape[:axis], M * (count + 1), *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, M * count + taps - 1, axis=axis)


def _shifted(x, axis: int, by: int):
    padding = [(0, 0)] * x.ndim
    padding[axis] = (by, 1 - by)
    return jnp.pad(x, padding)


def _kernels(w) -> list:
    """The transformed kernel: (m + r - 1)^2 matrices [c, f]."""
    matrix = _KERNEL[w.shape[0]]
    return [u for row in _combine(matrix, list(w)) for u in _combine(matrix, list(row))]


def _kernels_adjoint(products: list, taps: int):
    back = _transposed(_KERNEL[taps])
    rows = [jnp.stack(_combine(back, row)) for row in _grid(products, M + taps - 1)]
    return jnp.stack(_combine(back, rows))


def _outputs(products: list, n: int, height: int, width: int, taps: int):
    """The outputs [n, h, w, f] from the products of all tiles."""
    back = _transposed(_OUTPUT[taps])
    tiles = [v.reshape(n, height // M, width // M, -1) for v in products]
    rows = [jnp.stack(_combine(back, row), 3) for row in _grid(tiles, M + taps - 1)]
    return jnp.stack(_combine(back, rows), 2).reshape(n, height, width, -1)


def _outputs_adjoint(y, taps: int) -> list:
    n, height, width, f = y.shape
    y = y.reshape(n, height // M, M, width // M, M, f)
    rows = _combine(_OUTPUT[taps], [y[:, :, i] for i in range(M)])
    return [v.reshape(-1, f) for row in rows for v in _combine(_OUTPUT[taps], [row[:, :, :, i] for i in range(M)])]
