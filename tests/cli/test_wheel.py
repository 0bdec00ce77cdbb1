"""A wheel, where there is nothing else of the project."""

import importlib.metadata
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, with_devices

OWN = """
from gan_jax.config import default_config
def get_config():
    (config := default_config()).objective.name = "wgan"
    return config
"""
FEW = (
    "--runtime=plain",
    "--config.num_steps=2",
    "--config.health_every=0",
    "--config.sample_every=0",
    "--config.evaluate_every=0",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel is installed."""
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.partition(".")[0]) < 77:
        pytest.skip(f"setuptools is {version}; to build a wheel without the network it must be 77 or newer")
    clone, folder = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("installed")
    for name in ("gan_jax", "configs"):
        shutil.copytree(ROOT / name, clone / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, clone)
    offline = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, f"--target={folder}", str(clone)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


def test_a_wheel_trains_shipped_configs_and_ones_of_four_lines(installed, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text("1 / 0")
    (tmp_path / "configs" / "mine.py").write_text(OWN)

    def train(workdir, *command):
        environment = with_devices(1) | {"PYTHONPATH": str(installed)}
        command = [*command, *FEW, f"--workdir={workdir}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / workdir / "checkpoints" / "2").is_dir()

    narrow = [f"--config.{player}.width=4" for player in ("generator", "discriminator")]
    train("shipped", sys.executable, "-m", "gan_jax.main", "--config=configs/dcgan.py", *narrow)
    train("own", sys.executable, installed / "bin" / "gan-jax", "train", "--config=configs/mine.py")
