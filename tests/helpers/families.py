"""How the tests build a small network of any family."""

from dataclasses import fields

import jax.numpy as jnp

from gan_jax.networks import FAMILIES, has
from gan_jax.networks.layers import NORMALIZATIONS

SMALL = {"width": 4, "depth": 2, "activation": "leaky_relu", "normalization": "none", "dtype": jnp.float32}
SMALL |= {"axis_name": None, "classes": 0, "form": "auto", "blocks": 1, "groups": 2}
# Each family with what it may be normalised by.
NORMALIZED = [
    (name, kind)
    for name, family in FAMILIES.items()
    for kind in (NORMALIZATIONS if has(family.generator, "normalization") else ("none",))
]


def small(network_class, **changes):
    """A small module of this class: of what all take together, it is given what it has."""
    known = {field.name for field in fields(network_class)}
    return network_class(**{name: value for name, value in (SMALL | changes).items() if name in known})
