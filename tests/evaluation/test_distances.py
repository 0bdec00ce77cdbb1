"""Distances of feature sets: closed forms, slow formulas written out here, and other libraries."""

from itertools import product

import numpy as np
import pytest
import scipy
from sklearn.metrics.pairwise import polynomial_kernel

from gan_jax.evaluation.metrics import distances
from gan_jax.evaluation.metrics.bootstrap import frechet_interval, mean_interval
from gan_jax.evaluation.metrics.classes import inception_score
from gan_jax.evaluation.metrics.distances import Gaussian, frechet_distance, gaussian, kernel_distance
from gan_jax.evaluation.metrics.neighbours import memorisation, neighbour_scores, squared_radii
from gan_jax.utils.errors import InputError

KNOWN = 10**9  # the count of a Gaussian that is no estimate


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def features(n, d, seed=0):
    """Correlated, neither centred nor of one scale, float32 as a network's are."""
    mixing = normal(d, d, seed=1) * np.exp(-np.arange(d) / d)
    return (normal(n, d, seed=seed) @ mixing + np.arange(d)).astype(np.float32)


def others(n, d, seed=10):
    return (1.3 * features(n, d, seed) + 0.5).astype(np.float32)


def rotation(d, seed=0):
    return scipy.stats.ortho_group.rvs(d, random_state=seed)


def covariance(eigenvalues, seed=0):
    vectors = rotation(len(eigenvalues), seed)
    return vectors @ np.diag(eigenvalues) @ vectors.T


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(distances, "NUMBERS", 100)


# Frechet distance


@pytest.mark.parametrize("n", [2, 37, 500])
def test_moments_are_those_of_numpy(n, small_blocks):
    x = features(n, 7)
    fitted = gaussian(x)
    np.testing.assert_allclose(fitted.mean, x.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fitted.covariance, np.cov(x.astype(float), rowvar=False), rtol=1e-9, atol=1e-12)
    assert fitted.count == n
    assert fitted.mean.dtype == fitted.covariance.dtype == np.float64


def test_moments_far_from_the_origin_do_not_cancel():
    x = normal(1000, 3)
    np.testing.assert_allclose(gaussian(x + 1e6).covariance, np.cov(x, rowvar=False), atol=1e-8)


@pytest.mark.parametrize("b", [[4.0, 1.0, 9.0], [4.0, 0.0, 9.0], [0.0, 0.0, 0.0]], ids=["regular", "singular", "zero"])
def test_frechet_distance_of_commuting_covariances(b):
    a, b, shift = np.array([1.0, 2.0, 0.25]), np.array(b), np.array([1.0, -2.0, 0.5])
    first = Gaussian(np.zeros(3), covariance(a), KNOWN)
    second = Gaussian(shift, covariance(b), KNOWN)
    expected = np.sum(shift**2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_covariances_that_do_not_commute():
    a, b = covariance([1.0, 3.0, 5.0, 0.1]), covariance([2.0, 0.5, 1.0, 7.0], seed=1)
    expected = np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert np.abs(a @ b - b @ a).max() > 0.1
    measured = frechet_distance(Gaussian(np.zeros(4), a, KNOWN), Gaussian(np.zeros(4), b, KNOWN))
    assert measured == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("m", "n"), [(300, 200), (20, 200), (200, 20), (12, 9)])
def test_frechet_distance_with_few_examples(m, n):
    d = 50
    x, y = features(m, d), others(n, d)
    centred = [(side - side.mean(axis=0)) / np.sqrt(len(side) - 1) for side in (x.astype(float), y.astype(float))]
    # The root's trace is the nuclear norm of X^T Y in any factors A = X X^T, B = Y Y^T: no rounded root of 0 in it.
    overlap = np.linalg.norm(centred[0] @ centred[1].T, "nuc")
    shift = np.sum((x.astype(float).mean(axis=0) - y.astype(float).mean(axis=0)) ** 2)
    expected = shift + np.sum(centred[0] ** 2) + np.sum(centred[1] ** 2) - 2 * overlap
    measured = frechet_distance(gaussian(x), gaussian(y))
    assert measured == pytest.approx(expected, rel=1e-10)
    assert measured == pytest.approx(frechet_distance(gaussian(y), gaussian(x)), rel=1e-10)


@pytest.mark.parametrize("n", [10, 1000])
def test_frechet_distance_is_invariant(n):
    d = 16
    x, y = features(n, d).astype(float), others(n, d).astype(float)
    distance = frechet_distance(gaussian(x), gaussian(y))
    turned = [gaussian(side @ rotation(d) + 3) for side in (x, y)]
    assert frechet_distance(*turned) == pytest.approx(distance, rel=1e-9)
    assert frechet_distance(gaussian(2 * x), gaussian(2 * y)) == pytest.approx(4 * distance, rel=1e-9)
    assert 0 <= frechet_distance(gaussian(x), gaussian(x[::-1])) < 1e-9 * distance
    assert frechet_distance(gaussian(x), gaussian(x + 2)) == pytest.approx(4 * d, rel=1e-6)


# Kernel distance


def mean_discrepancy(x, y):
    """The definition, with scikit-learn's kernel: gamma is 1/d there too."""
    k_xx, k_yy, k_xy = (polynomial_kernel(*pair, degree=3, coef0=1) for pair in ((x, x), (y, y), (x, y)))
    m, n = len(x), len(y)
    off_diagonal = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (k_xx, k_yy)]
    return sum(off_diagonal) - 2 * k_xy.sum() / (m * n)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (30, 30), (40, 17)])
def test_kernel_distance_and_its_jackknife(m, n, small_blocks):
    x, y = normal(m, 5), 1.1 * normal(n, 5, seed=1) + 0.3
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(mean_discrepancy(x, y), rel=1e-9)
    without_x = [mean_discrepancy(np.delete(x, i, axis=0), y) for i in range(m)]
    without_y = [mean_discrepancy(x, np.delete(y, i, axis=0)) for i in range(n)]
    expected = (m - 1) * np.var(without_x) + (n - 1) * np.var(without_y)
    assert error == pytest.approx(np.sqrt(expected), rel=1e-8)


def draws_of_kernel_distance(shift, count=600, m=60, n=90, d=4):
    rng = np.random.default_rng(0)
    pairs = ((rng.standard_normal((m, d)), rng.standard_normal((n, d)) + shift) for _ in range(count))
    return np.array([kernel_distance(*pair) for pair in pairs]).T


def test_kernel_distance_of_equal_distributions_is_unbiased_about_zero():
    values, errors = draws_of_kernel_distance(shift=0)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))  # 4 standard errors
    # Degenerate there: the jackknife's variance is up to twice the true one. A variance of heavy tails: 20 %.
    assert 0.8 < np.mean(errors**2) / np.var(values) < 2.4


def test_standard_error_of_the_kernel_distance_is_its_spread():
    shift = 1.0
    values, errors = draws_of_kernel_distance(shift)
    # The moments E k = E (x.y/d + 1)^3 of x ~ N(a, 1), y ~ N(b, 1): with t = x.y/d,
    # E t = a.b/d, E t^2 = ((a.b)^2 + |a|^2 + |b|^2 + d)/d^2, E t^3 = ((a.b)^3 + 3 a.b (|a|^2 + |b|^2 + d + 2) )/d^3.
    d = 4

    def kernel(aa, bb, ab):
        first, second = ab / d, (ab**2 + aa + bb + d) / d**2
        third = (ab**3 + 3 * ab * (aa + bb + d + 2)) / d**3
        return third + 3 * second + 3 * first + 1

    square = d * shift**2
    expected = kernel(0, 0, 0) + kernel(square, square, square) - 2 * kernel(0, square, 0)
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(len(values))
    assert np.mean(errors**2) / np.var(values) == pytest.approx(1, abs=0.25)  # 4 sqrt(2/600), the tails heavier


def test_kernel_distance_is_symmetric_and_free_of_order_and_rotation():
    x, y = normal(50, 6), normal(40, 6, seed=1) + 0.2
    value, error = kernel_distance(x, y)
    for pair in ((y, x), (x[::-1], y), (x @ rotation(6), y @ rotation(6))):
        assert kernel_distance(*pair) == pytest.approx((value, error), rel=1e-9)


# Inception score


def test_inception_score_of_known_probabilities():
    assert inception_score(np.full((100, 10), 0.1), 5) == pytest.approx((1, 0))
    assert inception_score(np.tile(np.eye(10), (6, 1)), 6) == pytest.approx((10, 0))
    assert inception_score(np.eye(10)[np.zeros(20, int)], 1) == pytest.approx((1, 0))  # one class only
    halves = np.concatenate([np.eye(4), np.eye(4)[[0, 0, 0, 0]]])
    assert inception_score(halves, 2) == pytest.approx((2.5, 1.5))  # 4 and 1


@pytest.mark.parametrize("splits", [1, 4, 7])
def test_inception_score_is_its_definition(splits):
    p = scipy.special.softmax(3 * normal(59, 6), axis=1)
    parts = [p[i * 59 // splits : (i + 1) * 59 // splits] for i in range(splits)]
    scores = [np.exp(np.mean([scipy.stats.entropy(row, part.mean(axis=0)) for row in part])) for part in parts]
    assert inception_score(p, splits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)


# Precision, recall, density, coverage, memorisation


def slow_neighbour_scores(real, fake, k):
    """By the definitions, in loops."""
    of_real, of_fake = ([sorted(np.linalg.norm(x - e) for e in x_all)[k] for x in x_all] for x_all in (real, fake))
    inside = np.array([[np.linalg.norm(y - x) <= r for x, r in zip(real, of_real, strict=True)] for y in fake])
    inside_fake = np.array([[np.linalg.norm(x - y) <= r for y, r in zip(fake, of_fake, strict=True)] for x in real])
    return inside.any(axis=1), inside_fake.any(axis=1), inside.sum(axis=1) / k, inside.any(axis=0)


@pytest.mark.parametrize(("m", "n", "k"), [(40, 30, 1), (30, 45, 3), (25, 25, 5)])
def test_neighbour_scores_are_their_definitions(m, n, k):
    real, fake = normal(m, 3) + 100, 0.7 * normal(n, 3, seed=1) + 100.8
    all_expected = slow_neighbour_scores(real, fake, k)
    for measured, expected in zip(neighbour_scores(real, fake, k, k), all_expected, strict=True):
        assert np.mean(expected) > 0
        np.testing.assert_array_equal(measured, expected)


def test_neighbour_scores_of_hand_made_sets():
    real = np.array([[0.0], [1.0], [3.0], [10.0]])  # to the nearest other: 1, 1, 2, 7
    fake = np.array([[-0.5], [0.25], [5.0], [20.0]])  # 0.75, 0.75, 4.75, 15
    scores = neighbour_scores(real, fake, 1, 1)
    np.testing.assert_array_equal(scores.precision, [True, True, True, False])  # 5 is 2 from 3, and 5 from 10
    np.testing.assert_array_equal(scores.recall, [True, True, True, True])  # 20 reaches down to 5, and 5 to 0.25
    np.testing.assert_array_equal(scores.density, [1, 2, 2, 0])
    np.testing.assert_array_equal(scores.coverage, [True, True, True, True])
    np.testing.assert_array_equal(neighbour_scores(real, np.repeat(fake[3:], 2, axis=0), 1, 1).coverage, [False] * 4)


def test_copies_of_the_data_score_full_marks():
    real = 1000 + normal(200, 8).astype(np.float32)
    copies, k = real[::-1], 5
    scores = neighbour_scores(real, copies, k, k)
    assert scores.precision.all()
    assert scores.recall.all()
    assert scores.coverage.all()
    # Each ball holds its center and k others, the last of them on the sphere itself.
    assert scores.density.mean() == pytest.approx((k + 1) / k)


def test_a_collapsed_generator_is_precise_and_covers_nothing():
    real = normal(300, 4)
    fake = real[:1] + 1e-3 * normal(300, 4, seed=1)
    scores = neighbour_scores(real, fake)
    assert scores.precision.all()
    assert scores.recall.mean() < 0.02
    assert scores.coverage.mean() < 0.1
    assert not np.any(neighbour_scores(real, real + 100))


def test_density_and_coverage_of_equal_distributions():
    real, fake, k = normal(3000, 2), normal(3000, 2, seed=1), 5
    scores = neighbour_scores(real, fake, coverage_k=k)
    # arXiv:2002.09797, lemmas 1 and 2; balls overlap, so the spread is wider than of independent examples.
    assert scores.density.mean() == pytest.approx(1, abs=0.06)
    m = len(real)
    chance_of_none = np.prod([(2 * m - m - i) / (2 * m - i - 1) for i in range(k)])
    assert scores.coverage.mean() == pytest.approx(1 - chance_of_none, abs=0.02)


def test_each_score_has_its_own_k():
    real, fake = normal(50, 4), normal(40, 4, seed=1)
    scores = neighbour_scores(real, fake, 2, 6)
    for measured, expected in zip(scores[:2], neighbour_scores(real, fake, 2, 1)[:2], strict=True):
        np.testing.assert_array_equal(measured, expected)
    for measured, expected in zip(scores[2:], neighbour_scores(real, fake, 9, 6)[2:], strict=True):
        np.testing.assert_array_equal(measured, expected)


def test_radii_leave_out_an_example_itself_and_no_copy_of_it():
    x = np.array([[5.0, 1.0], [5.0, 1.0], [5.0, 1.0], [8.0, 5.0]])
    np.testing.assert_array_equal(squared_radii(x, 3, 1), [[25, 25, 25, 25], [0, 0, 0, 25]])


def test_copies_are_at_distance_zero():
    real = (1e4 + features(500, 20)).astype(np.float32)
    order = np.random.default_rng(0).permutation(500)
    copies = memorisation(real, real[order])
    np.testing.assert_array_equal(copies.index, order)
    np.testing.assert_array_equal(copies.distance, 0)


def test_the_nearest_example_is_that_of_a_tree():
    real, fake = normal(300, 5), normal(100, 5, seed=2)
    copies = memorisation(real, fake)
    tree = scipy.spatial.KDTree(real)
    expected_distances, expected = tree.query(fake)
    np.testing.assert_array_equal(copies.index, expected)
    np.testing.assert_allclose(copies.distance, expected_distances, rtol=1e-12)
    np.testing.assert_allclose(copies.spacing, tree.query(real[expected], k=2)[0][:, 1], rtol=1e-12)


# Intervals


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_interval_is_that_of_scipy(level):
    x = np.random.default_rng(0).exponential(size=80)
    ours = mean_interval(x, 500, level, seed=0)
    theirs = scipy.stats.bootstrap(
        (x,), np.mean, n_resamples=500, confidence_level=level, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours == pytest.approx(theirs, rel=1e-12)  # the same rows are drawn
    assert ours == mean_interval(x, 500, level, seed=0)
    assert ours != mean_interval(x, 500, level, seed=1)


def test_a_precision_has_the_interval_of_a_proportion():
    hits = np.arange(1000) < 300
    low, high = mean_interval(hits, 4000, 0.95, seed=0)
    error = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - error, 0.3 + error), abs=0.1 * error)


def test_frechet_interval_reflects_the_percentiles_at_the_estimate():
    x, y, resamples = features(60, 4), others(50, 4), 40
    rng = np.random.default_rng(3)
    distances = []
    for _ in range(resamples):
        drawn = [side[rng.integers(len(side), size=len(side))] for side in (x, y)]
        distances.append(frechet_distance(*map(gaussian, drawn)))
    estimate = frechet_distance(gaussian(x), gaussian(y))
    expected = 2 * estimate - np.quantile(distances, [0.9, 0.1])
    assert frechet_interval(x, y, resamples, 0.8, seed=3) == pytest.approx(expected, rel=1e-6)


def test_frechet_interval_holds_the_true_distance_as_often_as_it_says():
    d, n, level, trials = 5, 150, 0.8, 120
    rng = np.random.default_rng(0)
    scales, truth = np.linspace(0.5, 1.5, d), d * 0.2**2
    truth += np.sum((scales - 1) ** 2)
    held = 0
    for seed in range(trials):
        real, fake = rng.standard_normal((n, d)), rng.standard_normal((n, d)) * scales + 0.2
        low, high = frechet_interval(real, fake, 60, level, seed)
        held += low <= truth <= high
    assert abs(held / trials - level) < 0.05 + 4 * np.sqrt(level * (1 - level) / trials)


# Agreement with other libraries, and mistakes


@pytest.fixture(scope="module")
def pair():
    """Features of order 1, as networks give, and float32: m = n, which the subsets of other libraries want."""
    x, y = features(400, 24), others(400, 24)
    scale = x.std()
    return (x - x.mean()) / scale, (y - x.mean()) / scale


def test_torch_fidelity_agrees(pair):
    torch = pytest.importorskip("torch", reason="the comparison needs torch-fidelity, of the extra compare")
    pytest.importorskip("torch_fidelity", reason="the comparison needs torch-fidelity, of the extra compare")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    tensors = [torch.from_numpy(features.astype(np.float64)) for features in pair]
    statistics = [metric_fid.fid_features_to_statistics(tensor) for tensor in tensors]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(*map(gaussian, pair)) == pytest.approx(theirs, rel=1e-4)
    subsets = {"kid_subsets": 1, "kid_subset_size": len(pair[0]), "verbose": False}
    theirs = metric_kid.kid_features_to_metric(*tensors, **subsets)["kernel_inception_distance_mean"]
    assert kernel_distance(*pair)[0] == pytest.approx(theirs, rel=1e-4)
    fake, real = tensors
    theirs = metric_prc.prc_features_to_metric(fake, real, prc_neighborhood=3, prc_batch_size=64, verbose=False)
    scores = neighbour_scores(pair[1], pair[0], 3)
    assert (scores.precision.mean(), scores.recall.mean()) == pytest.approx((theirs["precision"], theirs["recall"]))
    logits = tensors[0]
    theirs = metric_isc.isc_features_to_metric(logits, splits=7, shuffle=False)
    ours = inception_score(scipy.special.softmax(pair[0], axis=1), 7)
    assert ours == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-4)


def test_torchmetrics_agrees(pair):
    torch = pytest.importorskip("torch", reason="the comparison needs torchmetrics, of the extra compare")
    image = pytest.importorskip("torchmetrics.image", reason="the comparison needs torchmetrics, of the extra compare")
    identity = torch.nn.Flatten()
    identity.num_features = pair[0].shape[1]
    frechet = image.FrechetInceptionDistance(feature=identity).set_dtype(torch.float64)
    kernel = image.KernelInceptionDistance(feature=identity, subsets=1, subset_size=len(pair[0]))
    for metric, (real, features) in product((frechet, kernel), zip((True, False), pair, strict=True)):
        metric.update(torch.from_numpy(features.astype(np.float64)), real=real)
    assert frechet_distance(*map(gaussian, pair)) == pytest.approx(float(frechet.compute()), rel=1e-4)
    assert kernel_distance(*pair)[0] == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


@pytest.mark.parametrize("distance", [kernel_distance, neighbour_scores, memorisation])
def test_features_must_be_finite_matrices_of_one_width(distance):
    good = normal(20, 4)
    broken = good.copy()
    broken[3, 1] = np.nan
    for pair, words in (
        ((good, normal(20, 5)), "different dimensions"),
        ((good, broken), "NaN"),
        ((good, normal(20, 4, 1)), r"\[examples, dimensions\]"),
        ((good, good[:0]), "at least"),
    ):
        with pytest.raises(InputError, match=words):
            distance(*pair)


def test_other_mistakes_are_named():
    x = normal(20, 4)
    for call, words in (
        (lambda: gaussian(x[:1]), "at least 2"),
        (lambda: frechet_distance(gaussian(x), gaussian(x[:, :2])), "4 and 2 dimensions"),
        (lambda: kernel_distance(x[:2], x), "at least 3"),
        (lambda: neighbour_scores(x[:5], x), "k is 3 and 5, of 5 examples"),
        (lambda: neighbour_scores(x, x[:3]), "k is 3, of 3 examples"),
        (lambda: neighbour_scores(x, x, 0), "k is 0 and 5"),
        (lambda: memorisation(x[:1], x), "at least 2"),
        (lambda: inception_score(x, 1), "softmax"),
        (lambda: inception_score(np.full((4, 2), np.nan), 1), "softmax"),
        (lambda: inception_score(np.full((4, 2), 0.5), 5), "5 splits"),
        (lambda: frechet_interval(x, x[:, :2], 5, 0.9, 0), "different dimensions"),
    ):
        with pytest.raises(InputError, match=words):
            call()
