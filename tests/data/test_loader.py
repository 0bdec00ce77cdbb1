"""Resident and streamed sets: the same numbers, each example once an epoch, decoded once."""

import json
import re
import resource
import signal
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from gan_jax import recipe, step
from gan_jax.data import Source, independent, make_source, resident, shuffle
from gan_jax.data.readers.arrays import Arrays
from gan_jax.data.readers.records import BadExampleError, Reader
from gan_jax.parallel.devices import mesh, pmapped
from gan_jax.runs import workdirs
from gan_jax.runs.sampler import Generate
from gan_jax.training.loop import next_boundary, open_loader, train
from gan_jax.training.writers import Writers
from gan_jax.utils.errors import InputError

COUNT, CLASSES = 21, 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of decoded sets of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gan_jax" / "data"


@pytest.fixture
def array_file(tmp_path):
    """COUNT images of noise whose corner pixel is their number, with labels."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 4, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(COUNT)
    path = tmp_path / "images.npz"
    np.savez(path, image=images, label=np.arange(COUNT) % CLASSES)
    return path


def numbers_of(images):
    """The corner pixels of images [..., 4, 4, 1] in [-1, 1] as what they were in the file."""
    return np.round((np.asarray(images)[..., 0, 0, 0] + 1) * 127.5).astype(int)


def config_of(shrunk, array_file, placement, **changes):
    data = {"data.name": "arrays", "data.dir": str(array_file), "data.placement": placement}
    return shrunk("digits", None, data | {"batch_size": 4, "num_steps": 9} | changes)


@pytest.mark.usefixtures("optimized")  # these are two programs, which round alike as users compile them
def test_a_streamed_run_interrupted_or_not_gives_the_bits_of_a_resident_one(shrunk, array_file, tmp_path, monkeypatch):
    monkeypatch.setattr("gan_jax.data.readers.records.SAMPLED", 5)  # of which the standard deviation comes
    changes = {"data.flip": True, "conditional": True, "discriminator.steps": 2}
    changes |= {"log_every": 2, "num_steps": 10, "sample_every": 10}
    metrics, pictures, deviations = {}, {}, set()

    def run(name, placement):
        setup = recipe.build(config_of(shrunk, array_file, placement, **changes))
        assert setup.source.streamed == (placement == "stream")
        deviations.add(setup.source.std)
        assert train(setup, tmp_path / name)
        metrics[name] = (tmp_path / name / "metrics.jsonl").read_text()
        pictures[name] = (tmp_path / name / "samples" / "00000010.png").read_bytes()

    run("device", "device")
    run("stream", "stream")
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(Writers, "progress", lambda *_: calls.append(1) or (1 / 0 if len(calls) == 4 else None))
        with pytest.raises(ZeroDivisionError):
            run("interrupted", "stream")
    run("interrupted", "stream")
    assert metrics["device"] == metrics["stream"] == metrics["interrupted"]
    assert pictures["device"] == pictures["stream"] == pictures["interrupted"]
    assert len(metrics["device"].splitlines()) == 5
    assert len(deviations) == 1


def test_a_run_is_held_to_the_data_that_it_began_with(shrunk, array_file, tmp_path, capsys):
    config = config_of(shrunk, array_file, "device", num_steps=2)
    source = recipe.build(config).source
    workdirs.settle_data(tmp_path, source)
    capsys.readouterr()
    workdirs.settle_data(tmp_path, source)
    assert capsys.readouterr().err == ""
    workdirs.settle_data(tmp_path, source._replace(identity="another"))
    assert "have changed since the run began" in capsys.readouterr().err
    for name, other in (("size", 20), ("classes", ("a", "b")), ("shape", (8, 8, 1))):
        with pytest.raises(InputError, match=f"its {name} was .*put it back"):
            workdirs.settle_data(tmp_path, source._replace(**{name: other}))


@pytest.mark.parametrize("about", ["[]", "{}", '"x"', '{"shape": [2], "size": 0, "classes": 5, "identity": ""}'])
def test_notes_of_another_kind_are_not_what_a_run_has_of_its_data(about, tmp_path):
    (tmp_path / workdirs.DATA).write_text(about)
    source = Source((2,), draw=None, std=1.0)
    for use in (partial(workdirs.settle_data, source=source), workdirs.known_source):
        with pytest.raises(InputError, match=r"data\.json does not describe the data of a run; remove it"):
            use(tmp_path)
    assert (tmp_path / workdirs.DATA).read_text() == about


def test_an_unreadable_example_in_a_stream_ends_the_run_with_its_name_and_saves_it(
    shrunk, array_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("gan_jax.data.readers.arrays.Arrays", Damaged)
    monkeypatch.setattr(Damaged, "bad", ())
    setup = recipe.build(config_of(shrunk, array_file, "stream", num_steps=12, checkpoint_every=12, log_every=12))
    words = np.asarray(step.order_words(recipe.initial_state(setup).key))
    late = int(shuffle.examples(words, COUNT, 4, 4, np.arange(4, dtype=np.uint32))[0])  # of the fifth minibatch
    monkeypatch.setattr(Damaged, "bad", (late,))
    with pytest.raises(InputError, match=rf"example {late} of 21\): torn"):
        train(setup, tmp_path / "run")
    (saved,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert 0 < saved <= 4


def test_scores_of_a_conditional_generator_have_the_data_s_labels(shrunk, tmp_path):
    path = tmp_path / "images.npz"
    labels = np.arange(100) >= 90
    np.savez(path, image=np.zeros((100, 4, 4, 1), np.uint8), label=labels.astype(int))
    setup = recipe.build(config_of(shrunk, path, "device", conditional=True))
    generator = setup.recipe.generator._replace(
        apply=lambda params, stats, z, train, label: (jnp.ones((len(z), 4, 4, 1)) * label[:, None, None, None], stats)
    )
    setup = setup._replace(recipe=setup.recipe._replace(generator=generator))
    made = Generate(setup).for_scores(recipe.initial_state(setup).ema, jax.random.key(0), 1000)[:, 0, 0, 0]
    assert abs(made.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 1000)


@pytest.mark.parametrize("layout", [mesh, pmapped])
def test_minibatches_are_spread_by_example(layout):
    devices = layout()
    batch = np.arange(2 * 3 * 8 * 5).reshape(2, 3, 8, 5)
    spread = devices.spread({"image": batch})["image"]
    np.testing.assert_array_equal(np.asarray(spread).reshape(batch.shape), batch)
    parts = {shard.data.size for shard in spread.addressable_shards}
    assert parts == {batch.size // devices.count}


def test_a_full_disk_leaves_the_set_in_memory(array_file, cache, capsys):
    # A limit on the size of files stands for it: both are an OSError of the write.
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        loaded = resident.load(Reader(Arrays(array_file), 0, 0, "stop"), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    np.testing.assert_array_equal(loaded.data["image"][:, 0, 0, 0], np.arange(COUNT))
    assert "the decoded set is not kept" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def streamed(setup, state):
    return open_loader(setup, state, partial(next_boundary, setup.config))


def test_a_stream_meets_each_example_once_an_epoch_wherever_calls_begin(shrunk, array_file):
    changes = {"num_steps": 50, "log_every": 7, "sample_every": 0, "checkpoint_every": 11, "steps_per_call": 3}
    setup = recipe.build(config_of(shrunk, array_file, "stream", **changes))
    state, met, now = recipe.initial_state(setup), [], 0
    with closing(streamed(setup, state)) as stream:
        while now < 50:
            after = next_boundary(setup.config, now)
            rows = stream.call(now, after)
            assert rows["image"].shape == (after - now, 1, 4, 4, 4, 1)
            met.append(np.asarray(rows["image"])[..., 0, 0, 0].ravel())
            now = after
    met = np.concatenate(met)
    for epoch in range(50 * 4 // COUNT):
        np.testing.assert_array_equal(np.sort(met[epoch * COUNT : (epoch + 1) * COUNT]), np.arange(COUNT))
    # A run that goes on from any step, or back to it, meets what the first one met there.
    with closing(streamed(setup, state)) as stream:
        for first, last in ((33, 35), (35, 36), (21, 22)):
            rows = np.asarray(stream.call(first, last)["image"])[..., 0, 0, 0].ravel()
            np.testing.assert_array_equal(rows, met[4 * first : 4 * last])


def test_a_label_stays_with_its_image(shrunk, array_file):
    for placement in ("device", "stream"):
        source = recipe.build(config_of(shrunk, array_file, placement)).source
        drawn = independent(source, jax.random.split(jax.random.key(0), 50))
        np.testing.assert_array_equal(numbers_of(drawn["image"]) % CLASSES, drawn["label"])
        assert drawn["label"].dtype == np.int32
        assert source.classes == ("0", "1", "2")


def test_independent_draws_are_the_same_resident_or_streamed(shrunk, array_file):
    keys = jax.random.split(jax.random.key(3), 40)
    drawn = [
        independent(recipe.build(config_of(shrunk, array_file, placement, **{"data.flip": True})).source, keys)["image"]
        for placement in ("device", "stream")
    ]
    np.testing.assert_array_equal(*drawn)
    assert len(np.unique(numbers_of(drawn[0]))) > 5


def test_flips_mirror_half_of_the_images_left_to_right(shrunk, array_file):
    source = recipe.build(config_of(shrunk, array_file, "device", **{"data.flip": True})).source
    stored = np.asarray(source.data["image"]).astype(np.float32) / 127.5 - 1
    keys = jax.random.split(jax.random.key(0), 400)
    drawn = np.asarray(jax.jit(source.draw)(source.data, np.arange(400) % COUNT, keys)["image"])
    original = stored[np.arange(400) % COUNT]
    kept = np.all(np.abs(drawn - original) < 1e-6, axis=(1, 2, 3))
    mirrored = np.all(np.abs(drawn - original[:, :, ::-1]) < 1e-6, axis=(1, 2, 3))
    np.testing.assert_array_equal(kept, ~mirrored)
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(400)


def test_a_set_is_decoded_once(shrunk, array_file, cache, monkeypatch):
    config = config_of(shrunk, array_file, "device")
    first = recipe.build(config).source
    (folder,) = cache.iterdir()
    assert json.loads((folder / "about.json").read_text())["arrays"] == ["image", "label"]
    monkeypatch.setattr(Arrays, "__getitem__", lambda self, i: {"image": np.zeros((4, 4, 1), np.uint8), "label": 0})
    again = recipe.build(config).source
    np.testing.assert_array_equal(again.data["image"], first.data["image"])
    np.testing.assert_array_equal(again.data["label"], first.data["label"])
    assert again.std == first.std == pytest.approx(np.std(first.data["image"] / 127.5 - 1))
    assert list(cache.iterdir()) == [folder]


def test_other_content_or_options_are_decoded_anew(shrunk, array_file, cache):
    recipe.build(config_of(shrunk, array_file, "device"))
    half = recipe.build(config_of(shrunk, array_file, "device", **{"data.image_size": 2})).source
    assert half.shape == (2, 2, 1)
    colour = recipe.build(config_of(shrunk, array_file, "device", **{"data.channels": 3})).source
    assert colour.shape == (4, 4, 3)
    np.savez(array_file, image=np.zeros((5, 4, 4, 1), np.uint8))
    other = recipe.build(config_of(shrunk, array_file, "device")).source
    assert other.size == 5
    assert other.classes == ()
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", ["torn", "empty", "no json", "missing"])
def test_a_torn_cache_is_decoded_again(shrunk, array_file, cache, damage):
    config = config_of(shrunk, array_file, "device")
    expected = np.array(recipe.build(config).source.data["image"])
    (folder,) = cache.iterdir()
    if damage == "torn":
        (folder / "image.npy").write_bytes((folder / "image.npy").read_bytes()[:-5])
    elif damage == "empty":
        (folder / "image.npy").write_bytes(b"")
    elif damage == "no json":
        (folder / "about.json").write_text("{")
    else:
        (folder / "label.npy").unlink()
    np.testing.assert_array_equal(recipe.build(config).source.data["image"], expected)
    np.testing.assert_array_equal(resident._read(folder).data["image"], expected)
    assert list(cache.iterdir()) == [folder]


def test_where_the_cache_cannot_be_written_the_set_is_held_in_memory(shrunk, array_file, cache, capsys):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder would be")
    source = recipe.build(config_of(shrunk, array_file, "device")).source
    np.testing.assert_array_equal(source.data["image"][:, 0, 0, 0], np.arange(COUNT))
    assert "the decoded set is not kept" in capsys.readouterr().err


class Damaged(Arrays):
    """Some of whose examples cannot be read."""

    bad = (0, 7, 8)

    def __getitem__(self, i):
        if i in self.bad:
            raise BadExampleError(f"{self.where(i)}: torn")
        return super().__getitem__(i)


def test_corrupt_examples_stop_or_are_skipped_and_counted(array_file, capsys):
    with pytest.raises(InputError, match=r"example 0 of 21\): torn; .*set data.corrupt to skip"):
        resident.load(Reader(Damaged(array_file), 0, 0, "stop"), 2)
    for message in ("skipped .*example 0 of 21.*torn", "without 3 corrupt examples"):
        loaded = resident.load(Reader(Damaged(array_file), 0, 0, "skip"), 2)
        good = [i for i in range(COUNT) if i not in Damaged.bad]
        np.testing.assert_array_equal(loaded.data["image"][:, 0, 0, 0], good)
        np.testing.assert_array_equal(loaded.data["label"], np.array(good) % CLASSES)
        assert re.search(message, capsys.readouterr().err)
    rows = Reader(Damaged(array_file), 0, 0, "skip").rows(np.array([6, 7, 8, 9, 0]))
    np.testing.assert_array_equal(rows["image"][:, 0, 0, 0], [6, 9, 9, 9, 1])
    Damaged.bad, bad = tuple(range(COUNT)), Damaged.bad
    try:
        with pytest.raises(InputError, match="none of the 21 examples can be read"):
            Reader(Damaged(array_file), 0, 0, "skip").rows(np.array([3]))
    finally:
        Damaged.bad = bad


def test_a_set_too_big_for_the_device_is_streamed_or_refused(shrunk, array_file, monkeypatch):
    monkeypatch.setattr("gan_jax.data.stored.room_for_data", lambda: COUNT * 16 - 1)
    assert recipe.build(config_of(shrunk, array_file, "auto")).source.streamed
    with pytest.raises(InputError, match=r"has room for.*set data.placement to stream"):
        recipe.build(config_of(shrunk, array_file, "device"))
    monkeypatch.setattr("gan_jax.data.stored.room_for_data", lambda: COUNT * 16)
    assert not recipe.build(config_of(shrunk, array_file, "auto")).source.streamed


def test_resident_data_is_one_and_the_same_for_all_calls(shrunk, array_file):
    setup = recipe.build(config_of(shrunk, array_file, "device"))
    with closing(open_loader(setup, recipe.initial_state(setup), lambda now: now + 1)) as data:
        assert data.call(0, 1) is data.call(5, 6)
        assert data.waited == 0
        assert data.call(0, 1)["image"].dtype == np.uint8


def values(**changes):
    return base.get_config().data.to_dict() | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [  # and those of test_data_command.py
        ({"name": "ring8", "dir": "x"}, "data.dir is 'x', but ring8 has no dir; set it to '', or data.name to one"),
        ({"name": "ring8", "flip": True}, "data.flip is True, but ring8 has no flip; set it to False"),
        ({"name": "ring8", "split": "test"}, "data.split is 'test', but ring8 has no split; set it to 'train'"),
        ({"name": "arrays"}, "data.dir is missing; for data.name=arrays it is the .npz or .npy file"),
    ],
)
def test_keys_that_a_set_does_not_use_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_source(values(**changes))


def test_conditional_training_needs_two_classes(shrunk, tmp_path):
    for labels, has in ((None, "has none"), (np.zeros(6, int), "has a single one, 0")):
        path = tmp_path / "images.npz"
        np.savez(path, image=np.zeros((6, 4, 4, 1), np.uint8), **({} if labels is None else {"label": labels}))
        with pytest.raises(InputError, match=has):
            recipe.build(config_of(shrunk, path, "device", conditional=True))
