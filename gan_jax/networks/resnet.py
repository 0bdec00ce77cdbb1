"""Residual networks without strided convolutions, those of WGAN-GP and SNGAN for CIFAR-10.

arXiv:1704.00028 and arXiv:1802.05957, in the appendix of each; where a paper leaves something open, the code that its
authors published decides. `depth` blocks double the generator's image, and `depth` blocks halve the
discriminator's, which two more follow at the last size; `width` is the number of channels everywhere. The papers'
networks for 32x32 have depth 3 in G (4x4 innermost) and depth 2 in D (8x8), width 128; G is 256 wide in SNGAN.

Two things are not as in the papers and compute the same functions. The 1x1 convolution of a shortcut works on the
smaller of its two images: a map of each pixel alone commutes with copying and with averaging pixels, and a fourth of
the pixels is a fourth of the work. And a bias is left out where another one, or a normalisation, makes it redundant.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gan_jax.networks.attention import attend
from gan_jax.networks.convolution import Conv
from gan_jax.networks.layers import (
    ACTIVATIONS,
    CLASS_EMBEDDING,
    Activation,
    Attention,
    ClassEmbeddingConcat,
    Depth,
    Normalization,
    Normalize,
    Projection,
    Width,
    mean_pool,
    takes_bias,
    upsample,
)
from gan_jax.networks.minibatch import ALONE, BesideNeighbours, Minibatch

PLAIN_BLOCKS = 2  # of the discriminator, after those that halve


def xavier_init(key, shape, dtype=jnp.float32, scale: float = 1.0):
    """Uniform samples of variance 2 scale / (fan-in + fan-out), [..., in, out] (Glorot and Bengio 2010).

    As `variance_scaling(scale, "fan_avg", "uniform")` of jax, but drawn flat, which XLA compiles four times faster.
    """
    fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
    return _uniform(key, shape, dtype, math.sqrt(6 * scale / fans))


def row_init(key, shape, dtype=jnp.float32):
    """`xavier_init` of a kernel [features, 1] for each row of a table [classes, features]."""
    return _uniform(key, shape, dtype, math.sqrt(6 / (shape[-1] + 1)))


def _uniform(key, shape, dtype, bound: float):
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


# In the residual branches a ReLU halves what comes in (arXiv:1502.01852); so in the published code of both papers.
branch_init = partial(xavier_init, scale=2.0)


class Block(nn.Module):
    """The sum of a shortcut and of two 3x3 convolutions, each after normalisation and activation.

    `up` doubles the image before the first convolution, `down` halves it after the second, `keep` does neither: only
    then is the shortcut the identity. A block whose input is an image does not activate it. With classes its
    normalisations are conditional.
    """

    resample: str  # up, down, keep
    sees_image: bool
    width: int
    use_bias: bool  # of the sum
    activation: str
    normalization: str
    dtype: Any
    axis_name: str | None
    classes: int  # 0: unconditional
    form: str  # of the convolutions

    @nn.compact
    def __call__(self, x, train: bool, label=None):
        """x [n, h, w, c], label int32 [n] or None -> [n, h', w', width]; c is the width where the size is kept."""
        y = x if self.sees_image else self._activate(x, train, label)
        first, second = {"up": ("up", "keep"), "down": ("keep", "down"), "keep": ("keep", "keep")}[self.resample]
        y = self._conv(3, takes_bias(self.normalization), branch_init, first)(y)
        y = self._conv(3, self.use_bias, branch_init, second)(self._activate(y, train, label))
        return self._shortcut(x) + y

    def _shortcut(self, x):
        if self.resample == "keep":
            return x
        x = mean_pool(x) if self.resample == "down" else x
        x = self._conv(1, False, xavier_init)(x)
        return upsample(x) if self.resample == "up" else x

    def _conv(self, size: int, use_bias: bool, kernel_init: Callable, resample: str = "keep"):
        return Conv(self.width, size, use_bias, self.dtype, self.form, kernel_init, resample)

    def _activate(self, x, train, label):
        x = Normalize(self.normalization, self.dtype, self.axis_name, classes=self.classes)(x, train, label)
        return ACTIVATIONS[self.activation](x)


def _block(player, resample: str, **changes) -> Block:
    """A block with the architecture of `player`, but for the changes."""
    shared = ("width", "activation", "normalization", "dtype", "axis_name", "form")
    fields = {name: getattr(player, name) for name in shared} | {"sees_image": False, "use_bias": True, "classes": 0}
    return Block(resample=resample, **(fields | changes))


class Generator(nn.Module):
    """Latents [n, d] -> float32 images [n, h, w, c] in [-1, 1]; h and w are multiples of 2^depth.

    A class gets in by the scales and shifts of every normalisation (arXiv:1802.05637); where there is none, beside the
    latents.
    """

    shape: tuple[int, int, int]
    width: Width = 128
    depth: Depth = 3
    activation: Activation = "relu"
    normalization: Normalization = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    classes: int = 0  # 0: unconditional
    form: str = "auto"  # of the convolutions
    attention: Attention = 0
    attends_from = 0  # halvings of the image, where attention can begin

    @nn.compact
    def __call__(self, z, train: bool, label=None):
        """z [n, d], label int32 [n] or None -> [n, h, w, c]."""
        beside = self.normalization == "none"
        x = ClassEmbeddingConcat(self.classes, self.dtype, name=CLASS_EMBEDDING)(z, label) if beside else z
        label, classes = (None, 0) if beside else (label, self.classes)
        height, width, channels = self.shape
        height, width = height >> self.depth, width >> self.depth
        x = nn.Dense(height * width * self.width, dtype=self.dtype, kernel_init=xavier_init)(x)
        x = attend(self, x.reshape(-1, height, width, self.width), xavier_init)
        for _ in range(self.depth):
            # A constant in a channel ends at a normalisation on every path from here to the image.
            x = _block(self, "up", use_bias=takes_bias(self.normalization), classes=classes)(x, train, label)
            x = attend(self, x, xavier_init)
        x = Normalize(self.normalization, self.dtype, self.axis_name, classes=classes)(x, train, label)
        x = ACTIVATIONS[self.activation](x)
        x = Conv(channels, 3, True, self.dtype, self.form, xavier_init)(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images [n, h, w, c] -> float32 logits [n]; h and w are multiples of 2^depth.

    The last layer sees the mean over pixels, as in WGAN-GP, so that the size of the logits does not depend on that of
    the images. SNGAN takes the sum: where weights are spectrally normalised, no weight can make up for the mean.
    """

    width: Width = 128
    depth: Depth = 3
    activation: Activation = "leaky_relu"
    normalization: Normalization = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    classes: int = 0  # 0: unconditional
    form: str = "auto"  # of the convolutions
    attention: Attention = 0
    sums: bool = False  # over pixels, or takes their mean
    minibatch: Minibatch = ALONE
    attends_from = 1  # halvings of the image, where attention can begin

    @nn.compact
    def __call__(self, x, train: bool, label=None):
        """x [n, h, w, c], label int32 [n] or None -> [n]."""
        x = attend(self, _block(self, "down", sees_image=True, normalization="none")(x, train), xavier_init)
        for _ in range(self.depth - 1):
            x = attend(self, _block(self, "down")(x, train), xavier_init)
        for _ in range(PLAIN_BLOCKS):
            x = _block(self, "keep")(x, train)
        x = ACTIVATIONS[self.activation](x)
        x = jnp.sum(x, axis=(1, 2)) if self.sums else jnp.mean(x, axis=(1, 2))
        x = BesideNeighbours(self.minibatch, self.dtype)(x)
        self.sow("intermediates", "features", x)
        logits = nn.Dense(1, dtype=jnp.float32, kernel_init=xavier_init)(x)[:, 0]
        return Projection(self.classes, row_init)(logits, x, label)
