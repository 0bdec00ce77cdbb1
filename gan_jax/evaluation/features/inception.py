"""The Inception-v3 of the Frechet Inception distance: TensorFlow's graph of 2015-12-05 (arXiv:1512.00567, 1706.08500).

The weights are those of the PyTorch port; `convert` reads them without PyTorch. Batch normalisation is folded into the
kernel and bias of each convolution. Layers have the names of the published weights. Three things differ from today's
libraries: images are resized as that graph does it, so that scores agree with those of papers that used it (why it
matters: arXiv:2104.11222); the mean over 3x3 pixels counts only those inside the image; and the last block pools by
the maximum.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gan_jax.evaluation.features import weight_files
from gan_jax.evaluation.features.torch_file import read_state_dict
from gan_jax.networks import products
from gan_jax.utils.errors import InputError, one_line

SIDE = 299  # pixels of an image
CLASSES = 1008  # outputs of the graph; ImageNet has 1,000 classes
EPSILON = 1e-3  # of the graph's batch normalisations
FILE = "pt_inception-2015-12-05-6726825d.pth"
COMMAND = "python -m gan_jax.evaluation convert"
SOURCE = f"{FILE} of the release fid_weights of mseitzer/pytorch-fid on GitHub"
NORMALISATION = ("running_mean", "running_var", "bias", "weight")  # arrays of the port's
UNUSED = ("fc.bias", "num_batches_tracked")  # ends of names: of a state dict, what the features do not need


class Layer(NamedTuple):
    """A convolution with bias and ReLU, as a function of x [n, h, w, c] inside the module whose parameters it names."""

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    def __call__(self, x):
        strides = (self.stride, self.stride)
        return jax.nn.relu(nn.Conv(self.features, self.size, strides, self.padding, name=self.name)(x))


# Functions of x [n, h, w, c]. The first two are of the up to 3x3 pixels around each that lie in the image, and keep the
# size; the last makes it (h - 1) // 2 by (w - 1) // 2.
mean_of_neighbours = partial(nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
largest_neighbour = partial(nn.max_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME")
halve = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding="VALID")


class Mixed(nn.Module):
    """Branches that see the same image, each a chain of functions: their channels side by side."""

    branches: tuple[tuple[Callable, ...], ...]

    @nn.compact
    def __call__(self, x):
        """x [n, h, w, c] -> [n, h', w', features of all branches]."""
        return jnp.concatenate([_chain(branch, x) for branch in self.branches], axis=-1)


def _chain(steps: tuple[Callable, ...], x):
    for step in steps:
        x = step(x)
    return x


def _branch(name: str, *layers: tuple) -> tuple[Layer, ...]:
    """Layers NAME_1, NAME_2, ... of the fields after the name."""
    return tuple(Layer(f"{name}_{i}", *fields) for i, fields in enumerate(layers, 1))


def _block_a(pooled: int):
    return (
        (Layer("branch1x1", 64),),
        _branch("branch5x5", (48,), (64, (5, 5))),
        _branch("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
        (mean_of_neighbours, Layer("branch_pool", pooled)),
    )


def _block_c(width: int):
    across, down = (1, 7), (7, 1)
    return (
        (Layer("branch1x1", 192),),
        _branch("branch7x7", (width,), (width, across), (192, down)),
        _branch("branch7x7dbl", (width,), (width, down), (width, across), (width, down), (192, across)),
        (mean_of_neighbours, Layer("branch_pool", 192)),
    )


def _block_e(pool: Callable):
    return (
        (Layer("branch1x1", 320),),
        (Layer("branch3x3_1", 384), _fork("branch3x3_2")),
        (*_branch("branch3x3dbl", (448,), (384, (3, 3))), _fork("branch3x3dbl_3")),
        (pool, Layer("branch_pool", 192)),
    )


def _fork(name: str) -> Callable:
    """Two layers that see the same image: their channels side by side."""
    across, down = Layer(f"{name}a", 384, (1, 3)), Layer(f"{name}b", 384, (3, 1))
    return lambda x: jnp.concatenate([across(x), down(x)], axis=-1)


STEM = (
    Layer("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Layer("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Layer("Conv2d_2b_3x3", 64, (3, 3)),
    halve,
    Layer("Conv2d_3b_1x1", 80),
    Layer("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    halve,
)

BLOCKS = {  # in their order
    "Mixed_5b": _block_a(pooled=32),
    "Mixed_5c": _block_a(pooled=64),
    "Mixed_5d": _block_a(pooled=64),
    "Mixed_6a": (
        (Layer("branch3x3", 384, (3, 3), 2, "VALID"),),
        _branch("branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2, "VALID")),
        (halve,),
    ),
    "Mixed_6b": _block_c(width=128),
    "Mixed_6c": _block_c(width=160),
    "Mixed_6d": _block_c(width=160),
    "Mixed_6e": _block_c(width=192),
    "Mixed_7a": (
        _branch("branch3x3", (192,), (320, (3, 3), 2, "VALID")),
        _branch("branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2, "VALID")),
        (halve,),
    ),
    "Mixed_7b": _block_e(mean_of_neighbours),
    "Mixed_7c": _block_e(largest_neighbour),
}


class Inception(nn.Module):
    """Images -> the activations that TensorFlow names pool_3, and the logits without their bias."""

    @nn.compact
    def __call__(self, x):
        """x float32 [n, 299, 299, 3] in [-1, 1] -> (features float32 [n, 2048], logits float32 [n, 1008])."""
        x = _chain(STEM, x)
        for name, branches in BLOCKS.items():
            x = Mixed(branches, name=name)(x)
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(CLASSES, use_bias=False, name="fc")(features)


def forward(params, images):
    """The features and the logits without bias of images; pure, and to be called under `jax.jit`.

    Args:
      params: as `load` gives them.
      images: uint8 [n, h, w, 1 or 3] in 0..255, of any size; grey ones are repeated to three channels.
    Returns:
      (features float32 [n, 2048], logits float32 [n, 1008]); products are in float32 on every device.
    """
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != jnp.uint8:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; they must be uint8 [n, h, w, 1 or 3]")
    x = (resize(images, SIDE) - 128) / 128
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    with products("highest"):
        return Inception().apply({"params": params}, x)


def resize(images, side: int):
    """Bilinear resizing as in TensorFlow 1: images [n, h, w, c] -> float32 [n, side, side, c], in the images' units.

    Pixel i of the result lies at i size / side of the image, without the half-pixel shift of later versions, and the
    image is not smoothed before it is made smaller.
    """
    x = jnp.asarray(images)
    for axis in (2, 1):
        low, high, weight = _grid(x.shape[axis], side)
        start, end = (jnp.take(x, at, axis).astype(jnp.float32) for at in (low, high))
        x = start + (end - start) * jnp.expand_dims(weight, tuple(range(1, 4 - axis)))
    return x


def _grid(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `side` pixels its two neighbours among `size` and the weight of the second, [side] each."""
    place = np.arange(side, dtype=np.float32) * np.float32(size / side)  # in float32, as there
    low = place.astype(np.int32)
    return low, np.minimum(low + 1, size - 1), place - low


def convert(path: Path) -> dict[str, np.ndarray]:
    """The weights from a file of the PyTorch port, of either format of `torch.save`: float32 arrays by path.

    Batch normalisation is folded into the convolutions, in float64. Raises InputError, one line, where the file is
    missing or damaged, or holds another network.
    """
    if not path.is_file():
        raise InputError(f"no file {one_line(path)}; the weights are {SOURCE}")
    port = {name: array for name, array in read_state_dict(path).items() if not name.endswith(UNUSED)}
    required = {name: shape for layer, own in _shapes().items() for name, shape in _torch_shapes(layer, own).items()}
    weight_files.check_shapes(port, required, path, "FID's Inception", f"they are {SOURCE}")
    arrays = {"fc/kernel": port["fc.weight"].T}
    for layer in {name.rpartition("/")[0] for name in _shapes()} - {"fc"}:
        prefix = layer.replace("/", ".")
        mean, variance, shift, scale = (port[f"{prefix}.bn.{name}"].astype(np.float64) for name in NORMALISATION)
        with np.errstate(invalid="ignore"):  # the result is checked
            scale = scale / np.sqrt(variance + EPSILON)
        arrays[f"{layer}/kernel"] = port[f"{prefix}.conv.weight"].transpose(2, 3, 1, 0) * scale
        arrays[f"{layer}/bias"] = shift - mean * scale
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise InputError(f"{one_line(path)} holds weights that are not finite; fetch it again: {SOURCE}")
    return {name: np.asarray(array, "<f4", order="C") for name, array in arrays.items()}


def _torch_shapes(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The arrays of the port behind one of ours: a kernel is one, a bias four of the normalisation."""
    layer, _, kind = name.replace("/", ".").rpartition(".")
    if layer == "fc":
        return {"fc.weight": shape[::-1]}
    if kind == "kernel":
        return {f"{layer}.conv.weight": (shape[3], shape[2], *shape[:2])}
    return dict.fromkeys((f"{layer}.bn.{array}" for array in NORMALISATION), shape)


def load(path: Path) -> tuple[dict, str]:
    """The parameters, and the digest of their arrays, from a file of what `convert` gave: float32 NumPy arrays.

    Raises InputError, one line, where the file is missing or damaged, or does not hold these weights.
    """
    remedy = f"{COMMAND} FILE.pth --out={one_line(path)} makes it of {SOURCE}"
    params, digest = weight_files.load(path, _shapes(), "Inception", remedy)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise InputError(f"the weights in {one_line(path)} are not finite; {remedy}")
    return params, digest


@cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """{name: shape} of the parameters, as "Mixed_5b/branch1x1/kernel"; no device is started for it."""
    key = jax.eval_shape(jax.random.key, 0)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    return weight_files.shapes(jax.eval_shape(Inception().init, key, image)["params"])
