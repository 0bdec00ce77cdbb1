"""The 4x4 convolution of stride 2 and its adjoint, the two layers of which a DCGAN is made.

`strided_conv` halves an image, `strided_conv_transpose` is its exact adjoint and doubles it:
<strided_conv(x, w), y> = <x, strided_conv_transpose(y, w)> for every x and y, with one kernel w [4, 4, thin, wide].
Each is therefore the other's input gradient, and both share one kernel gradient. On a CPU that is how they are
differentiated: XLA's own rule for the transposed convolution's kernel gradient is there 20 times slower. Elsewhere
XLA's rules are good and nothing is overridden. The numbers are the same up to rounding, to any order of derivative.
"""

from typing import Any

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


def _kernel_gradient(x, w, dy):
    """The gradient of <conv(x, w), dy> in w: the convolution's transpose in its (linear) kernel."""
    return jax.linear_transpose(lambda w: _conv(x, w), w)(dy)[0]


@jax.custom_vjp
def _cpu_conv(x, w):
    return _conv(x, w)


@jax.custom_vjp
def _cpu_conv_transpose(y, w):
    return _adjoint_by_phases(y, w)


# Each backward pass calls the other layer, so that derivatives of every order take the same fast road.
_cpu_conv.defvjp(
    lambda x, w: (_conv(x, w), (x, w)),
    lambda saved, dy: (_cpu_conv_transpose(dy, saved[1]), _kernel_gradient(saved[0], saved[1], dy)),
)
_cpu_conv_transpose.defvjp(
    lambda y, w: (_adjoint_by_phases(y, w), (y, w)),
    lambda saved, dx: (_cpu_conv(dx, saved[1]), _kernel_gradient(dx, saved[1], saved[0])),
)


def strided_conv(x, w):
    """The 4x4 convolution with stride 2 and padding 1.

    Args:
      x: [n, 2 h, 2 w, thin]; odd sizes have no adjoint of their own size and are refused (ValueError).
      w: [4, 4, thin, wide], of x's dtype.
    Returns:
      [n, h, w, wide].
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"a strided convolution halves its image, which {x.shape[1]}x{x.shape[2]} does not allow")
    return _cpu_conv(x, w) if jax.default_backend() == "cpu" else _conv(x, w)


def strided_conv_transpose(y, w):
    """The adjoint of `strided_conv`: y [n, h, w, wide] and w [4, 4, thin, wide] -> [n, 2 h, 2 w, thin]."""
    return _cpu_conv_transpose(y, w) if jax.default_backend() == "cpu" else _adjoint(y, w)


class StridedConv(nn.Module):
    """`strided_conv` with its kernel and an optional bias: [n, 2 h, 2 w, c] -> [n, h, w, features]."""

    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """x [n, 2 h, 2 w, c] -> [n, h, w, features]."""
        kernel = self.param("kernel", dcgan_init, (4, 4, x.shape[-1], self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _add_bias(self, strided_conv(x, kernel))


class StridedConvTranspose(nn.Module):
    """`strided_conv_transpose` with its kernel and an optional bias: [n, h, w, c] -> [n, 2 h, 2 w, features]."""

    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, c] -> [n, 2 h, 2 w, features]."""
        kernel = self.param("kernel", dcgan_init, (4, 4, self.features, x.shape[-1]))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _add_bias(self, strided_conv_transpose(x, kernel))


def _add_bias(layer, x):
    if not layer.use_bias:
        return x
    return x + layer.param("bias", nn.initializers.zeros, (layer.features,)).astype(layer.dtype)
