"""Data sets, by name: each a `Source`, made from what the `data` group of a config says."""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from gan_jax.data import resident
from gan_jax.data.arrays import Arrays
from gan_jax.data.digits import SPLITS, digits
from gan_jax.data.folder import Folder
from gan_jax.data.mixture import gaussian, grid25, ring8, swiss_roll
from gan_jax.data.reading import CORRUPT, Reader
from gan_jax.data.source import Source, draw_stored, independent
from gan_jax.data.stacked import stacked
from gan_jax.data.tfds import Tfds
from gan_jax.errors import InputError
from gan_jax.memory import room_for_data

PLACEMENTS = ("auto", "device", "stream")


class Spec(NamedTuple):
    """What a config says of its data; `configs/base.py` says what each field means."""

    name: str
    split: str
    dir: str
    image_size: int
    channels: int
    flip: bool
    corrupt: str
    placement: str
    workers: int


class Entry(NamedTuple):
    """A kind of data in the registry."""

    make: Callable  # Spec -> Source
    splits: tuple[str, ...]  # that it has; without any, the set itself says
    uses: tuple[str, ...] = ()  # which of NEUTRAL it makes use of
    reader: Callable | None = None  # Spec -> Reader of what lies on the disk, none of which is read yet


# Where a kind of data makes no use of a key, it must have this value: a setting that does nothing is a mistake.
NEUTRAL = {"dir": "", "image_size": 0, "channels": 0, "flip": False, "corrupt": "stop", "placement": "auto"}


def make_source(spec: Spec) -> Source:
    """The data that a config names. Raises InputError, one line, where it does not exist or cannot be read."""
    return checked(spec).make(spec)


def is_name(name: str) -> bool:
    """Whether a config may name this data."""
    kind, colon, rest = name.partition(":")
    return kind in SOURCES and bool(rest if kind == "tfds" else not colon)


def checked(spec: Spec) -> Entry:
    """The entry of what a config names. Raises InputError where the config says what it makes no use of."""
    if not is_name(spec.name):
        raise InputError(f"there is no data named {spec.name!r}; valid: {', '.join(NAMES)}")
    entry = SOURCES[spec.name.partition(":")[0]]
    if entry.splits and spec.split not in entry.splits:
        raise InputError(f"config key data.split is {spec.split!r}; {spec.name} has {', '.join(entry.splits)}")
    for key, neutral in NEUTRAL.items():
        if key not in entry.uses and getattr(spec, key) != neutral:
            raise InputError(
                f"config key data.{key} is {getattr(spec, key)!r}, of which {spec.name} makes no use: leave it out"
            )
    return entry


def _folder(spec: Spec) -> Reader:
    records = Folder(_given_dir(spec, "the folder of images"))
    if spec.corrupt == "stop":
        records.refuse_non_images()
    # Where grey and coloured images lie in one folder, all are made coloured.
    return Reader(records, spec.image_size, spec.channels or 3, spec.corrupt)


def _arrays(spec: Spec) -> Reader:
    records = Arrays(_given_dir(spec, "the .npz or .npy file"))
    return Reader(records, spec.image_size, spec.channels, spec.corrupt)


def _tfds(spec: Spec) -> Reader:
    records = Tfds(spec.name.removeprefix("tfds:"), spec.split, spec.dir)
    return Reader(records, spec.image_size, spec.channels, spec.corrupt)


def _mnist(spec: Spec) -> Reader:
    return Reader(Tfds("mnist", spec.split, spec.dir), spec.image_size, 1, spec.corrupt)


def _stacked_mnist(spec: Spec) -> Source:
    return stacked(resident.load(_mnist(spec), spec.workers).data)


def _given_dir(spec: Spec, what: str) -> str:
    if not spec.dir:
        raise InputError(f"config key data.dir is missing; for data.name={spec.name} it is {what}")
    return spec.dir


def _stored(open_reader: Callable, spec: Spec) -> Source:
    """The source of a set that lies on a disk: on the device where it fits there, else streamed."""
    reader = open_reader(spec)
    others = reader.records.not_images if isinstance(reader.records, Folder) else ()
    if others:
        print(f"skipped {len(others):,} files that are no images, the first {others[0]}", file=sys.stderr)
    needed, room = len(reader) * int(np.prod(reader.shape)), room_for_data()
    if spec.placement == "device" and needed > room:
        raise InputError(
            f"{spec.name} needs {needed / 1e9:,.2f} GB on the device, which has room for {room / 1e9:,.2f} GB of data; "
            "set data.placement to stream, or a smaller data.image_size"
        )
    common = {"draw": partial(draw_stored, top=255, flip=spec.flip), "classes": reader.classes}
    common["identity"] = reader.identity
    if spec.placement == "stream" or needed > room:
        return Source(reader.shape, std=reader.std, size=len(reader), rows=reader.rows, **common)
    loaded = resident.load(reader, spec.workers)
    size = len(loaded.data["image"])
    return Source(reader.shape, std=loaded.std, size=size, data=loaded.data, **common)


_IMAGES = ("image_size", "channels", "flip", "corrupt", "placement")
_POINTS = Entry(lambda spec: MIXTURES[spec.name](), ("train",))
MIXTURES = {"ring8": ring8, "grid25": grid25, "swiss_roll": swiss_roll, "gaussian": gaussian}
SOURCES = {
    "digits": Entry(lambda spec: digits(spec.split, spec.flip), tuple(SPLITS), ("flip",)),
    **dict.fromkeys(MIXTURES, _POINTS),
    "folder": Entry(partial(_stored, _folder), ("train",), ("dir", *_IMAGES), _folder),
    "arrays": Entry(partial(_stored, _arrays), ("train",), ("dir", *_IMAGES), _arrays),
    "tfds": Entry(partial(_stored, _tfds), (), ("dir", *_IMAGES), _tfds),
    "stacked_mnist": Entry(_stacked_mnist, (), ("dir", "image_size", "corrupt"), _mnist),
}

NAMES = tuple("tfds:NAME" if name == "tfds" else name for name in SOURCES)  # as a config may name them

__all__ = [
    "CORRUPT",
    "NAMES",
    "PLACEMENTS",
    "SOURCES",
    "Source",
    "Spec",
    "checked",
    "independent",
    "is_name",
    "make_source",
]
