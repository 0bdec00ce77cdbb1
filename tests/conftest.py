"""What the tests share: four fake CPU devices, one compilation cache, and shipped configs made small."""

import atexit
import contextlib
import gc
import hashlib
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jaxlib
import pytest
from absl import flags

ROOT = Path(__file__).resolve().parents[1]
FAKE_DEVICES = "--xla_force_host_platform_device_count"

# All of this is read when JAX is imported or its backend starts, by this process and by those that the tests start.
# What the user has set stays.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if FAKE_DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAKE_DEVICES}=4".strip()
# Most steps here are so few and small that compiling them is most of the time: XLA takes less care.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
EMITTERS = "--xla_cpu_use_fusion_emitters"
if jaxlib.__version__ == "0.10.2" and EMITTERS not in os.environ["XLA_FLAGS"]:  # later ones end at a flag they lost
    os.environ["XLA_FLAGS"] += f" {EMITTERS}=false"


def _kept_cache() -> Path:
    """A folder of compiled programs that the next run finds again; what is two weeks old goes.

    Its name has what a program depends on beside JAX's own key for it: Python, jaxlib and the instructions of this CPU.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gan_jax-tests"
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    instructions = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    key = f"{platform.python_version()} {jaxlib.__version__} {platform.machine()} {instructions}"
    folder = home / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for path in home.rglob("*"):
        with contextlib.suppress(OSError):  # another run may have removed it
            if path.is_file() and path.stat().st_mtime < time.time() - 14 * 24 * 3600:
                path.unlink()
    return folder


if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    try:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_kept_cache())
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gan_jax-tests-")
        atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # to load the smallest takes half as long
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Decoded sets go where they are removed; so would compiled programs, but for the folder above.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="gan_jax-tests-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

sys.path.insert(0, str(ROOT))  # for `configs`, which is not installed
flags.FLAGS.mark_as_parsed()


def with_devices(count: int) -> dict[str, str]:
    """The environment of a process that is to have so many fake devices, and all else as here."""
    rest = re.sub(rf"{FAKE_DEVICES}=\d+", "", os.environ["XLA_FLAGS"])
    return os.environ | {"XLA_FLAGS": f"{rest} {FAKE_DEVICES}={count}".strip()}


def shrunk_config(name: str, variant: str | None = None, changes: dict | None = None):
    config = importlib.import_module(f"configs.{name}").get_config(*([variant] if variant else []))
    config.update(num_steps=4, batch_size=8, log_every=1, sample_every=2, health_every=0, checkpoint_every=2)
    config.steps_per_call = min(config.steps_per_call, 2)
    config.discriminator.steps = min(config.discriminator.steps, 2)
    config.burn_in = min(config.burn_in, 3)
    config.latent.dim = min(config.latent.dim, 4)
    config.evaluation.update(num_samples=60, num_real=50, resamples=5)
    for player in (config.generator, config.discriminator):
        player.update({"width": 8, "depth": 2} if player.network == "mlp" else {"width": 4, "depth": 1})
        player.update({"blocks": 1, "groups": 2} if player.network == "r3gan" else {})
    config.update_from_flattened_dict(changes or {})
    return config.lock()


@pytest.fixture(scope="session")
def shrunk():
    """`shrunk(name, variant=None, {dotted key: value})`: the shipped config with tiny networks and a few steps."""
    return shrunk_config


@pytest.fixture
def optimized():
    """Compiles with all of XLA's care, as a user does: for tests of that, and where running is most of the time."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def _forget():
    """Lets go of a module's programs: with those of all modules each collection of garbage takes a second."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def tfds_data() -> Path:
    """The folder of prepared sets, with MNIST and CIFAR-10 in it."""
    folder = Path(os.environ.get("GAN_JAX_TEST_DATA", ROOT.parent / "shared" / "tfds"))
    missing = [name for name in ("mnist", "cifar10") if not (folder / name).is_dir()]
    if missing:
        pytest.skip(
            f"no {' and no '.join(missing)} in {folder}: GAN_JAX_TEST_DATA names a folder of prepared TFDS sets"
        )
    return folder


def _start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "gan_jax.main", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def start():
    """`start(*arguments)`: the command line in a process of its own, which does not outlive the test."""
    started = []

    def start(*arguments):
        started.append(_start(*arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
