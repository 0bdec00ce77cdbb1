"""DCGAN (Radford et al., arXiv:1511.06434): strided 4x4 convolutions, no pooling, batch normalisation.

`depth` strided layers take the image down to `size / 2^depth` pixels; `width` is the number of channels of the layer
next to the image, doubled at each layer away from it. The paper's network is 64x64, width 128, depth 4 (4x4 innermost).
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gan_jax.networks.attention import attend
from gan_jax.networks.convolution import StridedConv, StridedConvTranspose
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
    dcgan_init,
    dcgan_scale_init,
    takes_bias,
)
from gan_jax.networks.minibatch import ALONE, BesideNeighbours, Minibatch


class Generator(nn.Module):
    """Latents [n, d] -> float32 images [n, h, w, c] in [-1, 1]; h and w are multiples of 2^depth."""

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
    attends_from = 1  # halvings of the image, where attention can begin

    @nn.compact
    def __call__(self, z, train: bool, label=None):
        """z [n, d], label int32 [n] or None -> [n, h, w, c]."""
        height, width, channels = self.shape
        height, width, top = height >> self.depth, width >> self.depth, self.width << (self.depth - 1)
        x = ClassEmbeddingConcat(self.classes, self.dtype, name=CLASS_EMBEDDING)(z, label)
        biased = takes_bias(self.normalization)
        x = nn.Dense(height * width * top, dtype=self.dtype, kernel_init=dcgan_init, use_bias=biased)(x)
        x = attend(self, self._activate(x.reshape(-1, height, width, top), train), dcgan_init)
        for layer in reversed(range(self.depth - 1)):
            x = StridedConvTranspose(self.width << layer, use_bias=biased, dtype=self.dtype, form=self.form)(x)
            x = attend(self, self._activate(x, train), dcgan_init)
        x = StridedConvTranspose(channels, use_bias=True, dtype=self.dtype, form=self.form)(x)
        return jnp.tanh(x.astype(jnp.float32))

    def _activate(self, x, train):
        x = Normalize(self.normalization, self.dtype, self.axis_name, dcgan_scale_init)(x, train)
        return ACTIVATIONS[self.activation](x)


class Discriminator(nn.Module):
    """Images [n, h, w, c] -> float32 logits [n]; the first layer is not normalised, as in the paper."""

    width: Width = 128
    depth: Depth = 3
    activation: Activation = "leaky_relu"
    normalization: Normalization = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    classes: int = 0  # 0: unconditional
    form: str = "auto"  # of the convolutions
    attention: Attention = 0
    minibatch: Minibatch = ALONE
    attends_from = 1  # halvings of the image, where attention can begin

    @nn.compact
    def __call__(self, x, train: bool, label=None):
        """x [n, h, w, c], label int32 [n] or None -> [n]."""
        for layer in range(self.depth):
            normalization = self.normalization if layer else "none"
            biased = takes_bias(normalization)
            x = StridedConv(self.width << layer, use_bias=biased, dtype=self.dtype, form=self.form)(x)
            x = Normalize(normalization, self.dtype, self.axis_name, dcgan_scale_init)(x, train)
            x = attend(self, ACTIVATIONS[self.activation](x), dcgan_init)
        x = BesideNeighbours(self.minibatch, self.dtype)(x.reshape(len(x), -1))
        self.sow("intermediates", "features", x)
        logits = nn.Dense(1, dtype=jnp.float32, kernel_init=dcgan_init)(x)[:, 0]
        return Projection(self.classes, dcgan_init)(logits, x, label)
