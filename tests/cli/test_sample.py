"""`--mode=sample`: what it writes is what the run makes of the latents and labels that were asked for."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import gan_jax
from gan_jax import recipe
from gan_jax.cli.sample import Wish, interpolate, sample
from gan_jax.utils.plots import PAD

FRAMES = 5


@pytest.fixture(scope="module")
def runs(shrunk, tmp_path_factory):
    """Runs on images, with classes and without, and on points: (the folder, what was loaded from it)."""

    def finished(*args):
        workdir = tmp_path_factory.mktemp("run")
        assert gan_jax.train(recipe.build(shrunk(*args)), workdir)
        return workdir, gan_jax.load(workdir)

    classes = finished("digits", None, {"conditional": True})
    return {"digits": finished("digits"), "classes": classes, "ring8": finished("mixture", "ring8")}


@pytest.fixture
def written(runs, tmp_path):
    """`written(run, flags)`: the paths of the files written, by name, and the folder."""

    def write(name, **wish):
        return [path.relative_to(tmp_path).as_posix() for path in sample(runs[name][1], tmp_path, Wish(**wish))]

    return write


@pytest.mark.parametrize(("name", "shape"), [("digits", (8, 8, 1)), ("ring8", (2,))])
def test_arrays(name, shape, runs, written, tmp_path):
    assert written(name, num_samples=300, format="npz") == ["samples.npz"]
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays.files == ["samples"]
        samples = arrays["samples"]
    assert (samples.shape, samples.dtype) == ((300, *shape), np.float32)
    assert_allclose(samples, runs[name][1].sample(300), atol=1e-6)


def test_arrays_of_several_seeds_labels_and_8_bits(runs, written, tmp_path):
    run = runs["classes"][1]
    assert written("classes", num_samples=3, seeds=(1, 2), label="7,2", dtype="uint8", format="npz") == ["samples.npz"]
    with np.load(tmp_path / "samples.npz") as arrays:
        assert_array_equal(arrays["labels"], [7, 2, 7, 7, 2, 7])
        both = [run.to_uint8(run.sample(3, seed, ["7", "2"])) for seed in (1, 2)]
        assert np.abs(arrays["samples"].astype(int) - np.concatenate(both)).max() <= 1


@pytest.mark.parametrize("name", ["digits", "classes", "ring8"])
def test_the_pictures_of_training_can_be_made_again(name, runs, written, tmp_path):
    last = (runs[name][0] / "samples" / "00000004.png").read_bytes()
    if name == "ring8":  # its backdrop is drawn from the data
        runs = {name: (None, gan_jax.runs.trained.restored(*runs[name][:1], runs[name][1].config, with_data=True))}
        list(sample(runs[name][1], tmp_path, Wish()))
    else:
        assert written(name) == ["samples.png"]
    assert (tmp_path / "samples.png").read_bytes() == last
    if name != "ring8":
        assert written(name, latents="pictures", format="grid", truncation=1.0) == ["samples.png"]
        assert (tmp_path / "samples.png").read_bytes() == last


def test_a_file_an_image(runs, written, tmp_path):
    assert written("classes", num_samples=4, seeds=(5,), label="3,8", format="png") == ["."]
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert names == ["3/5-000000.png", "3/5-000002.png", "8/5-000001.png", "8/5-000003.png"]
    run = runs["classes"][1]
    image = run.to_uint8(run.sample(4, 5, ["3", "8"]))[1, :, :, 0]
    assert np.abs(np.asarray(Image.open(tmp_path / names[2])).astype(int) - image).max() <= 1


def test_latents_of_ones_own(runs, written, tmp_path):
    run = runs["digits"][1]
    np.save(tmp_path / "mine.npy", run.latents(7, 6))
    assert written("digits", latents=str(tmp_path / "mine.npy"), truncation=0.5, format="npz") == ["samples.npz"]
    assert_allclose(np.load(tmp_path / "samples.npz")["samples"], run.sample(6, 7, truncation=0.5), atol=1e-6)


def test_interpolation_between_seeds(runs, written, tmp_path):
    assert written("digits", seeds=(1, 2, 3), interpolate=FRAMES) == ["interpolation.png"]
    strip = np.asarray(Image.open(tmp_path / "interpolation.png"))
    tile = 48 + PAD
    assert strip.shape == (2 * tile + PAD, FRAMES * tile + PAD)
    assert written("digits", seeds=(1, 2, 3), interpolate=FRAMES, format="png") == ["interpolation"]
    frames = [np.asarray(Image.open(path)).astype(int) for path in sorted((tmp_path / "interpolation").iterdir())]
    assert len(frames) == 2 * FRAMES - 1
    run = runs["digits"][1]
    for frame, seed in zip(frames[:: FRAMES - 1], (1, 2, 3), strict=True):
        assert np.abs(frame - run.to_uint8(run.sample(1, seed))[0, :, :, 0]).max() <= 1
    assert written("digits", interpolate=2, format="gif") == ["interpolation.gif"]
    assert Image.open(tmp_path / "interpolation.gif").n_frames == 9  # between nine latents of the run's own


@pytest.mark.parametrize(
    ("name", "wish", "message"),
    [
        ("ring8", {"interpolate": 5}, r"--interpolate is for images, and ring8 is points"),
        ("ring8", {"format": "png"}, r"--format is for images, and ring8 is points"),
        ("digits", {"format": "gif"}, r"--format=gif is for --interpolate"),
        ("digits", {"interpolate": 1}, r"--interpolate is 1; .* at least 2 images"),
        ("digits", {"interpolate": 4, "seeds": (1,), "num_samples": 1}, r"needs at least 2 latents"),
        ("digits", {"dtype": "uint8"}, r"--dtype is for samples\.npz; add --num_samples"),
        ("digits", {"label": "3"}, r"not conditional; leave the label out"),
        ("classes", {"label": "3,99"}, r"no label '99'; it must be a number from 0 to 9"),
        ("digits", {"latents": "nowhere.npy"}, r"cannot read --latents=nowhere\.npy: No such file"),
        ("digits", {"latents": "pictures", "seeds": (1,)}, r"--seed and --latents both say"),
        ("digits", {"truncation": float("nan")}, r"truncation is nan"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(name, wish, message, written, tmp_path):
    with pytest.raises(ValueError, match=message):
        written(name, **wish)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"text", np.zeros((3, 5)), np.full((3, 4), np.inf), np.array([{}])])
def test_latents_that_are_none(content, written, tmp_path):
    path = tmp_path / "z.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot read --latents|shape \[3, 5\]; they must be \[n, 4\]|not all finite"):
        written("digits", latents=str(path))


# --- The way between latents


@pytest.mark.parametrize("spherical", [True, False])
def test_interpolation_leads_from_latent_to_latent(spherical):
    ends = np.random.default_rng(0).uniform(-1, 1, (4, 5)).astype(np.float32)
    path = interpolate(ends, spherical, columns=7)
    assert_allclose(path[:, 0], ends[:-1], rtol=1e-5, atol=1e-6)
    assert_allclose(path[:, -1], ends[1:], rtol=1e-5, atol=1e-6)


def test_spherical_interpolation_keeps_the_norm():
    halfway = interpolate(np.array([[1.0, 0.0], [0.0, 1.0]]), True, columns=3)[0, 1]
    assert_allclose(halfway, [0.5**0.5, 0.5**0.5], rtol=1e-5)
    ends = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    assert_allclose(np.linalg.norm(interpolate(3 * ends, True), axis=-1), 3, rtol=1e-4)
    # Between latents of two norms that stand at no more than a right angle, norms go from one to the other.
    norms = np.linalg.norm(interpolate(np.array([[1.0, 0.0, 0.0], [1.0, 2.0, 2.0]]), True)[0], axis=-1)
    assert np.all(np.diff(norms) > 0)
    assert_allclose(norms[[0, -1]], [1, 3], rtol=1e-5)
    opposite = interpolate(np.array([[1.0, 0.0], [-2.0, 0.01]]), True)
    assert np.linalg.norm(opposite, axis=-1).max() < 3


def test_linear_interpolation_is_straight():
    ends = np.random.default_rng(0).uniform(-1, 1, (3, 5)).astype(np.float32)
    path = interpolate(ends, False, columns=6)
    assert_allclose(np.diff(path, axis=1), np.repeat((ends[1:] - ends[:-1])[:, None] / 5, 5, axis=1), atol=1e-6)


def test_class_folders_have_names_that_a_path_can_hold(runs, tmp_path):
    run = runs["classes"][1]
    names = tuple(f"{name}/../{name} ä" for name in "0123456789")
    run = type(run)(run.setup._replace(source=run.setup.source._replace(classes=names)), run.state)
    list(sample(run, tmp_path, Wish(num_samples=2, format="png")))
    assert all(re.fullmatch(r"\d_\.\._\d_\w?", path.name) for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2
