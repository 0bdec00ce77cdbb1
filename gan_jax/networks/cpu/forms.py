"""The ways in which the convolutions of `convolution` are written: one for XLA to see to, one that is fast on a CPU.

On a CPU, XLA's own rule for the kernel gradient of a transposed convolution is 20 times slower than the same gradient
written as that of the convolution. So a convolution and its adjoint are each other's input gradient there, and share
one kernel gradient. Thin layers are matrix products of patches, wide ones go by Winograd's algorithm. The numbers are
the same up to rounding, to any order of derivative. Elsewhere XLA's rules are good and nothing is overridden.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gan_jax.networks.cpu import winograd
from gan_jax.networks.layers import mean_pool, upsample

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_TRANSPOSED = ("NHWC", "HWOI", "NHWC")  # the channels of the kernel exchanged


def _strided_conv(x, w):
    return lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _strided_adjoint(y, w):
    # The transposed convolution correlates the dilated input with the flipped kernel, its channels exchanged.
    flipped = jnp.flip(w, (0, 1))
    return lax.conv_general_dilated(
        y, flipped, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_TRANSPOSED
    )


# The output pixel 2 i + phase sees the input pixels i - 1 + phase and i + phase, through these two rows of the kernel.
_TAPS = ((3, 1), (2, 0))
_PADDING = ((1, 0), (0, 1))


def _strided_adjoint_by_phases(y, w):
    """The adjoint as four 2x2 convolutions, one for each parity of the output's row and column, interleaved."""
    n, height, width, _ = y.shape
    rows = []
    for row in (0, 1):
        columns = []
        for column in (0, 1):
            kernel = w[jnp.array(_TAPS[row])][:, jnp.array(_TAPS[column])]
            padding = (_PADDING[row], _PADDING[column])
            columns.append(lax.conv_general_dilated(y, kernel, (1, 1), padding, dimension_numbers=_TRANSPOSED))
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, w.shape[2])


def _kernel_gradient(conv, x, w, dy):
    """The gradient of <conv(x, w), dy> in w: the convolution's transpose in its (linear) kernel."""
    return jax.linear_transpose(lambda w: conv(x, w), w)(dy)[0]


# Where an image is thin (few channels, as at both ends of a DCGAN), a convolution has too little to do for each pixel;
# one matrix product over all 4x4 patches has the same work in a form that keeps the processor busy.
THIN = 8


@jax.jit
def _blocks(x):
    """The 2x2 blocks of x [n, 2 h, 2 w, c], padded by one pixel all round: [n, h + 1, w + 1, 4 c]."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    n, height, width, c = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, c).swapaxes(2, 3)
    return x.reshape(n, height // 2, width // 2, 4 * c)


@jax.jit
def _patches(x):
    """The 4x4 patch that each output pixel sees, as its four blocks: [n, 2 h, 2 w, c] -> [n, h, w, 16 c]."""
    blocks = _blocks(x)
    height, width = blocks.shape[1] - 1, blocks.shape[2] - 1
    return jnp.concatenate([blocks[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)], axis=-1)


@partial(jax.jit, static_argnames="c")
def _patches_adjoint(patches, c):
    """The adjoint of `_patches`: every pixel is the sum of the places where it was seen."""
    n, height, width, _ = patches.shape
    patches = patches.reshape(n, height, width, 2, 2, 4 * c)
    blocks = sum(
        jnp.pad(patches[:, :, :, i, j], ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0))) for i in (0, 1) for j in (0, 1)
    )
    x = blocks.reshape(n, height + 1, width + 1, 2, 2, c).swapaxes(2, 3)
    return x.reshape(n, 2 * height + 2, 2 * width + 2, c)[:, 1:-1, 1:-1]


def _as_matrix(w):
    """A kernel [4, 4, c, f] in the order of `_patches`: [16 c, f]."""
    c, f = w.shape[2:]
    return w.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 1, 3, 4, 5).reshape(16 * c, f)


def _as_kernel(matrix, c):
    """The inverse of `_as_matrix`."""
    f = matrix.shape[1]
    return matrix.reshape(2, 2, 2, 2, c, f).transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, c, f)


# Where that side is wide too, the 2x2 blocks make the strided convolution one of 2x2 taps and stride 1 over four times
# the channels, which Winograd's algorithm does with 9/16 of the multiplications. Below this the additions cost more
# than is saved.
WIDE = 64


@jax.jit
def _pixels(blocks):
    """The inverse of `_blocks`, the padding dropped: [n, h + 1, w + 1, 4 c] -> [n, 2 h, 2 w, c]."""
    n, height, width, c = blocks.shape
    x = blocks.reshape(n, height, width, 2, 2, c // 4).swapaxes(2, 3)
    return x.reshape(n, 2 * height, 2 * width, c // 4)[:, 1:-1, 1:-1]


def _block_kernel(w):
    """A kernel [4, 4, c, f] as one over `_blocks`: [2, 2, 4 c, f]."""
    c, f = w.shape[2:]
    return w.reshape(2, 2, 2, 2, c, f).swapaxes(1, 2).reshape(2, 2, 4 * c, f)


def _pixel_kernel(w):
    """The inverse of `_block_kernel`."""
    c, f = w.shape[2] // 4, w.shape[3]
    return w.reshape(2, 2, 2, 2, c, f).swapaxes(1, 2).reshape(4, 4, c, f)


def _whole_tiles(shape) -> bool:
    return shape[1] % winograd.M == 0 and shape[2] % winograd.M == 0


def _strided_suits_winograd(w, y_shape) -> bool:
    """Whether Winograd's algorithm is to make (or to begin from) an output of this shape."""
    return w.shape[2] >= WIDE and _whole_tiles(y_shape) and w.dtype == jnp.float32


def _strided_adjoint_of_patches(y, w):
    return _patches_adjoint(y @ _as_matrix(w).T, w.shape[2])


def _fast_strided_conv(x, w):
    if w.shape[2] <= THIN:
        return _patches(x) @ _as_matrix(w)
    if _strided_suits_winograd(w, (x.shape[0], x.shape[1] // 2, x.shape[2] // 2)):
        return winograd.conv(_blocks(x), _block_kernel(w))
    return _strided_conv(x, w)


def _fast_strided_adjoint(y, w):
    if w.shape[2] <= THIN:
        return _strided_adjoint_of_patches(y, w)
    if _strided_suits_winograd(w, y.shape):
        return _pixels(winograd.adjoint(y, _block_kernel(w)))
    return _strided_adjoint_by_phases(y, w)


def _fast_strided_kernel_gradient(x, w, dy):
    if w.shape[2] <= THIN:
        return _as_kernel(jnp.einsum("nhwp,nhwf->pf", _patches(x), dy), w.shape[2])
    if _strided_suits_winograd(w, dy.shape):
        return _pixel_kernel(winograd.kernel_gradient(_blocks(x), dy, taps=2))
    return _kernel_gradient(_strided_conv, x, w, dy)


# The convolution of stride 1 and its adjoint, which is one too, of the flipped kernel.


def _same_conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _flipped(w):
    return jnp.flip(w, (0, 1)).swapaxes(2, 3)


def _same_suits_winograd(x, w) -> bool:
    wide = w.shape[:2] == (3, 3) and min(w.shape[2:]) >= WIDE
    return wide and _whole_tiles(x.shape) and w.dtype == jnp.float32


def _fast_same_conv(x, w):
    if _same_suits_winograd(x, w):
        return winograd.conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), w)
    return _same_conv(x, w)


def _fast_same_adjoint(y, w):
    if _same_suits_winograd(y, w):
        return winograd.adjoint(y, w)[:, 1:-1, 1:-1]
    return _same_conv(y, _flipped(w))


def _same_kernel_gradient(x, w, dy):
    return _kernel_gradient(_same_conv, x, w, dy)


# The same of groups of channels, for a kernel [k, k, c / g, f]. XLA's own is slow on a CPU in all its derivatives; of
# patches it is a matrix product a group.


def _grouped_conv(x, w):
    groups = x.shape[-1] // w.shape[2]
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_LAYOUT, feature_group_count=groups)


def _fast_grouped_conv(x, w):
    n, height, width, channels = x.shape
    size, _, c, features = w.shape
    groups = channels // c
    kernel = w.swapaxes(0, 1).reshape(size * size * c, groups, features // groups)
    y = _grouped_patches(x, groups, size) @ kernel.swapaxes(0, 1)
    return y.reshape(groups, n, height, width, -1).transpose(1, 2, 3, 0, 4).reshape(n, height, width, features)


@partial(jax.jit, static_argnames=("groups", "size"))
def _grouped_patches(x, groups, size):
    """What each pixel sees of each group, as columns of pixels side by side: [n, h, w, g c] -> [g, n h w, k k c]."""
    n, height, width, channels = x.shape
    edge = size // 2
    x = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    x = x.reshape(n, height + 2 * edge, width + 2 * edge, groups, -1).transpose(3, 0, 1, 2, 4)
    x = jnp.concatenate([x[:, :, i : i + height] for i in range(size)], axis=-1)
    x = jnp.concatenate([x[:, :, :, j : j + width] for j in range(size)], axis=-1)
    return x.reshape(groups, n * height * width, size * size * channels // groups)


# A 3x3 convolution whose image is doubled before it, or averaged after it, is a 4x4 one of stride 2: of the kernel that
# is the sum of the 3x3 one's four shifts by up to a pixel. That needs 2.25 times fewer multiplications.


def _shifts(w):
    return sum(jnp.pad(w, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i in (0, 1) for j in (0, 1))


def _upsample_conv(x, w):
    return _same_conv(upsample(x), w)


def _conv_mean_pool(x, w):
    return mean_pool(_same_conv(x, w))


def _fast_upsample_conv(x, w):
    return _cpu_strided_conv_transpose(x, _shifts(_flipped(w)))


def _fast_conv_mean_pool(x, w):
    return _cpu_strided_conv(x, _shifts(w) / 4)


def _pair(conv, adjoint, kernel_gradient):
    """The two with derivatives of their own: each is the other's input gradient, and so on for the next order."""
    forward, backward = jax.custom_vjp(conv), jax.custom_vjp(adjoint)
    forward.defvjp(
        lambda x, w: (conv(x, w), (x, w)),
        lambda saved, dy: (backward(dy, saved[1]), kernel_gradient(*saved, dy)),
    )
    backward.defvjp(
        lambda y, w: (adjoint(y, w), (y, w)),
        lambda saved, dx: (forward(dx, saved[1]), kernel_gradient(dx, saved[1], saved[0])),
    )
    return forward, backward


_cpu_strided_conv, _cpu_strided_conv_transpose = _pair(
    _fast_strided_conv, _fast_strided_adjoint, _fast_strided_kernel_gradient
)
_cpu_same_conv, _ = _pair(_fast_same_conv, _fast_same_adjoint, _same_kernel_gradient)


class Form(NamedTuple):
    """One way to write each operation; the functions of these names in `convolution` say what they are."""

    strided_conv: Callable
    strided_conv_transpose: Callable
    conv: Callable
    grouped_conv: Callable
    upsample_conv: Callable
    conv_mean_pool: Callable


FORMS = {
    "plain": Form(_strided_conv, _strided_adjoint, _same_conv, _grouped_conv, _upsample_conv, _conv_mean_pool),
    "cpu": Form(
        _cpu_strided_conv,
        _cpu_strided_conv_transpose,
        _cpu_same_conv,
        _fast_grouped_conv,
        _fast_upsample_conv,
        _fast_conv_mean_pool,
    ),
}
# For converters to ONNX: jax2onnx 0.13 makes smaller images of dilated ones, and none knows _TRANSPOSED kernels.
CONVERTIBLE = FORMS["plain"]._replace(strided_conv_transpose=_strided_adjoint_of_patches)
