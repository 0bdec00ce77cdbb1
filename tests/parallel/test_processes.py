"""Several processes: one run with the numbers of one process, and one end for all, whatever happens to one of them.

They are real ones, on the loopback interface; their collectives are gloo's.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from conftest import with_devices
from helpers.rounding import TOLERANCE
from numpy.testing import assert_allclose
from on_several_processes import CHANGES, ENDLESS, IMAGES, RUNS, SCORED, SLOW, config_of, results
from PIL import Image

from gan_jax.config.build import build
from gan_jax.data.readers.records import SAMPLED
from gan_jax.data.source import HASHED, content
from gan_jax.parallel import launch
from gan_jax.parallel.agreement import code_versions
from gan_jax.parallel.devices import mesh
from gan_jax.parallel.launch import Place, find
from gan_jax.runs import workdirs
from gan_jax.training.loop import train
from gan_jax.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240  # seconds; what takes so long hangs


def alone(changes, workdir):
    """Trains the same run in this process, on one device."""
    config = config_of(changes)
    setup = build(config, mesh(jax.devices()[:1]))
    assert train(setup, workdir)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Started:
    """Processes of one run; what they say goes to files, so that none waits for a reader."""

    def __init__(self, folder, commands, devices):
        """`devices`: of each process."""
        folder.mkdir(parents=True, exist_ok=True)
        self._errors = [folder / f"{i}.err" for i in range(len(commands))]
        self.processes = []
        for command, count, path in zip(commands, devices, self._errors, strict=True):
            command = [sys.executable, *map(str, command)]
            with path.open("w") as err:
                self.processes.append(
                    subprocess.Popen(command, cwd=ROOT, env=with_devices(count), stdout=subprocess.DEVNULL, stderr=err)
                )

    def wait_for(self, condition):
        """Returns when it is so, while all processes run."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert all(process.poll() is None for process in self.processes), self.last_lines()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def ended(self):
        """The exit statuses, once all have ended."""
        return [process.wait(PATIENCE) for process in self.processes]

    def last_lines(self):
        """What each process said last on stderr."""
        return [path.read_text().replace("\r", "\n").rstrip().rpartition("\n")[2] for path in self._errors]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`start(commands, devices)`: processes that do not outlive the module."""
    started = []

    def start(commands, devices):
        started.append(Started(tmp_path_factory.mktemp("said"), commands, devices))
        return started[-1]

    yield start
    for run in started:
        run.kill()


def ends_at(workdir, step):
    """Tells the folder of a run that it has so many steps."""
    config = json.loads((workdir / "config.json").read_text()) | {"num_steps": step}
    (workdir / "config.json").write_text(json.dumps(config))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def is_at(workdir, step):
    """Whether there is a line of `step`."""
    path = workdir / "metrics.jsonl"
    return path.exists() and f'{{"step": {step},' in path.read_text()


def newest(workdir):
    """The step of the newest checkpoint; 0 without any."""
    return max((int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def assert_close(actual, expected):
    """The same lines, rounding aside."""
    assert [line["step"] for line in actual] == [line["step"] for line in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_allclose(value, other[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} of {one['step']}")


class Pair(NamedTuple):
    """What two processes with two devices each have done, one thing after another, and how each run ended in each."""

    folder: Path
    commands: list[dict]
    killed: tuple  # of two runs, with two and with four processes, one of which was killed: statuses and last lines
    reached: int  # the newest checkpoint of these


@pytest.fixture(scope="module")
def pair(tmp_path_factory, start):
    """The Pair of `on_several_processes.py`; four more processes go on with the last run of these two."""
    folder = tmp_path_factory.mktemp("pair")
    make_data(folder)
    alone({"num_steps": 10}, folder / "killed")  # what one process began, two go on with
    ends_at(folder / "killed", ENDLESS)

    script, port = ["tests/on_several_processes.py"], free_port()
    run = start([[*script, f"127.0.0.1:{port}", 2, i, folder] for i in range(2)], [2, 2])
    run.wait_for(partial(is_at, folder / "stopped", 3))
    run.processes[1].send_signal(signal.SIGTERM)
    two = killed_at(run, 1, folder / "killed", 20)
    commands = [json.loads((folder / f"commands-{i}.json").read_text()) for i in range(2)]

    place = [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=4"]
    flags = [f"--config.{key}={value}" for key, value in (CHANGES | {"num_steps": ENDLESS}).items()]
    flags = ["--config=configs/digits.py", *flags, f"--workdir={folder / 'killed'}", *place]
    run = start([["-m", "gan_jax.main", *flags, f"--process_id={i}"] for i in range(4)], [1] * 4)
    four = killed_at(run, 0, folder / "killed", newest(folder / "killed") + 10)
    return Pair(folder, commands, (two, four), newest(folder / "killed"))


def killed_at(run, victim, workdir, step):
    """(statuses, last lines) of the other processes, once one is killed after the checkpoint of `step`."""
    run.wait_for(lambda: newest(workdir) >= step)
    run.processes[victim].kill()
    others = [i for i in range(len(run.processes)) if i != victim]
    statuses = [run.processes[i].wait(launch.HEARTBEAT + 30) for i in others]
    return statuses, [run.last_lines()[i] for i in others]


def make_data(folder):
    """A set in memory, two that differ, and a folder of images of which some, met in training alone, are damaged."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
    np.savez(folder / "arrays.npz", images=images, labels=np.arange(40) % 4)
    images = rng.integers(0, 256, (300, 8, 8, 1), np.uint8)
    np.save(folder / "one.npy", images)
    np.save(folder / "other.npy", 255 - images)
    (folder / "images").mkdir()
    for i in range(IMAGES):
        Image.fromarray(np.full((8, 8, 3), i % 256, np.uint8)).save(folder / "images" / f"{i:04d}.png")
    for name in bad_images():
        bad = folder / "images" / name
        bad.write_bytes(bad.read_bytes()[:-20])


def bad_images():
    """Some that nobody looks at before training: so many that one of them is met soon."""
    looked_at = np.concatenate([np.linspace(0, IMAGES - 1, n).astype(int) for n in (SAMPLED, HASHED)])
    return [f"{i:04d}.png" for i in sorted(set(range(IMAGES)) - set(looked_at))[:10]]


# --- The same numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_of_two_devices_train_as_one_process_does(pair, name):
    expected = results(name, pair.folder / "arrays.npz")
    actual = dict(np.load(pair.folder / f"{name}.npz"))
    assert actual.keys() == expected.keys()
    for part, value in expected.items():
        assert np.isfinite(value).all()
        difference = np.linalg.norm(actual[part] - value) / np.linalg.norm(value)
        assert difference < TOLERANCE, (part, difference)


def test_processes_agree(pair):
    first, second = (json.loads((pair.folder / f"agreements-{i}.json").read_text()) for i in range(2))
    assert (first["several"], second["several"]) == (True, True)
    assert (first["first"], second["first"]) == (True, False)
    assert (first["all well"], second["all well"]) == (0, 1)
    for process in (first, second):
        assert process["one fails"] == "process 1: no such file"
        assert process["first fails"] == "process 0: no such file"
        assert process["from first"] == [0, "é"]
        assert process["by first"] == {"index": 0}
        assert process["equal"] is None
        assert process["unequal"] == (
            "process 1: key b differs: 1 here, 0 in process 0; start all processes of a run with the same"
        )
        assert "key c differs: 2 here, missing in process 0" in process["missing"]
        assert process["in any process"] == [False, True]  # a call after it was asked, in both


def test_a_run_of_several_processes_leaves_what_a_run_of_one_leaves(pair, tmp_path):
    two, one = pair.folder / "two", tmp_path / "one"
    first, second = (commands["scored"] for commands in pair.commands)
    assert (first["status"], second["status"]) == (0, 0)
    alone(SCORED, one)
    assert_close(lines(two), lines(one))
    assert f"workdir: {two}" in first["stdout"]
    assert "workdir" not in second["stdout"]  # the first one tells
    for folder in ("samples", "checkpoints", "best"):
        names = [sorted(path.name for path in (workdir / folder).iterdir()) for workdir in (one, two)]
        assert names[0] == names[1]
        assert names[0]
    assert len(list((two / "tensorboard").iterdir())) == 1
    pictures = [np.asarray(Image.open(workdir / "samples" / "00000020.png")) for workdir in (one, two)]
    assert np.abs(np.subtract(*pictures, dtype=np.int32)).max() <= 1


# --- One end for all --------------------------------------------------------------------------------------------


def test_a_signal_to_one_stops_all_at_a_step_from_which_another_number_of_processes_goes_on(pair, tmp_path):
    workdir, whole = pair.folder / "stopped", tmp_path / "whole"
    first, second = (commands["stopped"] for commands in pair.commands)
    assert (first["status"], second["status"]) == (0, 0)
    stopped = lines(workdir)[-1]["step"]
    assert f"stopped by a signal at step {stopped:,}, which is saved" in first["stdout"]
    assert newest(workdir) == stopped

    # One process goes on. It is the run that nobody interrupted.
    ends_at(workdir, stopped + 5)
    for folder in (workdir, whole):
        alone(SLOW | {"num_steps": stopped + 5}, folder)
    assert_close(lines(workdir), lines(whole))


def test_a_killed_process_ends_the_others_and_the_run_goes_on(pair, tmp_path):
    workdir, whole = pair.folder / "killed", tmp_path / "whole"
    for count, (statuses, last_lines) in zip((2, 4), pair.killed, strict=True):
        assert statuses == [1] * (count - 1)
        for line in last_lines:
            assert re.search("another process of this run is gone, so this one ends too", line)
    assert pair.reached >= 30
    steps = [line["step"] for line in lines(workdir)]
    assert steps[: pair.reached] == list(range(1, pair.reached + 1))  # written once, by one process
    alone({"num_steps": 20}, whole)
    assert_close(lines(workdir)[:20], lines(whole))


def test_what_one_process_cannot_read_ends_all_with_the_state_saved(pair):
    refused(pair, "unreadable", rf"^error: process [01]: .*({'|'.join(bad_images())})")
    assert newest(pair.folder / "unreadable") == lines(pair.folder / "unreadable")[-1]["step"]


# --- One start for all ------------------------------------------------------------------------------------------


def refused(pair, name, message):
    """This run ended in both processes with the same line, and status 2."""
    first, second = (commands[name] for commands in pair.commands)
    assert (first["status"], second["status"]) == (2, 2)
    assert first["last"] == second["last"]
    assert re.search(message, first["last"]), first["last"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other config", r"config key batch_size and 1 more differ: 16 here, 8 in process 0; start all"),
        ("other code", r"the version of gan_jax/penalties\.py differs: \w{16} here, \w{16} in process 0"),
        ("other data", r"the data's hash differs: \w{16} here, \w{16} in process 0"),
    ],
)
def test_what_differs_in_one_process_is_found_and_named(pair, name, message):
    refused(pair, name, f"^error: process 1: {message}")
    assert not (pair.folder / "refused").exists()


@pytest.mark.parametrize(
    ("ports", "devices", "message"),
    [
        ([0, 0], [1, 2], "process 1 has 2 devices, process 0 has 1; give all of them as many$"),
        ([0, 1], [1, 1], "the processes of the run did not find each other; start all of them, each with --num_proc"),
    ],
)
def test_processes_that_have_no_equals_say_so(start, ports, devices, message):
    """With unequal shares of the devices, or each of another run, so that neither comes to the other."""
    script = "import sys; from functools import partial; from gan_jax.parallel import exit_status, launch; "
    script += "launch.JOIN_WITHIN = {}; sys.exit(exit_status.exit_status(partial(launch.join, '127.0.0.1:{}', 2, {})))"
    free = [free_port(), free_port()]
    within = 3 if len(set(ports)) == 2 else 60
    commands = [["-c", script.format(within, free[port], index)] for index, port in enumerate(ports)]
    run = start(commands, devices)
    assert run.ended() == [2, 2], run.last_lines()
    assert all(re.search(f"^error: {message}", line) for line in run.last_lines()), run.last_lines()


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workdirs, "SEEN_WITHIN", 0)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / workdirs.LOCK).write_text(f"the mark of {name}")
    workdirs.require_shared(tmp_path / "run", "the mark of run")
    for name in ("other", "nowhere"):
        with pytest.raises(InputError, match=f"{name} is not that of process 0; all must share the folder of --work"):
            workdirs.require_shared(tmp_path / name, "the mark of run")


def test_what_tells_code_and_data_apart(shrunk):
    versions = code_versions()
    assert versions["jax"] == jax.__version__
    assert len(versions["gan_jax/step/step.py"]) == 16
    assert versions["gan_jax/data/__init__.py"] != versions["gan_jax/step/step.py"]
    about = content(build(shrunk("digits")).source)
    assert about["size"] == 1500
    assert about["hash"] == content(build(shrunk("digits")).source)["hash"]
    assert about["hash"] != content(build(shrunk("digits", None, {"data.split": "test"})).source)["hash"]
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
