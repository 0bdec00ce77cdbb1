"""The Inception-v3 of the Frechet Inception distance: TensorFlow's graph of 2015-12-05 (arXiv:1512.00567, 1706.08500).

Inference only: batch normalisation is folded into the kernel and bias of each convolution. Layers have the names of
the published weights. Two things differ from the Inception-v3 of today's libraries: the mean over 3x3 pixels counts
only those inside the image, and the last block pools by the maximum.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

SIDE = 299  # pixels of an image
CLASSES = 1008  # outputs of the graph; ImageNet has 1,000 classes


class Layer(NamedTuple):
    """A convolution with bias and ReLU, as a function of x [n, h, w, c] inside the module whose parameters it names."""

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    def __call__(self, x):
        strides = (self.stride, self.stride)
        return jax.nn.relu(nn.Conv(self.features, self.size, strides, self.padding, name=self.name)(x))


# Functions of x [n, h, w, c]. The first two are of the up to 3x3 pixels around each that lie in the image, and keep the
# size; the last makes it (h - 1) // 2 by (w - 1) // 2.
mean_of_neighbours = partial(nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
largest_neighbour = partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")
halve = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID")


class Mixed(nn.Module):
    """Branches that see the same image, each a chain of functions: their channels side by side."""

    branches: tuple[tuple[Callable, ...], ...]

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, c] -> [n, h', w', features of all branches]."""
        return jnp.concatenate([_chain(branch, x) for branch in self.branches], axis=-1)


def _chain(steps: tuple[Callable, ...], x):
    for step in steps:
        x = step(x)
    return x


def _branch(name: str, *layers: tuple) -> tuple[Layer, ...]:
    """Layers NAME_1, NAME_2, ... of the fields after the name."""
    return tuple(Layer(f"{name}_{i}", *fields) for i, fields in enumerate(layers, 1))


def _block_a(pooled: int):
    return (
        (Layer("branch1x1", 64),),
        _branch("branch5x5", (48,), (64, (5, 5))),
        _branch("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
        (mean_of_neighbours, Layer("branch_pool", pooled)),
    )


def _block_c(width: int):
    across, down = (1, 7), (7, 1)
    return (
        (Layer("branch1x1", 192),),
        _branch("branch7x7", (width,), (width, across), (192, down)),
        _branch("branch7x7dbl", (width,), (width, down), (width, across), (width, down), (192, across)),
        (mean_of_neighbours, Layer("branch_pool", 192)),
    )


def _block_e(pool: Callable):
    return (
        (Layer("branch1x1", 320),),
        (Layer("branch3x3_1", 384), _fork("branch3x3_2")),
        (*_branch("branch3x3dbl", (448,), (384, (3, 3))), _fork("branch3x3dbl_3")),
        (pool, Layer("branch_pool", 192)),
    )


def _fork(name: str) -> Callable:
    """Two layers that see the same image: their channels side by side."""
    across, down = Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))
    return lambda x: jnp.concatenate([across(x), down(x)], axis=-1)


STEM = (
    Layer("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Layer("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Layer("Conv2d_2b_3x3", 64, (3, 3)),
    halve,
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    halve,
)

BLOCKS = {  # in their order
    "Mixed_5b": _block_a(pooled=32),
    "Mixed_5c": _block_a(pooled=64),
    "Mixed_5d": _block_a(pooled=64),
    "Mixed_6a": (
        (Layer("branch3x3", 384, (3, 3), 2, "VALID"),),
        _branch("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2, "VALID")),
        (halve,),
    ),
    "Mixed_6b": _block_c(width=128),
    "Mixed_6c": _block_c(width=160),
    "Mixed_6d": _block_c(width=160),
    "Mixed_6e": _block_c(width=192),
    "Mixed_7a": (
        _branch("branch3x3", (192,), (320, (3, 3), 2, "VALID")),
        _branch("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2, "VALID")),
        (halve,),
    ),
    "Mixed_7b": _block_e(mean_of_neighbours),
    "Mixed_7c": _block_e(largest_neighbour),
}


class Inception(nn.Module):
    """Images -> the activations that TensorFlow names pool_3, and the logits without their bias."""

    @nn.compact
    def __call__(self, x):
        """x float32 [n, 299, 299, 3] in [-1, 1] -> (features float32 [n, 2048], logits float32 [n, 1008])."""
        x = _chain(STEM, x)
        for name, branches in BLOCKS.items():
            x = Mixed(branches, name=name)(x)
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(CLASSES, use_bias=False, name="fc")(features)
