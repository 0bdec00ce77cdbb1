"""Data sets of images on a disk: the config keys that they share, how they are opened, and where they then lie."""

import math
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import jax

from gan_jax.data import resident
from gan_jax.data.readers.records import Reader, Records, Subset
from gan_jax.data.source import Source, draw_stored
from gan_jax.data.splits import chosen, split_name
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import COMMON, COUNT, FLAG, POSITIVE_INT, TEXT, Rule, one_of

PLACEMENT = one_of(("auto", "device", "stream"))
CHANNELS = Rule(int, lambda value: value in (0, 1, 3), "0, 1 or 3")
Split = Annotated[
    str, TEXT, "`train`, or some of it, as `train[:1000]`; `digits` also has `test` and `all`, TFDS sets what they have"
]
Dir = Annotated[
    str, TEXT, "the folder or zip of images, the file of arrays, or the folder of TFDS sets (empty: its own)"
]
ImageSize = Annotated[int, COUNT, "height of the largest centre crop of each image, resized; 0: images as they are"]
ImageWidth = Annotated[int, COUNT, "its width; 0: as image_size"]
Channels = Annotated[int, CHANNELS, "1: grey, 3: RGB; 0: as they are, of a folder RGB"]
Flip = Annotated[bool, FLAG, "mirrors each image left to right with probability 1/2, anew each time"]
Corrupt = Annotated[str, one_of(("stop", "skip")), "at an image that cannot be read: `stop`, or `skip` it and count"]
Placement = Annotated[str, PLACEMENT, "`device`: all of it there; `stream`: read as one trains; `auto`: what fits"]
Workers = Annotated[int, POSITIVE_INT, "threads that decode", COMMON]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A set of images on a disk, before anything of it is read."""

    name: str  # as the config has it
    split: Split = "train"
    dir: Dir = ""
    image_size: ImageSize = 0
    image_width: ImageWidth = 0
    corrupt: Corrupt = "stop"
    workers: Workers = 2

    splits: ClassVar[tuple[str, ...]] = ("train",)  # that it has; (): `records` looks at the name itself

    def __post_init__(self):
        split_name(self.split, self.splits, self.name)
        if self.image_width and not self.image_size:
            raise InputError(f"config key data.image_width is {self.image_width}, but data.image_size is 0; set both")

    def records(self) -> Records:
        """The images of a whole split as they are stored. Raises InputError, one line, where they are not there."""

    def reader(self) -> Reader:
        """What reads them as examples of one shape; none is decoded yet."""
        return self.reader_of(self.records(), self.channels)

    def reader_of(self, records: Records, channels: int) -> Reader:
        """The same of these records of a whole split."""
        if self.split.endswith("]"):
            records = Subset(records, chosen(self.split, len(records)))
        return Reader(records, self.image_size, channels, self.corrupt, self.image_width)

    def source(self) -> Source:
        """What one trains on."""

    def required_dir(self, what: str) -> str:
        """`dir`. Raises InputError, which says what it is, where the config leaves it empty."""
        if not self.dir:
            raise InputError(f"config key data.dir is missing; for data.name={self.name} it is {what}")
        return self.dir


@dataclass(frozen=True, kw_only=True)
class Images(Stored):
    """A set whose images one trains on as they are."""

    channels: Channels = 0
    flip: Flip = False
    placement: Placement = "auto"

    def source(self) -> Source:
        return self.source_of(self.reader())

    def source_of(self, reader: Reader) -> Source:
        """What one trains on, of these examples."""
        if others := reader.records.not_images:
            print(f"skipped {len(others):,} files that are no images, the first {others[0]}", file=sys.stderr)
        needed, room = len(reader) * math.prod(reader.shape), room_for_data()
        if self.placement == "device" and needed > room:
            raise InputError(
                f"{self.name} needs {needed / 1e9:,.2f} GB on the device, which has room for {room / 1e9:,.2f} GB of "
                "data; set data.placement to stream, or a smaller data.image_size"
            )
        if self.placement == "stream" or needed > room:
            place = {"std": reader.std, "size": len(reader), "rows": reader.rows}
        else:
            loaded = resident.load(reader, self.workers)
            place = {"std": loaded.std, "size": len(loaded.data["image"]), "data": loaded.data}
        draw = partial(draw_stored, top=255, flip=self.flip)
        labels = {"classes": reader.classes, "attributes": reader.attributes}
        return Source(reader.shape, draw, identity=reader.identity, **labels, **place)


def room_for_data() -> int:
    """Bytes that a resident data set may take of each device: half of an accelerator, a quarter of a CPU's memory."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return room_of(statistics["bytes_limit"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # none outside a container, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory // 4


def room_of(memory: int) -> int:
    """What `room_for_data` is of an accelerator with so many bytes."""
    return memory // 2
