"""Optimisers with traced constants, the decay of the rate, and the exactness of weight clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gan_jax.step.optimizers import OPTIMIZERS, clip_weights, decayed
from gan_jax.utils.keys import arguments

REFERENCES = {
    "adam": lambda rate, b1, b2: optax.adam(rate, b1=b1, b2=b2),
    "adamw": lambda rate, b1, b2: optax.adamw(rate, b1=b1, b2=b2, weight_decay=0.0),
    "optimistic_adam": lambda rate, b1, b2: optax.optimistic_adam_v2(rate, b1=b1, b2=b2, nesterov=False),
    "optimistic_sgd": lambda rate, b1, b2: optax.chain(optax.trace(b1), optax.optimistic_gradient_descent(rate)),
    "rmsprop": lambda rate, b1, b2: optax.rmsprop(rate, decay=b2, momentum=b1),
    "sgd": lambda rate, b1, b2: optax.sgd(rate, momentum=b1),
}


def descent_by(*course):
    return optax.scale_by_learning_rate(decayed(*course))


def trajectory(tx, params, gradients):
    """The parameters after each update, [steps, ...]."""

    def body(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(body, (params, tx.init(params)), gradients)[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_are_optax_s_with_constants_that_may_be_traced(name):
    params = jax.random.normal(jax.random.key(0), (30,))
    gradients = jax.random.normal(jax.random.key(1), (8, 30))

    @jax.jit
    def ours(rate, b1, b2):
        decays = arguments(OPTIMIZERS[name], {"b1": b1, "b2": b2})
        tx = optax.chain(OPTIMIZERS[name](**decays), descent_by(rate, 8, 1.0))
        return trajectory(tx, params, gradients) - params

    for constants in ((0.5, 0.9), (0.0, 0.99), (0.9, 0.999)):
        tx = REFERENCES[name](1e-2, *constants)
        expected = jax.jit(lambda tx=tx: trajectory(tx, params, gradients) - params)()
        # A traced 1 - b2 is rounded in float32, to 2e-5 of itself at 0.999.
        np.testing.assert_allclose(ours(1e-2, *constants), expected, rtol=1e-4, atol=2e-5)
        assert np.abs(expected[-1]).max() > 1e-2


@pytest.mark.parametrize("updates", [1, 10])
@pytest.mark.parametrize("decay_to", [0.0, 0.1, 1.0])
def test_the_rate_falls_by_half_a_cosine_and_stays(updates, decay_to):
    steps = updates + 3
    rates = jax.jit(lambda rate: -trajectory(descent_by(rate, updates, decay_to), jnp.zeros(()), jnp.ones(steps)))(2.0)
    progress = np.minimum(np.arange(steps) / updates, 1)
    expected = 2 * (decay_to + (1 - decay_to) * (1 + np.cos(np.pi * progress)) / 2)
    np.testing.assert_allclose(np.diff(rates, prepend=0), expected, atol=5e-6)


@pytest.mark.parametrize(("name", "bound"), [("rmsprop", 0.01), ("adam", 0.01), ("adam", 0.03), ("rmsprop", 0.1)])
def test_clipped_parameters_never_leave_their_bounds(name, bound):
    """Exactly, after every update, whether they start far outside or inside."""
    base = optax.chain(OPTIMIZERS[name](0.5, 0.9), descent_by(bound / 3, 20, 1.0))
    tx = optax.chain(base, clip_weights(bound))
    rng = np.random.default_rng(0)
    start = np.stack([rng.standard_normal(50_000), bound * rng.uniform(-1, 1, 50_000)]).astype(np.float32)
    gradients = rng.standard_normal((15, 2, 50_000), np.float32)
    largest = jax.jit(lambda *arguments: jnp.max(jnp.abs(trajectory(tx, *arguments)), axis=2))(start, gradients)
    np.testing.assert_array_equal(largest, np.full((15, 2), np.float32(bound)))


@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_clipping_is_the_projection_and_leaves_what_is_inside(bound):
    params = bound * jax.random.uniform(jax.random.key(0), (50_000,), minval=-1)
    gradients = jax.random.normal(jax.random.key(1), (1, 50_000))
    base = optax.chain(OPTIMIZERS["adam"](0.5, 0.9), descent_by(bound / 3, 1, 1.0))
    plain = jax.jit(lambda: trajectory(base, params, gradients))()[0]
    clipped = jax.jit(lambda: trajectory(optax.chain(base, clip_weights(bound)), params, gradients))()[0]
    expected = np.clip(np.asarray(plain, np.float64), -bound, bound)
    outside = np.abs(plain) > bound
    assert outside.any()
    np.testing.assert_allclose(clipped, expected, rtol=0, atol=float(np.spacing(np.float32(bound))))
    assert np.abs(clipped[~outside] - params[~outside]).min() > bound / 10  # they did move
