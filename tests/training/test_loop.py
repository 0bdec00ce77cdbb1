"""The training loop: every shipped config end to end, runs that are interrupted, and runs that diverge."""

import importlib
import json
import logging
import re
import resource
import signal
import time
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from helpers.commands import Command
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from gan_jax import recipe, step
from gan_jax.config import schema
from gan_jax.parallel.devices import mesh
from gan_jax.parallel.exit_status import exit_status
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.runs.sampler import Generate
from gan_jax.training import loop, writers
from gan_jax.training.loop import next_boundary, train
from gan_jax.utils import plots
from gan_jax.utils.errors import DivergedError

SIGNS = {"diversity", "logit_real_min", "logit_fake_max", "g_singular_spread", "d_singular_max"}
CONTRACT = {"step", "d_loss", "g_loss", "d_real", "d_fake", "divergence"}


def shipped():
    """Every config of the folder with each of its variants: [(name, variant or None)]."""
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem not in ("__init__", "base"):
            variants = getattr(importlib.import_module(f"configs.{path.stem}"), "VARIANTS", (None,))
            found += [(path.stem, variant) for variant in variants]
    return found


SETUPS = {}  # by their configs


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    """Runs of one setup share their compiled programs: to trace and load these takes longer than to run them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("compiled_call", "Generate", "Vitals"):
            patch.setattr(loop, name, once_a_setup(getattr(loop, name)))
        yield
        SETUPS.clear()


def once_a_setup(function):
    """The function of (setup, steps, ...), called once for each of SETUPS and each number of steps."""
    results = {}

    def call(setup, *arguments):
        if not any(setup is shared for shared in SETUPS.values()):
            return function(setup, *arguments)
        key = id(setup), arguments[:1]
        if key not in results:
            results[key] = function(setup, *arguments)
        return results[key]

    return call


def shared_setup(config):
    """The setup of a config, the same one each time."""
    key = config.to_json()
    SETUPS[key] = SETUPS.get(key) or recipe.build(config)
    return SETUPS[key]


def start_run(config, workdir, setup=None):
    """What the command line does to train, in this process."""
    setup = setup or shared_setup(config)
    return train(setup, workdir)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def newest_state(config, workdir):
    """The arrays of the newest checkpoint."""
    return arrays(Checkpoints(workdir / "checkpoints").restore(recipe.abstract_state(shared_setup(config))))


def arrays(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def assert_finite(state):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def interrupt(monkeypatch, where, number, action):
    """Calls `action` in place of the `number`th call of the function `where` (owner, name)."""
    original, calls = getattr(*where), []

    def interrupting(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            action(*arguments)
        return original(*arguments)

    monkeypatch.setattr(*where, interrupting)


# --- every shipped config ---------------------------------------------------------------------------------------


def stands_in(request, name, variant):
    """Changes of the data that a config names to what tests have: real sets where they are, else a folder of noise."""
    if variant in ("mnist", "cifar10", "stacked_mnist") or name == "stacked_mnist":
        return {"data.dir": str(request.getfixturevalue("tfds_data")), "data.split": "test"}
    if variant in ("celeba64", "folder"):
        folder = request.getfixturevalue("tmp_path_factory").mktemp("images")
        for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)):
            Image.fromarray(pixels).save(folder / f"{i}.png")
        return {"data.name": "folder", "data.dir": str(folder), "data.image_size": 16}  # compiles faster
    return {}


@pytest.mark.parametrize(("name", "variant"), shipped())
def test_a_shipped_config_trains_from_end_to_end(request, shrunk, tmp_path, monkeypatch, name, variant):
    measured = variant in (None, "ring8", "digits")  # one of each file: a run's health, and all devices
    changes = stands_in(request, name, variant) | {"health_every": 4 * measured}
    config, saved = shrunk(name, variant, changes), []
    interrupt(monkeypatch, (Checkpoints, "save"), 2, lambda _, state: saved.append(arrays(state)))
    assert start_run(config, tmp_path, recipe.build(config, None if measured else mesh(jax.devices()[:1])))
    logged, signs = lines(tmp_path)[:4], lines(tmp_path)[4:]
    assert [line["step"] for line in (*logged, *signs)] == [1, 2, 3, 4] + [4] * measured
    assert all(line.keys() >= SIGNS and np.isfinite([*line.values()]).all() for line in signs)
    for line in logged:
        assert line.keys() >= CONTRACT
        assert all(np.isfinite(value) for value in line.values())
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["00000002.png", "00000004.png"]
    picture = np.asarray(Image.open(tmp_path / "samples" / "00000004.png"))
    assert picture.dtype == np.uint8
    assert picture.std() > 0
    assert json.loads((tmp_path / "config.json").read_text()) == config.to_dict()
    assert max(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()) > 1000
    assert steps_saved(tmp_path) == [2, 4]
    assert int(saved[0].step) == 4
    assert_finite(saved[0])


def test_all_configs_are_covered():
    expected = {("mixture", "ring8"), ("mixture", "gaussian"), ("dcgan", "digits"), ("dcgan", "folder")}
    assert expected | {("wgan_gp", None), ("resnet", None)} <= set(shipped())


# --- runs that are interrupted ----------------------------------------------------------------------------------

# Every boundary is one of a log line, so that all calls are of two steps and compile once.
INTERRUPTED = {
    "num_steps": 48,
    "steps_per_call": 4,
    "log_every": 2,
    "checkpoint_every": 8,
    "sample_every": 24,
    "evaluate_every": 24,
    "health_every": 24,
    "checkpoints_kept": 2,
}


class Killed(BaseException):
    """An end that no code expects."""


def end_of_a_run(config, workdir):
    """All that a run leaves which is a function of its config: file contents and the final state."""
    files = {path.name: path.read_bytes() for path in (workdir / "samples").iterdir()}
    return files | {"metrics.jsonl": (workdir / "metrics.jsonl").read_bytes()}, newest_state(config, workdir)


def assert_same_end(actual, expected):
    (files, state), (expected_files, expected_state) = actual, expected
    assert files.keys() == expected_files.keys()
    assert [name for name in files if files[name] != expected_files[name]] == []
    jax.tree.map(assert_array_equal, state, expected_state)


@pytest.fixture(scope="module")
def config(shrunk):
    return shrunk("mixture", "ring8", INTERRUPTED)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """The end of the run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert start_run(config, workdir)
    end = end_of_a_run(config, workdir)
    assert end[0].keys() == {"metrics.jsonl", "00000024.png", "00000048.png"}
    assert [line["step"] for line in lines(workdir) if "modes" in line] == [24, 48]
    return end


def killed(*arguments):
    raise Killed


def torn_metrics_line(metrics_file, step, values):
    metrics_file._file.write(json.dumps({"step": step})[:-3])
    raise Killed


def half_a_picture(path, content):
    path.parent.mkdir()
    path.with_name(path.name + ".partial").write_bytes(b"half")
    raise Killed


def cut_off(config, workdir, where, number, action=killed, end=Killed):
    """A run that ends with `end` because of `action` at that call; see `interrupt`."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, where, number, action)
        with pytest.raises(end):
            start_run(config, workdir)


MOMENTS = {
    "within_a_log_line": ((writers.MetricsFile, "write"), 15, torn_metrics_line),
    "within_a_picture": ((plots, "write_atomically"), 1, half_a_picture),
    "before_the_first_checkpoint": ((Checkpoints, "save"), 1, killed),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_was_cut_off_and_started_again_ends_in_the_same_bits(config, uninterrupted, tmp_path, moment):
    cut_off(config, tmp_path, *MOMENTS[moment])
    assert start_run(config, tmp_path)
    assert_same_end(end_of_a_run(config, tmp_path), uninterrupted)


def test_a_run_that_lost_its_newest_checkpoint_ends_in_the_same_bits(config, uninterrupted, tmp_path, capsys):
    cut_off(config, tmp_path, (Checkpoints, "save"), 4)
    assert steps_saved(tmp_path) == [16, 24]
    newest = max((tmp_path / "checkpoints" / "24").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    newest.write_bytes(newest.read_bytes()[:-20])
    (tmp_path / "checkpoints" / "32.orbax-checkpoint-tmp").mkdir()  # as a kill within a save leaves it
    capsys.readouterr()
    assert start_run(config, tmp_path)
    assert re.search(r"checkpoint 24 is corrupt .*going back to 16", capsys.readouterr().err)
    assert (tmp_path / "checkpoints" / "corrupt-24").is_dir()
    assert_same_end(end_of_a_run(config, tmp_path), uninterrupted)


@pytest.mark.usefixtures("optimized")
def test_batch_statistics_survive_an_interruption(shrunk, tmp_path):
    config = shrunk("dcgan")
    assert start_run(config, tmp_path / "whole")
    cut_off(config, tmp_path / "cut", (writers.Writers, "metrics"), 3)
    assert start_run(config, tmp_path / "cut")
    end = end_of_a_run(config, tmp_path / "whole")
    assert jax.tree.leaves(end[1].generator.stats)
    assert_same_end(end_of_a_run(config, tmp_path / "cut"), end)


def test_a_signal_saves_the_step_that_it_comes_in(config, uninterrupted, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        interrupt(patch, (writers.Writers, "metrics"), 5, lambda *_: signal.raise_signal(signal.SIGTERM))
        assert not start_run(config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps_saved(tmp_path)[-1] == 10  # where no checkpoint was due
    assert start_run(config, tmp_path)
    assert_same_end(end_of_a_run(config, tmp_path), uninterrupted)
    assert start_run(config, tmp_path)  # which is finished
    assert_same_end(end_of_a_run(config, tmp_path), uninterrupted)


def test_a_signal_before_the_first_step_saves_the_start(config, tmp_path, monkeypatch):
    interrupt(monkeypatch, (Checkpoints, "latest_step"), 1, lambda *_: signal.raise_signal(signal.SIGTERM))
    assert not start_run(config, tmp_path)
    assert steps_saved(tmp_path) == [0]
    assert lines(tmp_path) == []


def test_a_second_signal_ends_the_run_at_once(config, tmp_path):
    def twice(*arguments):
        signal.raise_signal(signal.SIGINT)  # in this thread: another's could come late, and two as one
        signal.raise_signal(signal.SIGINT)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        cut_off(config, tmp_path, (writers.Writers, "metrics"), 5, twice, KeyboardInterrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def as_flags(config):
    return [f"--config.{key}={value}" for key, value in schema.flatten(config.to_dict()).items()]


def wait_for_lines(workdir, n, process):
    """Returns once metrics.jsonl has n lines."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        assert process.running, process.wait()
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_process_killed_then_terminated_then_left_alone_ends_in_the_same_bits(
    shrunk, uninterrupted, tmp_path, capsys
):
    config = shrunk("mixture", "ring8", INTERRUPTED | {"checkpoint_every": 2})  # long enough to be met within
    command = ("--config=configs/mixture.py:ring8", *as_flags(config), f"--workdir={tmp_path}")

    process = Command("gan_jax.main", *command)
    wait_for_lines(tmp_path, 4, process)
    process.send(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    done = (tmp_path / "metrics.jsonl").read_bytes().count(b"\n")

    process = Command("gan_jax.main", *command)
    wait_for_lines(tmp_path, done + 2, process)
    process.send(signal.SIGTERM)
    ended = process.wait()
    assert ended.returncode == 0, ended.stderr
    step = int(re.search(r"stopped by a signal at step (\d+), which is saved", ended.stdout + ended.stderr)[1])
    assert steps_saved(tmp_path)[-1] == step < config.num_steps

    assert start_run(config, tmp_path)
    assert f"going on from step {step}" in capsys.readouterr().err
    assert_same_end(end_of_a_run(config, tmp_path), uninterrupted)


# --- runs that diverge ------------------------------------------------------------------------------------------

FAST = {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"learning_rate": 1.0, "decay_to": 1.0}.items()
} | {"penalty.name": "none", "num_steps": 60, "steps_per_call": 60, "sample_every": 0}


@pytest.mark.parametrize(
    ("objective", "log_every", "checkpoint_every"),
    [("mle", 1, 1), ("mle", 1, 60), ("fgan_kl", 3, 60)],
    ids=["saved_before", "computed_again", "within_a_call"],
)
def test_a_run_that_diverges_says_where_and_leaves_a_good_state(
    shrunk, tmp_path, objective, log_every, checkpoint_every
):
    changes = {"objective.name": objective, "log_every": log_every, "checkpoint_every": checkpoint_every}
    config = shrunk("mixture", "ring8", FAST | changes)
    with pytest.raises(DivergedError) as caught:
        start_run(config, tmp_path)
    pattern = r"step (\d+): .*g_loss.* not finite; the largest \|logit\| was (\S+); the state of step (\d+) is saved"
    pattern += r"\. What may help: .*learning_rate=0\.25, or objective.name=non_saturating, or penalty.*"
    step, logit, saved = re.fullmatch(pattern, str(caught.value)).groups()
    assert "\n" not in str(caught.value)
    assert int(step) > 1
    assert int(saved) == (int(step) - 1) // log_every * log_every
    assert float(logit) > 88.7  # beyond it exp leaves float32
    assert steps_saved(tmp_path)[-1] == int(saved)
    state = newest_state(config, tmp_path)
    assert int(state.step) == int(saved)
    assert_finite(state)
    assert [line["step"] for line in lines(tmp_path)] == list(range(log_every, int(saved) + 1, log_every))
    assert all(np.isfinite(value) for line in lines(tmp_path) for value in line.values())


# --- boundaries and compilation ---------------------------------------------------------------------------------


def test_boundaries_are_where_something_is_due_wherever_one_starts(shrunk):
    cadences = {"num_steps": 50, "steps_per_call": 7, "log_every": 10, "sample_every": 15, "checkpoint_every": 20}
    config = shrunk("digits", None, cadences | {"evaluate_every": 0})
    path = [0]
    while path[-1] < 50:
        path.append(next_boundary(config, path[-1]))
    due = {step for every in (7, 10, 15, 20) for step in range(0, 51, every)} | {50}
    assert path == sorted(due)
    for start in range(50):
        assert next_boundary(config, start) == min(step for step in due if step > start)


def test_nothing_is_compiled_after_the_first_boundary(shrunk, tmp_path, caplog):
    cadences = dict.fromkeys(("log_every", "sample_every", "evaluate_every", "checkpoint_every"), 2)
    config, counts = shrunk("mixture", "ring8", INTERRUPTED | cadences), []

    def compilations(*_):
        counts.append(len([record for record in caplog.records if "compilation" in record.getMessage()]))

    def last(*_):
        compilations()
        raise Killed

    with jax.log_compiles(), caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        interrupt(patch, (Checkpoints, "save"), 2, compilations)  # all of the first boundary, and what leads to here
        cut_off(config, tmp_path, (Checkpoints, "save"), 4, last)
    assert counts[0] > 3  # the log was heard
    assert counts[1] == counts[0]


def test_a_mapped_run_reports_the_same_numbers(shrunk, tmp_path):
    for parallel in ("jit", "pmap"):
        assert start_run(shrunk("digits", None, {"parallel": parallel}), tmp_path / parallel)
    mapped, meshed = lines(tmp_path / "pmap"), lines(tmp_path / "jit")
    assert [line.keys() for line in mapped] == [line.keys() for line in meshed]
    for name in meshed[0]:
        first, later = [line[name] for line in meshed[:1]], [line[name] for line in meshed[1:]]
        assert_allclose([line[name] for line in mapped[:1]], first, rtol=1e-4, atol=1e-6)
        # Adam may turn the rounding of a gradient that is nearly zero into a step of the learning rate, 2e-4.
        assert_allclose([line[name] for line in mapped[1:]], later, rtol=1e-3, atol=1e-3)
    assert steps_saved(tmp_path / "pmap") == [2, 4]


# --- metrics.jsonl ----------------------------------------------------------------------------------------------


def test_what_writes_no_picture_draws_none(shrunk, tmp_path, monkeypatch):
    """Of several processes all compute what is in it, and the first one draws."""
    drawn = []
    monkeypatch.setattr(plots, "plane", lambda *contents: drawn.append(contents) or np.zeros((2, 2, 3), np.uint8))
    setup = recipe.build(shrunk("mixture", "ring8"))
    drawing = Generate(setup).drawing(recipe.initial_state(setup))
    writers.Silent().picture(1, drawing)
    assert drawn == []
    with closing(writers.Writers(tmp_path, 0, 1)) as first:
        first.picture(1, drawing)
    assert len(drawn) == 1
    assert Image.open(tmp_path / "samples" / "00000001.png").size == (2, 2)


def test_the_metrics_file_drops_a_torn_line_and_later_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "d_loss": 0.5}) + "\n" for step in (10, 20, 30)]
    path.write_text("".join(good) + '{"step": 15, "d_lo')
    metrics = writers.MetricsFile(path, 20)
    metrics.write(30, {"d_loss": 0.25})
    metrics.close()
    assert path.read_text() == "".join(good[:2]) + '{"step": 30, "d_loss": 0.25}\n'


# --- A disk that fails ------------------------------------------------------------------------------------------


def fail_after(monkeypatch, step, break_it):
    """Calls `break_it` once the checkpoint of `step` is on disk."""
    save = Checkpoints.save

    def breaking(self, state):
        if int(state.step) > step:
            self.wait()
            break_it()
        save(self, state)

    monkeypatch.setattr(Checkpoints, "save", breaking)


def refused(capsys, config, workdir):
    """The line with which the run ends, with status 2."""
    assert exit_status(partial(start_run, config, workdir)) == 2
    error = capsys.readouterr().err.replace("\r", "\n").rstrip().rpartition("\n")[2]
    assert error.startswith("error: ")
    return error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's, of what it had begun
def test_a_full_disk_leaves_the_checkpoint_before(config, uninterrupted, tmp_path, monkeypatch, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch:
            # What a file may grow to, so that it looks to a writer as a disk that is full does.
            fail_after(patch, 8, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard)))
            said = refused(capsys, config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(r"cannot save a checkpoint in .* \(File too large\); the newest .* is of step 8; make room", said)
    assert steps_saved(tmp_path) == [8]
    assert newest_state(config, tmp_path).step == 8
    assert start_run(config, tmp_path)
    assert_same_end(end_of_a_run(config, tmp_path), uninterrupted)


def test_a_workdir_that_goes_away_takes_its_checkpoints_along_whole(
    config, uninterrupted, tmp_path, monkeypatch, capsys
):
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context() as patch:
        fail_after(patch, 8, lambda: workdir.rename(moved))
        said = refused(capsys, config, workdir)
    assert re.search(r"cannot save a checkpoint in .* \(the folder is gone\); there is none before it; ", said)
    assert not (workdir / "checkpoints").exists()
    assert steps_saved(moved) == [8]
    assert start_run(config, moved)
    assert_same_end(end_of_a_run(config, moved), uninterrupted)


NOT_METRICS = ["not json", "[]", "3", "null", '{"d_loss": 1}', '{"step": "2"}', "", '{"step": 1, "d_loss": "x"}']


@pytest.mark.parametrize("line", NOT_METRICS)
def test_the_metrics_file_drops_what_is_not_a_line_of_metrics(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    writers.MetricsFile(path, 2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_line_of_metrics_is_on_disk_when_write_returns(tmp_path):
    metrics = writers.MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write(1, {"g_loss": float(jnp.float32(0.1))})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["g_loss"] == float(np.float32(0.1))
    metrics.close()


@pytest.mark.parametrize("name", ["mixture", "dcgan"])
def test_no_array_moves_between_host_and_device_in_a_step(name, shrunk):
    setup = recipe.build(shrunk(name))
    data = setup.devices.place(setup.source.data)
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 2)
    state = recipe.initial_state(setup)
    compiled = setup.devices.compile(function, state, data)
    state, _ = compiled(state, data)
    with jax.transfer_guard("disallow"):
        state, metrics = compiled(state, data)
        jax.block_until_ready(metrics)
    assert int(state.step) == 4


def test_the_guard_would_see_a_transfer():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        jax.jit(lambda x: x + 1)(np.ones(3))
