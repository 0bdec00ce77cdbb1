"""The start files: what they start is a command line that the code takes, and a scheduler learns how it ended."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml
from absl import flags

from gan_jax.cli import command_line
from gan_jax.config import schema

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "experiments" / "launch"
TRAIN, SWEEP = ["-m", "gan_jax.main"], ["-m", "gan_jax.sweep"]


@cache
def flags_of(module):
    """The flags that a command line takes; asked in a process of its own where it is not `gan_jax.main`.

    Two modules define the same ones, so that one process cannot have both.
    """
    if module == "gan_jax.main":
        importlib.import_module(module)
        return set(flags.FLAGS)
    source = f"import {module}\nfrom absl import flags\nprint(*flags.FLAGS)"
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def checked_flags(module, arguments):
    """The flags of a command line by name, whose config, sweep file, flags and config keys are there."""
    values = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    keys = {name.removeprefix("config.") for name in values if name.startswith("config.")}
    assert keys <= set(schema.table())
    assert set(values) - {f"config.{key}" for key in keys} <= flags_of(module)
    command_line.load_config(str(ROOT / values["config"]))
    assert (ROOT / values.get("sweep", values["config"].split(":")[0])).is_file()
    return values


@pytest.fixture
def stubs(tmp_path):
    """`stubs(name=script)`: programs that come before those of the machine; returns the environment that has them."""

    def stubs(**scripts):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, script in scripts.items():
            (folder / name).write_text("#!/usr/bin/env bash\n" + script)
            (folder / name).chmod(0o755)
        return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    return stubs


def a_run(folder, now, num_steps):
    """A run's folder as it is at step `now`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_steps": num_steps}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step}) + "\n" for step in range(100, now + 1, 100))
    )
    return folder


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch", "local_slurm.sh"])
def test_bash_can_read_it(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize(("now", "status"), [(400, 0), (300, 75), (0, 75)])
def test_a_run_is_finished_at_its_last_step(tmp_path, now, status):
    workdir = a_run(tmp_path / "run", now, 400)
    assert subprocess.run([sys.executable, LAUNCH / "finished.py", workdir]).returncode == status


def test_where_there_is_no_run_it_is_a_mistake_of_one_line(tmp_path):
    done = subprocess.run([sys.executable, LAUNCH / "finished.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*config\.json: No such file .*\n", done.stderr)


# slurm.sbatch


def options_of_the_job():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))


@pytest.fixture
def job(tmp_path, stubs):
    """`job(status, now)`, whose trainers end with `status` at step `now` of 400: (its status, command, requeued)."""

    def job(status, now):
        environment = stubs(
            srun='while [[ $1 == --* ]]; do shift; done; exec "$@"',
            scontrol=f'echo "$@" >{tmp_path}/scontrol',
            python=f"""if [[ $1 != -m ]]; then exec {sys.executable} "$@"; fi
                printf "%s\\n" "$@" >{tmp_path}/command; exit {status}""",
        )
        command = ["bash", LAUNCH / "slurm.sbatch", "configs/dcgan.py", a_run(tmp_path / "run", now, 400)]
        environment |= {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": options_of_the_job()["cpus-per-task"]}
        done = subprocess.run([*command, "--config.seed=3"], cwd=ROOT, env=environment)
        requeued = tmp_path / "scontrol"
        return done.returncode, (tmp_path / "command").read_text().split(), requeued.exists() and requeued.read_text()

    return job


def test_a_slurm_job_trains_with_the_flags_given(job, tmp_path):
    _, command, _ = job(0, 400)
    assert command[:2] == TRAIN
    values = checked_flags("gan_jax.main", command[2:])
    assert values == {"config": "configs/dcgan.py", "workdir": str(tmp_path / "run"), "config.seed": "3"}


@pytest.mark.parametrize(
    ("status", "now", "ends_with", "queues_again"),
    [
        (0, 400, 0, False),  # at its end
        (0, 300, 0, True),  # stopped by a signal, and saved
        (143, 0, 0, True),  # stopped before there was anything to save
        (2, 0, 2, False),  # a mistake
        (1, 300, 1, False),  # diverged
    ],
)
def test_a_slurm_job_that_was_stopped_queues_again(job, status, now, ends_with, queues_again):
    ended, _, requeued = job(status, now)
    assert ended == ends_with
    assert requeued == ("requeue 7\n" if queues_again else False)


def test_a_slurm_job_without_its_arguments_is_a_mistake(tmp_path):
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", "configs/dcgan.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: sbatch ")


def test_a_slurm_job_has_a_task_for_each_gpu_and_sees_all_of_them():
    """jax takes the device number SLURM_LOCALID, which a task with one visible GPU would not have."""
    options = options_of_the_job()
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert not {"gpus-per-task", "gpu-bind"} & set(options)
    assert options["signal"].startswith("TERM@")  # of all steps: `B:` would signal the script alone


# jobset.yaml


@pytest.fixture(scope="module")
def jobset():
    """The JobSet and the claim beside it, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())}


@pytest.fixture(scope="module")
def workers(jobset):
    (workers,) = jobset["JobSet"]["spec"]["replicatedJobs"]
    return workers


@pytest.fixture(scope="module")
def container(workers):
    (container,) = workers["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_pods_of_a_jobset_train_with_flags_that_agree_with_it(jobset, workers, container):
    assert container["command"][:2] == ["python", "experiments/launch/pod.py"]
    values = checked_flags("gan_jax.main", container["command"][2:])
    job, name = workers["template"]["spec"], jobset["JobSet"]["metadata"]["name"]
    assert job["completionMode"] == "Indexed"
    assert workers["replicas"] == 1
    assert int(values["num_processes"]) == job["completions"] == job["parallelism"]
    assert values["process_id"] == "$(JOB_COMPLETION_INDEX)"
    host, port = values["coordinator"].split(":")
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert 0 < int(port) < 32768  # where no connection of the pod itself takes it
    assert jobset["JobSet"]["spec"]["network"]["enableDNSHostnames"]


def test_pods_of_a_jobset_share_the_folder_that_they_write_to(jobset, workers, container):
    pod = workers["template"]["spec"]["template"]["spec"]
    claim = jobset["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (volume,) = (volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume)
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == volume["name"])
    values = checked_flags("gan_jax.main", container["command"][2:])
    for path in (values["workdir"], values["config.data.dir"]):
        assert path.startswith(mount["mountPath"] + "/")
    mounted, volumes = ({item["name"] for item in items} for items in (container["volumeMounts"], pod["volumes"]))
    assert mounted == volumes


def test_a_jobset_begins_again_but_for_a_mistake(jobset, workers, container):
    """backoffLimit 0: a failed pod fails its job; a failed job begins all anew, unless the pod's policy failed it."""
    job, policy = workers["template"]["spec"], jobset["JobSet"]["spec"]["failurePolicy"]
    (rule,) = job["podFailurePolicy"]["rules"]
    mistake = {"containerName": container["name"], "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onExitCodes": mistake}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which Kubernetes asks for beside such a policy
    assert job["backoffLimit"] == 0
    assert policy["maxRestarts"] > 0
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] > 30  # Kubernetes' own, too short to end and save


@pytest.mark.parametrize(
    ("trained", "now", "index", "status"),
    [
        (0, 400, 0, 0),
        (0, 300, 0, 75),  # stopped by a signal: not the end of the job
        (0, 300, 1, 0),  # which the first process tells
        (2, 300, 0, 2),
        (1, 300, 1, 1),
    ],
)
def test_a_pod_says_whether_the_run_is_at_its_end(tmp_path, trained, now, index, status):
    (tmp_path / "gan_jax").mkdir()
    (tmp_path / "gan_jax" / "__init__.py").touch()
    (tmp_path / "gan_jax" / "main.py").write_text(f"import sys\nprint(*sys.argv[1:])\nsys.exit({trained})\n")
    arguments = [f"--workdir={a_run(tmp_path / 'run', now, 400)}", f"--process_id={index}"]
    command = [sys.executable, LAUNCH / "pod.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, " ".join(arguments) + "\n")


# tpu_pod.sh


@pytest.fixture
def pod(tmp_path, stubs):
    """`pod(verb, ...)`: tpu_pod.sh where a gcloud runs what is for the hosts here, as the second of four of them."""
    environment = stubs(
        gcloud=f"""printf "%s\\n" "$*" >>{tmp_path}/gcloud
            for argument; do case $argument in --command=*) eval "${{argument#--command=}}" ;; esac; done""",
        curl="case ${*: -1} in */agent-worker-number) echo 1 ;; */worker-network-endpoints) echo a,b,c,d ;; esac",
    )
    (tmp_path / "gan_jax").symlink_to(ROOT)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text(
        """#!/usr/bin/env bash
        trap 'echo saved; exit 0' TERM
        printf "%s\\n" "$@"; env | grep ^TPU_PROCESS
        while :; do sleep 0.05; done"""
    )
    python.chmod(0o755)

    def pod(*arguments):
        command = ["bash", LAUNCH / "tpu_pod.sh", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    yield pod
    pod("stop")


def printed(tmp_path, last):
    """The lines of the process on the host, once it has printed `last`."""
    for _ in range(200):
        lines = (tmp_path / "gan_jax.log").read_text().splitlines() if (tmp_path / "gan_jax.log").exists() else []
        if any(line.startswith(last) for line in lines):
            return lines
        time.sleep(0.05)
    raise AssertionError(f"no {last} in {lines}")


def test_hosts_of_a_tpu_pod_train_until_they_are_stopped(pod, tmp_path):
    assert pod("train", "--config.seed=3", "--config.data.dir=/mnt/a b").returncode == 0
    lines = printed(tmp_path, "--config.data.dir")
    assert lines[:2] == TRAIN
    values = checked_flags("gan_jax.main", lines[2:])
    assert values["config.data.dir"] == "/mnt/a b"
    assert set(values) == {"config", "workdir", "config.seed", "config.data.dir"}
    assert pod("train").returncode == 2  # one at a time
    assert "saved" in pod("stop").stdout
    assert "--worker=all" in (tmp_path / "gcloud").read_text()


def test_hosts_of_a_tpu_pod_share_a_sweep(pod, tmp_path):
    assert pod("sweep").returncode == 0
    lines = printed(tmp_path, "TPU_PROCESS_BOUNDS")
    assert lines[:2] == SWEEP
    command = [line for line in lines[2:] if line.startswith("--")]
    values = checked_flags("gan_jax.sweep.__main__", command)
    assert (values["process_id"], values["num_processes"]) == ("1", "4")
    assert "TPU_PROCESS_BOUNDS=1,1,1" in lines


def test_a_tpu_pod_says_what_it_takes(pod):
    done = pod("restart")
    assert done.returncode == 2
    for verb in ("create", "install", "train", "sweep", "log", "stop", "delete"):
        assert f"tpu_pod.sh {verb}" in done.stderr
