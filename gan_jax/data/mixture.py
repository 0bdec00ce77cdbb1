"""Data in the plane and on the line whose density is known: the mixtures of the mode-collapse literature.

`ring8` and `grid25` follow PacGAN (arXiv:1712.04086, section 4.1), in the units of that paper, unscaled. Every example
is a fresh draw: there is no finite set to memorise, and the splits of a real data set have no meaning here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.data.source import Modes, Source


def ring8() -> Source:
    """Eight Gaussians, sigma 0.01, evenly on the unit circle."""
    angles = 2 * np.pi * np.arange(8) / 8
    return mixture(np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.01)


def grid25() -> Source:
    """Twenty-five Gaussians, sigma 0.05, at {-4, -2, 0, 2, 4}^2."""
    ticks = np.arange(-4.0, 5.0, 2.0)
    return mixture(np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2), 0.05)


def gaussian() -> Source:
    """One Gaussian on the line, mean 4, sigma 0.5."""
    return mixture(np.array([[4.0]]), 0.5)


def swiss_roll() -> Source:
    """A spiral with Gaussian noise: (t cos t, t sin t) / 7.5 with t uniform on [1.5 pi, 4.5 pi], sigma 0.25 / 7.5."""
    low, high = 1.5 * jnp.pi, 4.5 * jnp.pi
    curve = _spiral(jnp.linspace(low, high, 1000))  # finer than sigma: its mixture is the density
    return _noisy(lambda key: _spiral(jax.random.uniform(key, (), minval=low, maxval=high)), curve, 0.25 / 7.5)


def _spiral(t):
    return jnp.stack([t * jnp.cos(t), t * jnp.sin(t)], axis=-1) / 7.5


def mixture(centers: np.ndarray, sigma: float) -> Source:
    """Gaussians of standard deviation sigma at `centers` [m, d], each of weight 1/m; one named twice has twice that."""
    constants = jnp.asarray(centers, jnp.float32)
    source = _noisy(lambda key: constants[jax.random.randint(key, (), 0, len(constants))], centers, sigma)
    return source._replace(modes=Modes(centers, sigma))


def _noisy(pick, centers, sigma: float) -> Source:
    """The source of pick(key) [d] with Gaussian noise; its density is that of the mixture at `centers` [m, d]."""
    return Source(
        shape=centers.shape[1:],
        draw=lambda data, indices, keys: {"image": jax.vmap(partial(_point, pick, sigma))(keys)},
        std=float(np.sqrt(np.var(centers) + sigma**2)),
        density=partial(_mixture_density, jnp.asarray(centers, jnp.float32), sigma),
    )


def _point(pick, sigma, key):
    which, noise = jax.random.split(key)
    center = pick(which)
    return center + sigma * jax.random.normal(noise, center.shape)


def _mixture_density(centers, sigma, x):
    """The density of the equal-weight mixture at x [n, d]: [n], in units of the data to the power -d."""
    squared = jnp.sum(jnp.square(x[:, None] - centers), axis=-1) / sigma**2
    log_normalizer = x.shape[1] * jnp.log(sigma * jnp.sqrt(2 * jnp.pi)) + jnp.log(len(centers))
    return jnp.exp(jax.nn.logsumexp(-squared / 2, axis=1) - log_normalizer)
