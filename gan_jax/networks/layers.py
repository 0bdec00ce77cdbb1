"""What the families share: activations, normalisations, the flat head."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
}

NORMALIZATIONS = ("none", "batch")


def dcgan_init(key, shape, dtype=jnp.float32):
    """Samples of N(0, 0.02^2) (arXiv:1511.06434, section 4), [*shape]; drawn flat, which XLA compiles faster."""
    return 0.02 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def dcgan_scale_init(key, shape, dtype=jnp.float32):
    """Samples of N(1, 0.02^2), [*shape]."""
    return 1 + dcgan_init(key, shape, dtype)


def upsample(x):
    """Each pixel four times: [n, h, w, c] -> [n, 2 h, 2 w, c]."""
    n, height, width, c = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, c))
    return blocks.reshape(n, 2 * height, 2 * width, c)


def mean_pool(x):
    """The mean of each 2x2 block: [n, 2 h, 2 w, c] -> [n, h, w, c]."""
    n, height, width, c = x.shape
    return jnp.mean(x.reshape(n, height // 2, 2, width // 2, 2, c), axis=(2, 4))


class Normalize(nn.Module):
    """The normalisation that a config names, before an activation; `none` is the identity.

    `axis_name` is the mapped axis over which batch statistics are shared; None where the batch is one global array.
    """

    kind: str
    dtype: Any
    axis_name: str | None
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x, train: bool):
        """x [n, ..., c] -> the same shape."""
        if self.kind == "none":
            return x
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
            scale_init=self.scale_init,
        )(x)
