"""Data of one's own in every form: what it becomes, that runs on it go on to the same bits, what is refused."""

import itertools
import sys
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gan_jax
from gan_jax import recipe
from gan_jax.cli.sample import Wish, sample
from gan_jax.data import Source, independent, make_source, source
from gan_jax.data.mixture import ring8
from gan_jax.data.own import HELD, part
from gan_jax.runs import workdirs
from gan_jax.runs.sampler import Generate
from gan_jax.runs.trained import Trained
from gan_jax.training.loop import open_loader, train
from gan_jax.training.writers import Writers
from gan_jax.utils.errors import InputError

COUNT = 24
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 16, 1), dtype=np.uint8)
IMAGES[:, 0, 0, 0] = np.arange(COUNT)
CLASSES = np.arange(COUNT) % 3
VECTORS = np.random.default_rng(1).normal(size=(COUNT, 4)).astype(np.float32)
FLOATS = IMAGES / np.float32(127.5) - 1


def as_source(thing, values):
    return make_source({"name": "own:source"} | values, part(thing))


class Tensor:
    """What PyTorch hands over: an array in its own clothes, channels first."""

    def __init__(self, array):
        self._array, self.shape = array, np.shape(array)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array, dtype)


class Feature:
    names = ("a", "b", "c")


class Items:
    """A map-style set, each example by `form`(i)."""

    def __init__(self, form, **attributes):
        self.form = form
        vars(self).update(attributes)

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        return self.form(i)


class Stream:
    """An iterable of (image, label), the same each time."""

    classes, images = ("a", "b", "c"), IMAGES

    def __iter__(self):
        return zip(self.images, CLASSES, strict=True)


def picture(i):
    return Image.fromarray(IMAGES[i, ..., 0])


def as_torch(i):
    return Tensor(np.moveaxis(FLOATS[i], -1, 0)), Tensor(np.int64(CLASSES[i]))


CLASS_FORMS = {
    "pair": (IMAGES, CLASSES),
    "dict": {"image": FLOATS, "label": CLASSES},
    "tensors": (Tensor(IMAGES), Tensor(CLASSES)),
    "hugging face": Items(lambda i: {"image": picture(i), "label": int(CLASSES[i])}, features={"label": Feature}),
    "torch": Items(as_torch, classes=["a", "b", "c"]),
    "counted": Items(as_torch),
    "list": [(IMAGES[i], int(CLASSES[i])) for i in range(COUNT)],
    "iterable": Stream(),
    "generator": lambda: iter(Stream()),
}


def numbers_of(images):
    """Which of IMAGES they are."""
    return np.round((np.asarray(images)[..., 0, 0, 0] + 1) * 127.5).astype(int)


def all_of(own):
    return source.pick(own, np.arange(own.size), jax.random.split(jax.random.key(0), own.size))


@pytest.mark.parametrize("form", CLASS_FORMS)
def test_every_form_of_images_and_classes_gives_the_same_examples(form):
    own = as_source(CLASS_FORMS[form], {})
    assert (own.shape, own.size, len(own.classes), own.attributes) == ((8, 16, 1), COUNT, 3, ())
    examples = all_of(own)
    np.testing.assert_allclose(examples["image"], FLOATS, atol=1e-6)
    np.testing.assert_array_equal(examples["label"], CLASSES)
    assert own.std == pytest.approx(FLOATS.std(), rel=1e-4)
    assert own.classes[0] == ("a" if form in ("hugging face", "torch", "iterable") else "0")


@pytest.mark.parametrize(
    "form",
    [
        (IMAGES, VECTORS),
        Items(lambda i: {"img": IMAGES[i], "labels": VECTORS[i].tolist()}, attributes=["w", "x", "y", "z"]),
        lambda: ((IMAGES[i], VECTORS[i]) for i in range(COUNT)),
    ],
)
def test_labels_that_are_vectors(form):
    own = as_source(form, {})
    assert (own.classes, len(own.attributes)) == ((), 4)
    np.testing.assert_array_equal(all_of(own)["label"], VECTORS)
    assert all_of(own)["label"].dtype == np.float32


def test_the_keys_of_images_hold_for_ones_own():
    values = {"image_size": 4, "image_width": 2, "channels": 3, "placement": "stream", "split": "train[-25%:]"}
    own = as_source(Items(as_torch), values)
    assert (own.shape, own.size, own.streamed) == ((4, 2, 3), 6, True)
    splits = {"train": Items(as_torch), "test": (IMAGES, CLASSES)}
    np.testing.assert_array_equal(numbers_of(all_of(as_source(splits, {"split": "test[2:5]"}))["image"]), [2, 3, 4])
    points = as_source(VECTORS, {"split": "train[:10]"})
    np.testing.assert_array_equal(all_of(points)["image"], VECTORS[:10])


def test_a_function_of_a_key_is_endless():
    def draw(key):
        return jnp.tanh(jax.random.normal(key, (4, 4, 1))), jax.random.randint(key, (), 0, 7)

    with pytest.raises(InputError, match="labels of own:source are integers; set its attribute `classes`"):
        as_source(draw, {})
    draw.classes = 7
    own, keys = as_source(draw, {}), jax.random.split(jax.random.key(1), 5)
    assert (own.shape, own.size, len(own.classes)) == ((4, 4, 1), 0, 7)
    drawn = independent(own, keys)
    np.testing.assert_allclose(drawn["image"][3], draw(keys[3])[0], rtol=1e-5)
    assert drawn["label"][3] == draw(keys[3])[1]
    many = np.tanh(np.random.default_rng(0).normal(size=100_000))
    assert own.std == pytest.approx(many.std(), rel=0.02)


class Batches:
    def __iter__(self):
        yield FLOATS, CLASSES


def late(key):
    return np.asarray(key) + 1.0


def outside(key):
    return jnp.tanh(jax.random.normal(key, (4, 4, 1))), jax.random.randint(key, (), 0, 3)


outside.classes = 2


def failing():
    yield IMAGES[0]
    raise RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("thing", "values", "words"),
    [
        (iter(Stream()), {}, "is an iterator, which can be read only once; hand over a function"),
        (3, {}, "is a int; data is a Source, arrays .* an iterable"),
        (IMAGES / 255, {}, r"by the look of it in \[0, 1\]; .* 2 \* x - 1"),
        (Items(lambda i: IMAGES[i] / 255), {}, r"by the look of it in \[0, 1\]"),
        (Items(lambda i: {"pixels": IMAGES[i]}), {}, "a dict of pixels; an example is an image"),
        (Items(lambda i: VECTORS[i]), {}, r"an array \[4\]; .* points as one array \[n, d\]"),
        (Batches(), {}, r"an array \[24, 8, 16, 1\]; .* no batches"),
        (Items(lambda i: (IMAGES[i], 0.5)), {}, "a label is an integer, the class, or a vector"),
        (Items(lambda i: (IMAGES[i], VECTORS[i, : 1 + (i > 0)])), {}, "and is to be 1 finite numbers, as of those"),
        ((IMAGES, CLASSES[:5]), {}, r"labels of dtype int64 and shape \[5\]"),
        ([], {}, "has 0 examples"),
        ({}, {}, "has 0 examples"),
        (outside, {}, r"draws labels outside 0 \.\.\. 1"),
        (failing, {}, "fails after 1 items: RuntimeError: two lines"),
        (late, {}, "cannot be run on the device: "),
        (lambda key: (jnp.zeros(2), 0.5), {}, r"label is float32 \[\]; it is to be an integer, or a vector \[m\]"),
        (lambda key: jax.random.uniform(key, (4, 4, 1)), {}, r"by the look of it in \[0, 1\]"),
        (VECTORS, {"flip": True}, "data.flip is True, but own:source has no flip; set it to False"),
        (VECTORS, {"split": "test"}, "data.split is 'test'; own:source has train"),
        (Stream(), {"split": "train[:5]"}, "source is an iterable, which is streamed as it comes; set it to train"),
        (Stream(), {"placement": "device"}, "data.placement is 'device', .* set it to stream"),
        (IMAGES, {"image_width": 4}, "image_width is 4, but data.image_size is 0; set both"),
        ({"train": IMAGES}, {"split": "dev"}, "data.split is 'dev'; own:source has train"),
    ],
)
def test_what_is_no_data_is_one_line(thing, values, words):
    with pytest.raises(InputError, match=words) as raised:
        as_source(thing, values)
    assert "\n" not in str(raised.value)


LAB = """
import numpy as np
from typing import Annotated
from gan_jax.data.mixture import ring8
from gan_jax.utils.keys import POSITIVE_INT

x = np.arange(10 * 16, dtype=np.uint8).reshape(10, 4, 4, 1)


class Set:
    def __len__(self): return len(x)
    def __getitem__(self, i): return x[i]


def some(count: Annotated[int, POSITIVE_INT, "images"] = 3):
    return x[:count]


def endless():
    while True:
        yield x[0]


def points(): return ring8()
def two(a, b): return x
"""


def test_an_import_path_names_any_form_with_the_keys_of_images_and_its_own(tmp_path, monkeypatch, shrunk):
    (tmp_path / "my_sets.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert make_source({"name": "my_sets:Set", "image_size": 2}).shape == (2, 2, 1)
        assert make_source({"name": "my_sets:x", "split": "train[:4]"}).size == 4
        assert make_source({"name": "my_sets:some", "count": 5, "channels": 3}).size == 5
        assert make_source({"name": "my_sets:endless"}).size == HELD
        for values, words in (
            ({"name": "my_sets:points", "flip": True}, "data.flip is True, but my_sets:points has no flip"),
            ({"name": "my_sets:two"}, "my_sets:two is a function that needs a, b; data is"),
            ({"name": "my_sets:some", "dir": "x"}, "data.dir is 'x', but my_sets:some has no dir"),
        ):
            with pytest.raises(InputError, match=words):
                make_source(values)
        config = shrunk(
            "dcgan", None, {"data.name": "my_sets:some", "data.image_size": 2}
        ).copy_and_resolve_references()
        assert recipe.build(config).config.data.count == 3
    finally:
        sys.modules.pop("my_sets")


def config_of(shrunk, **changes):
    changes = {"num_steps": 8, "log_every": 2, "sample_every": 8, "batch_size": 4} | changes
    return shrunk("dcgan", None, {name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize("form", ["torch", "iterable"])
def test_a_run_on_ones_own_data_goes_on_to_the_same_bits(form, shrunk, tmp_path, monkeypatch, capsys):
    setup = recipe.build(config_of(shrunk, conditional=True, checkpoint_every=4), source=CLASS_FORMS[form])
    assert train(setup, tmp_path / "whole")
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(Writers, "progress", lambda *_: calls.append(1) or (1 / 0 if len(calls) == 3 else None))
        with pytest.raises(ZeroDivisionError):
            train(setup, tmp_path / "cut")
    capsys.readouterr()
    assert train(recipe.build(setup.config, source=CLASS_FORMS[form]), tmp_path / "cut")
    said = capsys.readouterr().err
    assert "going on from step 4" in said
    assert ("passing 16 items" in said) == (form == "iterable")
    for name in ("metrics.jsonl", "samples/00000008.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_iterable_is_met_in_its_own_order_from_where_the_step_says(shrunk):
    setup = recipe.build(config_of(shrunk), source=Stream())
    with closing(open_loader(setup, recipe.initial_state(setup), None)) as loader:
        met = [np.asarray(loader.call(now, now + 2)["image"])[..., 0, 0, 0].ravel() for now in (0, 2, 5)]
    np.testing.assert_array_equal(met, [np.arange(8), np.arange(8, 16), np.arange(20, 28) % COUNT])


def test_data_that_gives_other_examples_than_before_is_told(tmp_path, capsys):
    workdirs.settle_data(tmp_path, as_source(Stream(), {}))
    workdirs.settle_data(tmp_path, as_source(Stream(), {}))
    assert capsys.readouterr().err == ""
    other = Stream()
    other.images = IMAGES[::-1]
    workdirs.settle_data(tmp_path, as_source(other, {}))
    assert "gives other examples than when the run began" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_passed_or_ends_the_run(capsys):
    def some_damaged():
        return ((b"no image" if i == 2 else IMAGES[i]) for i in range(COUNT))

    own = as_source(some_damaged, {"corrupt": "skip"})
    assert numbers_of(all_of(own)["image"]).tolist() == [0, 1, 3, *range(3, COUNT)]
    np.testing.assert_array_equal(
        [numbers_of(x["image"] / 127.5 - 1) for x in itertools.islice(own.items(1), 3)], [1, 3, 4]
    )
    assert "skipped own:source (item 2): neither PNG nor JPEG nor WebP" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"neither PNG.*; mend or remove it, or set data\.corrupt to skip"):
        as_source(some_damaged, {})


def test_vectors_of_labels_reach_both_players_and_every_picture(shrunk, tmp_path, monkeypatch):
    config = config_of(shrunk, conditional=True, num_steps=2, evaluate_every=2, health_every=2)
    config = config.copy_and_resolve_references().unlock()
    config.evaluation.extractor, config.evaluation.num_samples, config.evaluation.num_real = "pixels", 24, 24
    setup = recipe.build(config.lock(), source=(IMAGES, VECTORS))
    assert train(setup, tmp_path)
    run = gan_jax.load(tmp_path)  # which has no image
    assert list(sample(run, tmp_path, Wish(interpolate=3))) == [tmp_path / "interpolation.png"]
    assert len(list(sample(run, tmp_path, Wish(num_samples=30)))) == 2
    written = np.load(tmp_path / "samples.npz")
    np.testing.assert_array_equal(written["labels"], VECTORS[np.arange(30) % COUNT])
    expected = Generate(setup).examples(run.state.ema, jax.random.key(0), 30)
    np.testing.assert_array_equal(written["samples"], expected)
    assert (tmp_path / "samples.png").read_bytes() == (tmp_path / "samples" / "00000002.png").read_bytes()
    (tmp_path / workdirs.LABELS).unlink()
    assert workdirs.known_source(tmp_path) is None


def test_a_run_is_held_to_the_size_of_its_labels(tmp_path):
    workdirs.settle_data(tmp_path, as_source((IMAGES, VECTORS), {}))
    with pytest.raises(InputError, match="its attributes was 4 and is 3"):
        workdirs.settle_data(tmp_path, as_source((IMAGES, VECTORS[:, :3]), {}))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_points_of_unknown_density_train_and_are_drawn(d, shrunk, tmp_path):
    config = shrunk("mixture", "ring8", {"num_steps": 2, "sample_every": 2})
    assert train(recipe.build(config, source=VECTORS[:, [0] * d] + np.arange(d)), tmp_path)
    assert (tmp_path / "samples" / "00000002.png").exists()


@pytest.mark.parametrize("network", ["dcgan", "resnet", "r3gan"])
def test_images_need_not_be_square(network, shrunk, tmp_path):
    changes = {f"{player}.network": network for player in ("generator", "discriminator")}
    if network == "r3gan":
        changes |= {f"{x}.{key}": 1 for x in ("generator", "discriminator") for key in ("blocks", "groups")}
    if network != "dcgan":
        changes |= {f"{player}.normalization": "none" for player in ("generator", "discriminator")}
    changes |= {"num_steps": 1, "sample_every": 1, "health_every": 1, "data.name": "arrays", "data.dir": "x.npy"}
    np.save(tmp_path / "x.npy", np.repeat(IMAGES, 3, axis=1))  # 24 x 16
    changes |= {"data.dir": str(tmp_path / "x.npy"), "data.image_size": 8, "data.image_width": 16}
    setup = recipe.build(shrunk("dcgan", None, changes))
    assert setup.source.shape == (8, 16, 1)
    assert train(setup, tmp_path / "run")
    list(sample(Trained(setup, recipe.initial_state(setup)), tmp_path, Wish(num_samples=2)))
    assert np.load(tmp_path / "samples.npz")["samples"].shape == (2, 8, 16, 1)


def test_a_source_as_it_is():
    made = ring8()
    assert as_source(made, {}) is made
    assert isinstance(as_source(ring8, {}), Source)
    with pytest.raises(InputError, match="flip is True, but own:source has no flip"):
        as_source(made, {"flip": True})


def test_what_is_handed_over_has_its_keys_whatever_the_config_named(shrunk):
    config = config_of(shrunk, data__name="digits", data__image_size=4, data__split="train[:16]", data__flip=True)
    setup = recipe.build(config, source=(IMAGES, CLASSES))
    assert (setup.source.shape, setup.source.size) == ((4, 4, 1), 16)
    assert recipe.build(setup.config).source.size == 16
    recipe.build(config_of(shrunk), source=(IMAGES[:8], CLASSES[:8]))  # of that name, too
    assert setup.reference("train[:12]").size == 12
    assert recipe.build(config_of(shrunk), source=Stream).config.data.name == f"{__name__}:Stream"
