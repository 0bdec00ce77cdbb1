"""What the families share: activations, normalisations, initialisers, resampling, and how a class gets in."""

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


class Embedding(nn.Module):
    """A learned vector for each class: labels [n] in 0 .. classes - 1 -> [n, features]; the table is float32.

    The table is multiplied by one-hot vectors, for its gradient is a product then too. That of a gather is a scatter,
    which on a GPU adds the examples of a class in any order: a run would not give the same bits twice. A label outside
    the range gets the vector 0.
    """

    classes: int
    features: int
    dtype: Any
    table_init: Any  # (key, shape [classes, features], dtype) -> the first table

    @nn.compact
    def __call__(self, label):
        """label int32 [n] -> [n, features]."""
        table = self.param("embedding", self.table_init, (self.classes, self.features), jnp.float32)
        return jax.nn.one_hot(label, self.classes, dtype=self.dtype) @ table.astype(self.dtype)


class BesideLatents(nn.Module):
    """How a class gets into a generator: its vector, as long as the latents, beside them (arXiv:1411.1784, figure 1).

    The first vectors are short, of N(0, 0.1^2). With those of N(0, 1) a DCGAN on MNIST fits one image a class, and then
    ignores its latents.
    """

    classes: int  # 0: the latents are left alone
    dtype: Any

    @nn.compact
    def __call__(self, z, label):
        """z [n, d], label int32 [n] or None -> [n, 2 d] or, without classes, z."""
        check_label(self.classes, label, z.shape[0])
        if not self.classes:
            return z
        embedding = Embedding(self.classes, z.shape[-1], self.dtype, nn.initializers.normal(0.1))
        return jnp.concatenate([z, embedding(label)], axis=-1)


class Projection(nn.Module):
    """How a class gets into a discriminator: logit = w.phi(x) + b + <embed(y), phi(x)> (arXiv:1802.05637, equation 3).

    `table_init` is the initialiser of w with [classes, features] for a shape: to the examples of a class y the last
    layer's kernel is w + embed(y), so that both are as random. The sum over features is in float32 for every dtype.
    """

    classes: int  # 0: the logits are left alone
    dtype: Any
    table_init: Any

    @nn.compact
    def __call__(self, logits, features, label):
        """logits w.phi(x) + b, float32 [n]; features phi(x) [n, d]; label int32 [n] or None -> float32 [n]."""
        check_label(self.classes, label, features.shape[0])
        if not self.classes:
            return logits
        rows = Embedding(self.classes, features.shape[-1], self.dtype, self.table_init)(label)
        return logits + jnp.sum(rows.astype(jnp.float32) * features.astype(jnp.float32), axis=-1)


def check_label(classes: int, label, n: int) -> None:
    """Raises ValueError, when it is traced, unless there are labels, integers [n], just where there are classes."""
    if not classes and label is not None:
        raise ValueError("a label is given to a network without classes; leave it out, or build it with classes > 0")
    if classes and label is None:
        raise ValueError(f"a network of {classes} classes is called without a label; give an integer for each example")
    if classes and (jnp.shape(label) != (n,) or not jnp.issubdtype(jnp.result_type(label), jnp.integer)):
        given = f"{jnp.result_type(label)} {list(jnp.shape(label))}"
        raise ValueError(f"label is {given}; with {n} examples it must be integers [{n}]")
