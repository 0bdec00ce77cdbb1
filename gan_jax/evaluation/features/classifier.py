"""Small classifiers whose features score images that Inception was not made for, such as handwritten digits.

`python -m gan_jax.evaluation train NAME` trains them. The package has their weights, in files that say how they were
made and how accurate they are on the test set.
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gan_jax.evaluation.features import weight_files
from gan_jax.networks import products
from gan_jax.networks.convolution import Conv
from gan_jax.networks.layers import Normalize
from gan_jax.networks.resnet import Block, branch_init

WEIGHTS = Path(__file__).parents[1] / "weights"
CLASSES = 10  # of each of them


class Plain(nn.Module):
    """Convolutions that halve the image, one that does not, and two dense layers; features after the first of these."""

    shape: tuple[int, int, int]  # of its images [h, w, c]
    widths: tuple[int, ...]  # channels after each halving
    features: int

    @nn.compact
    def __call__(self, x, train: bool):
        """x [n, h, w, c] -> (features [n, d], logits [n, classes]); `train` makes no difference."""
        for width, resample in (*((width, "down") for width in self.widths), (self.widths[-1], "keep")):
            x = jax.nn.relu(Conv(width, 3, True, jnp.float32, "auto", branch_init, resample)(x))
        x = x.reshape(len(x), -1)
        features = jax.nn.relu(nn.Dense(self.features, kernel_init=branch_init)(x))
        return features, nn.Dense(CLASSES)(features)


class Residual(nn.Module):
    """The residual blocks of the GANs' discriminators with batch normalisation; features are means over pixels."""

    shape: tuple[int, int, int]  # of its images [h, w, c]
    blocks: tuple[str, ...]  # what each does to the image: down, keep
    width: int  # of all of them, and the number of features

    @nn.compact
    def __call__(self, x, train: bool):
        """x [n, h, w, c] -> (features [n, width], logits [n, classes]); statistics of the batch where `train`."""
        for i, resample in enumerate(self.blocks):
            block = Block(
                resample=resample,
                sees_image=i == 0,
                width=self.width,
                use_bias=False,  # a constant in a channel ends at a normalisation
                activation="relu",
                normalization="batch",
                dtype=jnp.float32,
                axis_name=None,
                classes=0,
                form="auto",
            )
            x = block(x, train)
        x = jax.nn.relu(Normalize("batch", jnp.float32, None)(x, train))
        features = jnp.mean(x, axis=(1, 2))
        return features, nn.Dense(CLASSES)(features)


CLASSIFIERS = {  # that the package has weights for
    "digits": Plain((8, 8, 1), widths=(32, 64), features=64),
    "mnist": Plain((28, 28, 1), widths=(24, 48), features=96),
    "cifar10": Residual((32, 32, 3), blocks=("down", "down", "keep", "keep"), width=64),
}


def load(name: str, path: Path | None = None) -> tuple[Any, str]:
    """The weights of one of CLASSIFIERS, and their hash: of the file that `train` wrote, or that of the package.

    Returns:
      params: a nested dict of float32 arrays; they are stored as float16.
      hash: `weight_files.digest` of the stored arrays.

    Raises InputError where the file is missing, damaged, or another classifier's.
    """
    makes = f"python -m gan_jax.evaluation train {name} --out=FILE.npz makes such a file"
    path, remedy = (path, makes) if path else (WEIGHTS / f"{name}.npz", "install gan-jax again")
    image = jax.ShapeDtypeStruct((1, *CLASSIFIERS[name].shape), jnp.float32)
    expected = jax.eval_shape(partial(CLASSIFIERS[name].init, train=True), jax.random.key(0), image)
    return weight_files.load(path, weight_files.shapes(expected), name, remedy)


def network(shape: tuple[int, ...]) -> nn.Module:
    """The classifier of images [h, w, c] of this shape, one of those of CLASSIFIERS."""
    return {network.shape: network for network in CLASSIFIERS.values()}[shape]


def forward(params, images):
    """Features and logits of the classifier for images of this shape; pure, to be jitted by the caller.

    Args:
      params: as `load` returns them.
      images: float32 [n, h, w, c] in [-1, 1]; it is trained and measured on 8-bit levels, k / 127.5 - 1.
    Returns:
      features: float32 [n, d], not negative: the input of the last layer.
      logits: float32 [n, classes].
    """
    # A score must not depend on how the backend at hand rounds its products.
    with products("highest"):
        return network(images.shape[1:]).apply(params, images, train=False)
