"""Multilayer perceptrons: for data in the plane, and for small images taken as flat vectors."""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from gan_jax.networks.layers import (
    ACTIVATIONS,
    CLASS_EMBEDDING,
    Activation,
    ClassEmbeddingConcat,
    Depth,
    Normalization,
    Normalize,
    Projection,
    Width,
    takes_bias,
)
from gan_jax.networks.minibatch import ALONE, BesideNeighbours, Minibatch

# The initialiser of Dense, variance 1 / fan-in, for a table whose rows are kernels: features come last.
row_init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)


class Hidden(nn.Module):
    """`depth` layers of `width` units, each dense, normalised, activated."""

    width: int
    depth: int
    activation: str
    normalization: str
    dtype: Any
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train: bool):
        """x [n, d] -> [n, width]."""
        for _ in range(self.depth):
            x = nn.Dense(self.width, use_bias=takes_bias(self.normalization), dtype=self.dtype)(x)
            x = Normalize(self.normalization, self.dtype, self.axis_name)(x, train)
            x = ACTIVATIONS[self.activation](x)
        return x


class Generator(nn.Module):
    """Latents [n, d] -> float32 examples [n, *shape]; images (rank 3) pass through tanh into [-1, 1]."""

    shape: tuple[int, ...]
    width: Width = 128
    depth: Depth = 3
    activation: Activation = "relu"
    normalization: Normalization = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    classes: int = 0  # 0: unconditional

    @nn.compact
    def __call__(self, z, train: bool, label=None):
        """z [n, d], label int32 [n] or None -> [n, *shape]."""
        x = ClassEmbeddingConcat(self.classes, self.dtype, name=CLASS_EMBEDDING)(z, label)
        x = Hidden(self.width, self.depth, self.activation, self.normalization, self.dtype, self.axis_name)(x, train)
        x = nn.Dense(math.prod(self.shape), dtype=self.dtype)(x).astype(jnp.float32)
        x = jnp.tanh(x) if len(self.shape) == 3 else x
        return x.reshape(-1, *self.shape)


class Discriminator(nn.Module):
    """Examples [n, ...] -> float32 logits [n]."""

    width: Width = 128
    depth: Depth = 3
    activation: Activation = "leaky_relu"
    normalization: Normalization = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    classes: int = 0  # 0: unconditional
    minibatch: Minibatch = ALONE
    opened = ("Hidden_0",)  # its parts are layers by themselves

    @nn.compact
    def __call__(self, x, train: bool, label=None):
        """x [n, ...], label int32 [n] or None -> [n]."""
        x = x.reshape(len(x), -1)
        x = Hidden(self.width, self.depth, self.activation, self.normalization, self.dtype, self.axis_name)(x, train)
        x = BesideNeighbours(self.minibatch, self.dtype)(x)
        self.sow("intermediates", "features", x)
        logits = nn.Dense(1, dtype=jnp.float32)(x)[:, 0]
        return Projection(self.classes, row_init)(logits, x, label)
