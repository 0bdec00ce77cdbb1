"""The Dirac-GAN: eigenvalues in closed form (arXiv:1801.04406), and what becomes of trajectories."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from gan_jax.objectives import OBJECTIVES
from gan_jax.theory import dirac
from gan_jax.theory.dirac import Game

# omega^2 = |g'(u)| l'(u) at the undecided logit u, g the generator's loss and l the discriminator's on a fake example.
FREQUENCIES = {
    "minimax": 1 / 2,
    "non_saturating": 1 / 2,
    "mle": np.sqrt(1 / 2),
    "wgan": 1,
    "hinge": 1,
    "lsgan": 1 / 2,
    "rpgan": 1 / 2,
    "fgan_kl": 1,
    "fgan_reverse_kl": 1,
    "fgan_pearson": 1,
    "fgan_hellinger": 1,
    "fgan_jensen_shannon": 1 / 2,
}
RATE = 0.1


def in_order(values):
    """Those of the larger imaginary part last."""
    return sorted(np.asarray(values), key=lambda x: (x.imag, x.real))


def eigenvalues(game):
    return in_order(dirac.eigenvalues(partial(dirac.vector_field, game)))


def ends(game, update=dirac.alternating, start=(0.6, 0.6), steps=3_000):
    """The distance from the equilibrium at the start, and the smallest and largest over the last 200 steps."""
    points = jax.jit(lambda start: dirac.trajectory(partial(update, game, RATE), start, steps))(jnp.array(start))
    radii = np.linalg.norm(points, axis=1)
    return radii[0], radii[-200:].min(), radii[-200:].max()


def test_every_objective_has_its_frequency_here():
    assert set(FREQUENCIES) == set(OBJECTIVES)


@cache
def spectra():
    """Of every unregularised game: the eigenvalues of its field, of a simultaneous and of an alternating update."""
    return _eigenvalues_of(
        {
            (name, update.__name__): partial(update, Game(name), *([] if update is dirac.vector_field else [RATE]))
            for name in OBJECTIVES
            for update in (dirac.vector_field, dirac.simultaneous, dirac.alternating)
        }
    )


@cache
def damped():
    """The eigenvalues of the fields with zero-centred penalties."""
    games = itertools.product(("non_saturating", "wgan", "mle"), ("r1", "r2", "r1_r2"), (0.25, 2.0))
    return _eigenvalues_of({game: partial(dirac.vector_field, Game(*game)) for game in games})


def _eigenvalues_of(functions):
    """By one compiled program."""
    return jax.jit(lambda: {name: dirac.eigenvalues(function) for name, function in functions.items()})()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_unregularised_players_only_turn(objective):
    omega = FREQUENCIES[objective]
    assert_allclose(in_order(spectra()[objective, "vector_field"]), [-1j * omega, 1j * omega], atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_simultaneous_steps_leave_and_alternating_ones_circle(objective):
    """Lemmas 2.3 and 2.4 of the paper: moduli sqrt(1 + h^2 omega^2), and 1 where h omega < 2."""
    modulus = np.sqrt(1 + (RATE * FREQUENCIES[objective]) ** 2)
    assert_allclose(np.abs(spectra()[objective, "simultaneous"]), modulus, rtol=1e-6)
    assert_allclose(np.abs(spectra()[objective, "alternating"]), 1, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.25, 2.0])
@pytest.mark.parametrize(("penalty", "times"), [("r1", 1), ("r2", 1), ("r1_r2", 2)])
@pytest.mark.parametrize("objective", ["non_saturating", "wgan", "mle"])
def test_zero_centred_penalties_damp(objective, penalty, times, weight):
    root = np.sqrt(complex((times * weight) ** 2 - FREQUENCIES[objective] ** 2))
    expected = in_order([-times * weight - root, -times * weight + root])
    assert_allclose(in_order(damped()[objective, penalty, weight]), expected, atol=1e-5)


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_instance_noise_damps_a_logistic_loss(noise):
    """f''(0) sigma^2 +- sqrt(f''(0)^2 sigma^4 - f'(0)^2) with f'(0) = 1/2 and f''(0) = -1/4."""
    root = np.sqrt(complex(noise**4 / 16 - 1 / 4))
    assert_allclose(
        eigenvalues(Game("minimax", noise=noise)), [-(noise**2) / 4 - root, -(noise**2) / 4 + root], atol=1e-5
    )


def test_instance_noise_does_nothing_for_a_linear_loss():
    assert_allclose(eigenvalues(Game("wgan", noise=1.0)), [-1j, 1j], atol=1e-6)


@pytest.mark.parametrize("options", [{"penalty": "r1", "weight": 0.3}, {"noise": 1.0}], ids=["r1", "noise"])
@pytest.mark.parametrize("objective", ["minimax", "non_saturating", "mle"])
def test_what_the_paper_says_converges_does(objective, options):
    assert ends(Game(objective, **options))[2] < 1e-3


@pytest.mark.parametrize(
    "game",
    [
        Game("minimax"),
        Game("wgan"),
        Game("wgan", clip=0.5),
        Game("wgan", "wgan_gp", 0.3),
        Game("wgan", "dragan", 0.3),
        Game("non_saturating", "wgan_gp", 0.3),
    ],
    ids=lambda game: f"{game.objective}-{game.penalty}-{game.clip}",
)
def test_what_the_paper_says_does_not_converge_does_not(game):
    start, smallest, largest = ends(game)
    assert smallest > 0.3
    assert largest < 3 * start


@pytest.mark.parametrize("objective", ["non_saturating", "rpgan", "lsgan"])
def test_cubic_damping_of_the_flow(objective):
    """d r^2/dt = -2 s tanh(s/2), s = psi theta, or -4 s^2 for lsgan: the distance falls as the inverse root of time."""
    point = jnp.array([0.6, -0.8])
    s = point[0] * point[1]
    rate = -4 * s**2 if objective == "lsgan" else -2 * s * jnp.tanh(s / 2)
    assert_allclose(2 * point @ dirac.vector_field(Game(objective), point), rate, rtol=1e-5)
    first, later = (ends(Game(objective), dirac.flow, steps=steps)[2] for steps in (3_000, 30_000))
    assert_allclose(later / first, 1 / np.sqrt(10), rtol=0.05)


@pytest.mark.parametrize("objective", ["minimax", "wgan", "fgan_kl", "fgan_hellinger", "fgan_reverse_kl"])
def test_the_flow_of_a_zero_sum_game_conserves_the_distance(objective):
    """G feels the fake term that D feels: theta theta' + psi psi' = 0."""
    start, smallest, largest = ends(Game(objective), dirac.flow, steps=5_000)
    assert_allclose((smallest, largest), start, rtol=2e-3)


def test_flow_is_of_fourth_order():
    """On WGAN's circle a step of time h turns by h, up to h^5 / 120."""
    moved = dirac.flow(Game("wgan"), 0.1, jnp.array([1.0, 0.0]))
    assert_allclose(moved, [np.cos(0.1), -np.sin(0.1)], atol=3e-7)


def test_more_critic_steps_do_not_make_wgan_gp_converge():
    assert ends(Game("wgan", "wgan_gp", 0.3, steps=5))[1] > 0.1


def test_trajectory_starts_at_its_start_and_follows_the_update():
    game = Game("wgan")
    points = dirac.trajectory(partial(dirac.simultaneous, game, RATE), (1.0, 0.5), 2)
    assert_allclose(points[:2], [[1, 0.5], [1 + RATE * 0.5, 0.5 - RATE * 1]], rtol=1e-6)
    assert points.shape == (3, 2)


def test_clipping_bounds_the_discriminator_alone():
    points = dirac.trajectory(partial(dirac.alternating, Game("wgan", clip=0.1), RATE), (1.0, 0.5), 500)
    assert np.abs(points[1:, 1]).max() == np.float32(0.1)
    assert np.abs(points[:, 0]).max() >= 1
