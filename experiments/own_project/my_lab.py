"""Parts of one's own: an objective, a generator, a data set and a score; a config names them as `my_lab:NAME`."""

from typing import Annotated

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_digits

from gan_jax.evaluation import lower_is_better
from gan_jax.networks.layers import Width
from gan_jax.objectives import Objective, separable, softplus
from gan_jax.utils.keys import COUNT, FLAG, POSITIVE, POSITIVE_INT, TRACED


def alpha_gan(alpha: Annotated[float, POSITIVE, "order of the loss; 1: the logistic one", TRACED] = 2.0) -> Objective:
    """The alpha-loss of both players (arXiv:2106.05232), G's non-saturating; it estimates an Arimoto divergence."""
    p = 1 - 1 / alpha
    safe = jnp.where(jnp.abs(p) < 1e-4, 1.0, p)

    def loss(surprise):  # alpha / (alpha - 1) (1 - probability^((alpha - 1) / alpha)), of -log(probability)
        return jnp.where(jnp.abs(p) < 1e-4, surprise, -jnp.expm1(-safe * surprise) / safe)

    return separable(
        real=lambda a: loss(softplus(-a)),
        fake=lambda b: loss(softplus(b)),
        generator=lambda b: loss(softplus(-b)),
        divergence=lambda total: 2 * loss(jnp.log(2.0)) - total,
        logistic=True,
    )


class MixerGenerator(nn.Module):
    """A mapping network whose output scales the channels of an MLP-mixer (arXiv:2105.01601) over learned patches."""

    shape: tuple[int, ...]
    width: Width = 128
    mapping: Annotated[int, COUNT, "layers of the mapping network"] = 2
    mixers: Annotated[int, POSITIVE_INT, "blocks of the mixer"] = 2
    patch: Annotated[int, POSITIVE_INT, "side of a patch, in pixels"] = 2

    @nn.compact
    def __call__(self, z, train: bool):
        """z [n, d] -> images [n, h, w, c] in [-1, 1]."""
        height, width, channels = self.shape
        grid = (height // self.patch, width // self.patch)
        style = z
        for _ in range(self.mapping):
            style = nn.leaky_relu(nn.Dense(self.width)(style), 0.2)
        tokens = self.param("tokens", nn.initializers.normal(1.0), (grid[0] * grid[1], self.width))
        x = jnp.broadcast_to(tokens, (len(z), *tokens.shape))  # [n, tokens, width]
        for _ in range(self.mixers):
            x = x * (1 + nn.Dense(self.width)(style))[:, None]
            x = x + jnp.swapaxes(_mlp(jnp.swapaxes(nn.LayerNorm()(x), 1, 2), len(tokens)), 1, 2)
            x = x + _mlp(nn.LayerNorm()(x), self.width)
        x = nn.Dense(self.patch**2 * channels)(nn.LayerNorm()(x))
        x = x.reshape(-1, *grid, self.patch, self.patch, channels)
        return jnp.tanh(jnp.swapaxes(x, 2, 3).reshape(-1, *self.shape))


def _mlp(x, size: int):
    return nn.Dense(size)(nn.gelu(nn.Dense(2 * size)(x)))


class Digits:
    """Scikit-learn's digits as a map-style data set: what PyTorch and Hugging Face have."""

    classes = tuple("0123456789")

    def __init__(self, even: Annotated[bool, FLAG, "the even digits alone"] = False):
        digits = load_digits()
        kept = digits.target % 2 == 0 if even else slice(None)
        self.images, self.labels = digits.images[kept], digits.target[kept]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return np.uint8(self.images[i] * 255 / 16), int(self.labels[i])


@lower_is_better
def spectrum_gap(samples, real):
    """How far the mean power spectra of both are apart: the mean absolute difference of their logarithms."""
    spectra = (np.log(np.mean(np.abs(np.fft.fft2(x, axes=(1, 2))) ** 2, axis=0) + 1e-3) for x in (samples, real))
    return np.mean(np.abs(np.subtract(*spectra)))
