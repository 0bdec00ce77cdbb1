"""Readers of images: what they read, in which colours, and the one line that says why they do not."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gan_jax.data import make_source
from gan_jax.data.readers import arrays
from gan_jax.data.readers.arrays import Arrays
from gan_jax.data.readers.folder import Folder
from gan_jax.data.readers.records import BadExampleError, Subset, fit
from gan_jax.data.readers.tfds import Tfds, prepare
from gan_jax.data.splits import chosen
from gan_jax.utils.errors import InputError

RED, WHITE = (255, 0, 0), (255, 255, 255)
CORE = "tensorflow_datasets.core.features"
NOISE = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)  # [n, h, w, c]


def one_line(excinfo, *parts):
    """The message is one line that holds all of `parts`."""
    message = str(excinfo.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def refused(make, *parts):
    with pytest.raises(InputError) as excinfo:
        make()
    one_line(excinfo, *parts)


def bad(records, i, *parts):
    with pytest.raises(BadExampleError) as excinfo:
        records[i]
    one_line(excinfo, records.where(i), f"example {i} of {len(records)}", *parts)


def fine_or_one_line(read):
    """What is read, or None where that fails as it should."""
    try:
        return read()
    except (InputError, BadExampleError) as error:
        message = str(error)
    assert "\n" not in message
    return None


def encoded(image, form="PNG", **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **options)
    return stream.getvalue()


def write_folder(root: Path, files: dict) -> Path:
    """{relative path: bytes, or an array to be stored as PNG}."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(content) if isinstance(content, np.ndarray) else content)
    return root


def read_one(tmp_path, name, data):
    return Folder(write_folder(tmp_path / "one", {name: data}))[0]["image"]


def write_tfds(root: Path, images, labels=None, shards=(5, 7), version="1.0.0", **changes) -> Path:
    """A split "train" as tfds writes it, of PNG images (or of the bytes given); returns root/tiny/version."""
    pytest.importorskip("tensorflow_datasets")
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    home = root / "tiny" / version
    home.mkdir(parents=True)
    info = {"name": "tiny", "version": version, "fileFormat": "array_record", **changes.get("info", {})}
    split = {"name": "train", "numBytes": "1", "shardLengths": list(map(str, shards))} | changes.get("split", {})
    (home / "dataset_info.json").write_text(json.dumps(info | {"splits": [split, {"name": "empty"}]}))
    image = {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}}
    features = {"image": {"pythonClassName": f"{CORE}.image_feature.Image", "image": image}}
    if labels is not None:
        kind = {"numClasses": str(max(labels) + 1)}
        features["label"] = {"pythonClassName": f"{CORE}.class_label_feature.ClassLabel", "classLabel": kind}
    features = changes.get("features", features)
    top = {"pythonClassName": f"{CORE}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (home / "features.json").write_text(json.dumps(top))
    position = 0
    for shard, length in enumerate(shards):
        path = home / f"tiny-train.array_record-{shard:05}-of-{len(shards):05}"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for _ in range(length):
            record = tf_example_pb2.Example()
            image = images[position]
            data = image if isinstance(image, bytes) else encoded(image)
            record.features.feature["image"].bytes_list.value.append(data)
            if labels is not None:
                record.features.feature["label"].int64_list.value.append(labels[position])
            writer.write(record.SerializeToString())
            position += 1
        writer.close()
    return home


def make_folder(tmp_path):
    return Folder(write_folder(tmp_path / "f", {f"{'ab'[i % 2]}/{i:02}.png": x for i, x in enumerate(NOISE)}))


def make_npy(tmp_path):
    np.save(tmp_path / "x.npy", NOISE)
    return Arrays(tmp_path / "x.npy")


def make_npz(tmp_path):
    np.savez(tmp_path / "x.npz", images=NOISE, labels=np.arange(12) % 3)
    return Arrays(tmp_path / "x.npz")


def make_tfds(tmp_path):
    write_tfds(tmp_path / "t", NOISE, [i % 3 for i in range(12)])
    return Tfds("tiny", "train", tmp_path / "t")


def make_zip(tmp_path):
    files = {f"{'ab'[i % 2]}/{i:02}.png": image for i, image in enumerate(NOISE)}
    return Folder(write_zip(tmp_path / "x.zip", files))


EVERY = pytest.mark.parametrize("make", [make_folder, make_zip, make_npy, make_npz, make_tfds])


def same(a, b):
    assert a.keys() == b.keys()
    np.testing.assert_array_equal(a["image"], b["image"])
    assert a.get("label") == b.get("label")


# What all readers share.


@EVERY
def test_examples_are_uint8_images_with_labels_where_there_are_classes(make, tmp_path):
    records = make(tmp_path)
    assert len(records) == 12
    images = sorted(record["image"].tobytes() for record in records)  # ends: IndexError after the last
    assert images == sorted(image.tobytes() for image in NOISE)
    for i in (0, 11):
        example = records[np.int64(i)]
        assert example["image"].dtype == np.uint8
        assert example["image"].shape == (6, 8, 3)
        assert ("label" in example) == bool(records.classes)
        assert example.get("label", 0) in range(max(1, len(records.classes)))
        assert f"(example {i} of 12)" in records.where(i)
    for i in (-1, 12):
        with pytest.raises(IndexError):
            records[i]


@EVERY
def test_threads_read_what_one_does(make, tmp_path):
    records, examples = make(tmp_path), []  # which has yet to open its files

    def read(seed):
        examples.extend((i, records[i]["image"]) for i in np.random.default_rng(seed).integers(0, 12, 200))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(examples) == 8 * 200
    expected = list(records)
    for i, image in examples:
        np.testing.assert_array_equal(image, expected[i]["image"])


@EVERY
def test_the_fingerprint_follows_the_files(make, tmp_path):
    records = make(tmp_path)
    before = records.fingerprint
    assert len(before) == 64
    assert int(before, 16)
    assert make_again(records).fingerprint == before
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    os.utime(files[-1], ns=(1, 1))
    assert make_again(records).fingerprint != before


def make_again(records):
    if isinstance(records, Tfds):
        return Tfds(records.name, records.split, records.folder.parents[1])
    return type(records)(records.folder)


def test_a_moved_set_keeps_its_fingerprint(tmp_path):
    records = make_folder(tmp_path)
    before = records.fingerprint
    shutil.move(records.folder, tmp_path / "elsewhere")
    assert Folder(tmp_path / "elsewhere").fingerprint == before


# Folders.


def test_a_flat_folder_has_no_labels_and_the_order_of_its_names(tmp_path):
    files = {
        "b.PNG": NOISE[1],
        "a.png": NOISE[0],
        "c.jpeg": encoded(NOISE[2], "JPEG"),
        ".hidden.png": b"",
        "d.WebP": b"",
    }
    files |= {"Thumbs.db": b"x", "desktop.ini": b"x", ".git/x.png": b"x", "e.JPG": encoded(NOISE[3], "JPEG")}
    files["d.WebP"] = encoded(NOISE[4], "WEBP", lossless=True)
    records = Folder(write_folder(tmp_path, files))
    names = [Path(records.where(i).split(" (")[0]).name for i in range(len(records))]
    assert names == ["a.png", "b.PNG", "c.jpeg", "d.WebP", "e.JPG"]
    assert records.classes == records.not_images == ()
    records.refuse_non_images()
    for i, image in ((0, NOISE[0]), (1, NOISE[1]), (3, NOISE[4])):
        same(records[i], {"image": image})


def test_subfolders_are_classes_by_name_at_any_depth(tmp_path):
    files = {"dog/1.png": NOISE[0], "cat/deep/er/2.png": NOISE[1], "cat/0.png": NOISE[2], "a-b/3.png": NOISE[3]}
    records = Folder(write_folder(tmp_path, files))
    assert records.classes == ("a-b", "cat", "dog")
    assert [example["label"] for example in records] == [0, 1, 1, 2]
    np.testing.assert_array_equal(records[1]["image"], NOISE[2])


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = write_folder(tmp_path / "set", {"a/1.png": NOISE[0]})
    write_folder(tmp_path / "other", {"2.png": NOISE[1]})
    (root / "b").symlink_to(tmp_path / "other")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "broken.png").symlink_to(tmp_path / "nowhere")
    records = Folder(root)
    assert len(records) == 2
    assert records.classes == ("a", "b")
    refused(records.refuse_non_images, "broken.png", "1 of 1")


def test_what_is_no_image_is_kept_apart(tmp_path):
    files = {"a/1.png": NOISE[0], "a/notes.txt": b"", "list.csv": b"", "b/2.png": NOISE[0], "b/x.tiff": b""}
    records = Folder(write_folder(tmp_path, files))
    assert len(records) == 2
    assert records.not_images == ("a/notes.txt", "b/x.tiff", "list.csv")
    refused(records.refuse_non_images, tmp_path / "a/notes.txt", "1 of 3", ".png, .jpg, .jpeg, .webp")


def test_folders_that_cannot_be_used(tmp_path):
    refused(lambda: Folder(tmp_path / "none"), tmp_path / "none", "does not exist")
    refused(lambda: Folder(write_folder(tmp_path, {"x.png": NOISE[0]}) / "x.png"), "x.png is a file")
    refused(
        lambda: Folder(write_folder(tmp_path / "m", {"x.png": NOISE[0], "a/y.png": NOISE[0]})), "both", "x.png", "(a)"
    )
    refused(lambda: Folder(write_folder(tmp_path / "t", {"x.txt": b""})), "no image in", ".webp")
    write_folder(tmp_path / "e", {"cat/1.png": NOISE[0], "notes/x.txt": b""})
    refused(lambda: Folder(tmp_path / "e"), f"no image in {tmp_path / 'e' / 'notes'}", "every subfolder is a class")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_every_truncation_is_found(form, tmp_path):
    data = encoded(NOISE[0], form)
    path = tmp_path / "x.png"
    path.write_bytes(data)
    records = Folder(tmp_path)
    assert records[0]["image"].shape == (6, 8, 3)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(BadExampleError):
            records[0]
    bad(records, 0, path)


def test_files_that_are_broken_otherwise(tmp_path):
    damaged = bytearray(encoded(NOISE[0]))
    damaged[len(damaged) // 2] ^= 0x55
    files = {"a.png": b"", "b.png": b"hello", "c.png": bytes(damaged), "d.png": encoded(NOISE[0], "GIF"), "e.png": b"x"}
    records = Folder(write_folder(tmp_path, files))
    for i, reason in enumerate(("empty", "neither PNG nor JPEG nor WebP", "", "neither PNG", "neither")):
        bad(records, i, reason)
    (tmp_path / "e.png").unlink()
    bad(records, 4, "No such file")


def test_a_decompression_bomb_is_neither_a_warning_nor_decoded(tmp_path):
    bomb = encoded(Image.new("1", (9500, 9500)))  # above Pillow's limit, at which it warns, and below the double
    records = Folder(write_folder(tmp_path, {"bomb.png": bomb}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bad(records, 0, "9500x9500", "bomb")


def test_a_name_that_cannot_be_printed_stays_one_line(tmp_path):
    name = b"a\nb\xff.png"
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"broken")
    except OSError:
        pytest.skip("this file system takes no such name")
    records = Folder(tmp_path)
    assert len(records.fingerprint) == 64
    with pytest.raises(BadExampleError) as excinfo:
        records[0]
    one_line(excinfo, "neither")
    str(excinfo.value).encode()


# Colours.


def picture(mode):
    """A red pixel beside a white one, in one of Pillow's modes."""
    red = Image.new("RGB", (2, 1), RED)
    red.putpixel((1, 0), WHITE)
    return red.quantize(4) if mode == "P" else red.convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"), [("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGB", "WEBP"), ("RGBA", "WEBP")]
)
def test_red_stays_red(mode, form, tmp_path):
    image = read_one(tmp_path, "x.png", encoded(picture(mode), form, **({"lossless": True} if form == "WEBP" else {})))
    assert image.tolist() == [[list(RED), list(WHITE)]]


@pytest.mark.parametrize("mode", ["CMYK", "RGB", "L"])
def test_jpeg_colours_are_kept_within_its_losses(mode, tmp_path):
    image = read_one(tmp_path, "x.jpg", encoded(Image.new("RGB", (16, 16), RED).convert(mode), "JPEG", quality=95))
    expected = [76] if mode == "L" else RED  # 0.299 * 255: the luma of ITU-R 601
    assert image.shape == (16, 16, len(expected))
    assert np.abs(image.astype(int) - expected).max() <= 3


def test_grey_of_every_depth_is_one_channel(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name, image in (("8.png", ramp), ("16.png", ramp.astype(np.uint16) * 257)):
        np.testing.assert_array_equal(read_one(tmp_path / name, name, encoded(image)), ramp[:, :, None])
    bits = Image.fromarray(ramp > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(
        read_one(tmp_path / "1", "1.png", encoded(bits))[:, :, 0], np.where(ramp > 127, 255, 0)
    )


def test_what_is_transparent_lies_over_white(tmp_path):
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert read_one(tmp_path / "a", "x.png", encoded(rgba)).tolist() == [[list(RED), list(WHITE), [204] * 3]]
    grey = np.array([[[10, 255], [10, 0], [0, 51]]], np.uint8)
    assert read_one(tmp_path / "b", "x.png", encoded(grey)).tolist() == [[[10], [255], [204]]]
    palette = picture("P")
    index = palette.getpixel((0, 0))
    assert read_one(tmp_path / "c", "x.png", encoded(palette, transparency=index)).tolist() == [[list(WHITE)] * 2]
    key = encoded(picture("RGB"), transparency=RED)  # one colour stands for transparency
    assert read_one(tmp_path / "d", "x.png", key).tolist() == [[list(WHITE)] * 2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says(orientation, tmp_path):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16] = RED
    # How a camera that was turned stores it: the inverse of what a viewer does.
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1)}
    stored |= {6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1), 8: np.rot90(upright, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored[orientation]), "JPEG", exif=exif, quality=95)
    image = read_one(tmp_path, "x.jpg", data)
    assert image.shape == (16, 32, 3)
    assert np.abs(image.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame(form, tmp_path):
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(first, form, save_all=True, append_images=[second], duration=100, **options)
    np.testing.assert_array_equal(read_one(tmp_path, "x.png", data), np.full((4, 4, 3), RED, np.uint8))


# Arrays.


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_of_grey_and_colour(channels, tmp_path):
    images = NOISE[:, :, :, 0] if channels is None else NOISE[:, :, :, :channels]
    np.save(tmp_path / "x.npy", images)
    records = Arrays(tmp_path / "x.npy")
    np.testing.assert_array_equal(records[7]["image"], NOISE[7, :, :, : channels or 1])
    assert records.classes == ()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2"])
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_floats_in_the_generator_s_range_come_back_as_the_bytes_they_were(dtype, form, tmp_path):
    path = tmp_path / f"x.{form}"
    images = (NOISE / 127.5 - 1).astype(dtype)
    np.save(path, images) if form == "npy" else np.savez_compressed(path, samples=images)
    np.testing.assert_array_equal(np.stack([example["image"] for example in Arrays(path)]), NOISE)


@pytest.mark.parametrize("name", ["image", "images", "samples", "whatever"])
@pytest.mark.parametrize("labels", [None, "label", "labels"])
def test_npz_members(name, labels, tmp_path):
    members = {name: NOISE} if labels is None else {name: NOISE, labels: np.arange(12, dtype=np.int16) % 5}
    np.savez(tmp_path / "x.npz", **members)
    records = Arrays(tmp_path / "x.npz")
    assert records.classes == (() if labels is None else ("0", "1", "2", "3", "4"))
    same(records[7], {"image": NOISE[7]} if labels is None else {"image": NOISE[7], "label": 2})


UNIT = NOISE / np.float32(255)
BAD_ARRAYS = {
    "points": (np.zeros((100, 2), np.float32), ["points [100, 2]", "arrays", "images"]),
    "one dimension": (np.zeros(3, np.uint8), ["[n, h, w]"]),
    "alpha": (np.zeros((2, 4, 4, 4), np.uint8), ["c = 1 or 3"]),
    "channels first": (np.zeros((2, 3, 8, 8), np.uint8), ["channels last"]),
    "no example": (np.zeros((0, 4, 4, 3), np.uint8), ["no example"]),
    "int64": (NOISE.astype(np.int64), ["int64", "uint8"]),
    "bool": (NOISE > 9, ["bool", "uint8"]),
    "complex": (NOISE.astype(complex), ["complex128", "uint8"]),
    "text": (np.full((2, 4, 4), "a"), ["uint8"]),
    "in [0, 1]": (UNIT, ["[0, 1]", "2 * x - 1"]),
    "in [0, 255]": (NOISE.astype(np.float32), ["[0, 255]", "uint8"]),
    "beyond": (UNIT * 4 - 2, ["from -2 to 2", "[-1, 1]"]),
    "nan": (np.where(UNIT > 0.99, np.nan, UNIT), ["not finite"]),
    "infinite": (np.where(UNIT > 0.99, np.inf, UNIT), ["not finite"]),
    "objects": (np.array([[["a", None]]], object), ["pickled"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_arrays_that_are_no_images(case, form, tmp_path):
    array, parts = BAD_ARRAYS[case]
    path = tmp_path / f"x.{form}"
    np.save(path, array) if form == "npy" else np.savez(path, image=array)
    refused(lambda: Arrays(path), path, *parts)


@pytest.mark.parametrize(("value", "message"), [(1.5, "to 1.5"), (np.nan, "not finite, from example 10 on")])
def test_floats_are_checked_to_the_last_block(value, message, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK", 2 * NOISE[0].size)
    images = UNIT * 2 - 1
    images[-1, -1, -1, -1] = value
    np.save(tmp_path / "x.npy", images)
    refused(lambda: Arrays(tmp_path / "x.npy"), message)


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (np.arange(11), ["[11]", "integers [12]"]),
        (np.arange(12)[:, None], ["[12, 1]"]),
        (np.arange(12.0), ["float64", "integers"]),
        (np.arange(12) - 1, ["from -1 to 10", "from 0"]),
        (np.arange(12) * 10**9, ["11000000000"]),
    ],
)
def test_labels_that_do_not_fit(labels, parts, tmp_path):
    np.savez(tmp_path / "x.npz", image=NOISE, label=labels)
    refused(lambda: Arrays(tmp_path / "x.npz"), tmp_path / "x.npz", *parts)


def test_array_files_that_cannot_be_read(tmp_path):
    refused(lambda: Arrays(tmp_path / "none.npy"), "no file", "none.npy")
    refused(lambda: Arrays(tmp_path), "no file", tmp_path)
    np.savez(tmp_path / "two.npz", a=NOISE, b=NOISE)
    refused(lambda: Arrays(tmp_path / "two.npz"), "a, b", "image, images, samples")
    np.savez(tmp_path / "both.npz", image=NOISE, images=NOISE)
    refused(lambda: Arrays(tmp_path / "both.npz"), "image, images")
    np.savez(tmp_path / "labels.npz", label=np.arange(3))
    refused(lambda: Arrays(tmp_path / "labels.npz"), "label")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    refused(lambda: Arrays(tmp_path / "empty.npz"), "(none)")
    (tmp_path / "text.npy").write_text("hello")
    refused(lambda: Arrays(tmp_path / "text.npy"), "text.npy")


@pytest.mark.parametrize("form", ["npy", "npz", "compressed"])
def test_truncated_and_flipped_array_files(form, tmp_path):
    path = tmp_path / "x.npz"
    save = {"npy": lambda f: np.save(f, NOISE), "npz": lambda f: np.savez(f, image=NOISE, label=np.arange(12))}
    save["compressed"] = lambda f: np.savez_compressed(f, image=NOISE, label=np.arange(12))
    with path.open("wb") as file:
        save[form](file)
    data = path.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(lambda: Arrays(path), path)
    rng = np.random.default_rng(1)
    for _ in range(300):
        flipped = bytearray(data)
        for k in rng.integers(0, min(len(data), 300), 3):
            flipped[k] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        fine_or_one_line(lambda: list(Arrays(path)))  # a flip in the pixels of a .npy cannot be seen


# Prepared TFDS sets.


def test_cifar10_is_what_the_literature_says(tfds_data):
    records = Tfds("cifar10", "test", tfds_data)
    assert len(records) == 10_000
    assert len(records.classes) == 10
    labels = records.labels()
    assert np.bincount(labels).tolist() == [1000] * 10
    for i in range(0, len(records), 20):
        example = records[i]
        assert (example["image"].shape, example["label"]) == ((32, 32, 3), labels[i])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_tfds_itself_reads_the_same(name, tfds_data):
    official = pytest.importorskip("tensorflow_datasets").data_source(name, split="test", data_dir=str(tfds_data))
    records = Tfds(name, "test", tfds_data)
    assert len(records) == len(official) == 10_000
    assert records.classes == tuple("0123456789") or name == "cifar10"
    for i in (0, 1, 4321, 9999):
        same(records[i], {"image": official[i]["image"], "label": int(official[i]["label"])})


@pytest.mark.parametrize("template", ["", "{SPLIT}/{DATASET}-{SHARD_INDEX}of{NUM_SHARDS}.{FILEFORMAT}"])
def test_several_shards_are_one_set_in_the_order_of_tfds(template, tmp_path):
    shards = (3, 1, 6, 2)
    home = write_tfds(tmp_path, NOISE, [i % 4 for i in range(12)], shards, split={"filepathTemplate": template})
    if template:
        (home / "train").mkdir()
        for shard in range(4):
            old = home / f"tiny-train.array_record-{shard:05}-of-00004"
            old.rename(home / "train" / f"tiny-{shard:05}of00004.array_record")
    (home / "label.labels.txt").write_text("zero\none\ntwo\nthree\n")
    records = Tfds("tiny", "train", tmp_path)
    builder = pytest.importorskip("tensorflow_datasets").builder_from_directory(str(home))
    official = builder.as_data_source(split="train")
    assert records.classes == tuple(builder.info.features["label"].names) == ("zero", "one", "two", "three")
    assert len(records) == len(official) == 12
    for i in range(12):
        same(records[i], {"image": NOISE[i], "label": i % 4})
        same(records[i], {"image": official[i]["image"], "label": int(official[i]["label"])})


def test_the_newest_version_unless_one_is_named(tmp_path):
    for version, image in (("2.0.0", NOISE[0]), ("10.0.0", NOISE[1]), ("9.1.0", NOISE[2])):
        write_tfds(tmp_path, [image], shards=(1,), version=version)
    (tmp_path / "tiny" / "11.0.0.incompleteXYZ").mkdir()
    np.testing.assert_array_equal(Tfds("tiny", "train", tmp_path)[0]["image"], NOISE[1])
    np.testing.assert_array_equal(Tfds("tiny:2.0.0", "train", tmp_path)[0]["image"], NOISE[0])
    refused(lambda: Tfds("tiny:3.0.0", "train", tmp_path), "no version 3.0.0", "2.0.0, 9.1.0", "python -m gan_jax.data")


def test_configs_and_the_default_directory(tmp_path, monkeypatch):
    write_tfds(tmp_path, NOISE)
    (tmp_path / "sets" / "resized").mkdir(parents=True)
    shutil.move(tmp_path / "tiny", tmp_path / "sets" / "resized" / "64x64")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    assert len(Tfds("resized/64x64", "train", "")) == 12
    refused(lambda: Tfds("resized", "train", ""), "64x64", "SET/CONFIG")
    refused(lambda: Tfds("resized/8x8", "train", ""), "64x64", "prepare resized/8x8")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    refused(lambda: Tfds("mnist", "train", ""), tmp_path / "tensorflow_datasets", ".[prepare]", "prepare mnist")


@pytest.mark.parametrize("name", ["", "../tiny", "tiny:latest", "a/b/c", "tiny/..", "/etc", "tiny\n"])
def test_names_that_are_none(name, tmp_path):
    refused(lambda: Tfds(name, "train", tmp_path), "SET/CONFIG")


def test_sets_and_splits_that_are_not_there(tmp_path):
    write_tfds(tmp_path, NOISE)
    refused(
        lambda: Tfds("mnist", "train", tmp_path), tmp_path / "mnist", "there is tiny", "python -m gan_jax.data prepare"
    )
    refused(lambda: Tfds("tiny", "test", tmp_path), "no split 'test'", "train, empty")
    refused(lambda: Tfds("tiny", "train[:5]", tmp_path), "no split 'train[:5]'")
    refused(lambda: Tfds("tiny", "empty", tmp_path), "no example")


def test_prepared_sets_that_cannot_be_read(tmp_path):
    write_tfds(tmp_path / "a", NOISE, info={"fileFormat": "tfrecord"})
    refused(lambda: Tfds("tiny", "train", tmp_path / "a"), "tfrecord", "random access", "prepare tiny")
    text = {"pythonClassName": f"{CORE}.text_feature.Text", "text": {}}
    write_tfds(tmp_path / "b", NOISE, features={"text": text, "caption": text})
    refused(lambda: Tfds("tiny", "train", tmp_path / "b"), "no encoded image", "caption, text")
    image = {"dtype": "float32", "shape": {"dimensions": ["-1", "-1", "1"]}}
    write_tfds(
        tmp_path / "c", NOISE, features={"image": {"pythonClassName": f"{CORE}.image_feature.Image", "image": image}}
    )
    refused(lambda: Tfds("tiny", "train", tmp_path / "c"), "float32")
    home = write_tfds(tmp_path / "d", NOISE)
    (home / "tiny-train.array_record-00001-of-00002").unlink()
    refused(lambda: Tfds("tiny", "train", tmp_path / "d"), "00001-of-00002 is missing", "2 files of train 1")
    write_tfds(tmp_path / "e", NOISE, [i % 3 for i in range(12)])
    (tmp_path / "e/tiny/1.0.0/label.labels.txt").write_text("one\n")
    refused(lambda: Tfds("tiny", "train", tmp_path / "e"), "1 classes", "counts 3")


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"splits": 3, "featuresDict": 3}', '{"splits": [[]]}'])
def test_broken_json_in_a_prepared_set(file, text, tmp_path):
    path = write_tfds(tmp_path, NOISE) / file
    path.unlink() if text is None else path.write_text(text)
    refused(lambda: Tfds("tiny", "train", tmp_path), file)


def test_an_alternative_format_is_used(tmp_path):
    write_tfds(tmp_path, NOISE, info={"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]})
    assert len(list(Tfds("tiny", "train", tmp_path))) == 12


def test_a_damaged_record_leaves_the_others_readable(tmp_path):
    home = write_tfds(tmp_path, NOISE, [i % 3 for i in range(12)])
    path = home / "tiny-train.array_record-00000-of-00002"
    data = bytearray(path.read_bytes())
    data[data.find(encoded(NOISE[2])[60:90])] ^= 0x55
    path.write_bytes(data)
    records = Tfds("tiny", "train", tmp_path)
    bad(records, 2, "orrupt")
    for i in (0, 1, 3, 4, 5, 11):
        np.testing.assert_array_equal(records[i]["image"], NOISE[i])
    bad(records, 2, "orrupt")


def test_damaged_shards(tmp_path):
    home = write_tfds(tmp_path, NOISE)
    path = home / "tiny-train.array_record-00001-of-00002"
    data = path.read_bytes()
    for length, what in ((0, "64KB"), (100, "64KB"), (65536, "is its file complete"), (len(data) - 1, "")):
        path.write_bytes(data[:length])
        records = Tfds("tiny", "train", tmp_path)
        bad(records, 5, what)
        np.testing.assert_array_equal(records[0]["image"], NOISE[0])
    shutil.copy(home / "tiny-train.array_record-00000-of-00002", path)
    bad(Tfds("tiny", "train", tmp_path), 11, "6 out of bound 5")
    records = Tfds("tiny", "train", tmp_path)  # which has yet to open its files
    path.unlink()
    bad(records, 5, path, "No such file")
    rng = np.random.default_rng(0)
    for _ in range(40):
        flipped = bytearray(data)
        for k in rng.integers(0, len(data), 2000):
            flipped[k] ^= 1
        path.write_bytes(flipped)
        records = Tfds("tiny", "train", tmp_path)
        for i in range(5, 12):
            image = fine_or_one_line(lambda records=records, i=i: records[i]["image"])
            assert image is None or (image == NOISE[i]).all()


def test_a_set_that_tfds_cannot_open_is_one_line(tmp_path):
    home = write_tfds(tmp_path, NOISE, features={"image": {"pythonClassName": "no\nclass", "image": {}}})
    refused(lambda: Tfds("tiny", "train", tmp_path)[0], "tfds cannot open", home)


def test_other_features_are_left_alone(tmp_path):
    home = write_tfds(tmp_path, NOISE, [i % 3 for i in range(12)])
    features = json.loads((home / "features.json").read_text())
    of = features["featuresDict"]["features"]
    of["mask"] = of["image"]  # which no record has
    of["nested"] = features | {"featuresDict": {"features": {"mask": of["image"]}}}
    (home / "features.json").write_text(json.dumps(features))
    assert set(Tfds("tiny", "train", tmp_path)[4]) == {"image", "label"}


def test_records_that_hold_something_else(tmp_path):
    write_tfds(tmp_path / "a", [b"no image", encoded(NOISE[0])[:-30], encoded(NOISE[0])], [0, 1, 2], (3,))
    records = Tfds("tiny", "train", tmp_path / "a")
    bad(records, 0, "neither PNG")
    bad(records, 1, "truncated")
    assert records[2]["label"] == 2
    home = write_tfds(tmp_path / "b", NOISE, [0, -1, 5, 2, 2], (5,))
    features = (home / "features.json").read_text()
    (home / "features.json").write_text(features.replace('"numClasses": "6"', '"numClasses": "3"'))
    records = Tfds("tiny", "train", tmp_path / "b")
    assert records[1]["label"] == -1
    bad(records, 2, "label 5, of 3 classes")
    write_tfds(tmp_path / "c", NOISE)
    (tmp_path / "c/tiny/1.0.0/features.json").write_text(features)
    bad(Tfds("tiny", "train", tmp_path / "c"), 0, "no label")


def test_without_the_packages_the_line_says_what_to_install(tmp_path, monkeypatch):
    write_tfds(tmp_path, NOISE)
    there = importlib.util.find_spec
    absent = {"array_record", "tensorflow_datasets"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else there(name))
    refused(lambda: Tfds("tiny", "train", tmp_path), "array_record", 'pip install -e ".[tfds]"')


ALONE = """
import resource, socket, sys
def refuse(*arguments, **options):
    raise SystemExit("the network was asked for")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
from gan_jax.data.readers.tfds import Tfds
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
records = Tfds("tiny", "train", sys.argv[1])
assert [example["image"].shape for example in records] == [(6, 8, 3)] * 100
assert "tensorflow" not in sys.modules
"""


def test_reading_needs_neither_the_network_nor_tensorflow_nor_a_file_for_each_shard(tmp_path):
    write_tfds(tmp_path, [NOISE[0]] * 100, shards=(1,) * 100)
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_preparing_without_tensorflow_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    where = tmp_path / "imagenet_resized" / "64x64" / "VERSION"
    refused(lambda: prepare("imagenet_resized/64x64", tmp_path), "pip install -e '.[prepare]'", where)
    refused(lambda: prepare("a b", tmp_path), "SET/CONFIG")


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    official = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))

    def unreachable():
        raise ConnectionError("no route\nto host")

    builder = types.SimpleNamespace(download_and_prepare=unreachable)
    monkeypatch.setattr(official, "builder", lambda name, data_dir, file_format: builder)
    refused(lambda: prepare("mnist", tmp_path), f"cannot prepare mnist in {tmp_path}", "no route to host")


# One shape.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [0, 6])
def test_what_fits_is_left_as_it_is(channels, size):
    image = NOISE[0, :, : size or 8, :channels]
    np.testing.assert_array_equal(fit(image, size, channels), image)


def test_the_centre_square_is_taken():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = RED
    for turned in (image, image.swapaxes(0, 1)):
        assert (fit(turned, 4, 3) == RED).all()
        assert (fit(turned, 2, 3) == RED).all()
        assert (fit(turned, 16, 3) == RED).all()
    assert fit(image, 0, 1).shape == (4, 8, 1)


def test_shrinking_averages_what_it_leaves_out():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    small = fit(stripes, 8, 1)
    assert small.dtype == np.uint8
    assert np.abs(small[:, 1:-1].astype(int) - 127.5).max() < 8  # every other column alone would be 0 or 255


def test_colour_and_grey():
    colours = np.array([[RED, (0, 255, 0)], [(0, 0, 255), WHITE]], np.uint8)
    np.testing.assert_array_equal(fit(colours, 2, 1)[:, :, 0], [[76, 150], [29, 255]])  # 0.299, 0.587, 0.114
    grey = NOISE[0, :, :6, :1]
    np.testing.assert_array_equal(fit(grey, 6, 3), np.repeat(grey, 3, axis=2))
    assert fit(NOISE[0], 5, 1).shape == (5, 5, 1)
    assert fit(NOISE[0, :, :, :1], 5, 3).shape == (5, 5, 3)


# What those who tried to break it came upon.


def test_a_member_of_an_npz_without_its_header_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.npz", "w") as file:
        file.writestr("image.npy", b"junk")
    with pytest.raises(InputError, match="is no complete"):
        Arrays(tmp_path / "images.npz")


def test_a_link_to_itself_is_no_image_and_no_error_of_the_folder(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    folder = Folder(tmp_path)
    assert len(folder) == 1
    assert folder.not_images == ("b.png",)


def test_sets_of_equal_names_sizes_and_times_are_told_apart(tmp_path):
    prints = []
    for name, value in (("a", 1), ("b", 2)):
        path = tmp_path / name / "train.npy"
        path.parent.mkdir()
        np.save(path, np.full((3, 4, 4, 1), value, np.uint8))
        os.utime(path, (0, 0))  # as archives do that are made reproducible
        prints.append(Arrays(path).fingerprint)
        time.sleep(0.02)
    assert prints[0] != prints[1]


def test_no_message_holds_what_a_terminal_would_act_on(tmp_path):
    (tmp_path / "\x1b[31mred").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "\x1b[31mred" / "a.png")
    assert Folder(tmp_path).where(0).isprintable()


# StyleGAN's zip and labels.


def write_zip(path: Path, files: dict) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, encoded(content) if isinstance(content, np.ndarray) else content)
    return path


def stylegan(labels, names=tuple(f"0000{i % 2}/img{i:08}.png" for i in range(12))) -> dict:
    """The files of a set as StyleGAN's dataset_tool.py writes it, without images of `names` that are None."""
    text = json.dumps({"labels": labels and [[name, label] for name, label in zip(names, labels, strict=True)]})
    return dict(zip(names, NOISE, strict=True)) | {"dataset.json": text.encode()}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("labels", [None, [i % 5 for i in range(12)], (NOISE[:, 0, 0] / 4).tolist()])
def test_labels_are_those_of_dataset_json_and_not_the_subfolders(packed, labels, tmp_path):
    files = stylegan(labels)
    make = write_zip if packed else write_folder
    records = Folder(make(tmp_path / ("set.zip" if packed else "set"), files))
    expected = dict(zip(files, zip(NOISE, labels or [None] * 12, strict=True), strict=False))
    assert len(records.classes) == (5 if labels and isinstance(labels[0], int) else 0)
    assert len(records.attributes) == (3 if labels and isinstance(labels[0], list) else 0)
    assert records.not_images == ()
    for i, name in enumerate(sorted(set(files) - {"dataset.json"})):
        np.testing.assert_array_equal(records[i]["image"], expected[name][0])
        np.testing.assert_array_equal(records[i].get("label"), expected[name][1])


def test_a_zip_without_labels_is_as_the_folder_that_it_was_made_of(tmp_path):
    files = {"b/1.png": NOISE[0], "a/2.png": NOISE[1], "__MACOSX/.x": b"", "a/notes.txt": b""}
    records = Folder(write_zip(tmp_path / "set.zip", {"b/": b"", **files}))
    assert records.classes == ("a", "b")
    assert records.not_images == ("a/notes.txt",)
    same(records[0], {"image": NOISE[1], "label": 0})


def test_zips_and_labels_that_cannot_be_used(tmp_path):
    path = tmp_path / "set.zip"
    refused(lambda: Folder(path), "cannot read", path, "No such file")
    path.write_bytes(b"no zip")
    refused(lambda: Folder(path), "cannot read", path, "zip")
    files = stylegan([0] * 12)
    for text in ("{", "{}", '{"labels": [3]}', '{"labels": [["a.png", 1], ["b.png", [1.0, 2.0]]]}', '{"labels": 3}'):
        refused(
            lambda text=text: Folder(write_zip(path, files | {"dataset.json": text})), path, "00000/img00000000.png"
        )
    refused(lambda: Folder(write_zip(path, stylegan([-1] * 12))), path, "from -1 to -1")
    refused(lambda: Folder(write_zip(path, {"dataset.json": b'{"labels": null}'})), "no image in")
    records = Folder(write_zip(path, files | {"00002/more.png": NOISE[0]}))
    bad(records, 12, "00002/more.png", "no label in dataset.json")
    data = path.read_bytes()
    start = data.index(encoded(NOISE[0]))
    path.write_bytes(data[: start + 40] + b"\0\0\0\0" + data[start + 44 :])
    bad(Folder(path), 0, "CRC")


# Subsets.


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(12)),
        ("train[:5]", range(5)),
        ("train[9:]", range(9, 12)),
        ("train[-3:-1]", range(9, 11)),
        ("train[50%:]", range(6, 12)),
        ("train[:-20%]", range(10)),
        ("train[10%:99%]", range(1, 12)),
    ],
)
@EVERY
def test_a_subset_is_those_examples_of_the_set(make, split, expected, tmp_path):
    whole = make(tmp_path)
    records = Subset(whole, chosen(split, 12))
    for example, i in zip(records, expected, strict=True):
        same(example, whole[i])
    assert records.classes == whole.classes
    if records.classes:
        np.testing.assert_array_equal(records.labels(), whole.labels()[list(expected)])
    assert f"(example {expected[0]} of 12)" in records.where(0)
    if split != "train":
        assert records.fingerprint not in ("", whole.fingerprint)


def test_tfds_takes_the_same_of_a_set(tfds_data):
    tfds = pytest.importorskip("tensorflow_datasets")
    for split in ("test[:7]", "test[33%:67%]", "test[-3%:]", "test[:-99%]"):
        official = tfds.data_source("mnist", split=split, data_dir=str(tfds_data))
        records = Subset(Tfds("mnist", "test", tfds_data), chosen(split, 10_000))
        assert len(records) == len(official)
        for i in (0, len(records) - 1):
            np.testing.assert_array_equal(records[i]["image"], official[i]["image"])


@pytest.mark.parametrize(
    "split", ["train[:13]", "train[-13:]", "train[5:5]", "train[7:3]", "train[:0%]", "train[:101%]"]
)
def test_a_subset_of_nothing_or_beyond_the_set_is_refused(split):
    refused(lambda: chosen(split, 12), f"data.split is {split!r}", "the 12 examples of train")


@pytest.mark.parametrize("split", ["train[3]", "train[a:]", "train[:3", "train[0:4:2]", "train[:1.5%]"])
def test_another_form_of_split_is_refused(split, tmp_path):
    for values in ({"name": "digits"}, {"name": "folder", "dir": str(tmp_path)}):
        refused(
            lambda values=values: make_source(values | {"split": split}),
            "it is NAME or NAME[a:b], such as train[:1000]",
        )


def test_every_finite_set_has_subsets_with_all_its_classes(tmp_path):
    np.savez(tmp_path / "x.npz", images=NOISE, labels=np.arange(12) % 3)
    write_folder(tmp_path / "f", {f"{'ab'[i % 2]}/{i:02}.png": x for i, x in enumerate(NOISE)})
    for values, names in (
        ({"name": "arrays", "dir": str(tmp_path / "x.npz")}, ("0", "1", "2")),
        ({"name": "folder", "dir": str(tmp_path / "f")}, ("a", "b")),
        ({"name": "digits"}, tuple("0123456789")),
    ):
        sources = [make_source(values | {"split": split}) for split in ("train[:1]", "train[1:4]")]
        assert [(source.size, source.classes) for source in sources] == [(1, names), (3, names)]
        assert len({make_source(values | {"split": split}).identity for split in ("train[:2]", "train[1:3]")}) == (
            1 if values["name"] == "digits" else 2
        )


def test_a_crop_of_another_shape_is_the_largest_one_in_the_middle():
    image = np.arange(4 * 8, dtype=np.uint8).reshape(4, 8, 1)
    np.testing.assert_array_equal(fit(image, 4, 1, 2), image[:, 3:5])
    np.testing.assert_array_equal(fit(image, 2, 1, 8), image[1:3])
    assert fit(image, 3, 1, 9).shape == (3, 9, 1)
