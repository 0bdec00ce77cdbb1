"""What the families share: activations, normalisations, the flat head."""

from functools import partial
from typing import Any

import jax
from flax import linen as nn

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "tanh": jax.numpy.tanh,
    "silu": jax.nn.silu,
}

NORMALIZATIONS = ("none", "batch")

# Weights from N(0, 0.02^2), scales from N(1, 0.02^2): arXiv:1511.06434, section 4.
dcgan_init = nn.initializers.normal(0.02)


def dcgan_scale_init(key, shape, dtype):
    """Samples of N(1, 0.02^2), [shape]."""
    return 1 + dcgan_init(key, shape, dtype)


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
