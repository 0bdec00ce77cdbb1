"""From samples to scores: extractors, references, comparisons, and what a run keeps of them."""

import json
import shutil

import jax
import numpy as np
import pytest
from conftest import ROOT  # noqa: F401  sets up the devices before JAX starts

from configs import base
from gan_jax import recipe
from gan_jax.data import Source, make_source
from gan_jax.evaluation.features import reference
from gan_jax.evaluation.features.extractors import BATCH, Features, extract, make_extractor
from gan_jax.evaluation.features.reference import load_reference
from gan_jax.evaluation.metrics.comparison import HIGHER, LOWER, SCORES, Examples, Need, better, compare, needs_met
from gan_jax.evaluation.metrics.neighbours import memorisation
from gan_jax.parallel.devices import mesh
from gan_jax.runs.checkpoints import Best, Checkpoints
from gan_jax.runs.sampler import Generate
from gan_jax.training.evaluator import Scoring, evaluate_run
from gan_jax.training.loop import train
from gan_jax.utils.errors import InputError
from gan_jax.utils.plots import to_uint8

DIGITS = make_source(base.get_config().data.to_dict() | {"name": "digits"})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gan_jax" / "references"


def noise(n, shape=(8, 8, 1), seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


# Extractors.


def test_eight_bits_are_those_of_a_file():
    np.testing.assert_array_equal(to_uint8(np.float32([-1, -0.998, 0.999, 1, -3, 3])), [0, 0, 255, 255, 0, 255])
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(levels.astype(np.float32) / 127.5 - 1), levels)


@pytest.mark.parametrize("name", ["pixels", "digits"])
def test_features_do_not_depend_on_the_batch_nor_on_the_devices(name):
    extractor, images = make_extractor(name, ""), to_uint8(noise(BATCH + 3))
    found = extract(extractor, mesh(jax.devices()[:1]), images)
    few = extract(extractor, mesh(jax.devices()[:3]), images[-5:])  # three devices share no power of two
    np.testing.assert_allclose(few.values, found.values[-5:], rtol=1e-5, atol=1e-5)
    assert len(found.values) == BATCH + 3
    if name == "pixels":
        np.testing.assert_allclose(found.values, images.reshape(-1, 64) / 127.5 - 1, atol=1e-6)
        assert found.logits is None
    else:
        assert found.logits.shape == (BATCH + 3, 10)


def test_a_classifier_sees_each_channel_by_itself():
    extractor, devices = make_extractor("digits", ""), mesh(jax.devices()[:1])
    images = noise(4, (8, 8, 3))
    stacked = extract(extractor, devices, images)
    single = [extract(extractor, devices, images[..., [channel]]) for channel in range(3)]
    np.testing.assert_allclose(stacked.values, np.concatenate([each.values for each in single], axis=1), atol=1e-5)
    np.testing.assert_allclose(stacked.logits, np.stack([each.logits for each in single], axis=1), atol=1e-5)


def test_a_classifier_gets_images_of_its_size():
    image = np.full((2, 16, 16, 1), 0.5, np.float32)  # constant, and so is what it is resized to
    extractor, devices = make_extractor("digits", ""), mesh(jax.devices()[:1])
    resized, same = (extract(extractor, devices, x).values for x in (image, image[:, :8, :8]))
    np.testing.assert_allclose(resized, same, atol=1e-5)


# References.


def test_a_reference_is_of_distinct_examples_and_kept(cache):
    extractor, devices = make_extractor("pixels", ""), mesh(jax.devices()[:1])
    whole = load_reference(DIGITS, "digits", "train", extractor, devices, 0)
    assert whole.protocol["num_real"] == len(whole.features.values) == DIGITS.size
    some = load_reference(DIGITS, "digits", "train", extractor, devices, 100)
    rows = {row.tobytes() for row in whole.features.values}
    taken = [row.tobytes() for row in some.features.values]
    assert len(set(taken)) == 100
    assert set(taken) <= rows
    kept = min(cache.iterdir(), key=lambda path: path.stat().st_size)
    kept.write_bytes(kept.read_bytes()[:-100])  # torn
    again = load_reference(DIGITS, "digits", "train", extractor, devices, 100)
    np.testing.assert_array_equal(again.features.values, some.features.values)
    assert len(list(cache.iterdir())) == 2


def test_a_kept_reference_is_not_extracted_again(cache, monkeypatch):
    extractor, devices = make_extractor("digits", ""), mesh(jax.devices()[:1])
    first = load_reference(DIGITS, "digits", "train", extractor, devices, 20)
    monkeypatch.setattr(reference, "extract", None)
    second = load_reference(DIGITS, "digits", "train", extractor, devices, 20)
    np.testing.assert_array_equal(first.features.logits, second.features.logits)
    assert first.protocol == second.protocol
    changed = DIGITS._replace(data=DIGITS.data | {"image": DIGITS.data["image"][::-1]})
    for other in (changed, DIGITS._replace(identity="of files")):
        with pytest.raises(TypeError, match="not callable"):
            load_reference(other, "digits", "train", extractor, devices, 20)


def test_a_reference_of_an_endless_source_is_of_fresh_draws():
    source = Source((2, 2, 1), draw=_draw, std=1.0)
    extractor = make_extractor("pixels", "")
    found = load_reference(source, "noise", "train", extractor, mesh(jax.devices()[:1]), 300).features.values
    assert found.shape == (300, 4)
    assert len(np.unique(found, axis=0)) > 295


def _draw(data, indices, keys):
    return {"image": jax.vmap(lambda key: jax.random.uniform(key, (2, 2, 1), minval=-1))(keys)}


# Comparisons.


def by_features(real, fake, resamples, needs=(Need.FEATURES,)):
    return compare(Examples(real=Features(*real), fake=Features(*fake)), set(needs), resamples, "x")


def test_real_features_against_themselves():
    x = np.random.default_rng(0).standard_normal((200, 5)), None
    scores = by_features(x, x, 20)
    assert scores["fid_x"].value == pytest.approx(0, abs=1e-9)
    assert scores["precision_x"].value == scores["recall_x"].value == scores["coverage_x"].value == 1
    assert scores.keys() == {"fid_x", "kid_x", "precision_x", "recall_x", "density_x", "coverage_x"}


def test_intervals_hold_their_scores_and_shrink_with_the_samples():
    rng, names = np.random.default_rng(0), ("kid_x", "precision_x", "density_x")
    real, widths = rng.standard_normal((400, 4)), {}
    for n in (100, 1600):
        fake = 0.3 + rng.standard_normal((n, 4))
        scores = by_features((real, None), (fake, None), 100)
        for name in names:
            low, high = scores[name].interval
            assert low <= scores[name].value <= high, name
            widths[name, n] = high - low
    for name in names:
        assert widths[name, 1600] < widths[name, 100]
    without = by_features((real, None), (fake, None), 0)
    assert all(score.interval is None for name, score in without.items() if name != "kid_x")


def test_modes_are_counted_by_the_labels_of_all_channels():
    labels = np.array([[0, 1], [0, 1], [1, 0], [1, 1]])
    logits = 5.0 * np.eye(2)[labels]  # [n, channels, classes]
    x = np.random.default_rng(0).standard_normal((20, 3))
    known = 5.0 * np.eye(2)[np.array([[0, 0], [1, 1]] * 10)]
    scores = by_features((x, known), (x[:4], logits), 0, [Need.MODES])
    assert scores["reverse_kl_real_x"].value == pytest.approx(np.log(2))
    assert (scores["modes_x"].value, scores["modes_total_x"].value) == (3, 4)
    assert scores["reverse_kl_x"].value == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(1))  # shares 1/2, 1/4, 1/4


def test_a_new_score_is_one_entry(monkeypatch):
    monkeypatch.setitem(SCORES, "mean_{}", SCORES["fid_{}"]._replace(measure=lambda x: x.fake.values[:, 0]))
    x = np.ones((20, 2)), None
    assert by_features(x, x, 0)["mean_x"].value == 1
    assert better("digits", DIGITS)["mean_digits"] == LOWER
    assert "mean_none" not in better("none", DIGITS)


# A run's scores.


def test_scores_while_training_are_those_of_the_checkpoint(shrunk, tmp_path):
    config = shrunk("dcgan", None, {"evaluate_every": 2, "evaluation.best": "fid_digits"})
    setup, workdir = recipe.build(config), tmp_path / "run"
    train(setup, workdir)
    logged = [line for line in _lines(workdir) if "fid_digits" in line]
    assert [line["step"] for line in logged] == [2, 4]
    state = Checkpoints(workdir / "checkpoints").restore(recipe.abstract_state(setup))
    written = evaluate_run(setup, state, workdir, 0)
    assert {name: written[name] for name in logged[-1]} == logged[-1]
    assert written["protocol"]["extractor"] == "digits"
    assert set(written["intervals"]) <= set(written)
    best = min(logged, key=lambda line: line["fid_digits"])
    about = json.loads((workdir / "best.json").read_text())
    assert about["protocol"] == {"num_samples": 60} | written["protocol"]
    assert (about["step"], about["fid_digits"]) == (best["step"], best["fid_digits"])
    state = Checkpoints(workdir / "best").restore(recipe.abstract_state(setup))
    scoring = Scoring(setup, Generate(setup))
    assert scoring.scores(scoring.samples(state.ema, 60), 0)["fid_digits"].value == best["fid_digits"]


@pytest.mark.parametrize("conditional", [False, True])
def test_samples_are_shared_by_all_devices_and_are_those_of_one(shrunk, conditional):
    if jax.device_count() < 2:
        pytest.skip("needs more than one device")
    setup = recipe.build(shrunk("dcgan", None, {"conditional": conditional}))
    average, key = recipe.initial_state(setup).ema, jax.random.key(1)
    many, one = Generate(setup), Generate(setup, mesh(jax.devices()[:1]))
    odd = 7  # of which two devices cannot have as many each
    np.testing.assert_allclose(many.examples(average, key, odd), one.examples(average, key, odd), atol=1e-5)
    latents = setup.recipe.prior(jax.random.split(key, odd))
    labels = np.arange(odd, dtype=np.int32) if conditional else None
    made = many.from_latents(average, latents, labels)
    assert made.shape == (odd, 8, 8, 1)
    np.testing.assert_allclose(made, one.from_latents(average, latents, labels), atol=1e-5)


def test_a_device_makes_only_its_share_of_the_samples(shrunk):
    if jax.device_count() < 2:
        pytest.skip("needs more than one device")
    setup = recipe.build(shrunk("dcgan", None))
    latents = jax.ShapeDtypeStruct((64, setup.config.latent.dim), np.float32)
    many, one = (_flops(setup, devices, latents) for devices in (mesh(), mesh(jax.devices()[:1])))
    assert many == pytest.approx(one / jax.device_count(), rel=0.02)


def _flops(setup, devices, latents):
    average = recipe.abstract_state(setup).ema
    average = jax.tree.map(lambda x: x.update(sharding=devices.replicated), average)
    lowered = Generate(setup, devices)._from_latents.lower(average, latents)
    return lowered.compile().cost_analysis()["flops"]


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def state(shrunk):
    return recipe.initial_state(recipe.build(shrunk("mixture", "ring8")))


def test_the_best_of_a_run_outlives_its_process(state, tmp_path):
    def kept():
        return sorted(path.name for path in (tmp_path / "best").iterdir() if path.name.isdigit())

    for values, expected in (((3.0, 1.0, 2.0), "1"), ((1.0, 0.5, 0.7), "4")):  # two processes
        best = Best(tmp_path, "fid", LOWER, {"num_samples": 60})
        for i, value in enumerate(values):
            best.see(state.replace(step=np.int32(i + (0 if expected == "1" else 3))), value)
        best.close()
        assert kept() == [expected]
    about = json.loads((tmp_path / "best.json").read_text())
    assert about == {"step": 4, "fid": 0.5, "protocol": {"num_samples": 60}}
    best = Best(tmp_path, "fid", LOWER, {"num_samples": 70})  # with which 0.5 cannot be compared
    best.see(state.replace(step=np.int32(6)), 9.0)
    best.close()
    assert kept() == ["6"]
    shutil.rmtree(tmp_path / "best")
    best = Best(tmp_path, "fid", LOWER, {"num_samples": 70})
    best.see(state.replace(step=np.int32(8)), 9.5)  # worse than what is gone
    best.close()
    assert kept() == ["8"]
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(InputError, match=r"best\.json"):
        Best(tmp_path, "fid", LOWER, {"num_samples": 60})


def test_higher_is_better_where_it_is(state, tmp_path):
    best = Best(tmp_path, "recall", HIGHER, {})
    for i, value in enumerate((0.1, 0.3, 0.2, np.nan, np.inf)):
        best.see(state.replace(step=np.int32(i)), value)
    best.close()
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 1, "recall": 0.3, "protocol": {}}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mixture", {"evaluation.extractor": "digits"}, "is points; set it to none"),
        ("digits", {"evaluation.weights": "x.npz"}, "none has no weights; set it to"),
        ("dcgan", {"evaluation.num_samples": 9}, "at least 10"),
        ("dcgan", {"evaluation.num_real": 9}, r"0 \(all\) or at least 10"),
        ("digits", {"evaluation.best": "sliced_wasserstein"}, "evaluate_every is 0"),
        ("digits", {"evaluation.best": "fid_mnist", "evaluate_every": 2}, "the scores of this config are sliced"),
        ("digits", {"evaluation.extractor": "vgg"}, "one of none, pixels"),
    ],
)
def test_config_mistakes(name, changes, message, shrunk):
    variant = "ring8" if name == "mixture" else None
    with pytest.raises(InputError, match=message) as caught:
        recipe.build(shrunk(name, variant, changes))
    assert "\n" not in str(caught.value)


def test_inception_without_its_weights_says_where_they_are(shrunk):
    setup = recipe.build(shrunk("digits", None, {"evaluation.extractor": "inception"}))
    with pytest.raises(InputError, match=r"evaluation\.weights is missing.*convert.*pytorch-fid"):
        Scoring(setup, Generate(setup))


def test_the_scores_that_can_be_best():
    ring8 = make_source(base.get_config().data.to_dict())
    assert better("none", DIGITS) == {"sliced_wasserstein": LOWER}
    assert better("mnist", DIGITS)["reverse_kl_mnist"] == LOWER
    assert better("inception", DIGITS)["inception_score_inception"] == HIGHER
    assert better("none", ring8)["high_quality"] == HIGHER


@pytest.mark.parametrize(
    ("name", "channels", "classes", "expected"),
    [("mnist", 1, 10, True), ("mnist", 3, 1000, True), ("mnist", 3, 10, False), ("mnist", 1, 0, False),
     ("cifar10", 3, 10, True), ("cifar10", 3, 100, False), ("pixels", 1, 10, False), ("inception", 3, 10, False)],
)  # fmt: skip
def test_modes_are_counted_where_the_classes_are_those_of_the_data(name, channels, classes, expected):
    source = Source((28, 28, channels), draw=None, std=1.0, classes=tuple(map(str, range(classes))))
    met = needs_met(name, source)
    assert (Need.MODES in met) == expected
    assert (Need.LABELS in met) == (
        (name, channels) in [("mnist", 1), ("cifar10", 3), ("inception", 3)]
    )  # a label an image


def test_a_split_that_is_too_small_or_missing_is_known_before_one_trains(shrunk, tmp_path):
    few = DIGITS._replace(data={name: x[:9] for name, x in DIGITS.data.items()}, size=9)
    for i, (split, source, message) in enumerate(
        [
            ("test", DIGITS, "evaluation.split is 'test', but by_hand.source:Source has no split"),
            ("train", few, "has 9 images"),
            ("dev", None, r"evaluation\.split is 'dev'; digits has train, test, all"),
        ]
    ):
        config = shrunk("dcgan", None, {"evaluate_every": 2, "evaluation.split": split})
        (tmp_path / f"{i}").mkdir()
        with pytest.raises(InputError, match=message):
            train(recipe.build(config, source=source), tmp_path / f"{i}")
        assert not (tmp_path / f"{i}" / "metrics.jsonl").exists()


def test_images_that_are_not_finite_are_not_scored():
    images = noise(4)
    images[2, 3, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        extract(make_extractor("pixels", ""), mesh(jax.devices()[:1]), images)


# Memorisation.


def test_copies_are_not_authentic_and_fresh_draws_are_half_so():
    rng = np.random.default_rng(0)
    real, fresh = rng.standard_normal((2, 2000, 6))
    copies = memorisation(real, real[[5, 1999, 5]] + 1e-9)
    np.testing.assert_array_equal(copies.index, [5, 1999, 5])
    assert not copies.authentic.any()
    share = memorisation(real, fresh).authentic.mean()
    assert abs(share - 0.5) < 0.06  # the nearest example's own nearest is nearer than a typical one's
    mixed = memorisation(real, np.concatenate([fresh[:50], real[:3]]))
    assert set(mixed.closest(3)) == {50, 51, 52}


def test_a_training_set_that_repeats_itself_has_no_spacing():
    real = np.random.default_rng(0).standard_normal((20, 3))
    real[1] = real[0]
    found = memorisation(real, np.stack([real[0], real[0] + 0.1, real[7]]))
    np.testing.assert_array_equal(found.spacing[:2], 0)
    np.testing.assert_array_equal(found.authentic, [False, True, False])
    assert found.closest(1)[0] in (0, 2)


def test_a_copy_of_a_mirrored_example_is_found(shrunk):
    setup = recipe.build(shrunk("dcgan", None, {"data.flip": True}))
    unmirrored = np.asarray(setup.reference("train").data["image"])
    real = unmirrored.astype(np.float32) / 8 - 1
    samples = np.concatenate([real[:6, :, ::-1], real[6:10]])
    scores, picture = Scoring(setup, Generate(setup)).memorised(samples, 0)
    assert {name: score.value for name, score in scores.items()} == {"authenticity_digits": 0}
    assert picture.dtype == np.uint8


def test_the_reference_is_the_same_with_and_without_mirroring(shrunk):
    found = [
        Scoring(setup, Generate(setup))._reference
        for setup in (recipe.build(shrunk("dcgan", None, {"data.flip": flip})) for flip in (True, False))
    ]
    assert found[0].protocol == found[1].protocol
    np.testing.assert_array_equal(found[0].features.values, found[1].features.values)
