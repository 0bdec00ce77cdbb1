"""What lets a discriminator compare examples: features of an example beside others, for its last affine map.

Groups are of neighbouring slots of the batch. A device that holds whole groups needs nothing from the others, and how
many devices there are changes nothing: a statistic over the whole batch would cost both.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

DIMENSIONS = 5  # C, of a kernel of minibatch discrimination: that of the code which arXiv:1606.03498 published
FLOOR = 1e-8  # of a variance, as in the code of StyleGAN: at 0 the square root has an infinite slope


class Minibatch(NamedTuple):
    """What a discriminator is told of an example's neighbours."""

    stddev: int  # examples of a group whose spread is a feature; 0: it is not
    kernels: int  # B of minibatch discrimination, each a feature; 0: without
    group: int  # examples that it compares; without kernels it has no meaning


ALONE = Minibatch(stddev=0, kernels=0, group=1)


def needed_at_once(packing: int, wanted: Minibatch) -> int:
    """Examples that a discriminator sees together: whole packs, and of these whole groups."""
    return packing * math.lcm(wanted.stddev or 1, wanted.group if wanted.kernels else 1)


class BesideNeighbours(nn.Module):
    """The features of each example, and beside them what `minibatch` asks for."""

    minibatch: Minibatch
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """x [n, d] -> [n, d + (1 where stddev) + kernels]; n is a multiple of the sizes of the groups."""
        wanted, features = self.minibatch, [x]
        if wanted.stddev:
            features.append(standard_deviation(x, wanted.stddev))
        if wanted.kernels:
            # Its columns have the length 1 on average, as those of the published code are made to have.
            init = nn.initializers.lecun_normal()
            kernel = self.param("kernel", init, (x.shape[-1], wanted.kernels * DIMENSIONS), jnp.float32)
            rows = (x.astype(self.dtype) @ kernel.astype(self.dtype)).reshape(len(x), wanted.kernels, DIMENSIONS)
            features.append(closeness(rows, wanted.group))
        return jnp.concatenate([each.astype(x.dtype) for each in features], axis=-1) if len(features) > 1 else x


def standard_deviation(x, group: int):
    """Minibatch standard deviation (arXiv:1710.10196, section 3): x [n, d] -> float32 [n, 1].

    The standard deviation of each feature over the group, averaged over the features: one number for all of a group.
    Examples that are all alike have the root of FLOOR.
    """
    groups = x.astype(jnp.float32).reshape(-1, group, x.shape[-1])
    spread = jnp.mean(jnp.sqrt(jnp.var(groups, axis=1) + FLOOR), axis=1)
    return jnp.broadcast_to(spread[:, None], (len(spread), group)).reshape(-1, 1)


def closeness(rows, group: int):
    """Minibatch discrimination (arXiv:1606.03498, section 3.2): rows M_i [n, B, C] -> float32 [n, B].

    o_ib = sum_j exp(-|M_ib - M_jb|_1) over the j of the group of i, i itself (a constant 1) among them as in the paper.
    """
    groups = rows.astype(jnp.float32).reshape(-1, group, *rows.shape[1:])
    distances = jnp.sum(jnp.abs(groups[:, :, None] - groups[:, None]), axis=-1)  # [n / group, group, group, B]
    return jnp.sum(jnp.exp(-distances), axis=2).reshape(len(rows), -1)
