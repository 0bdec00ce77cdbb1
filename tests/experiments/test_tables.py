"""Whole runs whose scores make a table: kept, gone on with, and told as they are."""

import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose

from configs import base, dcgan
from experiments.studies import mnist_objectives, mode_coverage, report, runs, stacked_mnist
from gan_jax import recipe
from gan_jax.data import Source, independent, make_source
from gan_jax.objectives import OBJECTIVES
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.utils.errors import DivergedError

SMALL = {"generator.depth": 1, "discriminator.depth": 1, "penalty.name": "none", "penalty.weight": 0.0}


@pytest.fixture(scope="module")
def finished(shrunk, tmp_path_factory):
    """(the config of a run, its finished folder, its seconds, its averaged parameters)."""
    config, folder = shrunk("mixture", "ring8", SMALL), tmp_path_factory.mktemp("run")
    with runs.finished(config, folder) as run:
        assert int(run.state.step) == config.num_steps
        return config, folder, run.seconds, jax.tree.leaves(run.state.ema.params)


def test_a_run_is_trained_once(finished, monkeypatch):
    config, folder, seconds, _ = finished
    assert seconds > 0
    monkeypatch.setattr(runs, "train_claimed", None)
    with runs.finished(config, folder) as again:
        assert again.seconds == seconds


def test_a_run_that_was_stopped_goes_on(shrunk, tmp_path, monkeypatch, capsys):
    config, save = shrunk("mixture", "ring8", SMALL), Checkpoints.save

    def saving(self, state):
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, state)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", saving)
        with pytest.raises(SystemExit, match="goes on"):
            runs.finished(config, tmp_path).__enter__()
    (tmp_path / runs.SECONDS).write_text("1000.0")
    with runs.finished(config, tmp_path) as run:
        assert 1000 < run.seconds < 1600
    assert "going on from step 2" in capsys.readouterr().err


def test_a_run_whose_last_checkpoint_is_corrupt_is_trained_to_its_end_again(finished, tmp_path, capsys):
    config, folder, _, expected = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints" / "4").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-20])
    with runs.finished(config, tmp_path) as again:
        for leaf, other in zip(jax.tree.leaves(again.state.ema.params), expected, strict=True):
            np.testing.assert_array_equal(leaf, other)
    assert "checkpoint 4 is corrupt" in capsys.readouterr().err


def test_a_study_ends_in_one_line_where_its_runs_are_of_another_config(shrunk, finished, capsys, monkeypatch):
    monkeypatch.setattr(runs.runtime, "fast", lambda: "")
    other = shrunk("mixture", "ring8", SMALL | {"seed": 9})
    assert runs.exit_status(lambda: runs.finished(other, finished[1]).__enter__()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "seed is 0 there, 9 here" in line
    assert line.endswith("remove that folder")


def test_the_study_of_mixtures_from_end_to_end(shrunk, tmp_path, monkeypatch):
    configs = {variant: shrunk("mixture", variant, SMALL) for variant in mode_coverage.VARIANTS}
    monkeypatch.setattr(mode_coverage.mixture, "get_config", lambda variant: ConfigDict(configs[variant].to_dict()))
    monkeypatch.setattr(mode_coverage, "SEEDS", range(1))
    monkeypatch.setattr(runs, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    mode_coverage.main()
    text = (tmp_path / "results" / "mode_coverage.md").read_text()
    assert len(re.findall(r"^\| (ring8|grid25) \| 0 \|", text, re.MULTILINE)) == 2
    evaluation = json.loads((tmp_path / "runs" / "mode_coverage" / "grid25-0" / "evaluation.json").read_text())
    assert f"| grid25 | 0 | {evaluation['modes']} | {evaluation['high_quality']:.2%} |" in text


def test_the_table_of_mixtures_counts_seeds_that_have_all_modes():
    common = {"modes_total": 8, "high_quality_ceiling": 0.9889, "reverse_kl_floor": 0.0014}
    scores = [
        common | {"modes": 8, "high_quality": 0.98, "reverse_kl": 0.001, "seconds": 3.0},
        common | {"modes": 7, "high_quality": 0.96, "reverse_kl": 0.003, "seconds": 5.0},
    ]
    cells = mode_coverage.row("ring8", scores)
    assert cells[1] == "all 8 for 1 of 2 seeds"
    assert cells[2] == "97.00% ± 1.41% (least 96.00%)"
    assert cells[4] == "0.0020 ± 0.0014 (most 0.0030)"


def test_the_curve_of_stacked_mnist_is_of_every_checkpoint(shrunk, tfds_data, tmp_path, monkeypatch):
    changes = {"data.dir": str(tfds_data), "data.split": "test", "num_steps": 6, "checkpoints_kept": 3}
    monkeypatch.setattr(stacked_mnist, "SAMPLES", 40)
    with runs.finished(shrunk("stacked_mnist", None, changes), tmp_path) as run:
        points = stacked_mnist.curve(run)
        assert [each["step"] for each in points] == [2, 4, 6]
        assert all(1 <= each["modes"] <= 40 for each in points)
        monkeypatch.setattr(stacked_mnist, "modes", None)
        assert stacked_mnist.curve(run) == points


def test_the_study_of_stacked_mnist_from_end_to_end(shrunk, tfds_data, tmp_path, monkeypatch):
    config = shrunk("stacked_mnist", None, {"data.split": "test"})
    monkeypatch.setattr(stacked_mnist.stacked_mnist, "get_config", lambda: ConfigDict(config.to_dict()))
    monkeypatch.setattr(stacked_mnist, "SAMPLES", 40)
    monkeypatch.setattr(stacked_mnist, "SEEDS", range(1))
    monkeypatch.setattr(runs, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["stacked_mnist", str(tfds_data)])
    stacked_mnist.main()
    text = (tmp_path / "results" / "stacked_mnist.md").read_text()
    for seed in stacked_mnist.SEEDS:
        last = json.loads((tmp_path / "runs" / "stacked_mnist" / f"{seed}" / stacked_mnist.CURVE).read_text())[-1]
        assert f"| {seed} | {last['modes']} of 1,000 | {last['reverse_kl']:.4f} |" in text


def test_real_stacks_have_as_many_modes_as_can_be_drawn(tfds_data):
    spec = base.get_config().data.to_dict() | {"name": "stacked_mnist", "dir": str(tfds_data), "split": "test"}
    keys = jax.random.split(jax.random.key(0), 500)
    found = stacked_mnist.modes(np.asarray(independent(make_source(spec), keys)["image"]))
    assert found["modes_total"] == 1000
    assert_allclose(found["reverse_kl"], found["reverse_kl_floor"], rtol=0.05)
    assert found["modes"] > 370  # 394 of even digits are expected, with a deviation of 9


def test_every_objective_has_a_row_on_mnist_and_its_config_is_whole():
    assert set(OBJECTIVES) < set(mnist_objectives.ROWS)
    images = Source((28, 28, 1), draw=None, std=1.0, size=60_000)
    for row in mnist_objectives.ROWS.values():
        config = dcgan.get_config("mnist")
        config.update_from_flattened_dict(mnist_objectives.CHANGES | row)
        recipe.build(config.lock(), source=images)


def test_the_comparison_on_mnist_from_end_to_end(shrunk, tfds_data, tmp_path, monkeypatch):
    """Of two objectives, one of which diverges: it has its line, and is not trained again."""
    config = shrunk("dcgan", "mnist", {"data.split": "test", "evaluation.split": "test"})
    rows = {"hinge": {"objective.name": "hinge"}, "mle": {"objective.name": "mle"}}
    monkeypatch.setattr(mnist_objectives, "ROWS", rows)
    small = {"num_steps": 4, "generator.width": 4, "discriminator.width": 4, "evaluation.resamples": 5}
    monkeypatch.setattr(mnist_objectives, "CHANGES", mnist_objectives.CHANGES | small)
    monkeypatch.setattr(mnist_objectives.dcgan, "get_config", lambda name: ConfigDict(config.to_dict()))
    monkeypatch.setattr(runs, "FOLDER", tmp_path / "runs")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["mnist_objectives", str(tfds_data)])
    train, trained = runs.train_claimed, []

    def diverging(setup, workdir):
        trained.append(setup.config.objective.name)
        if setup.config.objective.name == "mle":
            raise DivergedError("step 7: d_loss not finite; the largest |logit| was 9")
        return train(setup, workdir)

    monkeypatch.setattr(runs, "train_claimed", diverging)
    monkeypatch.setattr(mnist_objectives, "ROUNDS", 1)
    mnist_objectives.main()
    monkeypatch.setattr(mnist_objectives, "step_seconds", lambda setups: dict.fromkeys(setups, 1.0))
    mnist_objectives.main()
    assert trained == ["hinge", "mle"]
    text = (tmp_path / "results" / "mnist_objectives.md").read_text()
    scores = json.loads((tmp_path / "runs" / "mnist_objectives" / "hinge" / "evaluation.json").read_text())
    assert f"| hinge | {scores['fid_mnist']:.2f} [" in text
    assert "| mle | step 7: d_loss not finite |  |" in text
    assert text.index("| hinge |") < text.index("| mle |")
