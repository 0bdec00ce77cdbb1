"""The 4x4 convolution of stride 2 and its adjoint, the two layers of which a DCGAN is made.

`strided_conv` halves an image, `strided_conv_transpose` is its exact adjoint and doubles it:
<strided_conv(x, w), y> = <x, strided_conv_transpose(y, w)> for every x and y, with one kernel w [4, 4, thin, wide].
Each is therefore the other's input gradient, and both share one kernel gradient. On a CPU that is how they are
differentiated: XLA's own rule for the transposed convolution's kernel gradient is there 20 times slower. Elsewhere
XLA's rules are good and nothing is overridden. The numbers are the same up to rounding, to any order of derivative.
`FORMS` has both; `form` picks by backend. `conv` is the convolution of stride 1, for networks that resample otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gan_jax.networks.layers import dcgan_init

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _conv(x, w):
    return lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _adjoint(y, w):
    # The transposed convolution correlates the dilated input with the flipped kernel, its channels exchanged.
    flipped = jnp.flip(w, (0, 1))
    return lax.conv_general_dilated(
        y, flipped, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWOI", "NHWC")
    )


# The output pixel 2 i + phase sees the input pixels i - 1 + phase and i + phase, through these two rows of the kernel.
_TAPS = ((3, 1), (2, 0))
_PADDING = ((1, 0), (0, 1))


def _adjoint_by_phases(y, w):
    """The adjoint as four 2x2 convolutions, one for each parity of the output's row and column, interleaved."""
    n, height, width, _ = y.shape
    rows = []
    for row in (0, 1):
        columns = []
        for column in (0, 1):
            kernel = w[jnp.array(_TAPS[row])][:, jnp.array(_TAPS[column])]
            padding = (_PADDING[row], _PADDING[column])
            layout = ("NHWC", "HWOI", "NHWC")
            columns.append(lax.conv_general_dilated(y, kernel, (1, 1), padding, dimension_numbers=layout))
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(n, 2 * height, 2 * width, w.shape[2])


def _same_conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _kernel_gradient(x, w, dy):
    """The gradient of <conv(x, w), dy> in w: the convolution's transpose in its (linear) kernel."""
    return jax.linear_transpose(lambda w: _conv(x, w), w)(dy)[0]


# Where an image is thin (few channels, as at both ends of a DCGAN), a convolution has too little to do for each pixel;
# one matrix product over all 4x4 patches has the same work in a form that keeps the processor busy.
THIN = 8


def _blocks(x):
    """The 2x2 blocks of x [n, 2 h, 2 w, c], padded by one pixel all round: [n, h + 1, w + 1, 4 c]."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    n, height, width, c = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, c).swapaxes(2, 3)
    return x.reshape(n, height // 2, width // 2, 4 * c)


def _patches(x):
    """The 4x4 patch that each output pixel sees, as its four blocks: [n, 2 h, 2 w, c] -> [n, h, w, 16 c]."""
    blocks = _blocks(x)
    height, width = blocks.shape[1] - 1, blocks.shape[2] - 1
    return jnp.concatenate([blocks[:, i : i + height, j : j + width] for i in (0, 1) for j in (0, 1)], axis=-1)


def _overlap_add(patches, c):
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


def _fast_conv(x, w):
    return _patches(x) @ _as_matrix(w) if w.shape[2] <= THIN else _conv(x, w)


def _fast_adjoint(y, w):
    return _overlap_add(y @ _as_matrix(w).T, w.shape[2]) if w.shape[2] <= THIN else _adjoint_by_phases(y, w)


def _fast_kernel_gradient(x, w, dy):
    if w.shape[2] > THIN:
        return _kernel_gradient(x, w, dy)
    return _as_kernel(jnp.einsum("nhwp,nhwf->pf", _patches(x), dy), w.shape[2])


@jax.custom_vjp
def _cpu_conv(x, w):
    return _fast_conv(x, w)


@jax.custom_vjp
def _cpu_conv_transpose(y, w):
    return _fast_adjoint(y, w)


# Each backward pass calls the other layer, so that derivatives of every order take the same fast road.
_cpu_conv.defvjp(
    lambda x, w: (_fast_conv(x, w), (x, w)),
    lambda saved, dy: (_cpu_conv_transpose(dy, saved[1]), _fast_kernel_gradient(saved[0], saved[1], dy)),
)
_cpu_conv_transpose.defvjp(
    lambda y, w: (_fast_adjoint(y, w), (y, w)),
    lambda saved, dx: (_cpu_conv(dx, saved[1]), _fast_kernel_gradient(dx, saved[1], saved[0])),
)


class Form(NamedTuple):
    """One way to write the operations; `strided_conv`, `strided_conv_transpose` and `conv` say what they are."""

    conv: Callable
    conv_transpose: Callable
    same_conv: Callable


FORMS = {
    "plain": Form(_conv, _adjoint, _same_conv),
    "cpu": Form(_cpu_conv, _cpu_conv_transpose, _same_conv),
}


def form(name: str) -> Form:
    """The form of that name; `auto` is the fastest of the backend at hand."""
    return FORMS["cpu" if jax.default_backend() == "cpu" else "plain"] if name == "auto" else FORMS[name]


def strided_conv(x, w, name: str = "auto"):
    """The 4x4 convolution with stride 2 and padding 1.

    Args:
      x: [n, 2 h, 2 w, thin]; odd sizes have no adjoint of their own size and are refused (ValueError).
      w: [4, 4, thin, wide], of x's dtype.
      name: of the form.
    Returns:
      [n, h, w, wide].
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"a strided convolution halves its image, which {x.shape[1]}x{x.shape[2]} does not allow")
    return form(name).conv(x, w)


def strided_conv_transpose(y, w, name: str = "auto"):
    """The adjoint of `strided_conv`: y [n, h, w, wide] and w [4, 4, thin, wide] -> [n, 2 h, 2 w, thin]."""
    return form(name).conv_transpose(y, w)


def conv(x, w, name: str = "auto"):
    """The convolution of stride 1 that keeps the image's size, zeros around it: a matrix product where w is 1x1.

    Args:
      x: [n, h, w, c].
      w: [k, k, c, f], k odd, of x's dtype.
      name: of the form.
    Returns:
      [n, h, w, f].
    """
    return x @ w[0, 0] if w.shape[:2] == (1, 1) else form(name).same_conv(x, w)


class StridedConv(nn.Module):
    """`strided_conv` with its kernel and an optional bias: [n, 2 h, 2 w, c] -> [n, h, w, features]."""

    features: int
    use_bias: bool
    dtype: Any
    form: str

    @nn.compact
    def __call__(self, x):
        """x [n, 2 h, 2 w, c] -> [n, h, w, features]."""
        kernel = self.param("kernel", dcgan_init, (4, 4, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _add_bias(self, strided_conv(x, kernel, self.form))


class StridedConvTranspose(nn.Module):
    """`strided_conv_transpose` with its kernel and an optional bias: [n, h, w, c] -> [n, 2 h, 2 w, features]."""

    features: int
    use_bias: bool
    dtype: Any
    form: str

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, c] -> [n, 2 h, 2 w, features]."""
        kernel = self.param("kernel", dcgan_init, (4, 4, self.features, x.shape[-1]))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _add_bias(self, strided_conv_transpose(x, kernel, self.form))


class Conv(nn.Module):
    """`conv` with its kernel and an optional bias: [n, h, w, c] -> [n, h, w, features]."""

    features: int
    size: int  # of the kernel, odd
    use_bias: bool
    dtype: Any
    form: str
    kernel_init: Callable

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, c] -> [n, h, w, features]."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _add_bias(self, conv(x, kernel, self.form))


def _add_bias(layer, x):
    if not layer.use_bias:
        return x
    return x + layer.param("bias", nn.initializers.zeros, (layer.features,)).astype(layer.dtype)
