"""Images in a NumPy file: `.npy`, or `.npz` with labels; and arrays that a program holds."""

import os
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from gan_jax.data.readers.records import Records, fingerprint
from gan_jax.data.stored import Images
from gan_jax.utils.errors import InputError, one_line, reason
from gan_jax.utils.plots import to_uint8

IMAGES = ("image", "images", "samples")
LABELS = ("label", "labels")
SHAPES = "images are [n, h, w] or [n, h, w, c] with c = 1 or 3, channels last"
MAX_CLASSES = 100_000  # beyond it, a label is more likely a mistake than a class
BLOCK = 1 << 24  # elements looked at together when floats are checked
# What NumPy raises for a damaged file: no zip, no header, a header that lies about the size, bad compressed data.
DAMAGE = (OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, OverflowError, MemoryError,
          NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)  # fmt: skip


class ImageArrays(Images):
    """The data set `arrays`: images, and labels, of a `.npy` or `.npz` file."""

    def records(self) -> Records:
        return Arrays(self.required_dir("the .npz or .npy file"))


class Arrays(Records):
    """Images [n, h, w] or [n, h, w, c] of a `.npy` (memory mapped) or `.npz` file (in memory).

    uint8, or floats in [-1, 1], which are rounded to uint8. A `.npz` names them IMAGES, or has one array; its labels,
    integers [n] or vectors [n, m], are LABELS.
    """

    def __init__(self, path: str | os.PathLike):
        self.folder = Path(os.path.expanduser(path))
        self.hold(one_line(self.folder), *_load(self.folder))

    def hold(self, where: str, images: np.ndarray, labels: np.ndarray | None) -> None:
        """Takes these as the examples; `where` they are is for messages. Raises InputError where they are none."""
        _check_images(where, images)
        self._images, self._labels = images, labels
        self.classes, self.attributes = label_names(where, labels, len(images))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.folder.parent, [self.folder.name], "arrays")

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> dict:
        image = np.atleast_3d(np.array(self._images[i]))
        example = {"image": image if image.dtype == np.uint8 else to_uint8(image.astype(np.float32))}
        if self.attributes:
            return example | {"label": self._labels[i].astype(np.float32)}
        return example | ({"label": int(self._labels[i])} if self.classes else {})

    def labels(self) -> np.ndarray:
        return np.asarray(self._labels)


class Held(Arrays):
    """The same of arrays in memory, by the name of who holds them."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray | None = None):
        self.name = name
        self.hold(name, images, labels)

    fingerprint = ""  # nothing tells it at once

    def file(self, i: int) -> str:
        return self.name


def _load(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The images as they are stored, and the labels."""
    if not path.is_file():
        raise InputError(f"no file {one_line(path)}; a .npy or .npz file of images is needed")
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            images, labels = _members(path, loaded.files)
            arrays = loaded[images], loaded[labels] if labels else None
            if any(isinstance(array, bytes) for array in arrays):  # NumPy's answer to a member without its header
                raise ValueError("a member is no array")
            return arrays
    except InputError:
        raise
    except DAMAGE as error:
        why = reason(error)
        if "pickle" in why or "Python objects" in why:
            raise InputError(f"{one_line(path)} holds pickled Python objects; {SHAPES}, uint8 or float") from error
        raise InputError(f"{one_line(path)} is no complete .npy or .npz file: {why}") from error


def _members(path: Path, names: list[str]) -> tuple[str, str | None]:
    """Which arrays of a `.npz` are the images and the labels."""
    labels = [name for name in LABELS if name in names]
    images = [name for name in IMAGES if name in names] or [name for name in names if name not in labels]
    if len(images) != 1 or len(labels) > 1:
        raise InputError(
            f"{one_line(path)} holds the arrays {one_line(', '.join(names)) or '(none)'}: one of them is to be "
            f"{', '.join(IMAGES)}, and at most one {' or '.join(LABELS)}"
        )
    return images[0], labels[0] if labels else None


def _check_images(where: str, images: np.ndarray):
    shape = list(images.shape)
    if images.ndim == 2:
        raise InputError(f"{where} holds points {shape}; array files are for images: {SHAPES}")
    if images.ndim not in (3, 4) or shape[3:] not in ([], [1], [3]):
        raise InputError(f"{where} holds an array {shape}; {SHAPES}")
    if 0 in shape:
        raise InputError(f"{where} holds an array {shape}, which has no example or no pixel")
    if images.dtype.kind == "f":
        _check_range(where, images)
    elif images.dtype != np.uint8:
        raise InputError(f"{where} is of dtype {images.dtype}; images are uint8 (0 to 255) or floats in [-1, 1]")


def _check_range(where: str, images: np.ndarray):
    """Holds floats to [-1, 1]; a block at a time, as the file may be larger than the memory."""
    rows, low, high = max(1, BLOCK // images[0].size), np.inf, -np.inf
    for start in range(0, len(images), rows):
        block = images[start : start + rows]
        low, high = float(np.minimum(low, block.min())), float(np.maximum(high, block.max()))  # which keep a NaN
        if not np.isfinite(low + high):
            raise InputError(f"{where} holds values that are not finite, from example {start} on; floats in [-1, 1]")
    check_range(where, low, high)


def check_range(where: str, low: float, high: float) -> None:
    """Raises InputError unless floats from `low` to `high` can be an image's."""
    values = f"{where} holds floats from {low:g} to {high:g}"
    if low >= 0 and high <= 1:
        raise InputError(f"{values}, by the look of it in [0, 1]; they are to be in [-1, 1]: store 2 * x - 1")
    if low >= 0 and high <= 255:
        raise InputError(f"{values}, by the look of it in [0, 255]; store them as uint8: x.round().astype('uint8')")
    if low < -1 or high > 1:
        raise InputError(f"{values}; they are to be in [-1, 1], or uint8")


def label_names(where: str, labels: np.ndarray | None, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of (the classes, the numbers of a vector), one of them (): their numbers. Raises InputError."""
    if labels is None:
        return (), ()
    shape, kind = labels.shape, labels.dtype.kind
    if kind in "iubf" and len(shape) == 2 and len(labels) == count and (shape[1] > 1 or kind == "f"):
        if not np.isfinite(labels).all():
            raise InputError(f"{where} holds labels that are not finite")
        return (), tuple(str(i) for i in range(shape[1]))
    if kind not in "iu" or shape != (count,):
        raise InputError(
            f"{where} holds labels of dtype {labels.dtype} and shape {list(shape)}; they are to be "
            f"integers [{count}], one for each image, or vectors of floats [{count}, m]"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MAX_CLASSES:
        raise InputError(f"{where} holds labels from {low} to {high}; they are to count from 0 to below {MAX_CLASSES}")
    return tuple(str(label) for label in range(high + 1)), ()
