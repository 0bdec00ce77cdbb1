"""Latents: their distributions, and that each is a function of its own key."""

import jax
import numpy as np
import pytest
from scipy import stats

from gan_jax.networks.latents import PRIORS

REFERENCES = {"normal": stats.norm, "uniform": stats.uniform(-1, 2)}


@pytest.mark.parametrize("name", PRIORS)
def test_latents_are_independent_draws_of_their_distribution(name):
    keys = jax.random.split(jax.random.key(0), 4000)
    z = np.asarray(jax.jit(PRIORS[name], static_argnums=1)(keys, 3))
    assert z.shape == (4000, 3)
    assert z.dtype == np.float32
    assert stats.kstest(z.ravel(), REFERENCES[name].cdf).pvalue > 1e-4
    correlations = np.corrcoef(z.T)[~np.eye(3, dtype=bool)]
    assert np.abs(correlations).max() < 4 / np.sqrt(4000)  # 4 standard errors
    np.testing.assert_allclose(jax.jit(PRIORS[name], static_argnums=1)(keys[::-1], 3), z[::-1], rtol=1e-5)


def test_uniform_latents_stay_in_their_cube():
    z = np.asarray(jax.jit(PRIORS["uniform"], static_argnums=1)(jax.random.split(jax.random.key(1), 4000), 3))
    assert z.min() >= -1
    assert z.max() < 1
    assert z.max() - z.min() > 1.99
