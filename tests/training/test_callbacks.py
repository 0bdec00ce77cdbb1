"""Code of one's own while a run trains, and rules that end a run: it is still a function of its config."""

import json

import jax
import numpy as np
import pytest
from conftest import ROOT  # noqa: F401  sets up the devices before JAX starts
from helpers.toys import assert_same_bits, one_device
from PIL import Image

import gan_jax
from gan_jax import Callback, Report
from gan_jax.config.build import abstract_state
from gan_jax.evaluation import lower_is_better
from gan_jax.evaluation.stopping import StopKeys, Stopping
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.utils.errors import InputError

SMALL = {"num_steps": 24, "log_every": 2, "checkpoint_every": 8, "evaluate_every": 4, "sample_every": 0}


@pytest.fixture(scope="module")
def setup(shrunk):
    return gan_jax.build(shrunk("mixture", "ring8", SMALL), one_device())


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def end_of(setup, workdir):
    """(metrics.jsonl, the newest state)."""
    state = Checkpoints(workdir / "checkpoints").restore(abstract_state(setup))
    return (workdir / "metrics.jsonl").read_bytes(), state


def sum_of_losses(step, state, metrics):
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(jax.device_get(state.generator.params))))
    return Report({"losses": metrics["d_loss"] + metrics["g_loss"], "g_norm": norm})


def picture(step, state, metrics):
    return Report(pictures={"grey": np.full((4, 6, 1), step, np.uint8)})


def stop_at(last):
    return lambda step, state, metrics: Report(stop="it is enough") if step == last else None


def test_metrics_and_pictures_of_callbacks_are_those_of_an_uninterrupted_run(setup, tmp_path, capsys):
    callbacks = [sum_of_losses, Callback(picture, "evaluate_every")]
    assert gan_jax.train(setup, str(tmp_path / "whole"), callbacks)
    logged = [line for line in lines(tmp_path / "whole") if "losses" in line]
    losses = [line["d_loss"] + line["g_loss"] for line in lines(tmp_path / "whole") if "d_loss" in line]
    assert [line["losses"] for line in logged] == losses
    assert [line["step"] for line in logged] == [*range(2, 26, 2)]
    pictures = sorted(path.name for path in (tmp_path / "whole" / "samples").iterdir())
    assert pictures == [f"grey-{step:08d}.png" for step in range(4, 28, 4)]
    assert np.asarray(Image.open(tmp_path / "whole" / "samples" / "grey-00000012.png")).tolist() == [[12] * 6] * 4

    assert not gan_jax.train(setup, tmp_path / "cut", [*callbacks, Callback(stop_at(14))])
    assert "stopped at step 14, which is saved: it is enough" in capsys.readouterr().out
    assert gan_jax.train(setup, tmp_path / "cut", callbacks)
    (whole, expected), (cut, actual) = (end_of(setup, tmp_path / name) for name in ("whole", "cut"))
    assert cut == whole
    assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (lambda *_: {"a": 1}, "gave a dict; it must give None or a gan_jax.Report"),
        (lambda *_: Report({"d_loss": 1.0}), "step 4 has a metric d_loss already; give yours another name"),
        (lambda *_: Report([1.0]), "gave a wrong Report: 'list' object has no attribute 'items'; metrics are"),
        (lambda *_: Report({"a": "b"}), "gave a wrong Report: could not convert"),
        (
            lambda *_: Report(pictures={"../a": np.zeros((2, 2, 1), np.uint8)}),
            r"gave a picture '../a', uint8 \[2, 2, 1\]",
        ),
        (
            lambda *_: Report(pictures={"a": np.zeros((2, 2))}),
            r"gave a picture 'a', float64 \[2, 2\]; it must be uint8",
        ),
        (Callback(stop_at(4), "sample_every"), "is to be called sample_every, and that is never; it may be one of log"),
        (3, "callbacks has 3; give functions"),
    ],
)
def test_a_wrong_callback_is_one_line(setup, tmp_path, callback, words):
    every_fourth = (
        callback if not callable(callback) or isinstance(callback, Callback) else Callback(callback, "evaluate_every")
    )
    with pytest.raises(InputError, match=words):
        gan_jax.train(setup, tmp_path, [every_fourth])
    assert not (tmp_path / "checkpoints").exists() or int(end_of(setup, tmp_path)[1].step) == 4


def test_what_a_callback_raises_ends_the_run_once_it_is_saved(setup, tmp_path):
    with pytest.raises(ZeroDivisionError):
        gan_jax.train(setup, tmp_path, lambda step, state, metrics: 1 / (step - 6) and None)
    assert int(end_of(setup, tmp_path)[1].step) == 6


# --- Stopping rules ---------------------------------------------------------------------------------------------


def why(keys, sign, *history):
    stopping = Stopping(keys, sign)
    return [(stopping.see(values), stopping.why)[1] for values in history]


def test_d_is_undecided_when_both_accuracies_have_lasted_near_a_half():
    near, far, other = [
        {"d_accuracy_real": real, "d_accuracy_fake": fake} for real, fake in ((0.5, 0.6), (0.4, 0.7), (0.75, 0.5))
    ]
    keys = StopKeys(undecided_band=0.125, undecided_for=2)
    said = why(keys, 0, near, far, near, {"modes": 8.0}, other, near, near)
    assert said[:-1] == [""] * 6
    assert said[-1] == "both accuracies of D have been within 0.125 of 1/2 for 2 logged steps"


@pytest.mark.parametrize("sign", [1, -1])
def test_patience_ends_with_the_evaluations_that_were_no_better(sign):
    scores = [{"score": sign * value} for value in (1.0, 3.0, 3.0, 2.0, float("nan"), 4.0)]
    said = why(StopKeys(patience=3, score="score"), sign, *scores[:3], {"d_loss": 1.0}, *scores[3:5])
    assert said[:-1] == [""] * 5
    assert said[-1] == f"score has not been better than {3 * sign} for 3 evaluations"
    assert not any(why(StopKeys(patience=4, score="score"), sign, *scores))


@lower_is_better
def constant(samples, real):
    return 1.0


RULES = {
    "undecided": ({"stop.undecided_band": 0.499, "stop.undecided_for": 5}, 10),
    "patience": ({"stop.patience": 2, "stop.score": "constant"}, 12),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_ends_each_start_of_a_run_at_the_same_step(shrunk, tmp_path, capsys, rule):
    changes, last = RULES[rule]
    config = shrunk("mixture", "ring8", SMALL | {"objective.name": "non_saturating"} | changes)
    setup = gan_jax.build(config, one_device(), scores=[constant])
    assert not gan_jax.train(setup, tmp_path / "whole")
    line = [text for text in capsys.readouterr().out.splitlines() if "stopped" in text][-1]
    assert line.startswith(f"stopped at step {last}, which is saved: ")
    whole = end_of(setup, tmp_path / "whole")
    assert int(whole[1].step) == last
    assert not gan_jax.train(setup, tmp_path / "whole")  # it ends at once, with the same line
    assert line in capsys.readouterr().out
    assert not gan_jax.train(setup, tmp_path / "cut", [stop_at(6)])
    assert not gan_jax.train(setup, tmp_path / "cut")
    for again in ("whole", "cut"):
        assert end_of(setup, tmp_path / again)[0] == whole[0]
        assert_same_bits(end_of(setup, tmp_path / again)[1], whole[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stop.undecided_band": 0.1}, "D's accuracy says nothing, since the logits of rpgan have no zero"),
        ({"stop.undecided_band": 0.5}, "a number from 0 to 0.5, 0.5 excluded"),
        ({"stop.undecided_for": 3}, "but stop.undecided_band is 0.0, with which it does nothing"),
        ({"stop.patience": 2}, "name the score that must improve: one of sliced_wasserstein, high_quality"),
        ({"stop.patience": 2, "stop.score": "fid"}, "the scores of this config are sliced_wasserstein"),
        ({"stop.patience": 2, "stop.score": "modes", "evaluate_every": 0}, "no step is scored; set evaluate_every"),
    ],
)
def test_a_rule_that_makes_no_sense_is_one_line(shrunk, changes, words):
    with pytest.raises(InputError, match=words):
        gan_jax.build(shrunk("mixture", "ring8", SMALL | changes), one_device())
