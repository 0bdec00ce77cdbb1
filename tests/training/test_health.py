"""A run's health: detectors on histories of metrics, what is said and with which remedy, vital signs, real runs."""

import itertools
import json
import math
import re
from functools import cache

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe
from gan_jax.config.schema import flatten
from gan_jax.data import make_source
from gan_jax.parallel.devices import mesh
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.training.health.advice import COLLAPSED, DIVERGING, REMEDIES, SATURATED, in_words, remedies
from gan_jax.training.health.detectors import (
    ACCURACY,
    CLUSTERS,
    CONDITIONS,
    DIVERSITY,
    GROWTH,
    LEAST,
    LOGIT,
    SPAN,
    VANISHED,
    Watch,
    collapsed,
    diverging,
    saturated,
)
from gan_jax.training.health.measures import (
    EXAMPLES,
    RESOLUTION,
    Vitals,
    cluster_centers,
    clusters_met,
    mean_distance,
    singular_values,
)
from gan_jax.training.loop import train

COMPARING = {"discriminator.minibatch_discrimination": 2, "discriminator.minibatch_group": 4, "conditional": True}
EVERY = 100  # steps between points of a history
HEALTHY = {"diversity": 0.9, "clusters": 0.9, "d_accuracy_real": 0.7, "d_accuracy_fake": 0.7, "max_logit": 3.0}
HEALTHY |= {"g_grad_norm": 1.0, "d_grad_norm": 1.0}


def history(points=20, every=EVERY, **changes):
    """Curves of a healthy run, but for the changes: a value, or one for each of the last points."""
    steps, curves = every * np.arange(1, points + 1), {}
    for name, value in (HEALTHY | changes).items():
        values = np.full(points, HEALTHY.get(name, 1.0))
        last = np.atleast_1d(np.asarray(value, float))
        if np.ndim(value) == 0:
            values[:] = value
        else:
            values[-len(last) :] = last
        curves[name] = np.stack([steps, values], axis=1)
    return curves


def times(value, count):
    return [value] * count


LASTING = SPAN // EVERY  # points that make SPAN steps
VANISHING = {"g_grad_norm": times(1e-6, LASTING)}
SURE = {"d_accuracy_real": 1.0, "d_accuracy_fake": 1.0}
ILL = {  # what makes each detector find something, and the numbers in what it says
    "alike": (collapsed, {"diversity": times(0.1, LASTING)}, "at most 0.1 of that of the data"),
    "few": (collapsed, {"clusters": times(0.3, LASTING)}, "in at most 0.3 of the clusters"),
    "fallen": (collapsed, {"diversity": times(0.4, LASTING)}, "fallen from 0.9 to 0.4 of"),
    "sure": (saturated, SURE | VANISHING, "been 1.00 and the .* 1e-06, of 1 at its largest"),
    "logits": (diverging, {"max_logit": times(2e3, LASTING)}, r"\|logit\| has been 2e\+03"),
    "critic": (
        diverging,
        {"d_grad_norm": times(5e3, LASTING)},
        r"discriminator's gradient .* 5e\+03, and 1 at first",
    ),
    "generator": (
        diverging,
        {"g_grad_norm": times(5e3, LASTING)},
        r"generator's gradient .* 5e\+03, and 1 at first",
    ),
}


@pytest.mark.parametrize("detect", [collapsed, saturated, diverging])
@pytest.mark.parametrize("present", [False, True])
def test_a_healthy_history_and_a_short_one_are_silent(detect, present):
    assert detect(history(), present) is None
    assert detect({}, present) is None
    assert detect(history(points=LEAST - 1, every=10 * SPAN, **dict.fromkeys(HEALTHY, 1e9)), present) is None


@pytest.mark.parametrize("case", ILL)
def test_what_lasts_is_found_and_what_does_not_is_not(case):
    detect, changes, words = ILL[case]
    evidence = detect(history(**changes), False)
    assert evidence is not None
    assert re.search(words, evidence)
    # Before it has lasted for SPAN steps, or with a healthy number among them, it is not said.
    (name,) = [name for name, value in changes.items() if isinstance(value, list)]
    shorter = changes[name][: LASTING // 2]
    assert detect(history(**changes | {name: shorter}), False) is None
    for other in (collapsed, saturated, diverging):
        assert (other(history(**changes), False) is None) == (other is not detect)


@pytest.mark.parametrize(
    ("detect", "limits", "curve", "sign"),
    [
        (collapsed, DIVERSITY, lambda limit: {"diversity": limit}, 1),
        (collapsed, CLUSTERS, lambda limit: {"clusters": limit}, 1),
        (saturated, ACCURACY, lambda limit: SURE | VANISHING | {"d_accuracy_real": limit}, -1),
        (saturated, ACCURACY, lambda limit: SURE | VANISHING | {"d_accuracy_fake": limit}, -1),
        (saturated, VANISHED, lambda limit: SURE | {"g_grad_norm": [limit] * LASTING}, 1),
        (diverging, LOGIT, lambda limit: {"max_logit": limit}, -1),
        (diverging, GROWTH, lambda limit: {"d_grad_norm": [limit] * LASTING}, -1),
    ],
)
def test_thresholds_are_wider_for_what_is_present(detect, limits, curve, sign):
    """From healthy to ill: beyond the second limit nothing, between both only what was there, within the first all."""
    first, second = limits
    assert sign * first < sign * second
    beyond, between, within = second + sign * 0.01 * second, (first + second) / 2, first - sign * 0.01 * first
    found = [
        [detect(history(**curve(x)), present) is not None for present in (False, True)]
        for x in (beyond, between, within)
    ]
    assert found == [[False, False], [False, True], [True, True]]


def test_the_last_steps_are_looked_at_or_so_many_points():
    rare = history(points=6, every=4 * SPAN, diversity=[0.1, 0.1])
    assert collapsed(rare) is None
    assert collapsed(history(points=6, every=4 * SPAN, diversity=[0.1] * LEAST)) is not None
    often = history(points=SPAN, every=2, max_logit=[2e3] * (SPAN // 5))
    assert diverging(often) is None
    assert diverging(history(points=SPAN, every=2, max_logit=[2e3] * (SPAN // 2))) is not None


# --- what is said -----------------------------------------------------------------------------------------------


@pytest.fixture
def flat(shrunk):
    return flatten(shrunk("digits").to_dict())


def lines_of(curves):
    """[(step, values)], as in metrics.jsonl: the vital signs on lines of their own."""
    points = next(iter(curves.values()))[:, 0]
    for i, now in enumerate(points):
        values = {name: curve[i, 1] for name, curve in curves.items()}
        signs = {name: value for name, value in values.items() if name in ("diversity", "clusters")}
        yield int(now), {name: value for name, value in values.items() if name not in signs}
        yield int(now), signs


COMES_AND_GOES = times(0.1, 8) + times(0.4, 6) + times(0.1, 6) + times(0.9, 10)


def test_each_condition_is_said_once_when_it_begins_and_once_when_it_is_over(flat):
    past, said = list(lines_of(history(points=40, diversity=COMES_AND_GOES))), []
    watch = Watch(flat)
    for now, values in past:
        said += watch.see(now, values)
    assert len(said) == 2
    assert said[0].startswith(
        "step 1,500: the samples have collapsed: their mean distance from each other has been at "
    )
    assert said[0].endswith(" (docs/health.md)")
    assert said[1] == "step 3,500: the samples are as diverse as they should be again"
    assert watch.present == []


@pytest.mark.parametrize(("objective", "present"), [("minimax", [SATURATED]), ("rpgan", []), ("wgan", [])])
def test_saturation_is_not_looked_for_where_logits_have_no_zero(flat, objective, present):
    right, vanished = dict.fromkeys(("d_accuracy_real", "d_accuracy_fake"), times(1.0, 20)), times(1e-6, 20)
    past = lines_of(history(points=40, g_grad_norm=vanished, **right))
    assert Watch(flat | {"objective.name": objective}, past).present == present


@pytest.mark.parametrize("killed_at", [5, 30, 31, 32, 50, 70, 79])
def test_a_run_that_goes_on_says_what_is_left_and_nothing_twice(flat, killed_at):
    past = list(lines_of(history(points=40, diversity=COMES_AND_GOES)))
    watch, expected = Watch(flat), []
    for i, (now, values) in enumerate(past):
        told = watch.see(now, values)
        expected += told if i >= killed_at else []
    watch = Watch(flat, past[:killed_at])
    assert list(itertools.chain(*(watch.see(*line) for line in past[killed_at:]))) == expected


@cache
def source_of(name):
    return make_source({"name": name})


@pytest.mark.parametrize("condition", CONDITIONS)
def test_remedies_are_such_that_the_config_lacks_and_may_have(condition, shrunk):
    """Of each config, taken one after another until there are none left."""
    taken, devices = set(), mesh(jax.devices()[:2])
    for name, changes in (
        ("mixture", {}),
        ("dcgan", {"discriminator.one_pass": True, "objective.name": "minimax"}),
        ("dcgan", COMPARING),
        ("digits", {"moves": "consensus", "consensus.weight": 1.0}),
        ("wgan", {"accumulate": 2}),
        ("mle_gan", {}),
        ("r3gan", {}),
    ):
        changes = {"discriminator.steps": 1} | changes
        for _ in range(len(REMEDIES[condition]) + 1):
            config = shrunk(name, None, changes)
            advised = remedies(condition, flatten(config.to_dict()), devices.count)
            assert len(advised) <= 3
            if not advised:
                break
            for each in advised:
                assert all(flatten(config.to_dict())[key] != value for key, value in each.items())
                recipe.build(shrunk(name, None, changes | each), devices, source_of(shrunk(name).data.name))
                taken |= set(each)
            changes |= advised[0]
    assert len(taken) > 3


def test_remedies_depend_on_the_config(flat):
    at_first = flat | {"objective.name": "minimax"}
    assert in_words(remedies(SATURATED, at_first)[0]) == "objective.name=non_saturating"
    assert in_words(remedies(SATURATED, flat)[0]) == "penalty.name=r1_r2 penalty.weight=0.1"
    assert in_words(remedies(SATURATED, flat | {"penalty.name": "r1"})[0]) == "augment.instance_noise=0.5"
    assert in_words(remedies(SATURATED, flat | {"objective.name": "wgan"})[0]).startswith("penalty.name=wgan_gp ")
    clipped = flat | {"objective.name": "wgan", "discriminator.clip": 0.01}
    assert remedies(SATURATED, clipped)[0]["discriminator.clip"] == 0
    small = flat | {"batch_size": 8}
    assert "discriminator.packing" in remedies(COLLAPSED, small, devices=4)[1]
    assert "discriminator.packing" not in remedies(COLLAPSED, small, devices=8)[1]
    with_batch = remedies(COLLAPSED, flat | {"discriminator.normalization": "batch"})[0]
    assert with_batch["discriminator.normalization"] == "none"
    assert in_words(remedies(DIVERGING, flat)[0]) == (
        "discriminator.optimizer.learning_rate=5e-05 generator.optimizer.learning_rate=5e-05"
    )
    assert remedies(DIVERGING, flat | {"objective.name": "mle"})[1] == {"objective.name": "non_saturating"}
    assert {"objective.name": "non_saturating"} not in remedies(DIVERGING, flat)


# --- vital signs ------------------------------------------------------------------------------------------------


def test_the_mean_distance_is_that_of_all_pairs():
    x = np.random.default_rng(0).standard_normal((7, 6))
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)]
    assert_allclose(mean_distance(x), np.mean(apart), rtol=1e-9)
    assert mean_distance(np.full((5, 4), 0.1)) == 0


def test_clusters_are_found_and_counted():
    """Of sixteen far apart each has its center, and of those that samples are in it says how many, by their shares."""
    rng, corners = np.random.default_rng(0), np.array(list(itertools.product((0.0, 10.0), repeat=4)))
    x = np.repeat(corners, 8, axis=0) + rng.standard_normal((128, 4))
    centers = cluster_centers(rng.permutation(x))
    assert sorted(np.linalg.norm(corners[:, None] - centers, axis=2).argmin(axis=1)) == list(range(16))
    assert_allclose(clusters_met(x, centers), 16)
    assert_allclose(clusters_met(x[:32], centers), 4)
    assert_allclose(clusters_met(x[:1] + rng.standard_normal((50, 4)), centers), 1)
    assert 1 < clusters_met(np.concatenate([x[:8], x[120:121]]), centers) < 2
    assert_allclose(clusters_met(corners - 1, centers), 16)  # poor samples, and all there
    assert cluster_centers(np.repeat(corners[:3], 5, axis=0)).shape == (3, 4)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 1)])
def test_singular_values_are_numpy_s(shape):
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[::-1]
    assert_allclose(singular_values(matrix), expected, rtol=1e-9)
    assert np.isnan(singular_values(matrix * np.float32("nan"))).all()


@pytest.fixture(scope="module")
def measured(shrunk):
    """(setup, state, vitals) of a conditional GAN with what makes D need several examples at once."""
    changes = {"conditional": True, "discriminator.minibatch_stddev": 3, "batch_size": 12}
    setup = recipe.build(shrunk("digits", None, changes), mesh(jax.devices()[:1]))
    return setup, recipe.initial_state(setup), Vitals(setup)


def replaced(player, **leaves):
    """A player with all of its last affine map set to these numbers, and what adds to that set to 0."""
    params = dict(player.params)
    params["Dense_0"] = {name: np.full_like(leaf, leaves[name]) for name, leaf in params["Dense_0"].items()}
    if "Projection_0" in params:
        params["Projection_0"] = jax.tree.map(np.zeros_like, params["Projection_0"])
    return player.replace(params=params)


def test_vital_signs_are_those_of_known_players(measured):
    _, state, vitals = measured
    signs = vitals.measure(state.replace(generator=replaced(state.generator, kernel=0, bias=0.3)))
    assert signs["diversity"] < 1e-6
    assert signs["clusters"] < 0.15  # one of 16
    signs = vitals.measure(state.replace(discriminator=replaced(state.discriminator, kernel=0, bias=2.5)))
    assert_allclose([signs[f"logit_{side}_{end}"] for side in ("real", "fake") for end in ("min", "max")], 2.5)
    plain = vitals.measure(state)
    assert plain["logit_real_min"] < plain["logit_real_max"]
    assert 0 < plain["diversity"] < 1
    kernels = [leaf for leaf in jax.tree.leaves(state.generator.params) if leaf.ndim == 2]
    values = [np.linalg.svd(np.asarray(kernel, np.float64), compute_uv=False) for kernel in kernels]
    assert_allclose(plain["g_singular_max"], max(each[0] for each in values), rtol=1e-6)
    assert_allclose(plain["g_singular_spread"], max(each[0] / np.median(each) for each in values), rtol=1e-6)
    assert vitals.measure(state) == plain


def test_other_examples_of_the_data_are_as_diverse_and_in_as_many_clusters(measured):
    setup, _, vitals = measured
    keys = jax.random.split(jax.random.key(5), EXAMPLES)
    other = setup.source.draw(setup.source.data, np.arange(EXAMPLES), keys)["image"]
    signs = vitals._diversity(np.asarray(other, np.float64).reshape(EXAMPLES, -1))
    assert_allclose([signs["diversity"], signs["clusters"]], 1, atol=0.1)


def test_what_is_not_finite_is_left_out(measured):
    _, state, vitals = measured
    signs = vitals.measure(state.replace(generator=replaced(state.generator, bias=np.nan, kernel=np.nan)))
    assert all(map(math.isfinite, signs.values()))
    assert {"logit_real_min", "d_singular_max"} <= signs.keys()
    assert not {"diversity", "g_singular_max"} & signs.keys()
    alike = replaced(state.generator, kernel=1.0, bias=0.0)  # kernels of rank 1
    assert_allclose(vitals.measure(state.replace(generator=alike))["g_singular_spread"], 1 / RESOLUTION)


# --- in training ------------------------------------------------------------------------------------------------


def start_run(config, workdir, capsys):
    """The lines that a run said of its health, without the bar."""
    setup = recipe.build(config, mesh(jax.devices()[:1]))
    assert train(setup, workdir)
    said = capsys.readouterr().out.replace("\r", "\n").splitlines()
    return [line for line in said if line.startswith("step ")]


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_samples_that_come_together_from_far_apart_have_lost_nothing():
    assert collapsed(history(diversity=[300.0] * 10 + [0.9] * 10)) is None


def test_a_single_spike_of_the_gradient_makes_no_later_one_small():
    """Beside a gradient that was large for a while, 1 has vanished; beside one point, D being right is no fault."""
    at_first = {count: [1e4] * count + [1.0] * (20 - count) for count in (1, LEAST - 1, LEAST)}
    found = {count: saturated(history(**SURE | {"g_grad_norm": values})) for count, values in at_first.items()}
    assert [count for count, evidence in found.items() if evidence] == [LEAST]
    assert found[LEAST].endswith("gradient 1, of 1e+04 at its largest")


def test_a_gradient_that_had_vanished_before_the_first_line_is_found_and_its_return_is_no_divergence():
    assert saturated(history(**SURE | {"g_grad_norm": 0.0})) is not None
    assert saturated(history(**SURE | {"g_grad_norm": 1e-4})) is not None
    assert saturated(history(**SURE | {"g_grad_norm": 0.1})) is None
    back = history(g_grad_norm=[1e-7] * (20 - LASTING) + [1.0] * LASTING)
    assert back["g_grad_norm"][0, 1] == 1e-7
    assert diverging(back) is None


# Each is long enough for SPAN steps, and the same program but for its learning rates.
REAL = {"num_steps": SPAN + 100, "steps_per_call": 50, "log_every": 50, "health_every": 100, "sample_every": 0}
REAL |= {"checkpoint_every": SPAN + 100, "batch_size": 32, "objective.name": "minimax", "penalty.name": "none"}
REAL |= {"penalty.weight": 0.0} | {
    f"{player}.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {
        "width": 32,
        "depth": 3,
        "optimizer.b1": 0.5,
        "optimizer.b2": 0.999,
        "optimizer.decay_to": 1.0,
    }.items()
}


def rates(generator, discriminator):
    return {"generator.optimizer.learning_rate": generator, "discriminator.optimizer.learning_rate": discriminator}


def test_a_healthy_run_says_nothing_and_has_the_same_bits_as_without(shrunk, tmp_path, capsys):
    states = []
    for every in (0, REAL["health_every"]):
        config = shrunk("mixture", "ring8", REAL | rates(1e-3, 1e-3) | {"health_every": every})
        assert start_run(config, tmp_path / str(every), capsys) == []
        abstract = recipe.abstract_state(recipe.build(config))
        state = Checkpoints(tmp_path / str(every) / "checkpoints").restore(abstract)
        states.append(jax.device_get(state.replace(key=jax.random.key_data(state.key))))
    jax.tree.map(assert_array_equal, *states)
    without, followed = (metrics_of(tmp_path / str(every)) for every in (0, REAL["health_every"]))
    assert [line for line in followed if "diversity" not in line] == without
    assert [line["step"] for line in followed if "diversity" in line] == [*range(100, REAL["num_steps"] + 1, 100)]


@pytest.mark.parametrize(
    ("generator", "discriminator", "begins"),
    [
        # A generator that overshoots, and stays where a discriminator that hardly moves is flat.
        (1e-2, 1e-4, ("the samples have collapsed", "the discriminator is saturated")),
        (0.3, 0.3, ("training is diverging",)),
    ],
    ids=["collapsed and saturated", "diverging"],
)
def test_an_ill_run(shrunk, tmp_path, capsys, generator, discriminator, begins):
    said = start_run(shrunk("mixture", "ring8", REAL | rates(generator, discriminator)), tmp_path, capsys)
    for words in begins:
        assert len([line for line in said if words in line]) == 1
    assert len(said) <= len(CONDITIONS)
