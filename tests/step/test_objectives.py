"""Every objective against closed forms in float64: values, slopes, extremes, divergences, gradient fields."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import expit, log_softmax, rel_entr, softmax
from scipy.stats import wasserstein_distance

from gan_jax.objectives import NAMED, OBJECTIVES, smooth_labels

LOG_2 = np.log(2)
# Exact in bfloat16, and none on a kink of the hinge.
LOGITS = np.array([-200, -100, -20, -1.5, 0, 0.5, 20, 88, 100, 200])
A, B = (grid.ravel() for grid in np.meshgrid(LOGITS, LOGITS))  # every pair of a real and a fake logit
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2.0**-7}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
NAMES = pytest.mark.parametrize("name", OBJECTIVES)


def softplus(x):
    return np.logaddexp(0, x)


class Closed(NamedTuple):
    """An objective in float64, functions of (a, b); losses as terms, whose sizes say what rounding may cost."""

    discriminator: object  # -> terms
    slopes: object  # -> its derivatives in a and in b
    generator: object  # -> terms
    generator_slopes: object  # -> its derivatives in b and in a
    divergence: tuple  # the constant and the factor of the discriminator's loss


def separable(real, real_slope, fake, fake_slope, generator, generator_slope, divergence):
    return Closed(
        lambda a, b: real(a) + fake(b),
        lambda a, b: (real_slope(a), fake_slope(b)),
        lambda a, b: generator(b),
        lambda a, b: (generator_slope(b), 0 * a),
        divergence,
    )


def logistic(generator, slope):
    return separable(
        lambda a: (softplus(-a),),
        lambda a: -expit(-a),
        lambda b: (softplus(b),),
        expit,
        lambda b: (generator(b),),
        slope,
        (LOG_2, -0.5),
    )


def variational(activation, activation_slope, conjugate, conjugate_slope):
    return separable(
        lambda a: tuple(-term for term in activation(a)),
        lambda a: -activation_slope(a),
        conjugate,
        conjugate_slope,
        lambda b: tuple(-term for term in conjugate(b)),
        lambda b: -conjugate_slope(b),
        (0, -1),
    )


CLOSED = {
    "minimax": logistic(lambda b: -softplus(b), lambda b: -expit(b)),
    "non_saturating": logistic(lambda b: softplus(-b), lambda b: -expit(-b)),
    "mle": logistic(lambda b: -np.exp(b), lambda b: -np.exp(b)),
    "wgan": separable(
        lambda a: (-a,), lambda a: -1 + 0 * a, lambda b: (b,), lambda b: 1 + 0 * b,
        lambda b: (-b,), lambda b: -1 + 0 * b, (0, -1),
    ),
    "hinge": separable(
        lambda a: (np.maximum(0, 1 - a),), lambda a: np.where(a < 1, -1.0, 0.0),
        lambda b: (np.maximum(0, 1 + b),), lambda b: np.where(b > -1, 1.0, 0.0),
        lambda b: (-b,), lambda b: -1 + 0 * b, (1, -0.5),
    ),
    "lsgan": separable(
        lambda a: ((a - 1) ** 2 / 2,), lambda a: a - 1, lambda b: (b**2 / 2,), lambda b: b,
        lambda b: ((b - 1) ** 2 / 2,), lambda b: b - 1, (2, -8),
    ),
    "rpgan": Closed(
        lambda a, b: (softplus(b - a),), lambda a, b: (-expit(b - a), expit(b - a)),
        lambda a, b: (softplus(a - b),), lambda a, b: (-expit(a - b), expit(a - b)), (LOG_2, -1),
    ),
    "fgan_kl": variational(
        lambda a: (a,), lambda a: 1 + 0 * a, lambda b: (np.exp(b - 1),), lambda b: np.exp(b - 1)
    ),
    "fgan_reverse_kl": variational(
        lambda a: (-np.exp(-a),), lambda a: np.exp(-a), lambda b: (b, -1), lambda b: 1 + 0 * b
    ),
    "fgan_pearson": variational(lambda a: (a,), lambda a: 1 + 0 * a, lambda b: (b**2 / 4, b), lambda b: b / 2 + 1),
    "fgan_hellinger": variational(
        lambda a: (1, -np.exp(-a)), lambda a: np.exp(-a), lambda b: (np.exp(b), -1), lambda b: np.exp(b)
    ),
    "fgan_jensen_shannon": variational(
        lambda a: (LOG_2, -softplus(-a)), lambda a: expit(-a), lambda b: (softplus(b), -LOG_2), expit
    ),
}  # fmt: skip


class Computed(NamedTuple):
    """The three losses, and the slopes of the two that are descended."""

    discriminator: jax.Array
    generator: jax.Array
    divergence: jax.Array
    slopes: tuple  # of discriminator, in a and in b
    generator_slopes: tuple  # in b and in a


def compute(objective, a, b):
    return Computed(
        objective.discriminator(a, b),
        objective.generator(b, a),
        objective.divergence(a, b),
        jax.vmap(jax.grad(objective.discriminator, argnums=(0, 1)))(a, b),
        jax.vmap(jax.grad(objective.generator, argnums=(0, 1)))(b, a),
    )


@cache
def computed(name, dtype):
    """At every pair of logits, in one compiled program."""
    return jax.jit(lambda a, b: compute(NAMED[name], a, b))(jnp.asarray(A, dtype), jnp.asarray(B, dtype))


def assert_rounds_to(actual, terms, dtype):
    """The sum of the terms, rounded to the dtype: infinite where that is, elsewhere within what rounding costs."""
    assert actual.dtype == dtype
    actual = np.asarray(actual).astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = np.asarray(sum(terms)).astype(dtype).astype(np.float64)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(actual[~finite], rounded[~finite])
    allowed = TOLERANCE[dtype] * sum(np.abs(term) for term in terms) + 2 * float(jnp.finfo(dtype).tiny)
    error = np.abs(actual - sum(terms))
    assert np.all(error[finite] <= np.broadcast_to(allowed, error.shape)[finite])


def test_the_contract_s_names_are_there():
    assert set(OBJECTIVES) == set(CLOSED)


@DTYPES
@NAMES
def test_values_and_slopes_are_the_closed_forms_at_every_logit(name, dtype):
    actual, closed = computed(name, dtype), CLOSED[name]
    terms = closed.discriminator(A, B)
    assert_rounds_to(actual.discriminator, terms, dtype)
    assert_rounds_to(actual.generator, closed.generator(A, B), dtype)
    constant, factor = closed.divergence
    assert_rounds_to(actual.divergence, (constant, *(factor * term for term in terms)), dtype)
    for slope, expected in zip(actual.slopes, closed.slopes(A, B), strict=True):
        assert_rounds_to(slope, (expected,), dtype)
    for slope, expected in zip(actual.generator_slopes, closed.generator_slopes(A, B), strict=True):
        assert_rounds_to(slope, (expected,), dtype)


@DTYPES
@NAMES
def test_only_the_exponentials_overflow_and_none_is_nan(name, dtype):
    values = np.concatenate([np.asarray(each, np.float64) for each in jax.tree.leaves(computed(name, dtype))])
    assert not np.isnan(values).any()
    assert np.isinf(values).any() == NAMED[name].overflows


@NAMES
def test_losses_are_elementwise(name):
    functions = (OBJECTIVES[name].discriminator, OBJECTIVES[name].generator, OBJECTIVES[name].divergence)
    a, b = jnp.asarray(A.reshape(5, 20), jnp.float32), jnp.asarray(B.reshape(5, 20), jnp.float32)
    each = jax.jit(lambda a, b: [(f(a, b), jax.vmap(jax.vmap(f))(a, b), f(a[2, 3], b[2, 3])) for f in functions])(a, b)
    for whole, mapped, one in each:
        assert whole.shape == a.shape
        np.testing.assert_allclose(mapped, whole, rtol=1e-6)
        np.testing.assert_allclose(one, whole[2, 3], rtol=1e-6)


def test_slopes_in_both_modes_against_finite_differences():
    a, b = jnp.array([-2.5, -0.7, 0.3, 1.8]), jnp.array([0.4, -1.7, 2.2, -0.2])
    losses = jax.jit(lambda a, b: [(each.discriminator(a, b), each.generator(b, a)) for each in OBJECTIVES.values()])
    check_grads(losses, (a, b), order=1, rtol=0.01, atol=0.01)


@DTYPES
def test_only_minimax_loses_its_gradient_where_the_discriminator_rejects(dtype):
    def slope(name):
        return float(jax.jit(jax.grad(lambda b: OBJECTIVES[name].generator(b, b)))(jnp.asarray(-200, dtype)))

    assert slope("minimax") == 0
    assert slope("non_saturating") == -1


@DTYPES
@pytest.mark.parametrize("name", [name for name in NAMED if NAMED[name].logistic])
def test_label_smoothing_is_the_cross_entropy_with_the_target_lowered(name, dtype):
    a, b = jnp.asarray(A, dtype), jnp.asarray(B, dtype)
    smooth = jax.jit(lambda epsilon: compute(smooth_labels(NAMED[name], epsilon), a, b))
    plain = computed(name, dtype)
    for epsilon in (0.0, 0.125):
        actual = smooth(jnp.float32(epsilon))  # traced, as a hyperparameter is
        terms = ((1 - epsilon) * softplus(-A), epsilon * softplus(A), softplus(B))
        assert_rounds_to(actual.discriminator, terms, dtype)
        assert_rounds_to(actual.slopes[0], ((epsilon - 1) * expit(-A), epsilon * expit(A)), dtype)
        unchanged = [(each.generator, each.divergence, each.slopes[1]) for each in (actual, plain)]
        for each, expected in zip(*unchanged, strict=True):
            same = [np.asarray(x, np.float64) for x in (each, expected)]
            np.testing.assert_allclose(*same, rtol=TOLERANCE[dtype], atol=1e-37)


# What the divergence estimates, on a space of six points where both densities are known.


def densities(seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(6, 2.0), size=2)


def estimate(name, p, q, logits):
    """E[divergence] with the real example from p and the fake one from q, independent; one logit a point."""
    real, fake = np.meshgrid(logits, logits, indexing="ij")
    terms = OBJECTIVES[name].divergence(jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32))
    return float(np.sum(np.outer(p, q) * np.asarray(terms, np.float64)))


def kl(p, q):
    return rel_entr(p, q).sum()


def jensen_shannon(p, q):
    return kl(p, (p + q) / 2) / 2 + kl(q, (p + q) / 2) / 2


# name: (the best logits, the divergence that they reach)
ATTAINED = {
    "minimax": (lambda p, q: np.log(p / q), jensen_shannon),
    "non_saturating": (lambda p, q: np.log(p / q), jensen_shannon),
    "mle": (lambda p, q: np.log(p / q), jensen_shannon),
    "hinge": (lambda p, q: np.sign(p - q), lambda p, q: np.abs(p - q).sum() / 2),
    "lsgan": (lambda p, q: p / (p + q), lambda p, q: np.sum((p - q) ** 2 / (p + q))),
    "fgan_kl": (lambda p, q: 1 + np.log(p / q), kl),
    "fgan_reverse_kl": (lambda p, q: np.log(p / q), lambda p, q: kl(q, p)),
    "fgan_pearson": (lambda p, q: 2 * (p / q - 1), lambda p, q: np.sum((p - q) ** 2 / q)),
    "fgan_hellinger": (lambda p, q: np.log(p / q) / 2, lambda p, q: np.sum((np.sqrt(p) - np.sqrt(q)) ** 2)),
    "fgan_jensen_shannon": (lambda p, q: np.log(p / q), lambda p, q: 2 * jensen_shannon(p, q)),
}


@pytest.mark.parametrize("name", ATTAINED)
def test_the_divergence_is_a_lower_bound_attained_at_the_best_logits(name):
    best, divergence = ATTAINED[name]
    rng = np.random.default_rng(1)
    for p, q in (densities(seed) for seed in range(3)):
        np.testing.assert_allclose(estimate(name, p, q, best(p, q)), divergence(p, q), rtol=1e-5, atol=1e-6)
        for spread in (0.01, 0.1, 1, 3):
            other = best(p, q) + spread * rng.standard_normal(6)
            assert estimate(name, p, q, other) <= divergence(p, q) + 1e-6


def test_the_critic_s_difference_reaches_wasserstein_1_on_the_line():
    p, q = densities()
    points = np.array([-2.0, -1.1, 0.0, 0.4, 1.5, 3.0])
    slopes = np.sign(np.cumsum(q - p))[:-1]  # the steepest Kantorovich potential, 1-Lipschitz
    potential = np.concatenate([[0], np.cumsum(slopes * np.diff(points))])
    distance = wasserstein_distance(points, points, p, q)
    np.testing.assert_allclose(estimate("wgan", p, q, potential), distance, rtol=1e-5)
    np.testing.assert_allclose(estimate("wgan", p, q, points), points @ (p - q), rtol=1e-5)  # another such critic
    assert abs(points @ (p - q)) < distance


def test_the_relativistic_divergence_lies_between_zero_and_log_2():
    p, q = densities()
    rng = np.random.default_rng(1)
    assert estimate("rpgan", p, q, np.full(6, 3.0)) == pytest.approx(0, abs=1e-6)
    for logits in rng.standard_normal((5, 6)):
        assert estimate("rpgan", p, p, logits) < 0
    apart = np.array([1, 1, 1, 0, 0, 0.0])
    assert estimate("rpgan", apart / 3, (1 - apart) / 3, 100 * apart - 50) == pytest.approx(LOG_2, abs=1e-6)


# The derivative in q of the divergence that the generator's gradient descends, up to a constant.
DESCENDED = {
    "minimax": lambda p, q: np.log(2 * q / (p + q)),  # 2 JS
    "non_saturating": lambda p, q: np.log(q / p) - np.log(2 * q / (p + q)),  # KL(q || p) - 2 JS
    "mle": lambda p, q: -p / q,  # KL(p || q)
    "fgan_kl": lambda p, q: -p / q,
    "fgan_reverse_kl": lambda p, q: np.log(q / p),
    "fgan_pearson": lambda p, q: -((p / q) ** 2),
    "fgan_hellinger": lambda p, q: -np.sqrt(p / q),
    "fgan_jensen_shannon": lambda p, q: np.log(2 * q / (p + q)),
}


@pytest.mark.parametrize("name", DESCENDED)
def test_the_generator_descends_its_divergence_at_the_best_discriminator(name):
    """With p_g = softmax(theta) and D held at its optimum, as in THEORY: gradients agree to 1e-6 in float32."""
    p = densities()[0]
    theta = np.array([0.3, -0.5, 0.1, 0.8, -0.2, 0.0])
    q = softmax(theta)
    logits = jnp.asarray(ATTAINED[name][0](p, q), jnp.float32)

    def loss(theta):
        return jnp.sum(jax.nn.softmax(theta) * OBJECTIVES[name].generator(logits, logits))

    slope = DESCENDED[name](p, q)
    expected = q * (slope - q @ slope)  # the chain rule through the softmax
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.asarray(theta, jnp.float32)), expected, atol=1e-6)
    assert np.abs(expected).max() > 0.01


def test_mle_descends_the_negative_log_likelihood():
    """KL(p || softmax(theta)) has the gradient softmax(theta) - p, and theta - log p its zero."""
    p = densities()[0]
    theta = np.zeros(6)
    logits = jnp.asarray(np.log(p) - log_softmax(theta), jnp.float32)
    gradient = jax.grad(lambda t: jnp.sum(jax.nn.softmax(t) * OBJECTIVES["mle"].generator(logits, logits)))
    np.testing.assert_allclose(gradient(jnp.zeros(6)), 1 / 6 - p, atol=1e-6)
