"""Features of images, by name: what the distances of `gan_jax.evaluation` compare."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.evaluation.features import classifier, inception
from gan_jax.parallel.devices import Devices
from gan_jax.utils.errors import InputError, NotFiniteError
from gan_jax.utils.keys import TEXT, Registry, arguments, function
from gan_jax.utils.plots import to_uint8
from gan_jax.utils.progress import progress

BATCH = 256  # images in one call
NONE = "none"
Weights = Annotated[str, TEXT, "a file of its weights; empty: those of the package"]


class Features(NamedTuple):
    """What an extractor sees in n images."""

    values: np.ndarray  # [n, d] float32
    logits: np.ndarray | None  # [n, classes] float32; of a classifier of single channels [n, channels, classes]


class Extractor(NamedTuple):
    """A function of 8-bit images, and all that decides its values."""

    name: str
    weights: str  # a hash of them; "" without any
    resize: str  # what is done to images of another size
    apply: Callable  # (params, uint8 [n, h, w, c]) -> (features [n, d], logits or None)
    params: Any


class Kind(NamedTuple):
    """How an extractor is made, and what is known before it is."""

    make: Callable  # (name, its config keys) -> Extractor
    classes: int = 0  # of its logits; 0: without
    channels: int = 0  # of the images that its classes are of; 0: they are not those of a data set


def extract(extractor: Extractor, devices: Devices, images: np.ndarray) -> Features:
    """The features of images [n, h, w, c], uint8, or float32 in [-1, 1] and then rounded; in batches, over a mesh.

    Raises NotFiniteError where a pixel is not finite.
    """
    if not np.isfinite(images).all():
        raise NotFiniteError("the images are not finite: a generator that gives NaN or infinity cannot be scored")
    images = images if images.dtype == np.uint8 else to_uint8(images)
    size = -(-BATCH // devices.count) * devices.count
    batches = []
    for start in progress(range(0, len(images), size), f"features, {extractor.name}"):
        batch = images[start : start + size]
        padded = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
        batches.append(Features(*jax.device_get(_sharded(extractor.apply, devices, extractor.params, padded))))
    return jax.tree.map(lambda x: x[: len(images)], join(batches))


def join(batches: list[Features]) -> Features:
    """The features of all batches, one after another."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


@partial(jax.jit, static_argnums=(0, 1))
def _sharded(apply: Callable, devices: Devices, params, images):
    return apply(params, devices.shard(images))


def _pixels(params, images):
    return images.reshape(len(images), -1).astype(jnp.float32) / 127.5 - 1, None


def _classified(shape: tuple[int, int, int], params, images):
    """A classifier of grey images sees each channel by itself; its features of all are one vector."""
    n, height, width, channels = images.shape
    scaled = images.astype(jnp.float32) / 127.5 - 1
    by_channel = channels != shape[2]
    if by_channel:
        scaled = jnp.moveaxis(scaled, -1, 1).reshape(n * channels, height, width, 1)
    if (height, width) != shape[:2]:
        scaled = jax.image.resize(scaled, (len(scaled), *shape), "linear", antialias=True)
    features, logits = classifier.forward(params, scaled)
    return (features.reshape(n, -1), logits.reshape(n, channels, -1)) if by_channel else (features, logits)


def _make_pixels(name: str) -> Extractor:
    """The pixels themselves."""
    return Extractor(name, "", "none", _pixels, ())


def _make_classifier(name: str, weights: Weights = "") -> Extractor:
    """The last hidden layer of a small classifier of this data set, whose weights the package has."""
    params, digest = classifier.load(name, Path(weights) if weights else None)
    shape = classifier.CLASSIFIERS[name].shape
    resize = f"linear, antialiased, to {shape[0]}x{shape[1]}"
    return Extractor(name, digest, resize, partial(_classified, shape), params)


def _make_inception(name: str, weights: Weights = "") -> Extractor:
    """FID's Inception-v3, with a file of weights that is not shipped."""
    if not weights:
        raise InputError(
            f"config key evaluation.weights is missing: the file of Inception's weights, which {inception.COMMAND} "
            f"makes of {inception.SOURCE}"
        )
    params, digest = inception.load(Path(weights))
    return Extractor(name, digest, "as TensorFlow 1, to 299x299", inception.forward, params)


EXTRACTORS = Registry(
    {
        "pixels": Kind(_make_pixels),
        **{
            name: Kind(_make_classifier, classifier.CLASSES, net.shape[2])
            for name, net in classifier.CLASSIFIERS.items()
        },
        "inception": Kind(_make_inception, inception.CLASSES),
    },
    lambda part: part if isinstance(part, Kind) else Kind(function(part)),
)


def make_extractor(name: str, weights: str = "", **others) -> Extractor:
    """The extractor that a config names; `weights`: a file of one's own, "" for that of the package.

    `others`: what the group `evaluation` has beside, by name; an extractor by import path takes its own keys from it.

    Raises InputError where the file is needed and not named, missing, or not that of these weights.
    """
    make = EXTRACTORS[name].make
    extractor = make(name, **arguments(make, others | {"weights": weights}))
    return extractor._replace(params=jax.device_put(extractor.params))
