"""Images of an object of one's own: what PyTorch calls a map-style data set, and Hugging Face a Dataset."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gan_jax.data.readers.arrays import IMAGES, LABELS, check_range, label_names
from gan_jax.data.readers.records import Records, decode, pixels
from gan_jax.data.source import evenly_spaced
from gan_jax.utils.errors import InputError, reason
from gan_jax.utils.plots import to_uint8

IMAGE_KEYS, LABEL_KEYS = (*IMAGES, "img"), (*LABELS, "target", "attributes")
LOOKED_AT = 16  # examples that tell in which range floats are
FORMS = "an example is an image, (image, label), or a dict with image and, where there are labels, label"


class Items(Records):
    """The examples of an object with `__getitem__` and `__len__`, each one of FORMS.

    An image is Pillow's, a PNG, JPEG or WebP file's bytes, or what NumPy takes for an array: [h, w], [h, w, c] or, as
    PyTorch has it, [c, h, w]; uint8, or floats in [-1, 1], which are rounded to uint8. A label is an integer, or a
    vector of numbers. The names of the classes are those of the object (`classes`, or the feature of Hugging Face);
    without any, all examples are read once for the largest label.
    """

    def __init__(self, items: Any, name: str, about: Any = None):
        """`name`: for messages; `about`: what names the classes, if not the object itself."""
        self._items, self._name = items, name
        about = items if about is None else about
        looked_at = self._readable(evenly_spaced(len(items), LOOKED_AT)) if len(items) else []
        if not looked_at:
            raise InputError(f"{name} has {len(items)} examples, and none of those looked at can be read; {FORMS}")
        self._check_floats([image for image, _ in looked_at])
        label = looked_at[0][1]
        if label is not None and np.ndim(label):
            names = getattr(about, "attr_names", None) or getattr(about, "attributes", None)
            self.attributes = _names(names, len(label)) or tuple(str(i) for i in range(len(label)))
        elif label is not None:
            self.classes = _names(getattr(about, "classes", None) or _features(about)) or self._counted()

    fingerprint = ""  # nothing tells what an object will return

    def __len__(self) -> int:
        return len(self._items)

    def read(self, i: int) -> dict:
        return self.parse(self._items[i])

    def parse(self, item: Any) -> dict:
        """The example that an item is, as `self[i]` gives it. What it raises means that the item is none."""
        image, label = split_item(item)
        image = image_array(image)
        if image.dtype != np.uint8:
            if not np.abs(image).max() <= 1:
                raise ValueError(f"floats from {image.min():g} to {image.max():g}; they are to be in [-1, 1], or uint8")
            image = to_uint8(image.astype(np.float32))
        return {"image": image} | self._label(label)

    def _label(self, value: Any) -> dict:
        if not (self.classes or self.attributes):
            return {}
        if self.classes and isinstance(value, int) and -1 <= value < len(self.classes):
            return {"label": value}
        if self.attributes and np.shape(value) == (len(self.attributes),) and np.isfinite(value).all():
            return {"label": value}
        right = f"an integer below {len(self.classes)}" if self.classes else f"{len(self.attributes)} finite numbers"
        raise ValueError(f"its label is {value}, and is to be {right}, as of those before it")

    def file(self, i: int) -> str:
        return self._name

    def labels(self) -> None:
        return None

    def _readable(self, places: np.ndarray) -> list[tuple[np.ndarray, Any]]:
        """(image, label) of those of these examples that can be read; of the others, they say why when they are."""
        good, fault = [], None
        for i in places:
            try:
                image, label = split_item(self._items[int(i)])
                good.append((image_array(image), label))
            except Exception as error:  # noqa: BLE001  whatever the object raises
                fault = fault or f"{self._name} (example {i} of {len(self)}): {reason(error)}"
        if not good:
            raise InputError(fault)
        return good

    def _check_floats(self, images: list[np.ndarray]) -> None:
        floats = [image for image in images if image.dtype != np.uint8]
        if floats:
            check_range(self._name, min(image.min() for image in floats), max(image.max() for image in floats))

    def _counted(self) -> tuple[str, ...]:
        """The classes 0 ... the largest label."""
        right = "give it an attribute `classes`, their names, to spare this"
        print(f"reading all {len(self):,} examples of {self._name} to count its classes; {right}", file=sys.stderr)
        largest = -1
        for i in range(len(self)):
            try:
                largest = max(largest, split_item(self._items[i])[1])
            except Exception:  # noqa: BLE001  whoever trains on it will hear of it
                continue
        return label_names(self._name, np.array([largest]), 1)[0]


def split_item(item: Any) -> tuple[Any, int | np.ndarray | None]:
    """(image, label or None) of one of FORMS; a vector of labels is float32 [m]. TypeError where it is none."""
    if isinstance(item, Mapping):
        image_key = next((key for key in IMAGE_KEYS if key in item), None)
        if image_key is None:
            raise TypeError(f"a dict of {', '.join(map(str, item))}; {FORMS}")
        return item[image_key], _label(next((item[key] for key in LABEL_KEYS if key in item), None))
    if isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise TypeError(f"{len(item)} things; {FORMS}")
        return item[0], _label(item[1] if len(item) == 2 else None)
    return item, None


def _label(value: Any) -> int | np.ndarray | None:
    if value is None:
        return None
    label = np.asarray(value)
    if label.ndim == 0 and label.dtype.kind in "iub":
        return int(label)
    if label.ndim == 1 and label.dtype.kind in "iubf" and len(label):
        return label.astype(np.float32)
    raise TypeError(f"its label is {value!r}; a label is an integer, the class, or a vector of numbers")


def image_array(image: Any) -> np.ndarray:
    """uint8 or floats [h, w, c], c 1 or 3, of what may be an image. TypeError where it cannot be."""
    if isinstance(image, Image.Image):
        return pixels(image)
    if isinstance(image, bytes):
        return decode(image, upright=False)
    array = np.asarray(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        hint = ", one example each: no batches, and points as one array [n, d]" if array.ndim in (1, 4) else ""
        raise TypeError(f"an array {list(array.shape)}; an image is [h, w], [h, w, c] or [c, h, w], c 1 or 3{hint}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise TypeError(f"of dtype {array.dtype}; images are uint8 (0 to 255) or floats in [-1, 1]")
    return array


def _features(about: Any) -> Sequence[str] | None:
    """The names of the classes of a Hugging Face data set."""
    features = getattr(about, "features", None)
    if not isinstance(features, Mapping):
        return None
    return getattr(next((features[key] for key in LABEL_KEYS if key in features), None), "names", None)


def _names(names: Any, count: int = 0) -> tuple[str, ...]:
    """What an object calls its classes or attributes; () where that is nothing of the kind, or not of `count`."""
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    return tuple(map(str, names)) if is_list and count in (0, len(names)) else ()
