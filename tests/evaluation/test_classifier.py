"""The classifiers: what the shipped weights reach, the network in NumPy, training, its command, and mistakes."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from gan_jax.data.digits import digits
from gan_jax.evaluation.__main__ import main
from gan_jax.evaluation.features import classifier, classifier_training, weight_files
from gan_jax.evaluation.features.classifier import CLASSIFIERS, WEIGHTS, forward, load, network
from gan_jax.evaluation.features.classifier_training import TRAININGS, Examples, accuracy, distort, read_examples, train
from gan_jax.utils import runtime
from gan_jax.utils.errors import InputError

REQUIRED = {"digits": 0.95, "mnist": 0.992, "cifar10": 0.84}  # pixels of digits in a support vector machine: 0.953
EVERY = pytest.mark.parametrize("name", CLASSIFIERS)


@cache
def digit_examples(split="train"):
    return read_examples(TRAININGS["digits"], split, "")


def images_of(shape, n, seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (n, *shape))
    return (levels / 127.5 - 1).astype(np.float32)


def contents(path):
    """The arrays of a file of weights, and what it says about them."""
    with np.load(path) as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("about")))


@EVERY
@pytest.mark.usefixtures("optimized")
def test_shipped_weights_reach_what_their_file_says(name, request):
    folder = request.getfixturevalue("tfds_data") if name != "digits" else ""
    test = read_examples(TRAININGS[name], "test", folder)
    measured, about = accuracy(load(name)[0], test), contents(WEIGHTS / f"{name}.npz")[1]
    assert measured >= REQUIRED[name]
    assert about["test_examples"] == len(test.images)
    # Another machine rounds differently, which may decide on a draw between two classes.
    assert abs(measured - about["test_accuracy"]) * len(test.images) <= 1


@EVERY
def test_shipped_files_are_small_and_say_how_they_were_made(name):
    path = WEIGHTS / f"{name}.npz"
    assert path.stat().st_size < 1_000_000
    arrays, about = contents(path)
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float16)}
    assert about["command"].startswith(f"python -m gan_jax.evaluation train {name} ")
    assert about["training"] == TRAININGS[name]._asdict()
    assert set(about["versions"]) == {"jax", "jaxlib", "flax", "optax", "numpy", "python"}
    params, digest = load(name)
    assert digest == about["sha256"] == weight_files.digest(weight_files.pack(params))
    assert len(digest) == 16


def conv64(x, kernel, bias):
    """The convolution with zeros around the image, one image and channel at a time."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    maps = [sum(correlate(i[:, :, c], k[:, :, c], "valid") for c in range(x.shape[3])) for i in padded for k in kernel]
    return np.array(maps).reshape(len(x), len(kernel), *x.shape[1:3]).transpose(0, 2, 3, 1) + bias


def plain64(params, x):
    """`Plain` in float64 and NumPy."""
    layers = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])
    for i in range(3):
        x = conv64(x, np.moveaxis(layers[f"Conv_{i}"]["kernel"], 3, 0), layers[f"Conv_{i}"]["bias"])
        if i < 2:
            x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        x = np.maximum(x, 0)
    features = np.maximum(x.reshape(len(x), -1) @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"], 0)
    return features, features @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_forward_is_the_network_in_numpy(name):
    params, images = load(name)[0], images_of(CLASSIFIERS[name].shape, 3)
    features, logits = jax.jit(forward)(params, images)
    expected = plain64(params, images.astype(np.float64))
    assert features.dtype == logits.dtype == jnp.float32
    assert 64 <= features.shape[1] <= 128
    np.testing.assert_allclose(features, expected[0], atol=1e-4 * expected[0].max())
    np.testing.assert_allclose(logits, expected[1], atol=1e-4 * np.abs(expected[1]).max())


@EVERY
def test_an_example_is_scored_alike_in_any_batch(name):
    shape = CLASSIFIERS[name].shape
    params, images = load(name)[0], images_of(shape, 9)
    both = jax.jit(lambda x: jnp.concatenate(forward(params, x), axis=1))
    together = np.asarray(both(images))
    scale = np.abs(together).max()
    alone = np.concatenate([both(images[i : i + 1]) for i in range(9)])  # a program of its own
    np.testing.assert_allclose(alone, together, atol=1e-5 * scale)
    others = np.concatenate([images[:2], -np.ones((7, *shape), np.float32)])
    np.testing.assert_allclose(both(others)[:2], together[:2], atol=1e-5 * scale)
    assert np.abs(together[0] - together[1]).max() > 1e-2 * scale  # they do depend on the example


def test_the_digits_are_rounded_to_8_bits():
    levels = np.asarray(digits("train", False).data["image"])
    np.testing.assert_array_equal(digit_examples().images, np.rint(levels / 16 * 255))
    assert [len(digit_examples(split).images) for split in ("train", "test")] == [1500, 297]


def test_training_learns_and_gives_the_same_bits_again():
    short = TRAININGS["digits"]._replace(epochs=5)
    some = Examples(*(x[:500] for x in digit_examples()))
    first, again, other = (train(short, some, seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert weight_files.digest(weight_files.pack(first)) != weight_files.digest(weight_files.pack(other))
    assert accuracy(first, digit_examples("test")) > 0.5  # 0.1 by chance


def test_training_of_the_residual_network_moves_its_statistics():
    rng = np.random.default_rng(0)
    random = Examples(rng.integers(0, 256, (8, 32, 32, 3), np.uint8), rng.integers(0, 10, 8, np.int32))
    variables = train(TRAININGS["cifar10"]._replace(epochs=2, batch_size=4), random, 0)
    before = network((32, 32, 3)).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True)
    assert jax.tree.structure(variables) == jax.tree.structure(before)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
    moved = jax.tree.map(lambda x, y: bool(np.abs(x - y).max() > 0), variables["batch_stats"], before["batch_stats"])
    assert all(jax.tree.leaves(moved))


def distorted(image, n, **changes):
    still = TRAININGS["cifar10"]._replace(shift=0, degrees=0.0, zoom=0.0, flip=False)._replace(**changes)
    keys = jax.random.split(jax.random.key(0), n)
    return np.asarray(jax.jit(jax.vmap(partial(distort, still), in_axes=(0, None)))(keys, image))


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 9, 3)])
def test_distortions_that_move_whole_pixels_are_exact(shape):
    image = images_of(shape, 1)[0]
    np.testing.assert_array_equal(distorted(image, 1)[0], image)
    mirrored = distorted(image, 20, flip=True)
    counts = [sum(np.array_equal(x, y) for x in mirrored) for y in (image, image[:, ::-1])]
    assert sum(counts) == 20
    assert min(counts) > 2  # less in one of 5,000
    black = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-1)
    places = [black[i : i + shape[0], j : j + shape[1]] for i in range(3) for j in range(3)]
    shifts = [[np.array_equal(x, y) for y in places].index(True) for x in distorted(image, 200, shift=1)]
    assert set(shifts) == set(range(9))


def test_turning_and_zooming_move_a_point_no_further_than_they_may():
    image = -np.ones((29, 29, 1), np.float32)
    image[14, 24] = 1  # ten pixels to the right of the centre
    y, x = np.mgrid[:29, :29] - 14

    def centroids(**changes):
        mass = distorted(image, 200, **changes)[..., 0] + 1
        return [(mass * axis).sum((1, 2)) / mass.sum((1, 2)) for axis in (y, x)]

    down, right = centroids(degrees=30.0)
    np.testing.assert_allclose(np.hypot(down, right), 10, atol=0.4)
    angles = np.degrees(np.arctan2(down, right))
    assert np.abs(angles).max() < 31
    assert angles.min() < -25
    assert angles.max() > 25
    down, right = centroids(zoom=0.2)
    np.testing.assert_allclose(down, 0, atol=1e-4)
    assert 8.0 < right.min() < 8.8
    assert 11.8 < right.max() < 12.9


@pytest.fixture
def shrunk_training(monkeypatch):
    monkeypatch.setitem(TRAININGS, "digits", TRAININGS["digits"]._replace(epochs=1))
    monkeypatch.setattr(runtime, "fast", lambda: "plain")  # it is for a process of its own


@pytest.mark.usefixtures("shrunk_training")
def test_the_command_writes_the_same_file_again(tmp_path, capsys):
    files = [tmp_path / "new" / "first.npz", tmp_path / "second.npz"]
    for file in files:
        assert main(["train", "digits", f"--out={file}", "--seed=1"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    arrays, about = contents(files[0])
    assert about["seed"] == 1
    assert about["sha256"] == weight_files.digest(arrays)
    assert about["training"]["epochs"] == 1
    assert about["test_accuracy"] == accuracy(weight_files.unpack(arrays), digit_examples("test"))
    assert f"test accuracy {about['test_accuracy']:.2%} of 297" in capsys.readouterr().out


@pytest.mark.usefixtures("shrunk_training")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "svhn", "--out=a.npz"], "digits"),
        (["train", "digits"], "--out"),
        (["train", "digits", "--out=weights"], "FILE.npz"),
        (["train", "digits", "--out=a.npz", "--seed=-1"], "--seed"),
        (["train", "digits", "--out=a.npz", "--dir=somewhere"], "--dir is 'somewhere'"),
        (["train", "mnist", "--out=a.npz", "--dir=no/such/folder"], "no/such/folder"),
        (["learn"], "train"),
        ([], "--help"),
    ],
)
def test_mistakes_at_the_command_line_are_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: ")
    assert words in said[-1]
    assert len([line for line in said if not line.startswith("runtime: ")]) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_known_before_one_trains(capsys, monkeypatch):
    monkeypatch.setattr(classifier_training, "train", None)
    assert main(["train", "digits", "--out=/proc/none/a.npz"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: /proc/none: ")


def test_weights_of_ones_own(tmp_path):
    """They take the place of the package's, if they are of the same network."""
    mine = tmp_path / "mine.npz"
    mine.write_bytes((WEIGHTS / "digits.npz").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, load("digits", mine), load("digits"))
    for name in ("mnist", "cifar10"):
        with pytest.raises(InputError, match=rf"not those of {name}: .* is .* should be .* train {name} ") as caught:
            load(name, mine)
        assert "\n" not in str(caught.value)


def test_other_weights_of_the_same_network_have_another_hash(tmp_path):
    arrays, about = contents(WEIGHTS / "digits.npz")
    arrays["params/Dense_1/bias"] += np.float16(0.5)
    np.savez(tmp_path / "mine.npz", **arrays, about=np.array(json.dumps(about)))
    assert load("digits", tmp_path / "mine.npz")[1] != load("digits")[1]


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "other bytes": lambda path: path.write_bytes(path.read_bytes().replace(path.read_bytes()[5000:5004], b"\0\0\0\0")),
    "another array": lambda path: np.savez(path, a=np.zeros(3)),
    "no arrays": lambda path: np.savez(path, about=np.array("{}")),
    "one array": lambda path: np.save(path.open("wb"), np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_one_line(damage, tmp_path, monkeypatch):
    (tmp_path / "digits.npz").write_bytes((WEIGHTS / "digits.npz").read_bytes())
    monkeypatch.setattr(classifier, "WEIGHTS", tmp_path)
    load("digits")
    DAMAGES[damage](tmp_path / "digits.npz")
    with pytest.raises(InputError, match=r"weights in .*digits\.npz") as caught:
        load("digits")
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).endswith("install gan-jax again")


def test_one_weight_more_or_less_is_another_hash():
    a, b = np.arange(6, dtype=np.float16), np.ones(2, np.float16)
    known = weight_files.digest({"a": a, "b": b})
    assert weight_files.digest({"b": b, "a": a}) == known
    others = [{"a": a}, {"b": a, "a": b}, {"a": a.reshape(2, 3), "b": b}, {"a": a + 1, "b": b}]
    assert known not in map(weight_files.digest, others)


def test_packing_rounds_to_float16_once():
    variables = {"params": {"layer": {"kernel": np.float32([[1 / 3, 2]])}}, "batch_stats": {"mean": np.float32([0.1])}}
    packed = weight_files.pack(variables)
    assert sorted(packed) == ["batch_stats/mean", "params/layer/kernel"]
    back = weight_files.unpack(packed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2**-11), back, variables)
    assert weight_files.digest(weight_files.pack(back)) == weight_files.digest(packed)
