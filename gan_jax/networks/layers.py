"""What the families share: activations, normalisations, initialisers, resampling, and how a class gets in."""

import math
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gan_jax.utils.keys import COMMON, COUNT, POSITIVE_INT, one_of

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
}

NORMALIZATIONS = ("none", "batch", "layer", "group")
GROUPS = 32  # of channels, at most (arXiv:1803.08494)
LEAST_GROUP = 4  # channels: of a single number, which a layer of units would have there, normalisation leaves 0

# The config keys that families share.
Width = Annotated[
    int, POSITIVE_INT, "units of a hidden layer; channels: for dcgan of the layer next to the image", COMMON
]
Depth = Annotated[int, COUNT, "hidden layers (0: an affine map); elsewhere, how often the image is halved", COMMON]
Activation = Annotated[str, one_of(ACTIVATIONS), "between layers", COMMON]
Normalization = Annotated[str, one_of(NORMALIZATIONS), "before an activation"]
Attention = Annotated[int, COUNT, "height of the images inside that self-attention follows; 0: none"]


@partial(jax.jit, static_argnums=(1, 2))  # traced once: Flax calls it in every apply, to compare shapes
def dcgan_init(key, shape, dtype=jnp.float32):
    """Samples of N(0, 0.02^2) (arXiv:1511.06434, section 4), [*shape]; drawn flat, which XLA compiles faster."""
    return 0.02 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def dcgan_scale_init(key, shape, dtype=jnp.float32):
    """Samples of N(1, 0.02^2), [*shape]."""
    return 1 + dcgan_init(key, tuple(shape), dtype)


def upsample(x):
    """Each pixel four times: [n, h, w, c] -> [n, 2 h, 2 w, c]."""
    n, height, width, c = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, c))
    return blocks.reshape(n, 2 * height, 2 * width, c)


def mean_pool(x):
    """The mean of each 2x2 block: [n, 2 h, 2 w, c] -> [n, h, w, c]."""
    n, height, width, c = x.shape
    return jnp.mean(x.reshape(n, height // 2, 2, width // 2, 2, c), axis=(2, 4))


def bilinear_upsample(x):
    """Twice the size, each pixel the mean of the four nearest with weights 9 3 3 1: [n, h, w, c] -> [n, 2 h, 2 w, c].

    Zeros lie around the image. This is the filter 1 3 3 1 along either axis, as in the code of arXiv:1912.04958.
    """
    return _doubled(_doubled(x, 1), 2)


def bilinear_downsample(x):
    """Half the size by the same filter, a fourth of the adjoint of the above: [n, 2 h, 2 w, c] -> [n, h, w, c]."""
    return _halved(_halved(x, 1), 2)


def _doubled(x, axis: int):
    before, after = _neighbours(x, axis)
    pairs = jnp.stack([(3 * x + before) / 4, (3 * x + after) / 4], axis=axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def _halved(x, axis: int):
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    first, second = (jax.lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
    return (_neighbours(second, axis)[0] + 3 * (first + second) + _neighbours(first, axis)[1]) / 8


def _neighbours(x, axis: int):
    """The neighbours (before, after) of every place along an axis, zeros beyond its ends."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])
    return jax.lax.slice_in_dim(padded, 0, size, axis=axis), jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)


def takes_bias(normalization: str) -> bool:
    """Whether a bias just before this normalisation changes anything.

    A batch's takes the mean of each channel away, and its own shift makes a bias redundant: training one would be Adam
    on rounding errors. That of a layer or a group takes away what the channels have in common.
    """
    return normalization != "batch"


def groups_of(channels: int) -> int:
    """The most groups, up to GROUPS, that divide the channels equally and have LEAST_GROUP or more each; at least 1."""
    fitting = (count for count in range(1, GROUPS + 1) if channels % count == 0 and channels >= LEAST_GROUP * count)
    return max(fitting, default=1)


class Normalize(nn.Module):
    """The normalisation that a config names, before an activation; `none` is the identity.

    x is brought to mean 0 and variance 1, then scaled and shifted by learned numbers for each channel:
      batch: each channel over the examples and pixels of the batch, in evaluation by running averages;
      layer: each example over its pixels and channels (arXiv:1607.06450; over all of them as in WGAN-GP,
        arXiv:1704.00028);
      group: each example over its pixels and the channels of a group (arXiv:1803.08494), see `groups_of`.
    With classes a scale and a shift for each channel and class take the place of the learned numbers
    (arXiv:1707.00683, as in arXiv:1802.05637). Of a vector of labels y the scale is 1 + sum_i y_i (scale_i - 1): a
    vector of zeros leaves x as it is, and a one-hot one is its class.

    `axis_name` is the mapped axis over which batch statistics are shared; None where the batch is one global array.
    """

    kind: str
    dtype: Any
    axis_name: str | None
    scale_init: Any = nn.initializers.ones
    classes: int = 0  # 0: all examples have the same scale and shift

    @nn.compact
    def __call__(self, x, train: bool, label=None):
        """x [n, ..., c], label int32 [n], float32 [n, classes] or None -> the same shape as x."""
        check_label(self.classes, label, x.shape[0])
        if self.kind == "none":
            return x
        options = {"epsilon": 1e-5, "dtype": self.dtype}
        options |= {"use_scale": False, "use_bias": False} if self.classes else {"scale_init": self.scale_init}
        x = self._normalized(x, train, options)
        return self._of_its_class(x, label) if self.classes else x

    def _normalized(self, x, train, options):
        if self.kind == "batch":
            options |= {"use_running_average": not train, "momentum": 0.9, "axis_name": self.axis_name}
            return nn.BatchNorm(**options)(x)
        # Of one example a mean square less a squared mean could lose all its digits.
        options |= {"use_fast_variance": False}
        if self.kind == "layer":
            return nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)), **options)(x)
        return nn.GroupNorm(num_groups=groups_of(x.shape[-1]), **options)(x)

    def _of_its_class(self, x, label):
        shape, spread = (self.classes, x.shape[-1]), (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        shift = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        around = jnp.ndim(label) - 1  # 0, or 1 for vectors
        scale = rows(scale - around, label, self.dtype) + around if around else rows(scale, label, self.dtype)
        shift = rows(shift, label, self.dtype)
        return x * scale.reshape(spread) + shift.reshape(spread)


def rows(table, label, dtype):
    """The row of each label in a table [classes, features]: label int32 [n] -> [n, features] of dtype.

    Of a label that is a vector, float32 [n, classes], it is the sum of all rows times its numbers.

    The table is multiplied by one-hot vectors, for its gradient is a product then too. That of a gather is a scatter,
    which on a GPU adds the examples of a class in any order: a run would not give the same bits twice. A label outside
    the range gets the vector 0.
    """
    weights = label.astype(dtype) if jnp.ndim(label) == 2 else jax.nn.one_hot(label, len(table), dtype=dtype)
    return weights @ table.astype(dtype)


class Embedding(nn.Module):
    """A learned vector for each class: labels [n] in 0 .. classes - 1 -> [n, features]; the table is float32."""

    classes: int
    features: int
    dtype: Any
    table_init: Any  # (key, shape [classes, features], dtype) -> the first table

    @nn.compact
    def __call__(self, label):
        """label int32 [n] or float32 [n, classes] -> [n, features]."""
        table = self.param("embedding", self.table_init, (self.classes, self.features), jnp.float32)
        return rows(table, label, self.dtype)


CLASS_EMBEDDING = "BesideLatents_0"  # the layer's name in every checkpoint, and in the keys of its first parameters


class ClassEmbeddingConcat(nn.Module):
    """How a class gets into a generator: its vector, as long as the latents, beside them (arXiv:1411.1784, figure 1).

    The first vectors are short, of N(0, 0.1^2). With those of N(0, 1) a DCGAN on MNIST fits one image a class, and then
    ignores its latents.
    """

    classes: int  # 0: the latents are left alone
    dtype: Any

    @nn.compact
    def __call__(self, z, label):
        """z [n, d], label int32 [n], float32 [n, classes] or None -> [n, 2 d] or, without classes, z."""
        check_label(self.classes, label, z.shape[0])
        if not self.classes:
            return z
        embedding = Embedding(self.classes, z.shape[-1], self.dtype, nn.initializers.normal(0.1))
        return jnp.concatenate([z, embedding(label)], axis=-1)


class Projection(nn.Module):
    """How a class gets into a discriminator: logit = w.phi(x) + b + <embed(y), phi(x)> (arXiv:1802.05637, equation 3).

    `table_init` is the initialiser of w with [classes, features] for a shape: to the examples of a class y the last
    layer's kernel is w + embed(y), so that both are as random. All of it is in float32.
    """

    classes: int  # 0: the logits are left alone
    table_init: Any

    @nn.compact
    def __call__(self, logits, features, label):
        """logits w.phi(x) + b, float32 [n]; features phi(x) [n, d]; label as an Embedding's, or None -> float32 [n]."""
        check_label(self.classes, label, features.shape[0])
        if not self.classes:
            return logits
        rows = Embedding(self.classes, features.shape[-1], jnp.float32, self.table_init)(label)
        return logits + jnp.sum(rows * features.astype(jnp.float32), axis=-1)


def check_label(classes: int, label, n: int) -> None:
    """Raises ValueError, when it is traced, unless there are labels just where there are classes.

    They are integers [n], or vectors of floats [n, classes].
    """
    if not classes and label is not None:
        raise ValueError("a label is given to a network without classes; leave it out, or build it with classes > 0")
    if classes and label is None:
        raise ValueError(f"a network of {classes} classes is called without a label; give an integer for each example")
    if not classes:
        return
    kind = jnp.floating if np.ndim(label) == 2 else jnp.integer
    if np.shape(label) not in ((n,), (n, classes)) or not jnp.issubdtype(jnp.result_type(label), kind):
        shown = f"{jnp.result_type(label)} {list(np.shape(label))}"
        right = f"integers [{n}] or floats [{n}, {classes}]"
        raise ValueError(f"label is {shown}; with {n} examples it must be {right}")
