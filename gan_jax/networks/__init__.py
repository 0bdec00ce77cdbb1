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

`attends_from` says after how many halvings of the image self-attention can begin, `opened` names the modules whose
parts are layers by themselves, and a static method `check(player, values)` raises InputError if values that are right
by themselves do not go together. A discriminator sows what its last affine map sees as `features`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

from gan_jax.networks import dcgan, mlp, r3gan, resnet, spectral
from gan_jax.networks.network import Network, as_network, from_linen, products
from gan_jax.utils.keys import FLAG, Registry, arguments, function, parameters_of

# `default` leaves it to JAX, which on a GPU and a TPU rounds the factors of float32 products (to TF32, bfloat16).
MATMUL_PRECISIONS = ("default", "high", "highest")


__all__ = [
    "FAMILIES",
    "Family",
    "Network",
    "NetworkKeys",
    "as_network",
    "from_linen",
    "has",
    "make_network",
    "products",
]


class Family(NamedTuple):
    """The two players of one kind of network: functions of config keys and of what the program fills, or classes.

    They return what `as_network` takes: Linen modules; an NNX module's class takes `rngs` too.
    """

    generator: Callable
    discriminator: Callable


class NetworkKeys(NamedTuple):
    """The config keys of every family, beside its own."""

    spectral_norm: Annotated[bool, FLAG, "every weight is divided by its largest singular value"] = False


def _family(part: Any) -> Family:
    """Of a part that is for either player: a function or a class, or a network that is made already."""
    if isinstance(part, Family):
        return part
    if not (inspect.isclass(part) or inspect.isroutine(part) or isinstance(part, partial)):
        call = part[1] if isinstance(part, tuple) and len(part) > 1 else function(part)
        part = partial(_made_for_classes if "label" in parameters_of(call) else _made, part)
    return Family(part, part)


def _made(network: Any) -> Any:
    return network


def _made_for_classes(network: Any, classes: int = 0) -> Any:
    return network


FAMILIES = Registry(
    {
        "mlp": Family(mlp.Generator, mlp.Discriminator),
        "dcgan": Family(dcgan.Generator, dcgan.Discriminator),
        "resnet": Family(resnet.Generator, resnet.Discriminator),
        "r3gan": Family(r3gan.Generator, r3gan.Discriminator),
    },
    _family,
)


def has(part: Callable, field: str) -> bool:
    """Whether a player of a family has this field: `classes` if it can be conditional, and so on."""
    return field in parameters_of(part)


def make_network(part: Callable, values: Mapping[str, Any], matmul_precision: str, own: bool, **context) -> Network:
    """A player's network.

    Args:
      part: of a Family; `own`: it is the user's.
      values: of the player's config keys, by name; context: the other fields, of which the part takes those it has.
    """
    part = partial(part, **arguments(part, values, context))
    if not own:
        network = from_linen(part(), matmul_precision)
    else:
        network = as_network(part if has(part, "rngs") else part(), matmul_precision)
    return spectral.normalised(network) if values["spectral_norm"] else network
