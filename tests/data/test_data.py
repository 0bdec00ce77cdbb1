"""Sources: their known densities and moments against float64, and draws as functions of their keys."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from gan_jax.data import SOURCES, Stored, independent, make_source
from gan_jax.data.stored import Split
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import union

N = 20_000
SE = 4  # standard errors that a statistic of a fixed draw may be off: one test in 16,000 would fail by chance
MIXTURES = {
    "ring8": (np.exp(2j * np.pi * np.arange(8) / 8).view(float).reshape(8, 2), 0.01),
    "grid25": (np.stack(np.meshgrid([-4, -2, 0, 2, 4], [-4, -2, 0, 2, 4]), -1).reshape(25, 2).astype(float), 0.05),
    "gaussian": (np.array([[4.0]]), 0.5),
}
STORED = [part for part in SOURCES.values() if isinstance(part, type) and issubclass(part, Stored)]
POINTS = pytest.mark.parametrize("name", [*MIXTURES, "swiss_roll"])
KNOWN_MODES = pytest.mark.parametrize("name", MIXTURES)


def source_of(name, split="train"):
    return make_source({"name": name, "split": split})


@cache
def draw(name, split="train"):
    """N examples, float32."""
    source = source_of(name, split)
    return np.asarray(independent(source, jax.random.split(jax.random.key(0), N))["image"])


def assert_mean(values, expected):
    """The mean of independent values [n] is the expected one, within statistical error."""
    assert abs(values.mean() - expected) < SE * values.std() / np.sqrt(len(values))


def in_order(centers):
    return centers[np.lexsort(np.round(centers.T, 6))]


@KNOWN_MODES
def test_modes_are_where_the_literature_has_them(name):
    centers, sigma = MIXTURES[name]
    modes = source_of(name).modes
    np.testing.assert_allclose(in_order(modes.centers), in_order(centers), atol=1e-7)
    assert modes.sigma == sigma
    assert len(np.unique(np.round(modes.centers, 6), axis=0)) == len(centers)


@KNOWN_MODES
def test_draws_share_the_modes_equally_with_normal_noise(name):
    centers, sigma = MIXTURES[name]
    x = draw(name).astype(np.float64)
    assert x.shape == (N, centers.shape[1])
    nearest = np.linalg.norm(x[:, None] - centers, axis=-1).argmin(axis=1)
    share = 1 / len(centers)
    shares = np.bincount(nearest, minlength=len(centers)) / N
    assert np.abs(shares - share).max() <= SE * np.sqrt(share * (1 - share) / N)
    noise = (x - centers[nearest]) / sigma
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    for moment, expected in ((noise.ravel(), 0), (noise.ravel() ** 2, 1), (noise.ravel() ** 4, 3)):
        assert_mean(moment, expected)
    if centers.shape[1] == 2:
        assert_mean(noise[:, 0] * noise[:, 1], 0)
        assert_mean(noise[:, 0] * nearest, 0)  # the noise does not know its mode


def test_the_swiss_roll_s_moments_are_the_integrals():
    x = draw("swiss_roll").astype(np.float64)
    low, high = 1.5 * np.pi, 4.5 * np.pi
    # t cos t and t sin t integrate to cos t + t sin t and sin t - t cos t.
    mean = np.array([high + low, 2]) / (high - low) / 7.5
    second = (high**3 - low**3) / (3 * (high - low)) / 7.5**2 + 2 * (0.25 / 7.5) ** 2
    for component in (0, 1):
        assert_mean(x[:, component], mean[component])
    assert_mean(np.sum(x**2, axis=1), second)
    t = np.linspace(low, high, 4000)
    curve = np.stack([t * np.cos(t), t * np.sin(t)], axis=1) / 7.5
    away = np.array([np.linalg.norm(curve - point, axis=1).min() for point in x[:500]])
    assert away.max() < 5 * 0.25 / 7.5
    assert_mean(away**2, (0.25 / 7.5) ** 2)  # across the curve, one direction of the noise


@POINTS
def test_std_is_that_of_all_components(name):
    source = source_of(name)
    x = draw(name).astype(np.float64)
    # The mean over components first: those of one example are not independent.
    squares = np.mean((x - x.mean()) ** 2, axis=1)
    assert_mean(squares, source.std**2)
    exact = {"ring8": 0.5 + 1e-4, "grid25": 8 + 0.0025, "gaussian": 0.25}
    if name in exact:
        assert source.std**2 == pytest.approx(exact[name])


def lattice(source):
    """Points around the data, at most a sigma apart, and the area of each: sums there are integrals to 1e-6."""
    low, high, step = {
        "ring8": (-1.1, 1.1, 0.01),
        "grid25": (-4.5, 4.5, 0.05),
        "gaussian": (0.0, 8.0, 0.05),
        "swiss_roll": (-2.2, 2.2, 0.03),
    }[source]
    ticks = np.arange(low, high, step)
    dimensions = source_of(source).shape[0]
    return np.stack(np.meshgrid(*[ticks] * dimensions), axis=-1).reshape(-1, dimensions), step**dimensions


@cache
def density_program(name):
    return jax.jit(source_of(name).density)


def density_at(name, points):
    """The density in chunks, so that no table of all points against all centers is held."""
    padded = np.pad(points, ((0, -len(points) % 5000), (0, 0))).astype(np.float32)
    chunks = [density_program(name)(chunk) for chunk in padded.reshape(-1, 5000, points.shape[1])]
    return np.concatenate(chunks)[: len(points)].astype(np.float64)


@POINTS
def test_the_density_integrates_to_one_and_is_that_of_the_draws(name):
    points, area = lattice(name)
    density = density_at(name, points)
    assert density.min() >= 0
    assert density.sum() * area == pytest.approx(1, abs=2e-4)
    minus_entropy = area * np.sum(density * np.log(np.maximum(density, 1e-30)))
    x = draw(name).astype(np.float64)
    assert_mean(np.log(density_at(name, x)), minus_entropy)
    assert_mean(x[:, 0] ** 2, area * np.sum(density * points[:, 0] ** 2))


@KNOWN_MODES
def test_the_density_is_the_mixture_s(name):
    centers, sigma = MIXTURES[name]
    x = draw(name)[:100].astype(np.float64)
    normal = stats.norm.pdf(x[:, None], loc=centers, scale=sigma).prod(axis=-1)
    np.testing.assert_allclose(density_at(name, x), normal.mean(axis=1), rtol=2e-4)
    np.testing.assert_array_equal(density_at(name, x + 100), np.zeros(100))


@pytest.mark.parametrize(("split", "first", "last"), [("train", 0, 1500), ("test", 1500, 1797), ("all", 0, 1797)])
def test_digits_are_rows_of_scikit_learn_s_set_drawn_uniformly(split, first, last):
    source = source_of("digits", split)
    assert source.shape == (8, 8, 1)
    np.testing.assert_array_equal(source.data["image"][..., 0], load_digits().images[first:last])
    np.testing.assert_array_equal(source.data["label"], load_digits().target[first:last])
    x = draw("digits", split)
    assert x.shape == (N, 8, 8, 1)
    assert x.dtype == np.float32
    assert x.min() == -1
    assert x.max() == 1
    originals = {image.tobytes(): row for row, image in enumerate(load_digits().images[first:last])}
    count = last - first
    assert len(originals) == count
    drawn = [originals[image.tobytes()] for image in (8 * (x[..., 0].astype(np.float64) + 1))]
    # The chi^2 statistic of equal shares has mean count - 1 and variance 2 (count - 1).
    statistic = np.sum((np.bincount(drawn, minlength=count) - N / count) ** 2) / (N / count)
    assert abs(statistic - (count - 1)) < SE * np.sqrt(2 * (count - 1))
    assert source.std == pytest.approx(np.std(load_digits().images[first:last] / 8 - 1))


@pytest.mark.parametrize("name", [name for name, part in SOURCES.items() if part not in STORED])
def test_a_draw_has_the_shape_of_its_source_and_is_a_function_of_its_own_key(name):
    source = source_of(name)
    keys, others = (jax.random.split(jax.random.key(seed), 12) for seed in (0, 1))
    drawn = independent(source, keys)
    assert ("label" in drawn) == bool(source.classes)
    whole = drawn["image"]
    assert (whole.dtype, whole.shape) == (jnp.float32, (12, *source.shape))
    np.testing.assert_array_equal(independent(source, keys)["image"], whole)
    mixed = independent(source, jnp.where(jnp.arange(12) < 5, keys, others))["image"]
    np.testing.assert_array_equal(mixed[:5], whole[:5])  # not of the other keys
    assert np.all(np.any(np.asarray(mixed != whole).reshape(12, -1)[5:], axis=1))
    np.testing.assert_allclose(independent(source, keys[::-1])["image"], whole[::-1], rtol=1e-6, atol=1e-6)


def test_a_name_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(InputError, match=r"no data named 'mnist'; valid: digits, .*tfds:NAME"):
        source_of("mnist")


def test_sets_that_disagree_on_a_default_are_a_programming_error():
    def other(split: Split = "test"):
        raise AssertionError

    with pytest.raises(TypeError, match=r"other has another default, range or mark of split than the parts before it"):
        union(SOURCES | {"other": other})
