"""The 8x8 handwritten digits that scikit-learn carries (UCI ML, Alpaydin and Kaynak 1998): nothing is downloaded."""

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.data.source import Source

SPLITS = {"train": slice(0, 1500), "test": slice(1500, None), "all": slice(None)}


def digits(split: str) -> Source:
    """Images [n, 8, 8, 1] in [-1, 1]: 1,500 of them for "train", the other 297 for "test", 1,797 for "all".

    They are kept as uint8 (0 to 16 in the original) and scaled where they are drawn, uniformly with replacement.
    """
    from sklearn.datasets import load_digits  # here: it takes a second, which only a run on digits should spend

    images = load_digits().images[SPLITS[split]].astype(np.uint8)[..., None]
    return Source(shape=images.shape[1:], data=images, draw=_draw, std=float(np.std(images / 8.0)))


def _draw(images, keys):
    rows = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(images)))(keys)
    return {"image": images[rows].astype(jnp.float32) / 8 - 1}
