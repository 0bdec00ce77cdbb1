"""The labels of a whole set without its images: how often each class is there, and whether they are classes at all."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gan_jax.data.folder import Folder
from gan_jax.data.records import Records, one_line
from gan_jax.data.source import Source
from gan_jax.data.tfds import Tfds

SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")  # names of no class


class Bundled:
    """The images of a source that holds them, as `Records`."""

    def __init__(self, source: Source):
        self.classes, self._data = source.classes, source.data

    @property
    def fingerprint(self) -> str:
        return ""  # it comes with the program, and is not cached

    def __len__(self) -> int:
        return len(self._data["image"])

    def __getitem__(self, i: int) -> dict:
        return {"image": self._data["image"][i], "label": int(self._data["label"][i])}

    def labels(self) -> np.ndarray:
        return np.asarray(self._data["label"])

    def where(self, i: int) -> str:
        return f"example {i} of {len(self)}"


def counts(names: list[str], labels: np.ndarray, most: int) -> Iterator[str]:
    """Lines: each class with its count and share; of more than `most` classes, the smallest and the largest."""
    number = np.bincount(labels[labels >= 0], minlength=len(names))
    shown = range(len(names)) if len(names) <= most else (int(number.argmin()), int(number.argmax()))
    width = max(len(names[label]) for label in shown)
    for label in shown:
        which = "" if len(names) <= most else "  (the smallest)" if label == shown[0] else "  (the largest)"
        yield f"  {names[label]:{width}}  {number[label]:>9,}  {number[label] / max(1, len(labels)):6.1%}{which}"
    if without := int(np.sum(labels < 0)):
        yield f"  {without:,} without a label"


def level_hint(records: Records) -> str:
    """What to say where the subfolders look like something else than classes; "" where they do not."""
    if not isinstance(records, Folder) or not records.classes:
        return ""
    classes = records.classes
    if all(name.lower() in SPLIT_NAMES for name in classes):
        likely = next((name for name in classes if name.lower().startswith("train")), classes[0])
        return f"its classes are named {', '.join(classes)}: did you mean {_directory(records, likely)}?"
    if len(classes) == 1:
        return f"its only class is {one_line(classes[0])}: did you mean {_directory(records, classes[0])}?"
    inner = {name.rpartition("/")[0] for name in records.names if name.count("/") > 1}
    if len(inner) > len(classes):
        first = min(inner)
        return (
            f"its images lie in {len(inner):,} subfolders of its {len(classes):,} classes, such as {one_line(first)}: "
            f"did you mean {_directory(records, first.partition('/')[0])}?"
        )
    return ""


def _directory(records: Folder, inner: str) -> str:
    return one_line(records.path / inner)


def place(records: Records) -> Path | None:
    """Where a set lies; None for one that is bundled."""
    if isinstance(records, Bundled):
        return None
    return records.folder if isinstance(records, Tfds) else records.path
