"""Training of the classifiers. Runs with the same data, seed, versions and machine give the same bits."""

import math
import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import trange

from gan_jax.data import SOURCES, entry, make_source
from gan_jax.evaluation.features.classifier import forward, network
from gan_jax.utils.keys import keys_of
from gan_jax.utils.plots import to_uint8

CHUNK = 500  # examples classified or converted together


class Training(NamedTuple):
    """How a classifier is trained: AdamW on a one-cycle rate, cross-entropy, distorted images."""

    data: str  # data.name of a config
    placement: str  # data.placement
    epochs: int
    batch_size: int
    learning_rate: float  # the largest, after 30 % of the updates
    weight_decay: float  # of kernels, times the learning rate
    label_smoothing: float  # probability spread over all classes (arXiv:1512.00567, section 7)
    shift: int  # pixels, at most, in each direction
    degrees: float  # of rotation, at most
    zoom: float  # relative change of size, at most
    flip: bool  # left to right, half of the time


# The 8x8 digits fill their images: a shift cuts them off.
TRAININGS = {
    "digits": Training("digits", "auto", 60, 50, 3e-3, 1e-2, 0.1, shift=0, degrees=10, zoom=0.1, flip=False),
    "mnist": Training("tfds:mnist", "device", 6, 128, 3e-3, 1e-2, 0.1, shift=2, degrees=10, zoom=0.1, flip=False),
    "cifar10": Training("tfds:cifar10", "device", 12, 128, 4e-3, 5e-2, 0.1, shift=4, degrees=0, zoom=0.0, flip=True),
}


class Examples(NamedTuple):
    """A split of a set."""

    images: np.ndarray  # uint8 [n, h, w, c]
    labels: np.ndarray  # int32 [n]


def read_examples(training: Training, split: str, directory: str) -> Examples:
    """The split `train` or `test`, in 8 bits whatever its levels. Raises InputError where it is not there."""
    values = {"name": training.data, "split": split, "dir": directory, "placement": training.placement}
    if "workers" in keys_of(SOURCES[entry(training.data)]):
        values["workers"] = os.cpu_count() or 1
    source = make_source(values)
    images, labels = [], []
    for start in range(0, source.size, CHUNK):
        rows = jax.tree.map(lambda x, start=start: x[start : start + CHUNK], source.data)
        batch = source.draw(rows, None, None)
        images.append(to_uint8(np.asarray(batch["image"])))
        labels.append(np.asarray(batch["label"]))
    return Examples(np.concatenate(images), np.concatenate(labels))


def train(training: Training, examples: Examples, seed: int) -> Any:
    """The trained variables, a nested dict of float32 arrays; shows a progress bar."""
    batches = len(examples.images) // training.batch_size
    steps = training.epochs * batches
    key = jax.random.key(seed)
    data = jax.device_put(examples)
    variables, opt_state = start(training, steps, examples.images.shape[1:], jax.random.fold_in(key, 0))
    bar = trange(steps, unit="step", dynamic_ncols=True, mininterval=0.5)
    for step in bar:
        epoch, batch = divmod(step, batches)
        if batch == 0:
            order = np.random.default_rng((seed, epoch)).permutation(len(examples.images))
        rows = order[batch * training.batch_size : (batch + 1) * training.batch_size]
        step_key = jax.random.fold_in(key, 1 + step)
        variables, opt_state, loss = update(training, steps, variables, opt_state, data, rows, step_key)
        if batch == 0:
            bar.set_postfix(epoch=epoch, loss=f"{loss:.3f}", refresh=False)
    return variables


@partial(jax.jit, static_argnums=(0, 1, 2))
def start(training: Training, steps: int, shape: tuple[int, ...], key):
    """Variables and optimizer state before the first update of `steps`, for images [h, w, c] of this shape."""
    variables = network(shape).init(key, jnp.zeros((1, *shape)), train=True)
    return variables, _optimizer(training, steps).init(variables["params"])


def _optimizer(training: Training, steps: int) -> optax.GradientTransformation:
    rate = optax.cosine_onecycle_schedule(steps, training.learning_rate)
    kernels = partial(jax.tree.map, lambda x: x.ndim > 1)
    return optax.adamw(rate, weight_decay=training.weight_decay, mask=kernels)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def update(training: Training, steps: int, variables, opt_state, data: Examples, rows, key):
    """One update of `steps` on the examples `rows` int32 [n]: new variables and optimizer state, the loss in nats."""
    keys = jax.random.split(key, len(rows))
    images = jax.vmap(partial(distort, training))(keys, data.images[rows].astype(jnp.float32) / 127.5 - 1)
    params = variables["params"]
    stats = {name: x for name, x in variables.items() if name != "params"}
    gradient = jax.value_and_grad(_loss, argnums=1, has_aux=True)
    (loss, stats), grads = gradient(training, params, stats, images, data.labels[rows])
    updates, opt_state = _optimizer(training, steps).update(grads, opt_state, params)
    return {"params": optax.apply_updates(params, updates)} | stats, opt_state, loss


def _loss(training: Training, params, stats, images, labels):
    """The mean cross-entropy in nats, and the new batch statistics."""
    variables, shape = {"params": params} | stats, images.shape[1:]
    (_, logits), stats = network(shape).apply(variables, images, train=True, mutable=list(stats))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), training.label_smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets)), stats


def distort(training: Training, key, image):
    """An image [h, w, c] turned and zoomed about its centre, shifted by whole pixels and mirrored at random.

    Linear interpolation; what lies beyond the edge is black. What only shifts and mirrors keeps its levels.
    """
    height, width, _ = image.shape
    turn, zoom, down, right, mirror = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    angle, size = math.radians(training.degrees) * turn, 1 + training.zoom * zoom
    centre = (height - 1) / 2, (width - 1) / 2
    y, x = jnp.meshgrid(jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij")
    x = jnp.where(mirror < 0, -x, x) if training.flip else x
    rows = size * (jnp.cos(angle) * y - jnp.sin(angle) * x) + centre[0] + jnp.round(training.shift * down)
    columns = size * (jnp.sin(angle) * y + jnp.cos(angle) * x) + centre[1] + jnp.round(training.shift * right)
    sample = partial(jax.scipy.ndimage.map_coordinates, coordinates=(rows, columns), order=1, cval=-1.0)
    return jax.vmap(sample, in_axes=2, out_axes=2)(image)


def accuracy(variables, examples: Examples) -> float:
    """The share of the examples whose largest logit is that of their class."""
    starts = range(0, len(examples.images), CHUNK)
    labels = np.concatenate([_classify(variables, examples.images[start : start + CHUNK]) for start in starts])
    return float(np.mean(labels == examples.labels))


@jax.jit
def _classify(variables, images):
    return jnp.argmax(forward(variables, images.astype(jnp.float32) / 127.5 - 1)[1], axis=-1)
