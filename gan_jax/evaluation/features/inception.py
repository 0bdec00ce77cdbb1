"""Features and logits of the Inception-v3 of the Frechet Inception distance, and its weights as files.

The weights are those of TensorFlow's graph of 2015-12-05 as the PyTorch port has them; `convert` reads them without
PyTorch. Images are resized as that graph does it, so that scores agree with those of papers that used it
(arXiv:1706.08500; why the resizing matters: arXiv:2104.11222).
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.data.readers.records import one_line
from gan_jax.evaluation.features import weight_files
from gan_jax.evaluation.features.inception_network import SIDE, Inception
from gan_jax.evaluation.features.torch_file import read_state_dict
from gan_jax.networks import products
from gan_jax.utils.errors import InputError

EPSILON = 1e-3  # of the graph's batch normalisations
FILE = "pt_inception-2015-12-05-6726825d.pth"
COMMAND = "python -m gan_jax.evaluation convert"
SOURCE = f"{FILE} of the release fid_weights of mseitzer/pytorch-fid on GitHub"
NORMALISATION = ("running_mean", "running_var", "bias", "weight")  # arrays of the port's
UNUSED = ("fc.bias", "num_batches_tracked")  # ends of names: of a state dict, what the features do not need


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
    arrays, _ = weight_files.read(path, remedy)
    weight_files.check_shapes(arrays, _shapes(), path, "Inception", remedy)
    return weight_files.unpack(arrays), weight_files.digest(arrays)


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """{name: shape} of the parameters, as "Mixed_5b/branch1x1/kernel"; no device is started for it."""
    key = jax.eval_shape(jax.random.key, 0)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    return weight_files.shapes(jax.eval_shape(Inception().init, key, image)["params"])
