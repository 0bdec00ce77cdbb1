"""Generators and discriminators as pairs of pure functions; Flax Linen stays inside this package.

A family is two Linen module classes and one entry of FAMILIES. Their annotated fields are config keys of the group
`generator` or `discriminator` (see `gan_jax.utils.keys`); the program fills the other fields that a class has:

    shape        of an example, for a generator
    dtype        that it computes in
    axis_name    the mapped axis over which batch statistics are shared, or None
    classes      how many, or how many numbers of a vector, it is conditioned on; 0: unconditional
    form         how convolutions are written
    minibatch    what a discriminator is told of an example's neighbours
    sums         whether it takes the sum over pixels at its end, or their mean

`attends_from` says after how many halvings of the image self-attention can begin, and a static
method `check(player, values)` raises InputError if values that are right by themselves do not go together. A
discriminator sows what its last affine map sees as `features`.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gan_jax.networks import dcgan, mlp, r3gan, resnet, spectral
from gan_jax.utils.keys import FLAG, Registry, arguments

# `default` leaves it to JAX, which on a GPU and a TPU rounds the factors of float32 products (to TF32, bfloat16).
MATMUL_PRECISIONS = ("default", "high", "highest")


class Network(NamedTuple):
    """A network as the step knows it. `params` and `stats` are pytrees of float32 arrays."""

    # label: int32 [n], the class of each example, or float32 [n, classes], a vector, where the network was built with
    # classes; None where it was not.
    init: Callable  # (key, x [n, ...], label=None) -> (params, stats)
    apply: Callable  # (params, stats, x [n, ...], train, label=None) -> (y, new stats): what a call in training moves
    convolves: bool  # whether it has convolutions, which XLA runs slowly inside a loop on a CPU
    # As apply, of a discriminator: ((logits, float32 [n, d], what its last affine map sees), new stats), in one pass.
    features: Callable | None = None


class Family(NamedTuple):
    """The two players of one kind of network, as Linen module classes."""

    generator: type[nn.Module]
    discriminator: type[nn.Module]


class NetworkKeys(NamedTuple):
    """The config keys of every family, beside its own."""

    spectral_norm: Annotated[bool, FLAG, "every weight is divided by its largest singular value"] = False


def _family(part: Any) -> Family:
    if isinstance(part, Family):
        return part
    if not (isinstance(part, type) and issubclass(part, nn.Module)):
        raise TypeError("neither a Linen module class nor a Family of two")
    return Family(part, part)


FAMILIES = Registry(
    {
        "mlp": Family(mlp.Generator, mlp.Discriminator),
        "dcgan": Family(dcgan.Generator, dcgan.Discriminator),
        "resnet": Family(resnet.Generator, resnet.Discriminator),
        "r3gan": Family(r3gan.Generator, r3gan.Discriminator),
    },
    _family,
)


def products(matmul_precision: str):
    """A context in which float32 products are traced with this precision, one of MATMUL_PRECISIONS."""
    return nullcontext() if matmul_precision == "default" else jax.default_matmul_precision(matmul_precision)


def from_linen(module: nn.Module, matmul_precision: str) -> Network:
    """The pure functions of a Linen module, with products this precise.

    The module is called as `module(x, train=bool)` and, if it has `classes`, with `label=` too.
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

    # Compiled as functions of their own they are traced once, however often a step calls them: real, fake, D and G.
    apply, features = (jax.jit(function, static_argnums=3) for function in (apply, features))
    return Network(init, apply, has(type(module), "form"), features)


def has(module_class: type[nn.Module], field: str) -> bool:
    """Whether a family has this field: `classes` if it can be conditional, `form` if it convolves, and so on."""
    return field in module_class.__dataclass_fields__


def make_network(module_class: type[nn.Module], values: Mapping[str, Any], matmul_precision: str, **context) -> Network:
    """A player's network.

    Args:
      values: of the player's config keys, by name; context: the other fields, of which the class takes those it has.
    """
    network = from_linen(module_class(**arguments(module_class, values, context)), matmul_precision)
    return spectral.normalised(network) if values["spectral_norm"] else network


def _label_of(module: nn.Module, label) -> dict:
    """The keyword that hands the label on; a module that cannot be conditional knows none."""
    if has(type(module), "classes"):
        return {"label": label}
    if label is not None:
        raise ValueError(f"a label is given to {type(module).__module__}, whose networks cannot be conditional")
    return {}
