"""`python -m gan_jax.data`: what `show` prints and draws is what the set holds; a mistake is one line and status 2."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gan_jax.data import SOURCES, inspect, make_source
from gan_jax.data.__main__ import main
from gan_jax.data.readers import tfds
from gan_jax.utils.errors import InputError
from gan_jax.utils.plots import PAD

ROOT = Path(__file__).resolve().parents[2]
SIDE = 48  # pixels: the smallest images that the picture shows as they are
MNIST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the digits in its 10,000 to test on


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """`run(*argv)`: (exit status, stdout, stderr) of the command, started in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*argv):
        status = main([str(argument) for argument in argv])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def shown(run):
    """`shown(*argv)`: what `show` printed, {first word: the rest}, and under None the lines that are indented."""

    def shown(*argv):
        status, out, err = run("show", *argv)
        assert (status, err) == (0, "")
        lines = {None: [line.split() for line in out.splitlines() if line.startswith("  ")]}
        for line in out.splitlines():
            if not line.startswith("  "):
                name, text = line.split(maxsplit=1)
                lines[name] = f"{lines[name]}; {text}" if name in lines else text
        return lines

    return shown


def image(seed, shape=(SIDE, SIDE, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder, name, pixels):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(folder / name)


@pytest.fixture
def pets(tmp_path):
    """12 images of cats, 3 of dogs."""
    for seed in range(15):
        name = f"cat/{seed:02d}.png" if seed < 12 else f"dog/{seed:02d}.png"
        write(tmp_path / "pets", name, image(seed))
    return tmp_path / "pets"


def tile(picture, row, column, side=SIDE):
    pixels = np.asarray(Image.open(picture))
    top, left = (PAD + place * (side + PAD) for place in (row, column))
    return pixels[top : top + side, left : left + side]


def rejected(run, *argv):
    """The line of the error that ends the command."""
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


# --- What it prints


def test_a_folder_is_told_by_its_classes_sizes_and_pixels(shown, pets):
    lines = shown("folder", f"--dir={pets}")
    assert lines["data"] == f"folder, split train, {pets}"
    assert lines["examples"] == "15"
    assert lines["stored"] == "48x48x3, of all examples"
    assert lines["trained"] == "48x48x3, height x width x channels"
    assert lines["classes"] == "2; counts of all examples"
    assert lines[None] == [["cat", "12", "80.0%"], ["dog", "3", "20.0%"]]
    assert lines["unreadable"] == "0 of all examples"
    assert lines["other"] == "0 files that are no images"
    assert lines["decoded"].startswith("0.1 MB: lies on the device")
    assert "hint" not in lines
    mean = np.mean([image(seed).mean() for seed in range(15)]) / 127.5 - 1
    assert lines["pixels"] == f"-1 to 1, mean {mean:.3g}, scaled to [-1, 1], of all examples"


def test_a_path_is_a_folder_or_a_file_of_arrays(shown, pets, tmp_path):
    assert shown(pets)["data"].startswith("folder, ")
    np.save(tmp_path / "images.npy", np.stack([image(seed) for seed in range(4)]))
    lines = shown(tmp_path / "images.npy")
    assert lines["data"] == f"arrays, split train, {tmp_path / 'images.npy'}"
    assert lines["examples"] == "4"
    assert lines["classes"] == "none: the set has no labels"


def test_the_shape_is_that_of_the_source_that_one_trains_on(shown, pets, run):
    flags = {"image_size": 16, "channels": 1}
    lines = shown("folder", f"--dir={pets}", *(f"--{name}={value}" for name, value in flags.items()))
    source = make_source(flags | {"name": "folder", "dir": str(pets)})
    assert lines["trained"].startswith("x".join(map(str, source.shape)) + ",")
    assert lines["stored"].startswith("48x48x3,")
    scaled = source.data["image"] / 127.5 - 1
    low, high, mean = re.match(r"(\S+) to (\S+), mean (\S+),", lines["pixels"]).groups()
    np.testing.assert_allclose(
        [float(low), float(high), float(mean)], [scaled.min(), scaled.max(), scaled.mean()], 0.01
    )


def test_counts_are_exact_where_only_a_sample_is_decoded(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect, "SAMPLE", 7)
    numbers = np.array([0] * 900 + [1] * 99 + [2])
    np.savez(tmp_path / "set.npz", image=np.zeros((1000, 4, 4), np.uint8), label=numbers)
    lines = shown(tmp_path / "set.npz")
    assert lines[None] == [["0", "900", "90.0%"], ["1", "99", "9.9%"], ["2", "1", "0.1%"]]
    assert lines["stored"] == "4x4x1, of the 7 looked at"
    assert lines["pixels"] == "-1 to -1, mean -1, scaled to [-1, 1], of the 7 looked at"


def test_of_many_classes_the_smallest_and_the_largest_are_told(shown, tmp_path):
    number = np.repeat(np.arange(25), [4] * 10 + [7] + [4] * 10 + [1] + [4] * 3)
    np.savez(tmp_path / "set.npz", image=np.zeros((len(number), SIDE, SIDE), np.uint8), label=number)
    lines = shown(tmp_path / "set.npz")
    assert lines["classes"].startswith("25; ")
    assert lines[None] == [["21", "1", "1.0%", "(the", "smallest)"], ["10", "7", "7.0%", "(the", "largest)"]]
    assert lines["picture"].endswith("one class a row, the first 20")


def test_digits_and_points(shown):
    lines = shown("digits", "--split=test")
    count = np.bincount(load_digits().target[1500:])
    assert lines["examples"] == "297"
    assert [int(line[1]) for line in lines[None]] == count.tolist()
    assert lines["pixels"].startswith(f"-1 to 1, mean {load_digits().images[1500:].mean() / 8 - 1:.3g},")
    lines = shown("grid25", "--out=points.png")
    assert lines["examples"].startswith("endless")
    assert lines["trained"] == "points of 2 numbers"
    assert lines["modes"] == "25 Gaussians, sigma 0.05"
    assert re.fullmatch(r"-4\.\d+ to 4\.\d+, mean \S+, unscaled, of 500 draws", lines["values"])
    assert lines["picture"].startswith("none: ")
    assert not Path("points.png").exists()


def test_nothing_is_cached_and_no_file_written_but_the_picture(shown, pets, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    shown(pets)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "here" / "data.png"])


def test_a_set_that_does_not_fit_would_be_streamed(shown, pets, monkeypatch):
    monkeypatch.setattr(inspect, "room_for_data", lambda: 10**5)
    assert shown(pets)["decoded"] == "0.1 MB: is streamed, which has room for 0 MB (data.placement=auto)"


# --- Mnist


def test_mnist(shown, tfds_data):
    lines = shown("tfds:mnist", f"--dir={tfds_data}", "--split=test")
    assert lines["examples"] == "10,000"
    assert lines["stored"] == "28x28x1, of the 500 looked at"
    assert [int(line[1].replace(",", "")) for line in lines[None]] == MNIST
    assert lines["classes"] == "10; counts of all examples"
    assert lines["decoded"].startswith("7.8 MB: ")
    records = tfds.Tfds("mnist", "test", tfds_data)
    mean = np.mean([records[int(i)]["image"].mean() for i in np.linspace(0, 9_999, 500, dtype=int)]) / 127.5 - 1
    assert lines["pixels"].startswith(f"-1 to 1, mean {mean:.3g},")


def test_stacked_mnist_and_a_set_too_large_to_read_every_label(shown, tfds_data, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "MOST_BYTES", 10**6)
    lines = shown("stacked_mnist", f"--dir={tfds_data}", "--split=test")
    assert lines["examples"] == "endless: each a stack of 3 of 10,000 digits"
    assert lines["trained"].startswith("28x28x3")
    counts_of = "1,000 of stacks, 000 to 999; 10 of digits; counts of the 500 looked at: "
    assert lines["classes"].startswith(counts_of)
    records = tfds.Tfds("mnist", "test", tfds_data)
    sampled = [records[int(i)]["label"] for i in np.linspace(0, 9_999, 500, dtype=int)]
    assert [int(line[1]) for line in lines[None]] == np.bincount(sampled).tolist()
    assert Image.open("data.png").mode == "RGB"
    assert not (tmp_path / "cache").exists()


# --- Hints


@pytest.mark.parametrize("classes", [("train", "test"), ("Training", "VAL"), ("test", "train", "valid")])
def test_a_folder_of_splits_is_told_from_one_of_classes(shown, tmp_path, classes):
    for seed, name in enumerate(classes):
        write(tmp_path / "set", f"{name}/cat/{seed}.png", image(seed))
    named = sorted(classes)
    likely = next(name for name in named if name.lower().startswith("train"))
    hint = shown("folder", f"--dir={tmp_path / 'set'}")["hint"]
    assert hint == f"its classes are named {', '.join(named)}: did you mean {tmp_path / 'set' / likely}?"


def test_a_folder_above_its_classes_is_told(shown, tmp_path):
    for seed in range(6):
        write(tmp_path / "one", f"images/{seed}.png", image(seed))
        write(tmp_path / "deep", f"{'ab'[seed % 2]}/{'xyz'[seed % 3]}/{seed}.png", image(seed))
    assert shown(tmp_path / "one")["hint"] == f"its only class is images: did you mean {tmp_path / 'one/images'}?"
    assert shown(tmp_path / "deep")["hint"] == (
        f"its images lie in 6 subfolders of its 2 classes, such as a/x: did you mean {tmp_path / 'deep/a'}?"
    )
    assert "all images lie in the folder itself" in shown(tmp_path / "one" / "images")["classes"]


def test_images_of_differing_shapes(shown, tmp_path):
    for seed, shape in enumerate([(48, 64, 3), (100, 50, 3), (48, 64, 3)]):
        write(tmp_path / "set", f"{seed}.png", image(seed, shape))
    lines = shown(tmp_path / "set")
    assert lines["stored"] == "2 sizes, 48x64x3 to 100x50x3, of all examples"
    assert lines["trained"] == "none: the images are of 2 shapes"
    assert "set data.image_size" in lines["hint"]
    assert lines["decoded"].startswith("unknown until data.image_size is set")
    assert Image.open("data.png").size == (10 * (128 + PAD) + PAD, 128 + 2 * PAD)
    lines = shown(tmp_path / "set", "--image_size=48")
    assert lines["trained"].startswith("48x48x3,")
    assert "hint" not in lines


def test_what_cannot_be_read_is_counted_and_left_out_of_the_picture(shown, pets):
    (pets / "cat" / "05.png").write_bytes(b"nonsense")
    (pets / "dog" / "13.png").write_bytes(b"")
    (pets / "notes.txt").write_text("not an image")
    lines = shown(pets)
    assert lines["unreadable"].startswith(f"2 of all examples; the first: {pets}/cat/05.png (example 5 of 15): ")
    assert lines["other"] == "1 files that are no images: notes.txt"
    assert lines["hint"] == "training stops at them: mend or remove them, or set data.corrupt to skip"
    assert lines[None] == [["cat", "12", "80.0%"], ["dog", "3", "20.0%"]]
    np.testing.assert_array_equal(tile("data.png", 1, 0), image(12))
    np.testing.assert_array_equal(tile("data.png", 1, 1), np.zeros((SIDE, SIDE, 3)))
    np.testing.assert_array_equal(tile("data.png", 1, 2), image(14))
    assert "hint" not in shown(pets, "--corrupt=skip")


def test_a_damaged_first_example_is_one_of_those_that_cannot_be_read(run, pets):
    (pets / "cat" / "00.png").write_bytes(b"nonsense")
    status, out, _ = run("show", pets)
    assert status == 0
    assert "unreadable 1 of all examples; the first: " in out
    assert "trained    48x48x3" in out


# --- The picture


def test_the_picture_shows_one_class_a_row(shown, pets):
    assert shown(pets, "--out=sub/pets.png")["picture"] == "sub/pets.png: one class a row, in order"
    assert Image.open("sub/pets.png").size == (10 * (SIDE + PAD) + PAD, 2 * (SIDE + PAD) + PAD)
    chosen = [int(place) for place in np.linspace(0, 11, 10)]  # 10 of the 12 cats
    for column, seed in enumerate(chosen):
        np.testing.assert_array_equal(tile("sub/pets.png", 0, column), image(seed))
    for column in range(3):
        np.testing.assert_array_equal(tile("sub/pets.png", 1, column), image(12 + column))
    assert not tile("sub/pets.png", 1, 3).any()


def test_the_picture_of_a_set_without_classes_shows_all_of_it(shown, tmp_path):
    images = np.stack([image(seed, (SIDE, SIDE)) for seed in range(300)])
    np.save(tmp_path / "set.npy", images)
    assert shown(tmp_path / "set.npy")["picture"] == "data.png: examples, evenly spaced"
    for place, i in enumerate(np.linspace(0, 299, 100, dtype=int)):
        np.testing.assert_array_equal(tile("data.png", *divmod(place, 10)), images[i])


def test_the_picture_shows_the_first_classes_of_many_and_the_black_row_of_an_empty_one(shown, tmp_path):
    number = np.array([label for label in range(24) if label != 1] * 2)
    images = np.stack([image(seed, (SIDE, SIDE)) for seed in range(len(number))])
    np.savez(tmp_path / "set.npz", image=images, label=number)
    shown(tmp_path / "set.npz")
    assert Image.open("data.png").size[1] == 20 * (SIDE + PAD) + PAD
    assert not tile("data.png", 1, 0).any()
    np.testing.assert_array_equal(tile("data.png", 19, 1), images[np.flatnonzero(number == 19)[1]])


def test_flipped_images_are_mirrored_and_large_ones_shrunk(shown, tmp_path):
    images = np.stack([image(seed, (SIDE, SIDE)) for seed in range(40)])
    np.save(tmp_path / "set.npy", images)
    assert shown(tmp_path / "set.npy", "--flip")["picture"].endswith("mirrored at random")
    tiles = [tile("data.png", *divmod(i, 10)) for i in range(40)]
    mirrored = [np.array_equal(tile, images[i][:, ::-1]) for i, tile in enumerate(tiles)]
    assert 0 < sum(mirrored) < 40
    assert all(mirrored[i] or np.array_equal(tile, images[i]) for i, tile in enumerate(tiles))
    np.save(tmp_path / "large.npy", large := image(0, (2, 500, 600, 3)))
    assert shown(tmp_path / "large.npy")["picture"].endswith("shrunk 3 times")
    pixels = np.asarray(Image.open("data.png"))[PAD : PAD + 166, PAD : PAD + 200]
    expected = large[0, :498].reshape(166, 3, 200, 3, 3).mean(axis=(1, 3))
    assert np.abs(pixels - expected).max() <= 1


# --- Mistakes


def test_a_mistake_in_a_flag_is_one_line_and_status_2(run, pets):
    mistakes = {
        "": "required: {show,prepare}; python -m gan_jax.data --help",
        "look": "invalid choice: 'look' (choose from ",
        "show": "required: SPEC; python -m gan_jax.data show --help",
        "show digits --imag=3": "unrecognized arguments: --imag=3",
        "show digits --image_size=-1": "--image_size: is '-1'; it must be an integer, 0 or more",
        "show digits --channels=2": "--channels: is '2'; it must be 0, 1 or 3",
        "show digits --corrupt=maybe": "--corrupt: is 'maybe'; it must be one of stop, skip",
        "show digits --out=x.jpg": "--out: 'x.jpg' is to be a file named FILE.png",
        "show digits --split=dev": "--split is 'dev'; digits has train, test, all",
        "show ring8 --dir=x": "--dir is 'x', but ring8 has no dir; set it to '', or SPEC to one of folder, ",
        "show digits --image_size=3": "--image_size is 3, but digits has no image_size; set it to 0, or SPEC",
        "show folder": "--dir is missing; for data.name=folder it is the folder of images",
        "show tfds:": "'tfds:' is neither a data set (digits, ",
        "show digits:x": "'digits:x' is neither a data set (digits, ",
        "show nowhere": "'nowhere' is neither a data set (digits, ",
        f"show {pets} --dir=x": "--dir is x, but ",
        f"show {pets} --split=test": "--split is 'test'; folder has train",
        f"show {pets} --out={pets}/cat/x.png": "would lie in the folder of images",
        "show tfds:mnist --dir=nowhere": "no folder nowhere of TFDS sets to find mnist in; ",
    }
    for argv, expected in mistakes.items():
        assert expected in rejected(run, *argv.split())
    assert not list(Path.cwd().iterdir())


def test_data_of_which_nothing_can_be_read_is_a_mistake(run, pets, tmp_path):
    for file in pets.rglob("*.png"):
        file.write_bytes(b"nonsense")
    status, _, err = run("show", pets)
    assert status == 2
    assert re.fullmatch(r"error: none of the 15 examples looked at can be read; the first: .*cat/00.png .*\n", err)
    np.save(tmp_path / "set.npy", image(0))
    os.truncate(tmp_path / "set.npy", 1000)
    assert "set.npy is no complete .npy or .npz file" in rejected(run, "show", tmp_path / "set.npy")
    (tmp_path / "empty").mkdir()
    assert "no image in " in rejected(run, "show", tmp_path / "empty")


def test_a_picture_that_cannot_be_written_is_a_mistake(run, tmp_path):
    (tmp_path / "here" / "file").write_text("")
    status, _, err = run("show", "digits", "--out=file/x.png")
    assert status == 2
    assert re.fullmatch(r"error: \S*file\S*: .+\n", err)


def test_an_interrupt_is_status_130(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gan_jax.data.__main__.inspect", interrupted)
    assert run("show", "digits") == (130, "", "interrupted\n")


def test_help_names_every_set_and_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["show", "--help"])
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for word in (*SOURCES, "--split", "--dir", "--image_size", "--channels", "--flip", "--corrupt", "--out"):
        assert word in out


def test_it_is_a_command(tmp_path):
    command = [sys.executable, "-m", "gan_jax.data", "show", "digits", "--split=dev"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --split is 'dev'; digits has train, test, all\n"


# --- Preparing


@pytest.mark.parametrize("name", ["mnist", "tfds:mnist"])
def test_prepare_says_where_the_set_is(run, monkeypatch, name):
    monkeypatch.setattr(tfds, "prepare", lambda *arguments: Path("/sets", *arguments, "3.0.1"))
    assert run("prepare", name, "--dir=here") == (0, "mnist is in /sets/mnist/here/3.0.1\n", "")


def test_a_set_that_cannot_be_prepared_is_one_line(run, monkeypatch):
    assert "names no TFDS set" in rejected(run, "prepare", "no set")
    assert "required: NAME" in rejected(run, "prepare")

    def fails(*_):
        raise InputError("cannot prepare mnist in sets: no network")

    monkeypatch.setattr(tfds, "prepare", fails)
    assert rejected(run, "prepare", "mnist") == "cannot prepare mnist in sets: no network"
