"""What images may be shown as: each transform against its closed form, how often it is applied, and what leaks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, optimize, special, stats

from gan_jax.step import augment, transforms

COUNT = 600
HEIGHT, WIDTH = 16, 8


@pytest.fixture(scope="module")
def image():
    """[16, 8, 3], no two of whose values are alike and none 0."""
    return np.random.default_rng(0).uniform(0.1, 1, (HEIGHT, WIDTH, 3)).astype(np.float32)


def drawn(name, image, count=COUNT):
    """The image transformed by each of so many keys, and the keys."""
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.jit(jax.vmap(partial(transforms.TRANSFORMS[name], image=jnp.asarray(image))))(keys)), keys


def assert_uniform(values, low, high):
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-4


def test_brightness_adds_one_number_to_all_values(image):
    shifts = (drawn("brightness", image)[0] - image).reshape(COUNT, -1)
    assert_allclose(np.ptp(shifts, axis=1), 0, atol=1e-6)
    assert_uniform(shifts[:, 0], -0.5, 0.5)


def test_saturation_keeps_the_grey_of_each_pixel(image):
    seen, _ = drawn("saturation", image)
    grey = image.mean(axis=-1, keepdims=True)
    assert_allclose(seen.mean(axis=-1, keepdims=True), np.broadcast_to(grey, (COUNT, HEIGHT, WIDTH, 1)), atol=1e-6)
    factors = ((seen - grey) * (image - grey)).sum(axis=(1, 2, 3)) / np.square(image - grey).sum()
    assert_allclose(seen - grey, factors[:, None, None, None] * (image - grey), atol=1e-6)
    assert_uniform(factors, 0, 2)
    assert_array_equal(*np.broadcast_arrays(drawn("saturation", image[..., :1], 5)[0], image[..., :1]))


def test_contrast_keeps_the_mean_of_the_image(image):
    seen, _ = drawn("contrast", image)
    assert_allclose(seen.mean(axis=(1, 2, 3)), image.mean(), rtol=1e-5)
    factors = seen.std(axis=(1, 2, 3)) / image.std()
    assert_allclose(seen - image.mean(), factors[:, None, None, None] * (image - image.mean()), atol=1e-5)
    assert_uniform(factors, 0.5, 1.5)


def shifted(image, down, right):
    """The image so many pixels further down and to the right, with 0 where nothing was."""
    padded = np.pad(image, ((2, 2), (1, 1), (0, 0)))
    return padded[2 - down : 2 - down + HEIGHT, 1 - right : 1 - right + WIDTH]


def test_translation_moves_by_whole_pixels_and_fills_with_zeros(image):
    seen, _ = drawn("translation", image)
    ways = {(down, right): shifted(image, down, right) for down in range(-2, 3) for right in range(-1, 2)}
    met = [[np.array_equal(each, moved) for moved in ways.values()] for each in seen]
    assert np.all(np.sum(met, axis=1) == 1)  # an eighth of 16 rows and of 8 columns, and to the bit
    assert stats.chisquare(np.sum(met, axis=0)).pvalue > 1e-4


def test_cutout_zeroes_a_window_of_half_the_side(image):
    seen, _ = drawn("cutout", image)
    gone = seen[..., 0] == 0
    assert_array_equal(seen, np.where(gone[..., None], 0, image))
    rows, columns = gone.any(axis=2), gone.any(axis=1)
    assert_array_equal(gone, rows[:, :, None] & columns[:, None, :])
    for found, size in ((rows, HEIGHT), (columns, WIDTH)):
        # The centre is at each of size + 1 places; at the edges, half of the window is outside.
        windows = {}
        for centre in range(size + 1):
            window = np.abs(np.arange(size) + 0.5 - centre) < size / 4
            windows[window.tobytes()] = windows.get(window.tobytes(), 0) + 1 / (size + 1)
        counts = [sum(each.tobytes() == window for each in found) for window in windows]
        assert sum(counts) == COUNT
        assert stats.chisquare(counts, COUNT * np.array(list(windows.values()))).pvalue > 1e-4


def test_flips_and_rotations_are_those_of_the_image(image):
    square = image[:WIDTH]
    turned, _ = drawn("rotation", square)
    met = [[np.array_equal(each, np.rot90(square, k)) for k in range(4)] for each in turned]
    assert np.all(np.sum(met, axis=1) == 1)
    assert stats.chisquare(np.sum(met, axis=0)).pvalue > 1e-4
    mirrored, _ = drawn("flip", image)
    met = [[np.array_equal(each, image), np.array_equal(each, image[:, ::-1])] for each in mirrored]
    assert np.all(np.sum(met, axis=1) == 1)
    assert stats.chisquare(np.sum(met, axis=0)).pvalue > 1e-4


def test_scale_magnifies_about_the_centre_with_linear_interpolation(image):
    seen, keys = drawn("scale", image)
    factors = 2 ** (0.2 * np.asarray(jax.vmap(jax.random.normal)(keys)))
    assert factors.min() < 0.8 < 1.25 < factors.max()
    centre = np.array([(HEIGHT - 1) / 2, (WIDTH - 1) / 2, 0])
    for each, factor in zip(seen[:5], factors[:5], strict=True):
        inverse = np.array([1 / factor, 1 / factor, 1])
        options = {"order": 1, "mode": "grid-constant", "offset": centre * (1 - inverse)}
        assert_allclose(each, ndimage.affine_transform(image, inverse, **options), atol=1e-5)


@pytest.mark.parametrize("name", transforms.TRANSFORMS)
def test_each_transform_is_affine_in_the_image_and_its_gradient_that_map_s(name, image):
    square, others = jnp.asarray(image[:WIDTH]), np.random.default_rng(1).normal(size=(2, WIDTH, WIDTH, 3))
    x, u = jnp.asarray(others, jnp.float32)
    transform = partial(transforms.TRANSFORMS[name], jax.random.key(5))
    seen, pull = jax.vjp(transform, square)
    assert_allclose(jnp.vdot(pull(u)[0], x), jnp.vdot(u, transform(square + x) - seen), rtol=1e-4, atol=1e-4)


# --- with a probability -----------------------------------------------------------------------------------------

ADDED = (lambda key, image: image + 1, lambda key, image: image + 10)


def outcomes(p, count=4000):
    """What becomes of as many zeros under both of ADDED."""
    keys = jax.random.split(jax.random.key(2), count)
    x = jnp.zeros((count, 1, 1, 1))
    seen = jax.jit(partial(augment.transformed, policy=ADDED))(keys, x, probability=p)
    return np.unique(np.asarray(seen).ravel(), return_counts=True)


def test_each_transform_is_applied_to_each_image_by_itself_with_its_probability():
    assert_array_equal(outcomes(0.0)[0], [0])
    assert_array_equal(outcomes(1.0)[0], [11])
    for p in (0.5, 0.2):
        values, counts = outcomes(p)
        assert_array_equal(values, [0, 1, 10, 11])
        expected = 4000 * np.array([(1 - p) ** 2, p * (1 - p), p * (1 - p), p**2])
        assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_at_probability_zero_images_keep_their_bits_and_an_image_depends_on_its_own_key_alone(image):
    x = jnp.asarray(np.stack([image[:WIDTH] * each for each in (1, -0.5, 0.3, 2)]))
    keys = jax.random.split(jax.random.key(3), 4)
    policy = transforms.of_policy("color,translation,cutout,flip,rotation,scale")
    seen = jax.jit(partial(augment.transformed, policy=policy))
    assert_array_equal(seen(keys, x, probability=0.0), x)
    whole = seen(keys, x, probability=0.8)
    assert not np.any(np.all(np.isclose(whole, x), axis=(1, 2, 3)))
    assert_allclose(seen(keys[::-1], x[::-1], probability=0.8), whole[::-1], rtol=1e-5, atol=1e-6)


# --- leaks ------------------------------------------------------------------------------------------------------


def operator(p, count=20_000):
    """What rotation with probability p makes of the four orientations of an image: [4, 4], column to row."""
    image = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    keys = jax.random.split(jax.random.key(4), count)
    seen = jax.jit(partial(augment.transformed, policy=transforms.of_policy("rotation")))
    columns = []
    for k in range(4):
        turned = np.asarray(seen(keys, jnp.asarray(np.stack([np.rot90(image, k)] * count)), probability=p))
        columns.append([np.mean(np.all(turned == np.rot90(image, i), axis=(1, 2, 3))) for i in range(4)])
    return np.array(columns).T


def jensen_shannon(p, q):
    mean = (p + q) / 2
    return sum(np.sum(each * np.log(each / mean)) / 2 for each in (p, q))


def best_answer(made, seen):
    """The distribution of orientations whose rotations are nearest to `seen`, and how near."""
    found = optimize.minimize(lambda logits: jensen_shannon(made @ special.softmax(logits), seen), np.zeros(4))
    return special.softmax(found.x), found.fun


@pytest.mark.parametrize("p", [0.5, 0.8])
def test_below_probability_one_the_best_generator_makes_the_data(p):
    """Section 2.2 of arXiv:2006.06676: the operator (1 - p) I + p / 4 can be inverted, and nothing leaks."""
    data, made = np.array([0.7, 0.2, 0.06, 0.04]), operator(p)
    assert_allclose(made, (1 - p) * np.eye(4) + p / 4, atol=0.02)
    assert_allclose(np.linalg.svd(made)[1][1:], 1 - p, atol=0.03)
    answer, distance = best_answer((1 - p) * np.eye(4) + p / 4, made @ data)
    assert_allclose(answer, data, atol=0.02 / (1 - p))
    assert distance < 1e-4 < jensen_shannon(made @ np.full(4, 1 / 4), made @ data)


def test_at_probability_one_rotations_leak():
    """All orientations look alike then: the uniform mixture is as good an answer as the data."""
    data, made = np.array([0.7, 0.2, 0.06, 0.04]), operator(1.0)
    assert_allclose(made, 1 / 4, atol=0.02)
    assert jensen_shannon(made @ np.full(4, 1 / 4), made @ data) < 1e-4


# --- policies ---------------------------------------------------------------------------------------------------


def test_a_policy_names_transforms_in_their_order():
    assert transforms.names("none") == ()
    assert transforms.names("color, cutout") == ("brightness", "saturation", "contrast", "cutout")
    assert transforms.of_policy("flip,scale") == (transforms.flip, transforms.scale)
    assert transforms.is_policy(transforms.DIFF_AUGMENT)
    for wrong in ("", "colour", "flip,flip", "color,contrast", "flip,", "none,flip"):
        assert not transforms.is_policy(wrong)
