"""How a discriminator compares examples: features of an example beside others, for its last affine map.

Groups are of neighbouring slots of the batch. A device that holds whole groups needs nothing from the others, and how
many devices there are changes nothing: a statistic over the whole batch would cost both.
"""

import math
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from gan_jax.utils.keys import COUNT, POSITIVE_INT, Rule

DIMENSIONS = 5  # C, of a kernel of minibatch discrimination: that of the code which arXiv:1606.03498 published
FLOOR = 1e-8  # of a variance, as in the code of StyleGAN: at 0 the square root has an infinite slope


_GROUP = Rule(int, lambda value: 1 < value < 2**31, "an integer, 2 or more")
_NO_OR_GROUP = Rule(int, lambda value: value == 0 or 1 < value < 2**31, "0, or 2 or more")


class Minibatch(NamedTuple):
    """The config keys of what a discriminator is told of an example's neighbours."""

    packing: Annotated[int, POSITIVE_INT, "examples that D sees as one, joined along the channels"] = 1
    minibatch_stddev: Annotated[int, _NO_OR_GROUP, "examples of a group whose spread D is told; 0: it is not"] = 0
    minibatch_discrimination: Annotated[int, COUNT, "learned kernels by which D compares examples; 0: without"] = 0
    minibatch_group: Annotated[int, _GROUP, "examples that minibatch discrimination compares"] = 32

    @property
    def group_size(self) -> int:
        """Examples that a discriminator sees together: whole packs, and of these whole groups."""
        return self.packing * math.lcm(
            self.minibatch_stddev or 1, self.minibatch_group if self.minibatch_discrimination else 1
        )


ALONE = Minibatch()


class BesideNeighbours(nn.Module):
    """The features of each example, and beside them the features that `minibatch` asks for."""

    minibatch: Minibatch
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """x [n, d] -> [n, d + (1 with a spread) + kernels]; n is a multiple of the sizes of the groups."""
        minibatch, features = self.minibatch, [x]
        if minibatch.minibatch_stddev:
            features.append(standard_deviation(x, minibatch.minibatch_stddev))
        if minibatch.minibatch_discrimination:
            # Its columns have the length 1 on average, as those of the published code are made to have.
            init = nn.initializers.lecun_normal()
            kernel = self.param(
                "kernel", init, (x.shape[-1], minibatch.minibatch_discrimination * DIMENSIONS), jnp.float32
            )
            rows = (x.astype(self.dtype) @ kernel.astype(self.dtype)).reshape(
                len(x), minibatch.minibatch_discrimination, DIMENSIONS
            )
            features.append(closeness(rows, minibatch.minibatch_group))
        return jnp.concatenate([feature.astype(x.dtype) for feature in features], axis=-1) if len(features) > 1 else x


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
