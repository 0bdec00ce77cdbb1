"""The noise that the generator maps to examples, by name: functions of keys [n], one an example, and `dim`."""

from typing import Annotated

import jax

from gan_jax.utils.keys import POSITIVE_INT, Registry, function

Dim = Annotated[int, POSITIVE_INT, "numbers of a latent"]


def normal(keys, dim: Dim = 2):
    """Standard normal latents: keys [n] -> [n, dim] float32."""
    return jax.vmap(lambda key: jax.random.normal(key, (dim,)))(keys)


def uniform(keys, dim: Dim = 2):
    """Latents uniform on [-1, 1): keys [n] -> [n, dim] float32."""
    return jax.vmap(lambda key: jax.random.uniform(key, (dim,), minval=-1.0))(keys)


PRIORS = Registry({"normal": normal, "uniform": uniform}, function)
