"""slurm.sbatch under a real Slurm on this machine, which `experiments/launch/local_slurm.sh` installs and starts.

Outside the quick suite: it installs packages and waits for time limits, which Slurm counts in minutes.

    GAN_JAX_TEST_SLURM=1 python -m pytest tests/parallel/test_slurm.py -n 0 -v
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numpy.testing import assert_allclose

pytestmark = pytest.mark.skipif(
    os.environ.get("GAN_JAX_TEST_SLURM") != "1",
    reason="outside the quick suite: GAN_JAX_TEST_SLURM=1, as root on Debian or Ubuntu, installs and starts a Slurm",
)
ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "experiments" / "launch"
CONFIG, STEPS = "configs/mixture.py:ring8", 600
FLAGS = ("--config.batch_size=64", "--config.log_every=20", "--config.sample_every=0")
# Without the other XLA flags of these tests, with which calls of one step round otherwise than calls of many.
DEVICES = "--xla_force_host_platform_device_count={}"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """`slurm(command, ...)`: one of Slurm's commands, and what it prints."""
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([LAUNCH / "local_slurm.sh", "start", folder], check=True)
    # Tasks find this Python, and each plays a node with one device.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    changes = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "XLA_FLAGS": DEVICES.format(1)}

    def slurm(*command):
        command, environment = [str(word) for word in command], os.environ | changes
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout

    yield slurm
    subprocess.run([LAUNCH / "local_slurm.sh", "stop", folder], check=True)


@pytest.fixture
def submit(slurm, tmp_path):
    """`submit(*flags, options=())`: a job of two tasks that trains in tmp_path / "run", by its number."""

    def submit(*flags, options=("--time=10",)):
        here = ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--gpus-per-node=0")
        output = f"--output={tmp_path / 'out'}"
        arguments = (LAUNCH / "slurm.sbatch", CONFIG, tmp_path / "run", *FLAGS, *flags)
        return slurm("sbatch", "--parsable", *here, output, *options, *arguments).strip()

    return submit


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The metrics of the same run in one process that has two devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    command = [sys.executable, "-m", "gan_jax.main", f"--config={CONFIG}", f"--workdir={workdir}", *FLAGS]
    environment = os.environ | {"XLA_FLAGS": DEVICES.format(2)}
    subprocess.run([*command, f"--config.num_steps={STEPS}"], cwd=ROOT, env=environment, check=True)
    return metrics(workdir)


def metrics(workdir):
    """The lines of metrics.jsonl, none before the run begins."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def job(slurm, number):
    """What Slurm knows of a job."""
    return dict(re.findall(r"(\w+)=(\S*)", slurm("scontrol", "show", "job", number)))


def wait_until(holds, seconds):
    """Waits for what must come true."""
    for _ in range(seconds):
        if holds():
            return
        time.sleep(1)
    raise AssertionError(f"not after {seconds} s")


def ended(slurm, number, seconds=240):
    """What Slurm knows of a job that has ended."""
    running = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING"}
    wait_until(lambda: job(slurm, number)["JobState"] not in running, seconds)
    return job(slurm, number)


def assert_same(actual, expected):
    """Two runs' metrics at every step logged. With two devices a mean is a sum of two: no order rounds otherwise."""
    assert [line["step"] for line in actual] == [line["step"] for line in expected]
    for line, other in zip(actual, expected, strict=True):
        assert_allclose(list(line.values()), [other[name] for name in line], rtol=1e-4, atol=1e-4)


def saved_steps(text):
    """The steps at which a job's output says that it was stopped, each by one process."""
    return [int(step.replace(",", "")) for step in re.findall(r"stopped by a signal at step ([\d,]+)", text)]


def test_two_tasks_train_as_one_process_does(slurm, submit, alone, tmp_path):
    about = ended(slurm, submit(f"--config.num_steps={STEPS}"))
    assert (about["JobState"], about["ExitCode"], about["Restarts"]) == ("COMPLETED", "0:0", "0")
    assert_same(metrics(tmp_path / "run"), alone)
    assert (tmp_path / "out").read_text().count("trained ") == 1


def test_a_job_that_is_told_to_stop_saves_and_goes_on(slurm, submit, alone, tmp_path):
    number = submit(f"--config.num_steps={STEPS}", "--config.steps_per_call=1")
    wait_until(lambda: metrics(tmp_path / "run"), 180)
    slurm("scancel", "--signal=TERM", number)
    about = ended(slurm, number)
    assert (about["JobState"], about["Restarts"]) == ("COMPLETED", "1")
    text = (tmp_path / "out").read_text()
    (step,) = saved_steps(text)
    assert 0 < step < STEPS
    assert f"going on from step {step:,}" in text
    assert_same(metrics(tmp_path / "run"), alone)


def test_a_job_at_its_time_limit_saves_and_goes_on_until_it_is_cancelled(slurm, submit, tmp_path):
    number = submit("--config.num_steps=1000000", options=("--time=2", "--signal=TERM@60"))
    wait_until(lambda: job(slurm, number)["Restarts"] == "2", 400)
    wait_until(lambda: (tmp_path / "out").read_text().count("going on from step") == 2, 60)
    slurm("scancel", number)
    assert ended(slurm, number)["JobState"] == "CANCELLED"
    first, second = saved_steps((tmp_path / "out").read_text())[:2]
    assert 0 < first < second


def test_a_mistake_is_not_tried_again(slurm, submit, tmp_path):
    about = ended(slurm, submit("--config.objective.name=nonsense"))
    assert (about["JobState"], about["ExitCode"], about["Restarts"]) == ("FAILED", "2:0", "0")
    assert "error: " in (tmp_path / "out").read_text()


def test_a_killed_task_ends_the_job(slurm, submit, tmp_path):
    number = submit("--config.num_steps=1000000")
    wait_until(lambda: metrics(tmp_path / "run"), 180)
    processes = [line.split() for line in slurm("scontrol", "listpids", f"{number}.0").splitlines()]
    (second,) = (int(process[0]) for process in processes if process[3] == "1")
    os.kill(second, signal.SIGKILL)
    about = ended(slurm, number, 60)
    assert (about["JobState"], about["Restarts"]) == ("FAILED", "0")
