"""What is done to examples before the discriminator sees them, real and fake alike, in the passes of both players.

Functions of (keys [n], x [n, ...], ...), one key an example, so that the shards of a batch draw what the whole batch
would. What the generator makes, and what samples and scores are made from, they never touch.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def instance_noise(keys, x, sigma):
    """x + sigma e with e ~ N(0, 1) in each component (arXiv:1610.04490): both densities are blurred alike.

    Args:
      keys: [n]; x: [n, ...] float; sigma: of the noise, in units of the data.
    """
    return x + sigma * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def annealed(sigma, step, steps: int):
    """`sigma` falling linearly over a run of so many steps, from all of it at step 0 to 0 at its end."""
    return sigma * jnp.maximum(0.0, 1 - step / steps)


def transformed(keys, x, transforms: Sequence[Callable], probability):
    """Images with each of `transforms` in turn, each applied with this probability, to each image by itself.

    At 1 with those of arXiv:2006.10738 this is DiffAugment; with a probability that ADA moves it is the pipeline of
    arXiv:2006.06676. Differentiable in x: a generator learns through it.

    Args:
      keys: [n]; x: [n, h, w, c] float; transforms: see `gan_jax.transforms`.
    """

    def of_one(key, image):
        # Instance noise is drawn at smaller numbers of the same keys.
        own = jax.random.split(jax.random.fold_in(key, 2**32 - 1), (len(transforms), 2))
        for transform, (choice, draw) in zip(transforms, own, strict=True):
            chosen = jax.random.uniform(choice) < probability
            image = jnp.where(chosen, transform(draw, image), image)
        return image

    return jax.vmap(of_one)(keys, x)
