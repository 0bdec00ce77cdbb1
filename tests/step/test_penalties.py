"""Each penalty against critics whose gradient is known."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_jax.penalties import PENALTIES

SHAPES = pytest.mark.parametrize("shape", [(5,), (4, 4, 3)], ids=str)
NAMES = pytest.mark.parametrize("name", PENALTIES)
# What a linear critic w x costs and the gradient of that in w, as functions of w.
LINEAR = {
    "none": (lambda w, norm: 0, lambda w, norm: 0 * w),
    "wgan_gp": (lambda w, norm: (norm - 1) ** 2, lambda w, norm: 2 * (norm - 1) * w / norm),
    "wgan_gp_one_sided": (
        lambda w, norm: max(norm - 1, 0) ** 2,
        lambda w, norm: 2 * max(norm - 1, 0) * w / norm,
    ),
    "dragan": (lambda w, norm: (norm - 1) ** 2, lambda w, norm: 2 * (norm - 1) * w / norm),
    "r1": (lambda w, norm: norm**2, lambda w, norm: 2 * w),
    "r2": (lambda w, norm: norm**2, lambda w, norm: 2 * w),
    "r1_r2": (lambda w, norm: 2 * norm**2, lambda w, norm: 4 * w),
}


def linear(w, x):
    return jnp.sum(x * w, axis=tuple(range(1, x.ndim))) + 3


def half_square(x):
    return jnp.sum(x**2, axis=tuple(range(1, x.ndim))) / 2  # the gradient at x is x


def batch(shape, n=8, seed=0):
    """Keys, real and fake examples, with every component above 1."""
    rng = np.random.default_rng(seed)
    real, fake = rng.uniform(1.5, 4, size=(2, n, *shape)).astype(np.float32)
    return jax.random.split(jax.random.key(seed), n), real, fake


def compute(name, keys, real, fake, **options):
    """The penalty of a critic whose gradient at x is x."""
    return np.asarray(half_square_program(name, **options)(keys, real, fake))


@cache
def half_square_program(name, **options):
    return jax.jit(partial(PENALTIES[name], half_square, **options))


def points(name, keys, real, fake, **options):
    """Where the penalty probes the critic, for examples whose components exceed 1.

    The critic x_k^2 / 2 has the gradient norm |x_k|, so that component k is read off the penalty (|x_k| - 1)^2.
    """
    size = real[0].size
    basis = np.eye(size, dtype=np.float32).reshape(size, *real.shape[1:])
    probe = jax.vmap(lambda w: PENALTIES[name](lambda x: linear(w, x**2 / 2), keys, real, fake, **options))
    penalty = jax.jit(probe)(basis)
    return 1 + np.sqrt(np.asarray(penalty)).T.reshape(real.shape)


@pytest.mark.parametrize("norm", [0.25, 1.0, 2.0])
@SHAPES
@NAMES
def test_a_linear_critic_costs_what_its_norm_says(name, shape, norm):
    w = np.random.default_rng(1).standard_normal(shape)
    w = (norm * w / np.linalg.norm(w)).astype(np.float32)
    value, slope = LINEAR[name]
    penalty, gradient = linear_program(name)(w, *batch(shape))
    assert penalty.shape == (8,)
    np.testing.assert_allclose(penalty, np.full(8, value(w, norm)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, slope(w, norm), rtol=1e-5, atol=2e-6)


@SHAPES
@NAMES
def test_a_flat_critic_has_a_finite_gradient(name, shape):
    penalty, gradient = linear_program(name)(np.zeros(shape, np.float32), *batch(shape))
    np.testing.assert_allclose(penalty, np.full(8, name in ("wgan_gp", "dragan")), atol=1e-6)
    np.testing.assert_array_equal(gradient, np.zeros(shape))


@cache
def linear_program(name):
    """w, keys, real, fake -> the penalties of the critic w x, and the gradient of their mean in w."""

    def mean(w, *arguments):
        penalty = PENALTIES[name](partial(linear, w), *arguments)
        return jnp.mean(penalty), penalty

    def program(w, *arguments):
        gradient, penalty = jax.grad(mean, has_aux=True)(w, *arguments)
        return penalty, gradient

    return jax.jit(program)


@SHAPES
def test_r1_looks_at_real_and_r2_at_fake(shape):
    keys, real, fake = batch(shape)
    squared = [np.sum(x.astype(np.float64).reshape(8, -1) ** 2, axis=1) for x in (real, fake)]
    np.testing.assert_allclose(compute("r1", keys, real, fake), squared[0], rtol=1e-6)
    np.testing.assert_allclose(compute("r2", keys, real, fake), squared[1], rtol=1e-6)
    np.testing.assert_allclose(compute("r1_r2", keys, real, fake), sum(squared), rtol=1e-6)


@pytest.mark.parametrize("name", ["wgan_gp", "wgan_gp_one_sided"])
@SHAPES
def test_interpolates_lie_on_the_segment_between_real_and_fake(name, shape):
    keys, real, fake = batch(shape)
    real, fake = real + 3, fake  # so that no component of real - fake is near 0
    probed = points(name, keys, real, fake)
    weights = ((probed - fake) / (real - fake)).reshape(8, -1)
    np.testing.assert_allclose(weights, weights[:, :1].repeat(weights.shape[1], axis=1), atol=1e-4)
    assert weights.min() >= -1e-4
    assert weights.max() <= 1 + 1e-4
    assert len(np.unique(weights[:, 0].round(4))) == 8  # a weight of its own for each example


def test_interpolation_weights_are_uniform_and_follow_the_keys():
    n = 4096
    real, fake = np.full((n, 1), 3, np.float32), np.full((n, 1), 2, np.float32)
    first, second = (points("wgan_gp", jax.random.split(jax.random.key(i), n), real, fake)[:, 0] - 2 for i in (0, 1))
    for weights in (first, second):
        assert abs(weights.mean() - 0.5) < 4 / np.sqrt(12 * n)  # 4 standard errors
        assert abs(np.mean(weights < 0.25) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / n)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize(("shape", "scale"), [((5,), None), ((2, 2, 3), 0.7)], ids=str)
def test_dragan_probes_within_half_a_scale_above_the_real_examples(shape, scale):
    keys, real, fake = batch(shape, n=64)
    reach = 0.5 * (scale or np.std(real.astype(np.float64)))
    moves = (points("dragan", keys, real, fake, scale=scale) - real) / reach
    assert moves.min() > -1e-4
    assert moves.max() < 1 + 1e-4
    assert moves.max() > 0.8  # and reaches far into that range
    means = moves.reshape(64, -1).mean(axis=1)
    assert abs(means.mean() - 0.25) < 4 * means.std() / 8  # E[alpha] E[u], within 4 standard errors
    spread = moves.reshape(64, -1).std(axis=1)
    assert np.all(spread > 1e-4)  # noise of its own in each component


@NAMES
def test_an_example_costs_the_same_wherever_it_stands(name):
    """Shards of a batch add up to the batch, given the data's scale."""
    options = {"scale": 1.0} if name == "dragan" else {}
    keys, real, fake = batch((2, 2, 3))
    whole = compute(name, keys, real, fake, **options)
    for part in (slice(0, 4), slice(4, 8), np.array([6, 1, 4, 2])):
        shard = compute(name, keys[part], real[part], fake[part], **options)
        np.testing.assert_allclose(shard, whole[part], rtol=1e-6)


@pytest.mark.parametrize("name", ["wgan_gp", "wgan_gp_one_sided", "dragan"])
def test_other_keys_probe_other_points(name):
    keys, real, fake = batch((5,))
    others = jax.random.split(jax.random.key(1), 8)
    first, second = (compute(name, k, real, fake) for k in (keys, others))
    assert np.all(np.abs(first - second) > 1e-6)
