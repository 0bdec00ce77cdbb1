"""The 8x8 handwritten digits that scikit-learn carries (UCI ML, Alpaydin and Kaynak 1998): nothing is downloaded."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.data.source import Source

SPLITS = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}


def digits(split: str) -> Source:
    """Images [n, 8, 8, 1] in [-1, 1]: 1,500 of them for "train", the other 297 for "test", 1,797 for "all".

    They are kept as uint8 (0 to 16 in the original) and scaled where they are drawn, uniformly with replacement.
    """
    images = _table()[SPLITS[split], :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    return Source(shape=images.shape[1:], data=images, draw=_draw, std=float(np.std(images / 8.0)))


def _table() -> np.ndarray:
    """[1797, 65]: the pixels of an image, row by row, and what it is an image of."""
    # What sklearn.datasets.load_digits reads, without the import of scikit-learn, which takes a second.
    (package,) = importlib.util.find_spec("sklearn").submodule_search_locations
    file = Path(package, "datasets", "data", "digits.csv.gz")
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # of a version that keeps it elsewhere

    return np.column_stack(load_digits(return_X_y=True))


def _draw(images, keys):
    rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(images)))(keys)
    return {"image": images[rows].astype(jnp.float32) / 8 - 1}
