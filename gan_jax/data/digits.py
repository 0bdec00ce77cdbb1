"""The 8x8 handwritten digits that scikit-learn carries (UCI ML, Alpaydin and Kaynak 1998): nothing is downloaded."""

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np

from gan_jax.data.source import Source, draw_stored, stored_std

TOP = 16  # the brightest level
SPLITS = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}


def digits(split: str, flip: bool) -> Source:
    """Images [n, 8, 8, 1] in [-1, 1] and their labels: 1,500 for "train", the other 297 for "test", 1,797 for "all".

    They are kept as uint8, 0 to 16 as in the original, and scaled where they are drawn.
    """
    table = _table()[SPLITS[split]].astype(np.uint8)
    data = {"image": table[:, :-1].reshape(-1, 8, 8, 1), "label": table[:, -1]}
    return Source(
        shape=(8, 8, 1),
        draw=partial(draw_stored, top=TOP, flip=flip),
        std=stored_std(data["image"], TOP),
        data=data,
        size=len(table),
        classes=tuple("0123456789"),
    )


def _table() -> np.ndarray:
    """[1797, 65]: the pixels of an image, row by row, and what it is an image of."""
    # What sklearn.datasets.load_digits reads, without the import of scikit-learn, which takes a second.
    (package,) = importlib.util.find_spec("sklearn").submodule_search_locations
    file = Path(package, "datasets", "data", "digits.csv.gz")
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # of a version that keeps it elsewhere

    return np.column_stack(load_digits(return_X_y=True))
