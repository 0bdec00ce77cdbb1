"""What a reader of images is: random access to them as they are stored; and what makes them one shape.

NumPy and Pillow, on the host, from several threads at once. None of the readers uses JAX.
"""

import hashlib
import io
import json
import operator
import os
import sys
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from gan_jax.data.source import evenly_spaced, stored_std
from gan_jax.utils.errors import InputError, one_line, reason
from gan_jax.utils.plots import to_picture

warnings.filterwarnings("ignore", "Corrupt EXIF data")  # Pillow's, of a block that is then left alone
ORIENTATION = 0x0112  # the EXIF tag
# How a file begins, what opens it, and how a complete one ends, though more may follow: where only the end is missing,
# Pillow does not always notice. Image.open warns of large images, and a filter for warnings is not safe among threads.
FORMATS = (
    (b"\x89PNG\r\n\x1a\n", PngImageFile, b"IEND\xaeB`\x82"),
    (b"\xff\xd8\xff", JpegImageFile, b"\xff\xd9"),
    (b"RIFF", WebPImageFile, b""),
)
FORMAT = 1  # of what decoding gives; another number makes all cached sets stale
SAMPLED = 1_000  # examples that tell the standard deviation


class BadExampleError(Exception):
    """One example is damaged; the message is one line: which file and position, and what is wrong with it."""


class Records:
    """A set of images by index, as they are stored; it has a length. It is read from several threads at once."""

    classes: tuple[str, ...] = ()  # what the labels 0, 1, ... mean; () where the set has no such labels
    attributes: tuple[str, ...] = ()  # what the numbers of a label mean, where it is a vector
    folder: Path | None = None  # or the file, in which it lies; None: it is bundled
    not_images: tuple[str, ...] = ()  # the names of other files in the folder

    def __getitem__(self, i: int) -> dict[str, Any]:
        """{"image": uint8 [h, w, c], "label": int or float32 [m]}: c is 1 or 3; "label" only where there are labels.

        Raises BadExampleError where this one cannot be read, and IndexError outside 0 <= i < len.
        """
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"no example {i}: there are {len(self)}")
        try:
            return self.read(i)
        except Exception as error:  # whatever the libraries of the reader raise
            raise BadExampleError(f"{self.where(i)}: {reason(error)}") from error

    def read(self, i: int) -> dict[str, Any]:
        """What `self[i]` is, for 0 <= i < len; whatever it raises means that this example is damaged."""

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what tells the content apart: names, sizes and times of the files. Nothing is read for it.

        "" where nothing tells it: the decoded set is not kept then.
        """
        return ""

    @property
    def whole(self) -> "Records":
        """The set that these are examples of."""
        return self

    def labels(self) -> np.ndarray | None:
        """The label of every example where there are classes, int [n], -1 where it has none; no image is decoded.

        None where reading them would take as long as reading all.
        """

    def where(self, i: int) -> str:
        """The file and the position of example i, counted from 0, for messages: "PATH (example 17 of 200)"."""
        return f"{one_line(self.file(i))} (example {i} of {len(self)})"

    def file(self, i: int) -> object:
        """The path in which example i lies, for messages."""
        return self.folder


class Subset(Records):
    """The examples of a set at some places, as if there were no others."""

    def __init__(self, records: Records, places: range):
        self._records, self._places = records, places
        self.classes, self.attributes = records.classes, records.attributes
        self.folder, self.not_images = records.folder, records.not_images

    @property
    def fingerprint(self) -> str:
        of_whole = self._records.fingerprint
        return of_whole and hashlib.sha256(f"{of_whole} {self._places}".encode()).hexdigest()

    @property
    def whole(self) -> Records:
        return self._records

    def __len__(self) -> int:
        return len(self._places)

    def read(self, i: int) -> dict:
        return self._records.read(self._places[i])

    def labels(self) -> np.ndarray | None:
        labels = self._records.labels()
        return None if labels is None else labels[self._places.start : self._places.stop]

    def where(self, i: int) -> str:
        return self._records.where(self._places[i])


def fingerprint(folder: Path, names: Iterable[str], *options: str) -> str:
    """SHA-256 over name, size and times of last change (ns) of the files `names` in `folder`, and over the options.

    The folder itself is left out: a set that was moved is the same set. Of the two times, an archive that is unpacked
    sets one, and nobody the other.
    """
    digest = hashlib.sha256(repr(options).encode())
    try:
        for name in names:
            stat = os.stat(os.path.join(folder, name))
            digest.update(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} ".encode() + os.fsencode(name) + b"\0")
    except OSError as error:
        raise InputError(f"{one_line(error.filename)} was there and cannot be found again: {reason(error)}") from error
    return digest.hexdigest()


def decode(data: bytes, upright: bool) -> np.ndarray:
    """A PNG, JPEG or WebP file as uint8 [h, w, c], c = 1 for grey and 3 for RGB; of an animation, the first frame.

    `upright`: turned as its EXIF orientation asks, as viewers do. What is transparent is laid over white, as on a page:
    dropping the alpha instead would show whatever colour an editor left under it.
    """
    formats = [(opener, end) for start, opener, end in FORMATS if data.startswith(start)]
    if not formats:
        raise ValueError("neither PNG nor JPEG nor WebP" if data else "empty")
    ((opener, end),) = formats
    with opener(io.BytesIO(data)) as image:
        (width, height), limit = image.size, Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            raise ValueError(f"{width}x{height} pixels, where at most {limit} are decoded: a decompression bomb?")
        image.load()
        if end not in data:
            raise ValueError("truncated: it has no end")
        if upright and image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return pixels(image)


def pixels(image: Image.Image) -> np.ndarray:
    """An image of Pillow's as `decode` gives it."""
    if image.mode.startswith("I"):  # 16-bit grey; the high byte, which is what Pillow takes of 16-bit colours
        return np.atleast_3d((np.asarray(image) >> 8).astype(np.uint8))
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.atleast_3d(image.convert("L" if is_grey else "RGB"))


def fit(image: np.ndarray, size: int, channels: int, wide: int = 0) -> np.ndarray:
    """The largest centre crop of `image` uint8 [h, w, 1 or 3], resized: uint8 [size, wide or size, channels], 1 or 3.

    Lanczos with antialiasing, by Pillow, as StyleGAN2-ADA and StyleGAN3 prepare their sets (`dataset_tool.py
    --transform=center-crop`); a filter that skips pixels when it shrinks would not do (arXiv:2104.11222). RGB to grey
    is the luma of ITU-R 601. Size 0 leaves height and width. What is of that shape already comes back bit for bit.
    """
    wide = wide or size
    if size:
        height, width = image.shape[:2]
        tall, broad = min(height, max(1, width * size // wide)), min(width, max(1, height * wide // size))
        top, left = (height - tall) // 2, (width - broad) // 2
        image = image[top : top + tall, left : left + broad]
    if image.shape[2] > channels:
        image = np.atleast_3d(to_picture(image).convert("L"))  # before the resize, which then has a third of the work
    if size and image.shape[:2] != (size, wide):
        image = np.atleast_3d(to_picture(image).resize((wide, size), Image.Resampling.LANCZOS))
    return np.repeat(image, channels, axis=2) if image.shape[2] < channels else image


class Reader:
    """The examples of a set, cut and resized to one shape. Used from several threads at once."""

    def __init__(self, records: Records, image_size: int, channels: int, corrupt: str, image_width: int = 0):
        """`image_size` and `channels` 0: as the first example has them. `corrupt`: "stop", or "skip".

        `image_width` 0: images are square.
        """
        self.records, self._image_width = records, image_width or image_size
        self._image_size, self._channels, self._skips = image_size, channels, corrupt == "skip"
        self._skipped = set()  # bad examples that the user knows of

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def identity(self) -> str:
        """A hash of what decides every byte of the decoded set; "" where that is unknown."""
        if not (of_records := self.records.fingerprint):
            return ""
        decisive = [FORMAT, of_records, self._image_size, self._channels, self._skips]
        decisive += [self._image_width] if self._image_width != self._image_size else []
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels; none where the set keeps its labels back, as the test splits of some do."""
        return self.records.classes if self.records.classes and self._first.get("label", -1) >= 0 else ()

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the numbers of a label, where it is a vector."""
        return self.records.attributes

    @cached_property
    def forms(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """The shape and the dtype of each array of an example, by name."""
        forms = {"image": (self.shape, np.uint8)} | ({"label": ((), np.int32)} if self.classes else {})
        return forms | ({"label": ((len(self.attributes),), np.float32)} if self.attributes else {})

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of every example."""
        height, width, channels = self._first["image"].shape
        return (self._image_size or height, self._image_width or width, self._channels or channels)

    @cached_property
    def std(self) -> float:
        """The standard deviation of the pixels, scaled to [-1, 1], of SAMPLED examples evenly spaced over the set."""
        return stored_std(self.rows(evenly_spaced(len(self), SAMPLED))["image"], top=255)

    def example(self, i: int) -> dict | None:
        """{"image": uint8 [*shape], "label" where there are labels}; None where it is corrupt and skipped.

        Raises InputError at a corrupt one that may not be skipped, and at one of another size where none is resized.
        """
        return None if (example := self._decoded(i)) is None else self.fitted(example, self.records.where(i))

    def fitted(self, example: dict, where: str) -> dict:
        """An example as it is stored, cut and resized; raises InputError as `example` does. `where` is for messages."""
        image = fit(example["image"], self._image_size, self.shape[2], self._image_width)
        if image.shape != self.shape:
            raise InputError(
                f"{where} is {size_text(image.shape)} and the first example {size_text(self.shape)}; "
                "set data.image_size, to cut and resize them all"
            )
        if self.classes and example["label"] < 0:
            raise InputError(f"{where} has no label, and the first example has one")
        return example | {"image": image}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of these examples, [n, ...]; in the place of one that is skipped, the next good one."""
        count = len(self)
        examples = [self._first_good(self.example(i % count) for i in range(start, start + count)) for start in indices]
        return self.stacked(examples)

    def stacked(self, examples: list[dict]) -> dict[str, np.ndarray]:
        """The arrays of these examples, [n, ...]."""
        return {name: np.array([x[name] for x in examples], dtype) for name, (_, dtype) in self.forms.items()}

    @cached_property
    def _first(self) -> dict:
        """The first example that can be read, as it is stored."""
        return self._first_good(map(self._decoded, range(len(self))))

    def _first_good(self, examples: Iterable[dict | None]) -> dict:
        example = next((example for example in examples if example is not None), None)
        if example is None:
            raise InputError(f"none of the {len(self):,} examples can be read; the first is {self.records.where(0)}")
        return example

    def _decoded(self, i: int) -> dict | None:
        try:
            return self.records[i]
        except BadExampleError as error:
            self.skip(i, error)
            return None

    def skip(self, i: int, error: BadExampleError) -> None:
        """Tells of a corrupt example, once. Raises InputError where none may be skipped."""
        if not self._skips:
            raise InputError(f"{error}; mend or remove it, or set data.corrupt to skip") from error
        if i not in self._skipped:
            self._skipped.add(i)
            print(f"skipped {error} ({len(self._skipped):,} so far)", file=sys.stderr)


def size_text(shape: tuple[int, ...]) -> str:
    """`28x28x1` of (28, 28, 1)."""
    return "x".join(map(str, shape))
