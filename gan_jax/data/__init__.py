"""Data sets, by name: each a part whose annotated parameters are keys of the group `data` of a config."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from gan_jax.data import own
from gan_jax.data.digits import StackedMnist, digits
from gan_jax.data.mixture import gaussian, grid25, ring8, swiss_roll
from gan_jax.data.readers.arrays import ImageArrays
from gan_jax.data.readers.folder import ImageFolder
from gan_jax.data.readers.tfds import TfdsImages
from gan_jax.data.source import Source, independent
from gan_jax.data.stored import Stored
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import Registry, arguments, is_path, require_defaults

# `tfds:NAME` stands for every set of TFDS.
SOURCES: dict[str, Callable[..., Source | Stored]] = Registry(
    {
        "digits": digits,
        "ring8": ring8,
        "grid25": grid25,
        "swiss_roll": swiss_roll,
        "gaussian": gaussian,
        "folder": ImageFolder,
        "arrays": ImageArrays,
        "tfds:NAME": TfdsImages,
        "stacked_mnist": StackedMnist,
    },
    own.part,
)


def entry(name: str) -> str:
    """The key of SOURCES for what a config calls `name`. Raises InputError, which lists them, where there is none."""
    if not is_name(name):
        raise InputError(f"there is no data named {name!r}; valid: {', '.join(SOURCES)}")
    known = re.sub(":.+", ":NAME", name)
    return known if known in SOURCES else name


def is_name(name: str) -> bool:
    """Whether a config may name this data."""
    known = re.sub(":.+", ":NAME", name) in SOURCES
    return known or (is_path(name) and name.partition(":")[0] not in SOURCES)


def open_set(values: Mapping[str, Any], part: Callable | None = None) -> Source | Stored:
    """What the group `data` of a config names; nothing that lies on a disk is read yet.

    Keys that `values` lacks have their defaults. Raises InputError at a value for a key that the set does not have.
    `part`: the entry of SOURCES, where it is known.
    """
    key = entry(values["name"])
    part = part or SOURCES[key]
    require_defaults("data", "name", key, {**SOURCES, key: part}, values)
    return part(**arguments(part, values, {"name": values["name"]}))


def make_source(values: Mapping[str, Any], part: Callable | None = None) -> Source:
    """The data that a config names; see `open_set`. Raises InputError where it does not exist or cannot be read."""
    opened = open_set(values, part)
    return opened.source() if isinstance(opened, Stored) else opened


__all__ = ["SOURCES", "Source", "Stored", "entry", "independent", "is_name", "make_source", "open_set"]
