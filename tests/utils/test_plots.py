"""Grids pixel by pixel, pictures of the plane and the line, PNG files, and files written whole."""

import numpy as np
import pytest
from PIL import Image

from gan_jax.utils import plots
from gan_jax.utils.files import replacing, write_atomically


@pytest.mark.parametrize(("size", "factor"), [(8, 6), (28, 1), (64, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_of_a_grid_stands_where_it_should(size, factor, channels):
    # Ramps, different in each tile, direction and channel, which any interpolation leaves as they are.
    k, i, j, c = np.ogrid[:5, :size, :size, :channels]
    levels = 20 * k + (80 * i + 40 * j) / size + 10 * c
    picture = plots.grid((levels / 127.5 - 1).astype(np.float32), columns=3)
    step = size * factor + plots.PAD
    assert picture.shape == (2 * step + plots.PAD, 3 * step + plots.PAD, channels)
    assert picture.dtype == np.uint8
    rest = picture.astype(int)
    for tile, expected in enumerate(levels):
        top, left = plots.PAD + tile // 3 * step, plots.PAD + tile % 3 * step
        pixels = rest[top : top + size * factor, left : left + size * factor]
        blocks = pixels.reshape(size, factor, size, factor, channels).mean(axis=(1, 3))
        np.testing.assert_allclose(blocks[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1)  # rounding
        np.testing.assert_allclose(blocks, expected, atol=1 if factor == 1 else 4)  # and the edge of the ramp
        pixels[:] = 0
    assert not rest.any()  # the frame and the missing tile are black


def test_tiles_need_not_be_square():
    picture = plots.grid(np.ones((2, 8, 4, 1), np.float32), columns=2)
    assert picture.shape == (48 + 2 * plots.PAD, 2 * 24 + 3 * plots.PAD, 1)
    assert np.sum(picture == 255) == 2 * 48 * 24


@pytest.mark.parametrize(
    ("value", "level"),
    [(-1, 0), (1, 255), (-7, 0), (7, 255), (1.003, 255), (0.001, 128), (-0.001, 127), (-1 + 0.9 / 127.5, 1)],
)
def test_levels_are_rounded_and_clipped(value, level):
    level_of = plots.to_uint8(np.full((2, 2), value, np.float32))
    assert level_of.dtype == np.uint8
    np.testing.assert_array_equal(level_of, np.full((2, 2), level))


def test_all_levels_come_back():
    levels = np.arange(256)
    np.testing.assert_array_equal(plots.to_uint8((levels / 127.5 - 1).astype(np.float32)), levels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_holds_the_picture(tmp_path, channels):
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, channels), dtype=np.uint8)
    path = tmp_path / "made" / "picture.png"
    plots.write_png(path, picture)
    with Image.open(path) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image).reshape(picture.shape), picture)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"a longer first content")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"new con", None])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


CORNERS = np.array([[1, 2], [1, 4], [3, 2], [3, 4]], np.float32)
DARKEST_BLUE = (8, 48, 107)  # of the colour map of densities


def test_the_frame_is_a_square_around_the_real_examples():
    points = plots.plane_points(CORNERS)
    assert points.shape == (plots.PIXELS**2, 2)
    np.testing.assert_allclose(points.min(axis=0), [2 - 1.15, 3 - 1.15], atol=1e-6)
    np.testing.assert_allclose(points.max(axis=0), [2 + 1.15, 3 + 1.15], atol=1e-6)


def test_the_plane_shows_the_density_upright():
    points = plots.plane_points(CORNERS)
    density = np.all(points > CORNERS.mean(axis=0), axis=1).astype(float)  # above and to the right of the middle
    picture = plots.plane(CORNERS[:1], CORNERS, density, np.zeros(len(points)), "title")
    assert picture.dtype == np.uint8
    height, width, channels = picture.shape
    assert channels == 3
    rows, columns = np.nonzero(np.all(picture == DARKEST_BLUE, axis=-1))
    lightest = np.array([247, 251, 255])
    light_rows, light_columns = np.nonzero(np.all(picture == lightest, axis=-1))
    assert len(rows) > 0.01 * height * width
    assert rows.mean() < light_rows.mean()
    assert columns.mean() > light_columns.mean()
    assert columns.max() < width / 2


def test_pictures_show_the_samples_and_the_logits():
    real = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    points = plots.line_points(real)
    assert points.min() < -1
    assert points.max() > 1
    density = np.exp(-(points[:, 0] ** 2))
    pictures = [
        plots.line(samples, real, density, logits, "title")
        for samples, logits in ((real, 0 * density), (real / 2, 0 * density), (real, density))
    ]
    half = pictures[0].shape[1] // 2
    left, right = ([pixels[:, part] for pixels in pictures] for part in (slice(None, half), slice(half, None)))
    assert np.any(left[1] != left[0])
    assert np.any(right[2] != right[0])
