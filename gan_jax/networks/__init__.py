"""Generators and discriminators as pairs of pure functions; Flax Linen stays inside this package.

Every generator is built as `Generator(shape=..., width=..., depth=..., activation=..., dtype=...)` and every
discriminator as the same without `shape` and with what it is told of an example's neighbours (`minibatch=`). What the
class says of itself decides what else it is given: `normalization` and the `axis_name` of its batch's devices where it
`normalizes`, the `form` of its convolutions where it `convolves`, the number of `classes` where it `conditions` (0
makes an unconditional network), whether it `sums` over pixels where it `pools` them at its end, `blocks` and `groups`
where its convolutions are `grouped`, and the `attention` that follows its images of this height where it says after how
many halvings these begin (`attends_from`; None: it has none). So a new family is one entry below. A discriminator sows
what its last affine map sees as `features`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gan_jax.networks import dcgan, mlp, r3gan, resnet

# `default` leaves it to JAX, which on a GPU and a TPU rounds the factors of float32 products (to TF32, bfloat16).
MATMUL_PRECISIONS = ("default", "high", "highest")


class Network(NamedTuple):
    """A network as the step knows it. `params` and `stats` are pytrees of float32 arrays."""

    # label: int32 [n], the class of each example, where the network was built with classes; None where it was not.
    init: Callable  # (key, x [n, ...], label=None) -> (params, stats)
    apply: Callable  # (params, stats, x [n, ...], train, label=None) -> (y, new stats): what a call in training moves
    convolves: bool  # whether it has convolutions, which XLA runs slowly inside a loop on a CPU
    # As apply, of a discriminator: ((logits, float32 [n, d], what its last affine map sees), new stats), in one pass.
    features: Callable | None = None


class Family(NamedTuple):
    """The two players of one kind of network, as Linen module classes."""

    generator: type[nn.Module]
    discriminator: type[nn.Module]


FAMILIES = {
    "mlp": Family(mlp.Generator, mlp.Discriminator),
    "dcgan": Family(dcgan.Generator, dcgan.Discriminator),
    "resnet": Family(resnet.Generator, resnet.Discriminator),
    "r3gan": Family(r3gan.Generator, r3gan.Discriminator),
}


def products(matmul_precision: str):
    """A context in which float32 products are traced with that one of MATMUL_PRECISIONS."""
    return nullcontext() if matmul_precision == "default" else jax.default_matmul_precision(matmul_precision)


def from_linen(module: nn.Module, matmul_precision: str) -> Network:
    """The pure functions of a Linen module, with products this precise.

    The module is called as `module(x, train=bool)` and, where it `conditions`, with `label=` too.
    """

    def init(key, x, label=None):
        variables = module.init(key, x, train=True, **_label_of(module, label))
        return variables["params"], variables.get("batch_stats", {})

    def run(mutable: list[str], params: Any, stats: Any, x, train: bool, label):
        variables, keywords = {"params": params, "batch_stats": stats}, _label_of(module, label)
        # What is traced here keeps its precision, and so do the derivatives that JAX makes of it.
        with products(matmul_precision):
            return module.apply(variables, x, train=train, mutable=mutable, **keywords)

    def apply(params: Any, stats: Any, x, train: bool, label=None):
        y, new = run(["batch_stats"], params, stats, x, train, label)
        return y, new.get("batch_stats", {})

    def features(params: Any, stats: Any, x, train: bool, label=None):
        y, new = run(["batch_stats", "intermediates"], params, stats, x, train, label)
        (seen,) = new["intermediates"]["features"]
        return (y, seen.astype(jnp.float32)), new.get("batch_stats", {})

    return Network(init, apply, module.convolves, features)


def _label_of(module: nn.Module, label) -> dict:
    """The keyword that hands the label on; a module that cannot be conditional knows none."""
    if module.conditions:
        return {"label": label}
    if label is not None:
        raise ValueError(f"a label is given to {type(module).__module__}, whose networks cannot be conditional")
    return {}
