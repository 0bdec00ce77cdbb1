"""The closed forms against numpy and scipy, and every identity that the command prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from gan_jax import theory
from gan_jax.objectives import OBJECTIVES
from gan_jax.theory import __main__ as command
from gan_jax.theory.identities import IDENTITIES, TOLERANCES, Identity, check
from gan_jax.theory.pathwise import ESTIMATES, compare

P, Q = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("identity", IDENTITIES, ids=lambda identity: identity.name)
def test_identity_holds_under_jit(identity, dtype):
    with jax.enable_x64(dtype == "float64"):
        results = [check(identity, jax.random.key(seed), jnp.dtype(dtype)) for seed in range(3)]
    assert max(result.error for result in results) <= TOLERANCES[dtype]


def test_an_identity_that_does_not_hold_is_found_out():
    wrong = Identity("V(D*, G) = 2 JS", lambda p, theta, logits: (theory.value(logits, p, p), 2 * theory.js(p, p)))
    assert check(wrong, jax.random.key(0), jnp.float32).error > 1


@pytest.mark.parametrize("name", ESTIMATES)
def test_gradient_by_samples_is_that_of_the_kullback_leibler_divergence(name):
    for row in compare(ESTIMATES[name], jax.random.key(3)):
        assert row.standard_error < 0.01
        assert abs(row.estimate - row.exact) < 4 * row.standard_error


def test_divergences_against_scipy():
    m = (P + Q) / 2
    assert_allclose(theory.kl(P, Q), stats.entropy(P, Q), rtol=1e-6)
    assert np.isinf(theory.kl(Q, P))
    assert_allclose(theory.js(P, Q), (stats.entropy(P, m) + stats.entropy(Q, m)) / 2, rtol=1e-6)
    assert_allclose(theory.total_variation(P, Q), 0.5, rtol=1e-6)
    assert_allclose(theory.pearson(P, Q), 1.6 + 0.05 + 1 / 30 + 0.4, rtol=1e-6)
    points = 0.25 * np.arange(4)
    assert_allclose(theory.wasserstein_1(P, Q, 0.25), stats.wasserstein_distance(points, points, P, Q), rtol=1e-6)


def test_wasserstein_of_samples_against_scipy():
    x, y = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32) + np.array([[0.0], [3.0]], np.float32)
    assert_allclose(theory.wasserstein_1_samples(x, y), stats.wasserstein_distance(x, y), rtol=1e-5)


def test_gaussian_kl_against_quadrature():
    x = np.linspace(-12, 12, 200_001)
    p, q = stats.norm.pdf(x, 0.3, 0.8), stats.norm.pdf(x, -0.5, 1.4)
    assert_allclose(theory.gaussian_kl(0.3, 0.8, -0.5, 1.4), np.trapezoid(p * np.log(p / q), x), rtol=1e-5)


def test_any_discriminator_bounds_js_from_below():
    logits = 3 * np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    bounds = jax.vmap(lambda a: theory.divergence(OBJECTIVES["minimax"], a, P, Q))(logits)
    assert np.max(bounds) < theory.js(P, Q)


def test_js_lies_between_0_and_log_2():
    assert theory.js(P, P) == 0
    assert_allclose(theory.js(np.array([1.0, 0.0]), np.array([0.0, 1.0])), np.log(2), rtol=1e-6)


def test_command_prints_both_tables_and_succeeds(capsys):
    assert command.main() == 0
    printed = capsys.readouterr().out
    assert printed.count(" yes") == len(IDENTITIES) * len(TOLERANCES) + 2 * len(ESTIMATES)
    assert "all hold" in printed
