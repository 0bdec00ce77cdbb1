"""The noise that the generator maps to examples."""

import jax


def normal(keys, dim: int):
    """Standard normal latents: keys [n] -> [n, dim] float32."""
    return jax.vmap(lambda key: jax.random.normal(key, (dim,)))(keys)


def uniform(keys, dim: int):
    """Latents uniform on [-1, 1): keys [n] -> [n, dim] float32."""
    return jax.vmap(lambda key: jax.random.uniform(key, (dim,), minval=-1.0))(keys)


PRIORS = {"normal": normal, "uniform": uniform}
