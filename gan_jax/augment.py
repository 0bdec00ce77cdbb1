"""What is done to examples before the discriminator sees them, real and fake alike, in the passes of both players.

Functions of (keys [n], x [n, ...], ...), one key an example, so that the shards of a batch draw what the whole batch
would. What the generator makes, and what samples and scores are made from, they never touch.
"""

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
