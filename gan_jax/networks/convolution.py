"""The convolutions of the networks: stride 2 and its adjoint for a DCGAN, stride 1 with resampling for residual ones.

`strided_conv` halves an image, `strided_conv_transpose` is its exact adjoint and doubles it:
<strided_conv(x, w), y> = <x, strided_conv_transpose(y, w)> for every x and y, with one kernel w [4, 4, thin, wide].
`conv` keeps the size; `upsample_conv` doubles the image before it, `conv_mean_pool` averages 2x2 pixels after it.
How they are written is chosen by backend, in `form`, or by name: `cpu.forms` has the forms.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from gan_jax.networks.cpu.forms import FORMS, Form
from gan_jax.networks.layers import dcgan_init


def form(name: str | Form) -> Form:
    """The form of that name; `auto` is the fastest of the backend at hand. What is a form stays one."""
    if isinstance(name, Form):
        return name
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
    _check_halves(x)
    return form(name).strided_conv(x, w)


def _check_halves(x) -> None:
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"the convolution halves its image, which {x.shape[1]}x{x.shape[2]} does not allow")


def _check_is_3x3(w) -> None:
    if w.shape[:2] != (3, 3):
        raise ValueError(f"a resampling convolution has a kernel of 3x3, not {w.shape[0]}x{w.shape[1]}")


def strided_conv_transpose(y, w, name: str = "auto"):
    """The adjoint of `strided_conv`: y [n, h, w, wide] and w [4, 4, thin, wide] -> [n, 2 h, 2 w, thin]."""
    return form(name).strided_conv_transpose(y, w)


def conv(x, w, name: str = "auto"):
    """The convolution of stride 1 that keeps the image's size, zeros around it: a matrix product where w is 1x1.

    Args:
      x: [n, h, w, c].
      w: [k, k, c, f], k odd, of x's dtype; [k, k, c / g, f] for g groups of channels, each of which gives f / g.
      name: of the form.
    Returns:
      [n, h, w, f].
    """
    if w.shape[2] != x.shape[-1]:
        return form(name).grouped_conv(x, w)
    return x @ w[0, 0] if w.shape[:2] == (1, 1) else form(name).conv(x, w)


def upsample_conv(x, w, name: str = "auto"):
    """`conv` of the image with each pixel four times, for a kernel of 3x3: [n, h, w, c] -> [n, 2 h, 2 w, f]."""
    _check_is_3x3(w)
    return form(name).upsample_conv(x, w)


def conv_mean_pool(x, w, name: str = "auto"):
    """The mean of each 2x2 block of `conv`, for a kernel of 3x3: [n, 2 h, 2 w, c] -> [n, h, w, f]; no odd sizes."""
    _check_halves(x)
    _check_is_3x3(w)
    return form(name).conv_mean_pool(x, w)


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


_RESAMPLING = {"keep": conv, "up": upsample_conv, "down": conv_mean_pool}


class Conv(nn.Module):
    """A convolution with its kernel and an optional bias: `conv`, or with resampling.

    [n, h, w, c] -> [n, h, w, features], or h and w doubled (`up`, before it) or halved (`down`, after it).
    """

    features: int
    size: int  # of the kernel, odd
    use_bias: bool
    dtype: Any
    form: str
    kernel_init: Callable
    resample: str = "keep"
    groups: int = 1  # of channels; more than one where the size is kept

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, c] -> [n, h', w', features]."""
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return _add_bias(self, _RESAMPLING[self.resample](x, kernel, self.form))


def _add_bias(layer, x):
    if not layer.use_bias:
        return x
    return x + layer.param("bias", nn.initializers.zeros, (layer.features,)).astype(layer.dtype)
