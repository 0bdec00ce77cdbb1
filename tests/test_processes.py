"""Several processes: one run with the numbers of one process, and one end for all, whatever happens to one of them.

They are real ones, on the loopback interface; their collectives are gloo's.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import on_several_processes as together
import pytest
from conftest import with_devices
from gan_jax.processes import Place, find
from gan_jax.versions import code_versions
from numpy.testing import assert_allclose
from PIL import Image
from rounding import DESCENT, TOLERANCE

from configs import digits
from gan_jax import processes, workdirs
from gan_jax.data.reading import SAMPLED
from gan_jax.data.source import HASHED, content
from gan_jax.devices import mesh
from gan_jax.errors import InputError
from gan_jax.recipe import build
from gan_jax.train import train

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 240  # seconds; what takes so long hangs
# Numbers that rounding does not blow up, and a step for every call: a signal is then heard of soon.
CHANGES = DESCENT | {
    "batch_size": 8,
    "steps_per_call": 1,
    "generator.width": 8,
    "discriminator.width": 8,
    "log_every": 1,
    "health_every": 0,
    "checkpoint_every": 10,
}


def as_flags(changes):
    return [f"--config.{key}={value}" for key, value in changes.items()]


RUN = ["--config=configs/digits.py", *as_flags(CHANGES)]


def alone(changes, workdir):
    """Trains the same run in this process, on one device."""
    config = digits.get_config()
    config.update_from_flattened_dict(CHANGES | changes)
    setup = build(config.lock(), mesh(jax.devices()[:1]))
    with workdirs.claimed(workdir, config):
        assert train(setup, workdir)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Started:
    """Processes of one run; what they say goes to files, so that none waits for a reader."""

    def __init__(self, folder, commands, devices=1, roots=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [(folder / f"{i}.out", folder / f"{i}.err") for i in range(len(commands))]
        self.processes = []
        for i, command in enumerate(commands):
            out, err = (path.open("w") for path in self.outputs[i])
            with out, err:
                root = roots[i] if roots else ROOT
                command = [sys.executable, *map(str, command)]
                count = devices[i] if isinstance(devices, list) else devices
                started = subprocess.Popen(command, cwd=root, env=with_devices(count), stdout=out, stderr=err)
                self.processes.append(started)

    def ended(self):
        """The exit statuses, once all have ended."""
        return [process.wait(PATIENCE) for process in self.processes]

    def stdout(self, i):
        return self.outputs[i][0].read_text()

    def last_line(self, i):
        """What process i said last on stderr."""
        return self.outputs[i][1].read_text().replace("\r", "\n").rstrip().rpartition("\n")[2]


@pytest.fixture
def start(tmp_path):
    """`start(count, *arguments, devices=1)`: so many processes of one run by the command line."""
    started = []

    def start(count, *arguments, devices=1, roots=None, each=None):
        port, commands = free_port(), []
        for i in range(count):
            place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={i}"]
            commands.append(["-m", "gan_jax.main", *arguments, *(each[i] if each else ()), *place])
        started.append(Started(tmp_path / f"said-{len(started)}", commands, devices, roots))
        return started[-1]

    yield start
    for each in started:
        for process in each.processes:
            process.kill()
            process.wait()


def ends_at(workdir, step):
    """Tells the folder of a run that it has so many steps."""
    config = json.loads((workdir / "config.json").read_text()) | {"num_steps": step}
    (workdir / "config.json").write_text(json.dumps(config))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for(run, condition):
    """Returns when it is so, while all processes run."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert all(process.poll() is None for process in run.processes), [run.last_line(i) for i in (0, 1)]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_at(workdir, step):
    """Whether there is a line of `step`."""
    path = workdir / "metrics.jsonl"
    return path.exists() and f'{{"step": {step},' in path.read_text()


def assert_close(actual, expected):
    """The same lines, rounding aside."""
    assert [line["step"] for line in actual] == [line["step"] for line in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_allclose(value, other[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} of {one['step']}")


# --- The same numbers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of what two processes with two devices each have done together."""
    folder = tmp_path_factory.mktemp("pair")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(folder / "arrays.npz", images=images, labels=np.arange(40) % 4)
    command = ["tests/on_several_processes.py", f"127.0.0.1:{free_port()}", 2]
    run = Started(folder, [[*command, i, folder] for i in range(2)], devices=2)
    assert run.ended() == [0, 0], [run.last_line(i) for i in range(2)]
    return folder


@pytest.mark.parametrize("name", together.RUNS)
def test_two_processes_of_two_devices_train_as_one_process_does(pair, name):
    expected = together.results(name, pair / "arrays.npz")
    found = dict(np.load(pair / f"{name}.npz"))
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        assert np.isfinite(value).all()
        difference = np.linalg.norm(found[part] - value) / np.linalg.norm(value)
        assert difference < TOLERANCE, (part, difference)


def test_processes_agree(pair):
    first, second = (json.loads((pair / f"agreements-{i}.json").read_text()) for i in range(2))
    assert (first["several"], second["several"]) == (True, True)
    assert (first["first"], second["first"]) == (True, False)
    assert (first["all well"], second["all well"]) == (0, 1)
    for each in (first, second):
        assert each["one fails"] == "process 1: no such file"
        assert each["first fails"] == "process 0: no such file"
        assert each["from first"] == [0, "é"]
        assert each["by first"] == {"index": 0}
        assert each["equal"] is None
        assert each["unequal"] == (
            "process 1: key b differs: 1 here, 0 in process 0; start all processes of a run with the same"
        )
        assert "key c differs: 2 here, missing in process 0" in each["missing"]
        assert each["together"] == [False, True]  # a call after it was asked, in both


def test_a_run_of_several_processes_leaves_what_a_run_of_one_leaves(start, tmp_path):
    scored = {"num_steps": 20, "sample_every": 10, "evaluate_every": 10, "health_every": 10}
    wanted = {"best": "fid_pixels", "extractor": "pixels", "num_samples": 60, "num_real": 50}
    scored |= {f"evaluation.{key}": value for key, value in wanted.items()}
    run = start(2, *RUN, *as_flags(scored), f"--workdir={tmp_path / 'two'}", devices=2)
    assert run.ended() == [0, 0], [run.last_line(i) for i in range(2)]
    alone(scored, tmp_path / "one")
    assert_close(lines(tmp_path / "two"), lines(tmp_path / "one"))
    assert f"workdir: {tmp_path / 'two'}" in run.stdout(0)
    assert "workdir" not in run.stdout(1)  # the first one tells
    for folder in ("samples", "checkpoints", "best"):
        names = [sorted(path.name for path in (tmp_path / count / folder).iterdir()) for count in ("one", "two")]
        assert names[0] == names[1]
        assert names[0]
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    pictures = [np.asarray(Image.open(tmp_path / count / "samples" / "00000020.png")) for count in ("one", "two")]
    assert np.abs(np.subtract(*pictures, dtype=np.int32)).max() <= 1


# --- One end for all --------------------------------------------------------------------------------------------


def test_a_signal_to_one_stops_all_at_a_step_from_which_another_number_of_processes_goes_on(start, tmp_path):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    # Slowly: how many steps it takes before it hears the signal depends on the machine, and rounding grows with them.
    rates = {f"{player}.optimizer.learning_rate": 0.01 for player in ("generator", "discriminator")}
    run = start(4, *RUN, *as_flags(rates), "--config.num_steps=5000", f"--workdir={workdir}")
    wait_for(run, partial(is_at, workdir, 3))
    run.processes[2].send_signal(signal.SIGTERM)
    assert run.ended() == [0] * 4, [run.last_line(i) for i in range(4)]
    stopped = lines(workdir)[-1]["step"]
    assert f"stopped by a signal at step {stopped:,}, which is saved" in run.stdout(0)
    assert (workdir / "checkpoints" / str(stopped)).is_dir()

    # One process goes on. It is the run that nobody interrupted.
    ends_at(workdir, stopped + 5)
    for folder in (workdir, whole):
        alone(rates | {"num_steps": stopped + 5}, folder)
    assert_close(lines(workdir), lines(whole))


def test_a_killed_process_ends_the_others_and_the_run_goes_on(start, tmp_path):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    alone({"num_steps": 10}, workdir)  # what one process began, two go on with
    alone({"num_steps": 20}, whole)
    ends_at(workdir, 100_000)
    endless = [*RUN, "--config.num_steps=100000", f"--workdir={workdir}"]
    reached = 10
    for victim in (1, 0):
        run = start(2, *endless)
        wait_for(run, (workdir / "checkpoints" / str(reached + 10)).is_dir)
        run.processes[victim].kill()
        assert run.processes[1 - victim].wait(processes.HEARTBEAT + 30) == 1
        assert re.search("another process of this run is gone, so this one ends too", run.last_line(1 - victim))
        reached = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    steps = [line["step"] for line in lines(workdir)]
    assert reached >= 30
    assert steps[:reached] == list(range(1, reached + 1))  # written once, by one process
    assert_close(lines(workdir)[:20], lines(whole))


COUNT = 1200  # images


def test_what_one_process_cannot_read_ends_all_with_the_state_saved(start, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(COUNT):
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(images / f"{i:04d}.png")
    looked_at = np.concatenate([np.linspace(0, COUNT - 1, n).astype(int) for n in (SAMPLED, HASHED)])  # before training
    bad = images / f"{min(set(range(COUNT)) - set(looked_at)):04d}.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    data = ["--config.data.name=folder", f"--config.data.dir={images}", "--config.data.placement=stream"]
    run = start(2, *RUN, *data, f"--config.num_steps={COUNT // 8 + 1}", f"--workdir={tmp_path / 'run'}")
    assert run.ended() == [2, 2]
    said = {run.last_line(i) for i in range(2)}
    assert len(said) == 1
    assert re.search(rf"^error: process [01]: .*{bad.name}", said.pop())
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == lines(tmp_path / "run")[-1]["step"]


# --- One start for all ------------------------------------------------------------------------------------------


def refused(run, message):
    """All of the run's processes ended with this line, and status 2."""
    assert run.ended() == [2] * len(run.processes), [run.last_line(i) for i in range(len(run.processes))]
    for i in range(len(run.processes)):
        assert re.search(message, run.last_line(i)), run.last_line(i)


def test_another_config_in_one_process_is_found_and_named(start, tmp_path):
    each = [[], ["--config.seed=7", "--config.batch_size=16"]]
    run = start(2, *RUN, f"--workdir={tmp_path / 'run'}", each=each)
    refused(run, r"^error: process 1: config key batch_size and 1 more differ: 16 here, 8 in process 0; start all")
    assert not (tmp_path / "run").exists()


def test_processes_with_unequal_shares_of_the_devices_are_refused(start, tmp_path):
    run = start(2, *RUN, f"--workdir={tmp_path / 'run'}", devices=[1, 2])
    refused(run, r"^error: process 1 has 2 devices, process 0 has 1; give all of them as many$")


def test_a_process_whose_others_do_not_come_says_so(tmp_path):
    script = "from gan_jax import processes; processes.JOIN_WITHIN = 3; processes.join({!r}, 2, {})"
    # Each of another run, so that neither comes to the other.
    run = Started(tmp_path, [["-c", script.format(f"127.0.0.1:{free_port()}", index)] for index in range(2)])
    refused(run, r"^error: the processes of the run did not find each other; start all of them, each with --num_proc")


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs, "SEEN_WITHIN", 0)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / workdirs.LOCK).write_text(f"the mark of {name}")
    workdirs.require_shared(tmp_path / "run", "the mark of run")
    for name in ("other", "nowhere"):
        message = f"{name} is not that of process 0; --workdir must be a folder that all of"
        with pytest.raises(InputError, match=message):
            workdirs.require_shared(tmp_path / name, "the mark of run")


def test_other_code_in_one_process_is_found_and_named(start, tmp_path):
    for folder in ("gan_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / "other" / folder, ignore=ignored)
    with (tmp_path / "other" / "gan_jax" / "penalties.py").open("a") as file:
        file.write("# mended here\n")
    run = start(2, *RUN, f"--workdir={tmp_path / 'run'}", roots=[ROOT, tmp_path / "other"])
    refused(run, r"^error: process 1: the version of gan_jax/penalties\.py differs: \w{16} here, \w{16} in process 0")
    assert not (tmp_path / "run").exists()


def test_other_data_in_one_process_is_found_and_named(start, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    for name in ("one", "other"):
        np.save(tmp_path / f"{name}.npy", images)
        images = 255 - images
    each = [[f"--config.data.dir={tmp_path / name}.npy"] for name in ("one", "other")]
    run = start(2, *RUN, "--config.data.name=arrays", f"--workdir={tmp_path / 'run'}", each=each)
    refused(run, r"^error: process 1: the data's hash differs: \w{16} here, \w{16} in process 0")


def test_what_tells_code_and_data_apart(shrunk):
    versions = code_versions()
    assert versions["jax"] == jax.__version__
    assert len(versions["gan_jax/step.py"]) == 16
    assert versions["gan_jax/data/__init__.py"] != versions["gan_jax/step.py"]
    told = content(build(shrunk("digits")).source)
    assert told["size"] == 1500
    assert told["hash"] == content(build(shrunk("digits")).source)["hash"]
    assert told["hash"] != content(build(shrunk("digits", None, {"data.split": "test"})).source)["hash"]
    assert content(build(shrunk("mixture", "ring8")).source)["size"] == 0


# --- Where a process finds its place ----------------------------------------------------------------------------

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_LOCALID": "0", "SLURM_PROCID": "1"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
COORDINATOR = {"JAX_COORDINATOR_ADDRESS": "host:1234"}


@pytest.mark.parametrize(
    ("flags", "environ", "place"),
    [
        ((None, None, None), {}, None),
        ((None, 1, None), SLURM | {"SLURM_NTASKS": "2"}, None),  # alone, wherever it runs
        (("host:1", 2, 0), {}, Place(2, 0, "host:1")),
        ((None, 2, 1), COORDINATOR, Place(2, 1, "host:1234")),
        ((None, 2, None), COORDINATOR | {"JAX_PROCESS_ID": "1"}, Place(2, 1, "host:1234")),
        ((None, None, 1), COORDINATOR | {"JAX_NUM_PROCESSES": "2"}, Place(2, 1, "host:1234")),
        ((None, None, None), COORDINATOR, None),
        (("host:1", 2, 1), COORDINATOR | SLURM | {"SLURM_NTASKS": "4"}, Place(2, 1, "host:1")),  # flags come first
        ((None, None, None), COORDINATOR | {"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}, Place(3, 2, "host:1234")),
        (
            (None, None, None),
            COORDINATOR | {"JAX_NUM_PROCESSES": "3", "JOB_COMPLETION_INDEX": "0"},
            Place(3, 0, "host:1234"),
        ),
        ((None, None, None), {"JAX_NUM_PROCESSES": "1"}, None),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "2"}, Place(None, None, None)),
        ((None, None, None), SLURM | {"SLURM_NTASKS": "1"}, None),
        ((None, None, None), {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, None),  # in an allocation, outside of srun
        ((None, None, None), OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, Place(4, 3, None, 1)),
        ((None, None, None), OPEN_MPI | COORDINATOR, Place(4, 3, "host:1234", 1)),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "a,b"}, Place(None, None, None)),
        ((None, None, None), {"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_the_place_of_a_process(flags, environ, place):
    assert find(*flags, environ) == place


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (("host:1", None, None), {}, "--coordinator and --process_id are for several processes; give --num_processes"),
        (("host:1", 2, None), {}, "--process_id is missing; of 2 processes it is 0 to 1"),
        (("host:1", 2, 2), {}, "--process_id is 2; of 2 processes it is 0 to 1"),
        ((None, 2, 0), {}, "--coordinator is missing; it must be HOST:PORT"),
        (("host", 2, 0), {}, "--coordinator is host; it must be HOST:PORT"),
        (("host:99999", 2, 0), {}, "--coordinator is host:99999; it must be HOST:PORT"),
        ((None, 0, None), {}, "--num_processes is 0; it must be 1 or more"),
        ((None, None, None), {"JAX_NUM_PROCESSES": "0"}, "--num_processes is 0; it must be 1 or more"),
        ((None, None, None), {"JAX_PROCESS_ID": "1"}, "are for several processes; give --num_processes"),
        ((None, None, None), {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'; it must be an integer"),
        ((None, None, None), OPEN_MPI, "Open MPI does not say where process 0 is; set JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_a_place_that_makes_no_sense(flags, environ, message):
    with pytest.raises(InputError, match=message):
        find(*flags, environ)
