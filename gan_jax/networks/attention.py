"""Self-attention inside a network of images (SAGAN, arXiv:1805.08318, section 3): each pixel looks at all others.

The block is that of the code which the authors published: 1x1 convolutions without biases, of which the keys and the
values are max-pooled over 2x2 pixels, so that a pixel looks at a fourth of the places.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gan_jax.networks.convolution import Conv

NARROWER, HALF = 8, 2  # of C channels: C / 8 in queries and keys, C / 2 in values


def inner_sizes(shape: tuple[int, ...], halvings: range) -> list[int]:
    """The heights of the images inside a network that attention can follow: those whose sides are both even.

    Args:
      shape: (h, w, c) of what the network makes or sees.
      halvings: how often that is halved at each of these places.
    """
    sides = [(shape[0] >> k, shape[1] >> k) for k in halvings]
    return [height for height, width in sides if height % 2 == 0 and width % 2 == 0]


def attend(player: nn.Module, x, kernel_init: Callable):
    """x [n, h, w, c], after a block of self-attention if h is the `attention` of the player."""
    return SelfAttention(player.dtype, player.form, kernel_init)(x) if player.attention == x.shape[1] else x


class SelfAttention(nn.Module):
    """x + gamma o(sum_j softmax_j(f(x_i) . g(x_j)) h(x_j)), with f, g, h and o 1x1 convolutions; gamma starts at 0.

    At gamma = 0 it is the identity. The softmax, and the products that it is made of, are float32 for every dtype.
    """

    dtype: Any
    form: str  # of the convolutions
    kernel_init: Callable

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, c], h and w even -> [n, h, w, c]."""
        n, height, width, channels = x.shape
        narrow, half = max(1, channels // NARROWER), max(1, channels // HALF)
        queries = self._conv(narrow, "query", x).reshape(n, -1, narrow)
        keys = max_pool(self._conv(narrow, "key", x)).reshape(n, -1, narrow)
        values = max_pool(self._conv(half, "value", x)).reshape(n, -1, half)
        scores = jnp.einsum("nic,njc->nij", queries, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        attended = jnp.einsum("nij,njc->nic", weights, values).reshape(n, height, width, half)
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        return x + gamma.astype(self.dtype) * self._conv(channels, "out", attended)

    def _conv(self, features: int, name: str, x):
        return Conv(features, 1, False, self.dtype, self.form, self.kernel_init, name=name)(x)


def max_pool(x):
    """The largest number of each channel in each 2x2 block: [n, 2 h, 2 w, c] -> [n, h, w, c]."""
    n, height, width, c = x.shape
    return jnp.max(x.reshape(n, height // 2, 2, width // 2, 2, c), axis=(2, 4))
