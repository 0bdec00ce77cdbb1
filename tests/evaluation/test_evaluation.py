"""Scores of samples whose quality is known."""

import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from configs import base
from gan_jax.data import independent, make_source
from gan_jax.evaluation import data_scores, mode_scores, sliced_wasserstein
from gan_jax.evaluation.metrics.classes import label_scores
from gan_jax.utils.errors import InputError


def source_of(name):
    return make_source(base.get_config().data.to_dict() | {"name": name})


RING, GRID = (source_of(name).modes for name in ("ring8", "grid25"))
BOTH = pytest.mark.parametrize("modes", [RING, GRID], ids=["ring8", "grid25"])


def perfect(modes, n, seed=0):
    rng = np.random.default_rng(seed)
    centers = modes.centers[rng.integers(len(modes.centers), size=n)]
    return centers + modes.sigma * rng.standard_normal(centers.shape)


@BOTH
def test_a_perfect_generator_scores_what_it_should(modes):
    n, total = 20_000, len(modes.centers)
    scores = mode_scores(perfect(modes, n), modes)
    assert scores["modes"] == scores["modes_total"] == total
    within = 1 - np.exp(-9 / 2)  # of three sigma, in the plane: 0.9889
    assert scores["high_quality_ceiling"] == pytest.approx(within)
    assert abs(scores["high_quality"] - within) < 4 * np.sqrt(within * (1 - within) / n)  # 4 standard errors
    # 2 n KL is chi^2 with total - 1 degrees of freedom: mean total - 1, variance 2 (total - 1).
    assert 0 < 2 * n * scores["reverse_kl"] < total - 1 + 4 * np.sqrt(2 * (total - 1))


def test_the_floor_is_what_perfect_generators_score_on_average():
    n, sets = 1000, 300
    scores = [mode_scores(perfect(RING, n, seed), RING) for seed in range(sets)]
    values = np.array([score["reverse_kl"] for score in scores])
    assert abs(values.mean() - scores[0]["reverse_kl_floor"]) < 4 * values.std() / np.sqrt(sets)  # 4 standard errors


@BOTH
def test_a_collapsed_generator_has_one_mode_and_all_of_the_divergence(modes):
    samples = modes.centers[2] + 0.5 * modes.sigma * np.random.default_rng(0).uniform(-1, 1, (500, 2))
    scores = mode_scores(samples, modes)
    assert scores["modes"] == 1
    assert scores["high_quality"] == 1
    assert scores["reverse_kl"] == pytest.approx(np.log(len(modes.centers)))


def test_a_generator_that_favours_a_mode():
    samples = np.concatenate([RING.centers[[0]].repeat(600, axis=0), RING.centers[[5]].repeat(200, axis=0)])
    scores = mode_scores(samples, RING)
    assert scores["modes"] == 2
    assert scores["reverse_kl"] == pytest.approx(np.log(8) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25))


@pytest.mark.parametrize(("sigmas", "expected"), [(2.99, 8), (3.01, 0), (4.0, 0)])
def test_only_samples_within_three_sigma_count(sigmas, expected):
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, 8)
    shift = sigmas * RING.sigma * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scores = mode_scores(RING.centers + shift, RING)
    assert scores["modes"] == expected
    assert scores["high_quality"] == expected / 8
    assert scores["reverse_kl"] == pytest.approx(0)  # counted to the nearest center, however far


def test_labels_of_a_perfect_generator_are_near_their_floor():
    n, classes = 26_000, 1000
    scores = label_scores(np.random.default_rng(0).integers(classes, size=n), classes)
    assert scores["modes"] == scores["modes_total"] == classes  # each is missed with chance e^-26
    # (m - 1)/2n, and the next order of a uniform distribution, (m^2 - 1)/12n^2: 0.01921 + 0.00012.
    assert scores["reverse_kl_floor"] == pytest.approx(0.01934, abs=1e-5)
    # 2 n KL is about chi^2 with classes - 1 degrees of freedom.
    assert abs(scores["reverse_kl"] - scores["reverse_kl_floor"]) < 4 * np.sqrt(2 * (classes - 1)) / (2 * n)


@pytest.mark.parametrize(("n", "classes"), [(1, 5), (4, 3), (6, 2)])
def test_the_floor_of_labels_is_the_mean_over_all_outcomes(n, classes):
    outcomes = np.array(list(itertools.product(range(classes), repeat=n)))
    scores = [label_scores(labels, classes) for labels in outcomes]
    mean = np.mean([score["reverse_kl"] for score in scores])
    assert scores[0]["reverse_kl_floor"] == pytest.approx(mean, rel=1e-10)


def test_labels_of_a_generator_that_misses_classes():
    assert label_scores(np.full(50, 3), 1000)["reverse_kl"] == pytest.approx(np.log(1000))
    scores = label_scores(np.array([0] * 6 + [7] * 2, np.uint8), 8)
    assert (scores["modes"], scores["modes_total"]) == (2, 8)
    assert scores["reverse_kl"] == pytest.approx(np.log(8) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25))


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0, 5], "0 to 4"), ([-1, 2], "from -1 to 2"), ([0.0, 1.0], "integers"), ([], "integers"), ([[1, 2]], "shape")],
)
def test_labels_must_be_classes(labels, words):
    with pytest.raises(InputError, match=words):
        label_scores(np.array(labels), 5)


@pytest.mark.parametrize("dimensions", [2, 5, 64])
def test_sliced_wasserstein_of_a_translation(dimensions):
    rng = np.random.default_rng(0)
    x, shift = rng.standard_normal((50, dimensions)), rng.standard_normal(dimensions)
    projections = 4000
    distance = sliced_wasserstein(x, x + shift, projections)
    # The squared cosine to a random direction is Beta(1/2, (d - 1)/2): its relative spread is below sqrt(2).
    allowed = 4 * np.sqrt(2 / projections)  # 4 standard errors
    assert distance**2 * dimensions / np.sum(shift**2) == pytest.approx(1, abs=allowed)


def test_sliced_wasserstein_on_the_line_is_the_optimal_assignment():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 1)), 3 + 2 * rng.standard_normal((40, 1))
    cost = (x - y.T) ** 2
    best = cost[linear_sum_assignment(cost)].mean()
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt(best))
    assert sliced_wasserstein(x, x + 0.7) == pytest.approx(0.7)


def test_sliced_wasserstein_is_a_distance_of_sets():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 100, 4, 4, 1))
    assert sliced_wasserstein(x, x) == 0
    assert sliced_wasserstein(x, rng.permutation(x)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(x, y) == pytest.approx(sliced_wasserstein(y, x)) != 0
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)  # the same directions at every call
    assert sliced_wasserstein(2 * x, 2 * y) == pytest.approx(2 * sliced_wasserstein(x, y))


def test_sliced_wasserstein_refuses_unequal_sets():
    with pytest.raises(ValueError, match="not 3 and 4"):
        sliced_wasserstein(np.zeros((3, 2)), np.zeros((4, 2)))


@pytest.mark.parametrize("name", ["ring8", "digits"])
def test_evaluation_of_real_examples_is_near_its_floor_and_of_others_is_not(name):
    source = source_of(name)
    real = np.asarray(independent(source, jax.random.split(jax.random.key(1), 500))["image"])
    scores = data_scores(source, real, jax.random.key(0))
    assert ("modes" in scores) == (name == "ring8")
    assert 0 < scores["sliced_wasserstein"] < 2 * scores["sliced_wasserstein_floor"]
    shifted = data_scores(source, real + 0.5, jax.random.key(0))
    assert shifted["sliced_wasserstein"] > 4 * shifted["sliced_wasserstein_floor"]
    assert shifted["sliced_wasserstein_floor"] == scores["sliced_wasserstein_floor"]
    assert scores == data_scores(source, real, jax.random.key(0))
