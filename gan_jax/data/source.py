"""What a data set looks like to the rest of the program."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HASHED = 256  # examples of a set, spread over it
LABELS = 1_000  # examples whose vectors of labels serve pictures


class Modes(NamedTuple):
    """The components of an equal-weight Gaussian mixture, for counting which of them a generator found."""

    centers: np.ndarray  # [m, d]
    sigma: float  # of each component, in every direction


class Source(NamedTuple):
    """A data set on the device, made there, or streamed to it. What a step sees is a function of its keys and number.

    Three kinds: endless (`size` 0), where `draw` makes fresh examples from keys; resident, where `data` holds all of
    them and `draw` picks by index; streamed, where the host reads the `rows` of a minibatch, which `draw` then gets.
    One that is streamed in an order of its own has `items` too: `rows` are then of its first `size` examples.

    A label is a class, or with `attributes` a vector of numbers: several classes at once (0 or 1), or real values.
    """

    shape: tuple[int, ...]  # of one example: (h, w, c) for images in [-1, 1], (d,) for points
    # (data, indices int32 [n] or None, keys [n]) -> {"image": float32 [n, *shape], "label": int32 [n], float32 [n, m]}
    draw: Callable
    std: float  # standard deviation of the data, over all examples and components
    data: Any = ()  # a pytree of arrays, given to `draw`; empty where examples are generated or streamed
    size: int = 0  # examples, each met once an epoch; 0: endless
    classes: tuple[str, ...] = ()  # names of the labels; without any and without attributes, batches have no "label"
    identity: str = ""  # a hash of the files that a set was read from, and of what was done to them
    rows: Callable | None = None  # indices [n], NumPy -> the data of these examples, in the place of `data`
    density: Callable | None = None  # points [n, d] -> probability density [n], where it is known
    modes: Modes | None = None  # where the data is such a mixture
    attributes: tuple[str, ...] = ()  # names of the m numbers of a label that is a vector
    items: Callable | None = None  # place -> endless iterator of the rows, without n, of the examples from there on

    @property
    def streamed(self) -> bool:
        """Whether the host reads each minibatch."""
        return self.rows is not None


def independent(source: Source, keys) -> dict[str, jax.Array]:
    """What source.draw gives for independent draws with replacement, one a key: for scores and pictures.

    Example i depends on key i alone.
    """
    if not source.size:
        return jax.jit(source.draw)(source.data, None, keys)
    indices, keys = jax.jit(_choose, static_argnums=1)(keys, source.size)
    return pick(source, np.asarray(indices), keys)


def pick(source: Source, indices: np.ndarray, keys) -> dict[str, jax.Array]:
    """The examples of a finite source at indices [n], with a key each."""
    return jax.jit(source.draw)(_rows(source, indices), None, keys)


def _rows(source: Source, indices: np.ndarray):
    # Picked here, on the host: a resident set lies on the device once already, and is not sent there again.
    return source.rows(indices) if source.streamed else jax.tree.map(lambda x: x[indices], source.data)


def example_labels(source: Source) -> np.ndarray:
    """The vectors of labels, float32 [k, m], of at most LABELS examples: evenly spaced, or drawn by fixed keys."""
    count = min(source.size or LABELS, LABELS)
    keys = jax.random.split(jax.random.key(0), count)
    drawn = pick(source, evenly_spaced(source.size, count), keys) if source.size else independent(source, keys)
    return np.asarray(drawn["label"])


def content(source: Source) -> dict[str, Any]:
    """What tells one set from another on any machine: its form, how it is met, and a hash of HASHED of its examples."""
    form = {"shape": source.shape, "size": source.size, "classes": len(source.classes), "streamed": source.streamed}
    if not source.size:
        return form
    digest = hashlib.sha256("\0".join(source.classes + source.attributes).encode())
    for leaf in jax.tree.leaves(_rows(source, evenly_spaced(source.size, HASHED))):
        digest.update(np.ascontiguousarray(leaf))
    return form | {"hash": digest.hexdigest()[:16]}


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 ... count - 1, the first and the last among them: int64, rising."""
    return np.linspace(0, count - 1, min(most, count), dtype=np.int64)


def _choose(keys, size: int):
    keys = jax.vmap(jax.random.split)(keys)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, size))(keys[:, 0]), keys[:, 1]


def draw_stored(data, indices, keys, *, top: int, flip: bool):
    """A `draw` of stored images, uint8 [n, h, w, c]: 0 ... top becomes -1 ... 1.

    `flip` mirrors each left to right with probability 1/2, by its key.
    """
    rows = data if indices is None else jax.tree.map(lambda x: x[indices], data)
    image = rows["image"].astype(jnp.float32) / (top / 2) - 1
    if flip:
        mirrored = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
        image = jnp.where(mirrored, image[:, :, ::-1], image)
    if "label" not in rows:
        return {"image": image}
    is_vector = jnp.issubdtype(rows["label"].dtype, jnp.floating)
    return {"image": image, "label": rows["label"].astype(jnp.float32 if is_vector else jnp.int32)}


def stored_std(images: np.ndarray, top: int) -> float:
    """The standard deviation of all components of images uint8 [n, h, w, c], scaled to [-1, 1]."""
    counts = sum(np.bincount(image.reshape(-1), minlength=256) for image in images)
    values = np.arange(256) / (top / 2) - 1
    mean = np.average(values, weights=counts)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
