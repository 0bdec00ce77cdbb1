"""Handwritten digits: the small ones of scikit-learn, which come with it, and MNIST's, stacked."""

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.data import resident
from gan_jax.data.readers.records import Records
from gan_jax.data.readers.tfds import Tfds
from gan_jax.data.source import Source, draw_stored, stored_std
from gan_jax.data.splits import chosen, split_name
from gan_jax.data.stored import Flip, Split, Stored

TOP = 16  # the brightest level of the small ones
SPLITS = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}
STACKED = 3  # digits in one image


def digits(split: Split = "train", flip: Flip = False) -> Source:
    """Images [n, 8, 8, 1] in [-1, 1] and their labels: 1,500 for "train", the other 297 for "test", 1,797 for "all".

    Those of UCI ML (Alpaydin and Kaynak 1998), kept as uint8, 0 to 16 as in the original.
    """
    table = _table()[SPLITS[split_name(split, SPLITS, "digits")]].astype(np.uint8)
    table = table[chosen(split, len(table))]
    data = {"image": table[:, :-1].reshape(-1, 8, 8, 1), "label": table[:, -1]}
    draw, std = partial(draw_stored, top=TOP, flip=flip), stored_std(data["image"], TOP)
    return Source((8, 8, 1), draw, std, data, size=len(table), classes=tuple("0123456789"))


def _table() -> np.ndarray:
    """[1797, 65]: the pixels of an image, row by row, and its digit."""
    # What sklearn.datasets.load_digits reads, without the import of scikit-learn, which takes a second.
    (package,) = importlib.util.find_spec("sklearn").submodule_search_locations
    return np.loadtxt(Path(package, "datasets", "data", "digits.csv.gz"), delimiter=",")


@dataclass(frozen=True, kw_only=True)
class StackedMnist(Stored):
    """The data set `stacked_mnist`: three digits as the channels of one image, 1,000 modes (arXiv:1611.02163)."""

    splits: ClassVar[tuple[str, ...]] = ()  # as TFDS has them
    channels: ClassVar[int] = 1  # of a digit

    def records(self) -> Records:
        return Tfds("mnist", split_name(self.split), self.dir)

    def source(self) -> Source:
        return stacked(resident.load(self.reader(), self.workers).data)


def stacked(data: dict) -> Source:
    """The source of stacks of digits {"image": uint8 [n, h, w, 1], "label": int [n]}, three drawn with replacement.

    The label is their decimal number, 0 to 999, the red channel's digit first.
    """
    height, width = data["image"].shape[1:3]
    classes = tuple(f"{number:03d}" for number in range(10**STACKED))
    return Source((height, width, STACKED), draw=_draw, std=stored_std(data["image"], 255), data=data, classes=classes)


def _draw(data, indices, keys):
    chosen = jax.vmap(lambda key: jax.random.randint(key, (STACKED,), 0, len(data["image"])))(keys)  # [n, 3]
    single = draw_stored(data, chosen.reshape(-1), keys, top=255, flip=False)
    n, (height, width) = len(keys), single["image"].shape[1:3]
    image = jnp.moveaxis(single["image"].reshape(n, STACKED, height, width), 1, -1)
    return {"image": image, "label": single["label"].reshape(n, STACKED) @ 10 ** jnp.arange(STACKED)[::-1]}
