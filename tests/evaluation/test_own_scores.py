"""Scores of one's own: in all files where the package's are, and chosen as the best."""

import json
from typing import Annotated

import jax
import numpy as np
import pytest
from conftest import ROOT  # noqa: F401  sets up the devices before JAX starts
from helpers.toys import one_device
from numpy.testing import assert_allclose

import gan_jax
from gan_jax.config.build import abstract_state
from gan_jax.evaluation import higher_is_better, lower_is_better
from gan_jax.evaluation.metrics.comparison import LOWER, Metric, Need
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.sweep import plan
from gan_jax.training.evaluator import evaluate_run
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import POSITIVE

TINY = {"num_steps": 4, "evaluate_every": 2, "sample_every": 0}


@lower_is_better
def mean_gap(samples, real, power: Annotated[float, POSITIVE, "of the gap"] = 1.0):
    return np.linalg.norm(samples.mean(axis=0) - real.mean(axis=0)) ** power


@higher_is_better
def spread(samples):
    return np.std(samples)


@lower_is_better
def feature_gap(features, real_features):
    return np.abs(features.mean(axis=0) - real_features.mean(axis=0)).max()


@lower_is_better
def failing(samples):
    raise RuntimeError("two\nlines")


@lower_is_better
def endless(samples):
    return float("inf")


@lower_is_better
def taking_more(samples, other):
    return 0.0


@lower_is_better
def best(samples, power: Annotated[float, POSITIVE, "of nothing"] = 1.0):
    return power


modes = spread
number = Metric(Need.SAMPLES, LOWER, lambda x: 2.0)


def test_they_are_in_every_file_and_one_may_be_the_best(shrunk, tmp_path):
    config = shrunk("mixture", "ring8", TINY | {"evaluation.best": "mean_gap"})
    setup = gan_jax.build(config, one_device(), scores=[mean_gap, f"{__name__}:number", spread])
    assert gan_jax.train(setup, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    gaps = {line["step"]: line["mean_gap"] for line in lines if "mean_gap" in line}
    assert list(gaps) == [2, 4]
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["mean_gap"] == min(gaps.values())

    state = Checkpoints(tmp_path / "checkpoints").restore(abstract_state(setup))
    written = evaluate_run(setup, state, tmp_path, 0)
    assert_allclose(written["mean_gap"], gaps[4], rtol=1e-6)
    assert written["number"] == 2.0
    (squared,) = plan.members(setup.config, [{"evaluation.mean_gap.power": 2.0}])
    setup = gan_jax.build(squared.config, one_device())
    assert_allclose(evaluate_run(setup, state, tmp_path, 0)["mean_gap"], gaps[4] ** 2, rtol=1e-5)


def test_one_of_features_has_its_extractor_in_its_name(shrunk, tmp_path):
    changes = TINY | {"evaluation.extractor": "pixels", "evaluation.best": "feature_gap_pixels"}
    setup = gan_jax.build(shrunk("digits", None, changes), one_device(), scores=[feature_gap])
    assert evaluate_run(setup, _start(setup), tmp_path, 0)["feature_gap_pixels"] > 0


def _start(setup):
    return jax.device_get(gan_jax.config.build.initial_state(setup).replace(key=None))


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (failing, "the score failing fails: RuntimeError: two lines"),
        (endless, "the score endless is inf; it must be a finite number"),
    ],
)
def test_one_that_gives_no_number_ends_the_run_once_it_is_saved(shrunk, tmp_path, score, words):
    setup = gan_jax.build(shrunk("mixture", "ring8", TINY), one_device(), scores=score)
    with pytest.raises(InputError, match=words):
        gan_jax.train(setup, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == 2


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([f"{__name__}:modes"], "there is a score modes already; give it another name"),
        ([spread, spread], "there is a score spread already"),
        ([lambda samples: 0.0], "by_hand.scores:lambda is no score: it must be a function after .*lower_is_better"),
        ([best], "two parts have the config key evaluation.best"),
        ([taking_more], "taking_more takes other; a score takes samples, real, features, real_features"),
        ([feature_gap], "feature_gap needs features of images; name an extractor"),
        (["mean_gap"], "evaluation.scores is 'mean_gap'; it must be import paths MODULE:NAME with commas"),
    ],
)
def test_a_mistake_is_one_line(shrunk, scores, words):
    with pytest.raises(InputError, match=words):
        gan_jax.build(shrunk("mixture", "ring8", TINY), one_device(), scores=scores)
