"""R3GAN's residual networks (arXiv:2501.05441): no normalisation, grouped convolutions, fix-up initialisation.

`depth` times the generator's image is doubled, or the discriminator's halved, by a filter outside of the residual
branches; `blocks` residual blocks stand at each of the depth + 1 sizes, all `width` channels wide, twice that inside.
The first layer of G and the last of D are maps between a vector and an image of size / 2^depth pixels without mixing of
channels, each with a kernel of that size: 4x4 in the paper, whose networks for CIFAR-10 have depth 3, width 768, 2
blocks and 96 groups.

From the authors' published code are the filter (of the weights 1 3 3 1), which layers have a bias (those before an
activation), and the initialisation. Four things are not as there: the image passes through tanh, for a generator here
makes numbers in [-1, 1]; D's last layer takes the class in by a projection, and a class is as long as the latents and
at first short beside them, as in the other families; and one width serves all sizes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gan_jax.networks.convolution import Conv
from gan_jax.networks.layers import (
    ACTIVATIONS,
    CLASS_EMBEDDING,
    Activation,
    ClassEmbeddingConcat,
    Depth,
    Projection,
    Width,
    bilinear_downsample,
    bilinear_upsample,
)
from gan_jax.networks.minibatch import ALONE, BesideNeighbours, Minibatch
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import COUNT

Blocks = Annotated[int, COUNT, "of r3gan: residual blocks at every size of its image"]
Groups = Annotated[int, COUNT, "of r3gan: groups of the 2 * width channels within a block"]
EXPANSION = 2  # of the channels within a block
# What brings a normal number of variance 1 back to a mean square of 1 after the activation: 1 / sqrt(E f(z)^2).
GAINS = {"relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / 1.04), "tanh": 1.5925374, "silu": 1.6765324}


def msr_init(key, shape, dtype=jnp.float32, gain: float = 1.0):
    """Samples of N(0, gain^2 / fan-in) (arXiv:1502.01852), [..., in, out]; drawn flat, which XLA compiles faster."""
    flat = jax.random.normal(key, (math.prod(shape),), dtype)
    return gain / math.sqrt(math.prod(shape[:-1])) * flat.reshape(shape)


def row_init(key, shape, dtype=jnp.float32):
    """`msr_init` of a kernel [features, 1] for each row of a table [classes, features]."""
    return msr_init(key, shape[::-1], dtype).T


def flat_normal(key, shape, dtype=jnp.float32):
    """Samples of N(0, 1), [*shape]; drawn flat."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


class Block(nn.Module):
    """x and a residual branch: 1x1 to twice the channels, grouped 3x3, 1x1 back; activated in between.

    Fix-up (arXiv:1901.09321): at first the last kernel is 0 and with it the branch, and the other two are those of
    `msr_init` for the activation, times blocks_in_all^(-1/4), so that the first updates of all blocks together move the
    network's output about as far as that of a single one.
    """

    width: int
    groups: int  # of the channels within, which they divide
    blocks_in_all: int  # of the network
    activation: str
    dtype: Any
    form: str  # of the convolutions

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, width] -> the same."""
        scaled = partial(msr_init, gain=GAINS[self.activation] * self.blocks_in_all**-0.25)
        activate, inner = ACTIVATIONS[self.activation], EXPANSION * self.width
        y = activate(self._conv(inner, 1, True, scaled)(x))
        y = activate(self._conv(inner, 3, True, scaled, self.groups)(y))
        return x + self._conv(self.width, 1, False, nn.initializers.zeros)(y)

    def _conv(self, features: int, size: int, use_bias: bool, init: Callable, groups: int = 1):
        return Conv(features, size, use_bias, self.dtype, self.form, init, groups=groups)


def check_blocks(player: str, values) -> None:
    """Raises InputError unless there are blocks, and groups that divide the channels within one."""
    for key in ("blocks", "groups"):
        if not values[key]:
            raise InputError(f"{player}.{key} is 0 and {player}.network is r3gan, which needs 1 or more")
    if EXPANSION * values["width"] % values["groups"]:
        raise InputError(
            f"{player}.groups is {values['groups']}, which does not divide the {EXPANSION * values['width']} channels "
            f"in a block, twice {player}.width; give it a divisor of them"
        )


def _stage(player, x):
    """The residual blocks of one size of image, as layers of `player`: x [n, h, w, width] -> the same."""
    shared = {name: getattr(player, name) for name in ("width", "groups", "activation", "dtype", "form")}
    for _ in range(player.blocks):
        x = Block(blocks_in_all=player.blocks * (player.depth + 1), **shared)(x)
    return x


class Generator(nn.Module):
    """Latents [n, d] -> float32 images [n, h, w, c] in [-1, 1]; h and w are multiples of 2^depth."""

    shape: tuple[int, int, int]
    width: Width = 128
    depth: Depth = 3
    activation: Activation = "relu"
    dtype: Any = jnp.float32
    classes: int = 0  # 0: unconditional
    form: str = "auto"  # of the convolutions
    blocks: Blocks = 0
    groups: Groups = 0
    check = staticmethod(check_blocks)

    @nn.compact
    def __call__(self, z, train: bool, label=None):
        """z [n, d], label int32 [n] or None -> [n, h, w, c]."""
        height, width, channels = self.shape
        x = ClassEmbeddingConcat(self.classes, self.dtype, name=CLASS_EMBEDDING)(z, label)
        x = nn.Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=msr_init)(x)
        basis = self.param("kernel", flat_normal, (height >> self.depth, width >> self.depth, self.width))
        x = x[:, None, None] * basis.astype(self.dtype)
        x = _stage(self, x)
        for _ in range(self.depth):
            x = _stage(self, bilinear_upsample(x))
        x = Conv(channels, 1, False, self.dtype, self.form, msr_init)(x)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Images [n, h, w, c] -> float32 logits [n]; h and w are multiples of 2^depth."""

    width: Width = 128
    depth: Depth = 3
    activation: Activation = "leaky_relu"
    dtype: Any = jnp.float32
    classes: int = 0  # 0: unconditional
    form: str = "auto"  # of the convolutions
    blocks: Blocks = 0
    groups: Groups = 0
    minibatch: Minibatch = ALONE
    check = staticmethod(check_blocks)

    @nn.compact
    def __call__(self, x, train: bool, label=None):
        """x [n, h, w, c], label int32 [n] or None -> [n]."""
        x = Conv(self.width, 1, False, self.dtype, self.form, msr_init)(x)
        for _ in range(self.depth):
            x = bilinear_downsample(_stage(self, x))
        x = _stage(self, x)
        # A convolution of each channel by itself whose kernel is as large as the image.
        basis = self.param("kernel", msr_init, (*x.shape[1:3], 1, self.width))
        x = jnp.sum(x * basis[:, :, 0].astype(self.dtype), axis=(1, 2))
        x = BesideNeighbours(self.minibatch, self.dtype)(x)
        self.sow("intermediates", "features", x)
        logits = nn.Dense(1, use_bias=False, dtype=jnp.float32, kernel_init=msr_init)(x)[:, 0]
        return Projection(self.classes, row_init)(logits, x, label)
