"""docs/extending.md and experiments/own_project: what a stranger copies works."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from conftest import ROOT, with_devices
from helpers.toys import one_device

from gan_jax import recipe, step
from gan_jax.config import schema
from gan_jax.runs.sampler import Generate
from gan_jax.training.evaluator import Scoring

BLOCKS = re.findall(
    r"<!-- run:? ?(.*?)-->\n```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL
)
SMALL = {"batch_size": 8, "evaluation.num_samples": 20, "generator.width": 8, "discriminator.width": 8}


def as_on_a_command_line(text: str):
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


@pytest.mark.parametrize(("flags", "code"), [block for block in BLOCKS if block[0]], ids=lambda x: x.split("=")[0])
def test_the_parts_of_the_page_train_and_score(tmp_path, monkeypatch, flags, code):
    (tmp_path / "my_lab.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_lab", raising=False)
    importlib.invalidate_caches()
    pairs = (flag.split("=") for flag in flags.split())
    changes = SMALL | {key: as_on_a_command_line(value) for key, value in pairs}
    config = schema.with_own_keys(schema.default_config(), changes)
    config.update_from_flattened_dict(changes)
    setup = recipe.build(config.lock(), one_device())
    train = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 2)
    state, metrics = jax.jit(train)(recipe.initial_state(setup), setup.source.data)
    assert all(np.isfinite(values).all() for values in metrics.values())
    assert int(state.step) == 2
    if name := config.evaluation.best:
        scoring = Scoring(setup, Generate(setup, one_device()))
        assert scoring.values(scoring.samples(state.ema, 20))[name] >= 0
    sys.modules.pop("my_lab")


def test_the_script_of_the_page_runs(tmp_path, monkeypatch):
    (script,) = (code for flags, code in BLOCKS if not flags)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "script", "exec"), {"__name__": "script"})
    lines = [json.loads(line) for line in (tmp_path / "runs/by_hand/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "ratio" in line] == [2, 4]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """`stranger(*arguments)` runs a command in a folder with the config and sweep of experiments/own_project.

    The project is installed elsewhere. Returns what the command wrote to stdout.
    """
    folder, project = tmp_path_factory.mktemp("stranger"), tmp_path_factory.mktemp("own") / "project"
    shutil.copytree(ROOT / "experiments" / "own_project", project)  # pip leaves files where it builds
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", project / "site", project], check=True)
    for name in ("config.py", "sweep.py"):
        (project / name).rename(folder / name)
    environment = with_devices(1) | {"PYTHONPATH": f"{project / 'site'}:{ROOT}"}

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = folder
    return run


OF_RUN = {"num_steps": 6, "steps_per_call": 2, "log_every": 2, "sample_every": 6, "checkpoint_every": 2}
OF_RUN |= {"evaluate_every": 2, "batch_size": 8, "generator.width": 8, "discriminator.width": 8, "latent.dim": 4}
OF_RUN |= {"evaluation.extractor": "none", "evaluation.num_samples": 20, "generator.mapping": 1}
OF_RUN |= {"generator.mixers": 1, "generator.patch": 4, "discriminator.depth": 1}
OF_RUN = [f"--config.{key}={value}" for key, value in OF_RUN.items()]


def test_the_own_project_trains_and_goes_on_to_the_same_bits(stranger):
    whole, cut = stranger.folder / "whole", stranger.folder / "cut"
    train = ("gan_jax.main", "--runtime=plain", "--config=config.py", *OF_RUN, "--config.objective.alpha=5.0")
    stranger(*train, "--workdir=whole")
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")  # as where it was killed after step 4 was saved
    stranger(*train, "--workdir=cut")
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    stranger("gan_jax.main", "--runtime=plain", "--mode=sample", "--workdir=cut", "--num_samples=20")
    assert np.load(cut / "samples.npz")["samples"].shape == (20, 8, 8, 1)
    assert json.loads((whole / "best.json").read_text())["spectrum_gap"] > 0


def test_the_own_project_sweeps_its_own_number_in_one_program(stranger):
    said = stranger("gan_jax.sweep", "--config=config.py", "--sweep=sweep.py", *OF_RUN, "--workdir=swept")
    assert "16 members in 1 program" in said
    rows = (stranger.folder / "swept" / "results.csv").read_text().splitlines()
    assert len(rows) == 17
    assert "spectrum_gap" in rows[0]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_the_own_objective_estimates_the_divergence_of_its_paper(monkeypatch, alpha):
    """At the optimal D, p^alpha / (p^alpha + q^alpha): theorem 1 of arXiv:2106.05232, and at alpha 1 it is 2 JS."""
    monkeypatch.syspath_prepend(ROOT / "experiments" / "own_project")
    sys.modules.pop("my_lab", None)
    objective = importlib.import_module("my_lab").alpha_gan(alpha)
    sys.modules.pop("my_lab")
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.5, 0.3, 0.2])
    logits = alpha * np.log(p / q)
    terms = objective.divergence(logits[:, None], logits[None, :])  # [real, fake]
    mean = (p + q) / 2
    expected = np.sum(p * np.log(p / mean) + q * np.log(q / mean))
    if alpha != 1:
        expected = alpha / (alpha - 1) * (np.sum((p**alpha + q**alpha) ** (1 / alpha)) - 2 ** (1 / alpha))
    np.testing.assert_allclose(p @ np.asarray(terms) @ q, expected, rtol=1e-4)
