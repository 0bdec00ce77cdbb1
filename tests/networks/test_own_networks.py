"""Networks of one's own: Linen and NNX modules and pairs of functions, and their noise, by one key an example."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.own_parts import NoisyDiscriminator, NoisyGenerator
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.networks import as_network
from gan_jax.networks.network import examples_key, keys_of_values
from gan_jax.utils.errors import InputError

KEYS = jax.random.split(jax.random.key(7), 6)
X = jax.random.normal(jax.random.key(8), (6, 2))


@pytest.mark.parametrize(
    "draw",
    [
        lambda key, rows: jax.random.normal(key, (*rows, 3)),
        lambda key, rows: jax.random.bernoulli(jax.random.fold_in(key, 5), 0.3, (*rows, 2, 2)),
        lambda key, rows: jax.random.uniform(jax.random.split(key, 3)[2], rows),
    ],
)
def test_row_i_of_what_the_key_of_examples_draws_is_what_key_i_draws(draw):
    drawn = draw(examples_key(KEYS), (len(KEYS),))
    for key, row in zip(KEYS, drawn, strict=True):
        assert_array_equal(row, draw(key, ()))


def test_noise_that_is_not_one_row_an_example_is_refused():
    with pytest.raises(InputError, match=r"noise of shape \[3\]; draw \[n, ...\]"):
        jax.random.normal(examples_key(KEYS), (3,))


def initialised(part, key=0):
    network = as_network(part)
    return network, *network.init(jax.random.key(key), X)


@pytest.mark.parametrize("part", [NoisyGenerator(), NoisyDiscriminator, NoisyDiscriminator(rngs=nnx.Rngs(3))])
def test_noise_is_of_the_example_and_not_of_its_batch(part):
    network, params, stats = initialised(part)
    whole = network.apply(params, stats, X, False, keys=KEYS)[0]
    assert_allclose(network.apply(params, stats, X[2:5], False, keys=KEYS[2:5])[0], whole[2:5], rtol=1e-6)
    once, again, other = (network.apply(params, stats, X, True, keys=keys)[0] for keys in (KEYS, KEYS, KEYS[::-1]))
    assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-3


class Counter(nn.Module):
    """An affine map that counts its calls in training, in a collection of its own; it takes no `train`."""

    @nn.compact
    def __call__(self, x):
        calls = self.variable("calls", "count", lambda: jnp.zeros(()))
        calls.value += 1
        return nn.Dense(3)(x)


def test_every_collection_of_a_linen_module_is_kept():
    network, params, stats = initialised(Counter())
    for expected in (2, 3):
        y, stats = network.apply(params, stats, X, True)
        assert stats["calls"]["count"] == expected
    assert_allclose(y, X @ params["Dense_0"]["kernel"], rtol=1e-5)


class Normalised(nnx.Module):
    """Batch normalisation, and nothing else."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(2, momentum=0.9, epsilon=0.0, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


def test_an_nnx_module_normalises_by_the_batch_in_training_and_by_its_statistics_after():
    network, params, stats = initialised(Normalised)
    y, moved = network.apply(params, stats, X, True)
    assert_allclose(y, (X - X.mean(0)) / X.std(0), rtol=1e-3, atol=1e-5)
    assert_allclose(moved["norm"]["mean"], 0.1 * X.mean(0), rtol=1e-5)
    y, after = network.apply(params, moved, X, False)
    assert_allclose(y, (X - moved["norm"]["mean"]) / np.sqrt(moved["norm"]["var"]), rtol=1e-4)
    assert_array_equal(after["norm"]["mean"], moved["norm"]["mean"])


def test_an_nnx_class_starts_from_the_key_and_a_module_from_what_it_has():
    module = NoisyDiscriminator(rngs=nnx.Rngs(3))
    (_, first, _), (_, second, _) = (initialised(NoisyDiscriminator, key) for key in (0, 1))
    assert np.abs(first["hidden"]["kernel"] - second["hidden"]["kernel"]).max() > 1e-2
    for key in (0, 1):
        assert_array_equal(initialised(module, key)[1]["hidden"]["kernel"], module.hidden.kernel[...])


def test_a_pair_of_functions_is_called_with_what_it_takes():
    def init(key, x):
        return {"w": jnp.full(x.shape[1], 2.0)}

    def apply(params: Any, x, train, keys):
        return x @ params["w"] + train * jax.vmap(jax.random.normal)(keys)

    network, params, stats = initialised((init, apply))
    assert_allclose(network.apply(params, stats, X, False, keys=KEYS)[0], 2 * X.sum(1), rtol=1e-5)
    noise = network.apply(params, stats, X, True, keys=KEYS)[0] - 2 * X.sum(1)
    assert_allclose(noise, jax.vmap(jax.random.normal)(KEYS), rtol=1e-3, atol=1e-5)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="a int, neither a Linen or NNX module nor a pair"):
        as_network(3)


def test_keys_of_values_follow_from_the_values_alone():
    data = jax.random.key_data(keys_of_values(X))
    assert_array_equal(jax.random.key_data(keys_of_values(X[3:4])), data[3:4])
    assert len(np.unique(data, axis=0)) == len(X)
    assert not np.array_equal(data[0], jax.random.key_data(keys_of_values(X[:1, ::-1]))[0])


def test_a_network_that_is_made_already_goes_by_import_path_too(shrunk):
    changes = {"generator.network": "helpers.own_parts:drift", "penalty.name": "none", "penalty.weight": 0.0}
    setup = recipe.build(shrunk("mixture", "ring8", changes | {"latent.dim": 2}))
    state = recipe.initial_state(setup)
    assert_array_equal(state.generator.params, np.ones(2))
    assert_array_equal(step.sample(setup.recipe, state.ema, X), X)
