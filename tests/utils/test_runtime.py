"""What main sets to be fast: where nothing was set, before JAX's backend starts, and never on import."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections import namedtuple
from types import SimpleNamespace

import jax
import jaxlib
import pytest
from conftest import ROOT

from gan_jax.utils import runtime

NAMES = (
    "XLA_FLAGS",
    "XDG_CACHE_HOME",
    "GLIBC_TUNABLES",
    "JAX_CPU_ENABLE_ASYNC_DISPATCH",
)  # variables that the runtime reads
PREFIXES = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "JAX_ENABLE_COMPILATION", "MALLOC_")
MALLOPT = {"M_TRIM_THRESHOLD": -1, "M_MMAP_THRESHOLD": -3, "M_MMAP_MAX": -4}  # of glibc's malloc.h
DISPATCH = {"jax_cpu_enable_async_dispatch": False}  # what the runtime sets besides the cache


def bare_environment(**changes):
    """The environment without anything that the runtime respects, on the CPU; then `changes`."""
    kept = {k: v for k, v in os.environ.items() if k not in NAMES and not k.startswith(PREFIXES)}
    return kept | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | changes


def python(source, *arguments, **environment):
    """The last line that this program prints, as JSON, in a process of its own."""
    command, environment = [sys.executable, "-c", source, *arguments], bare_environment(**environment)
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """This process as `bare_environment` has it, with a cache folder of its own; what is called stays without effect.

    Returns what is recorded: `mallopt`, the calls of it, and `config`, the updates of jax.config.
    """
    for name in set(os.environ) - set(bare_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recorded = namedtuple("Recorded", "mallopt config")([], {})
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: FakeLibrary(recorded.mallopt))
    monkeypatch.setattr(runtime, "_is_glibc", lambda: True)
    monkeypatch.setattr(jaxlib, "__version__", runtime.TRIED_JAXLIB[0])
    monkeypatch.setattr(jax, "config", FakeConfig(recorded.config))
    return recorded


class FakeLibrary:
    """A C library whose mallopt only takes note."""

    def __init__(self, calls):
        self._calls = calls

    def mallopt(self, parameter, value):
        self._calls.append((parameter, value))
        return 1


class FakeConfig:
    """A jax.config of a process in which nothing is set, on the CPU."""

    jax_platforms = "cpu"
    jax_enable_compilation_cache = True
    jax_compilation_cache_dir = None

    def __init__(self, updates):
        self.update = updates.__setitem__

    def read(self, name):
        """The value of a setting without an attribute."""
        return {"jax_cpu_enable_async_dispatch": True}[name]


# --- What is set, and said


def test_fast_sets_all_of_it_and_says_so(bare, tmp_path):
    said = runtime.fast()
    assert os.environ["XLA_FLAGS"] == runtime.CONVOLUTIONS_BY_EIGEN
    assert {number for number, _ in bare.mallopt} == set(MALLOPT.values())
    assert (MALLOPT["M_MMAP_MAX"], 0) in bare.mallopt
    assert bare.config == {
        "jax_cpu_enable_async_dispatch": False,
        "jax_compilation_cache_dir": str(tmp_path / "cache" / "gan_jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    assert said == (
        f"fast: XLA_FLAGS {runtime.CONVOLUTIONS_BY_EIGEN}; malloc keeps freed memory; "
        f"one call at a time; compilation cache in {tmp_path / 'cache' / 'gan_jax'}"
    )


def test_plain_sets_nothing(bare, tmp_path):
    before = dict(os.environ)
    assert runtime.RUNTIMES["plain"]() == "plain"
    assert (dict(os.environ), bare.mallopt, bare.config) == (before, [], {})
    assert not list(tmp_path.iterdir())


def test_folder_of_compiled_programs_is_the_users_alone(bare, tmp_path):
    runtime.fast()
    assert (tmp_path / "cache" / "gan_jax").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "cache" / "gan_jax").iterdir())


# --- What the user has set


@pytest.mark.parametrize(
    "value",
    [
        f"{runtime.CONVOLUTIONS_BY_EIGEN.split('=')[0]}=",
        "--xla_cpu_multi_thread_eigen=true --xla_cpu_experimental_ynn_fusion_type=dot",
        "/etc/xla_flags.txt",
    ],
)
def test_xla_flags_that_settle_it_stay(value, bare, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", value)
    assert "XLA_FLAGS as given" in runtime.fast()
    assert os.environ["XLA_FLAGS"] == value


def test_other_xla_flags_stay_in_front(bare, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    runtime.fast()
    assert os.environ["XLA_FLAGS"] == f"--xla_cpu_multi_thread_eigen=true {runtime.CONVOLUTIONS_BY_EIGEN}"
    runtime.fast()
    assert os.environ["XLA_FLAGS"].count("ynn_fusion_type") == 1


@pytest.mark.parametrize("version", ["0.10.1", "0.10.2.dev1", "1.0.0"])
def test_untried_jaxlib_gets_no_flag(version, bare, monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", version)
    assert f"no XLA flag, untried with jaxlib {version}" in runtime.fast()
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_malloc_that_is_set_stays(name, bare, monkeypatch):
    monkeypatch.setenv(name, "glibc.malloc.arena_max=2" if name == "GLIBC_TUNABLES" else "2")
    assert "malloc as given" in runtime.fast()
    assert bare.mallopt == []


def test_malloc_of_another_c_library_stays(bare, monkeypatch):
    monkeypatch.setattr(runtime, "_is_glibc", lambda: False)
    assert "not glibc's" in runtime.fast()
    assert bare.mallopt == []


def test_what_mallopt_refuses_is_said(bare, monkeypatch):
    monkeypatch.setattr(FakeLibrary, "mallopt", lambda self, parameter, value: int(parameter != -3))
    assert "malloc keeps freed memory (refused: -3)" in runtime.fast()


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_compilation_cache_dir", "/somewhere"), ("jax_enable_compilation_cache", False)],
)
def test_cache_that_is_configured_stays(name, value, bare, monkeypatch):
    monkeypatch.setattr(FakeConfig, name, value)
    assert "compilation cache as given" in runtime.fast()
    assert bare.config == DISPATCH


@pytest.mark.parametrize("value", ["/somewhere", ""])
def test_cache_of_the_environment_stays(value, bare, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", value)
    assert "compilation cache as given" in runtime.fast()
    assert bare.config == DISPATCH
    assert not list(tmp_path.iterdir())


def test_limits_of_the_environment_stay(bare, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "5")
    runtime.fast()
    assert set(bare.config) == {
        *DISPATCH,
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_entry_size_bytes",
    }


def test_dispatch_of_the_environment_stays(bare, monkeypatch):
    monkeypatch.setenv("JAX_CPU_ENABLE_ASYNC_DISPATCH", "true")
    assert "dispatch as given" in runtime.fast()
    assert not DISPATCH.keys() & bare.config.keys()


# --- Where the cache is


def test_cache_folder_follows_the_specification(bare, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert runtime.cache_folder() == tmp_path / ".cache" / "gan_jax"


def test_cache_folder_that_cannot_be_written_is_left_out(bare, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", "/proc/nothing"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        assert f"no compilation cache, {folder}/gan_jax: " in runtime.fast()
    assert bare.config == DISPATCH
    assert (tmp_path / "file").read_text() == "mine"


def test_no_cache_without_a_home(bare, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "no compilation cache, there is no home folder" in runtime.fast()
    assert bare.config == DISPATCH


# --- Where it will run


@pytest.mark.parametrize(
    ("platforms", "on_cpu"), [("cpu", True), ("cpu,cuda", True), ("cuda,cpu", False), ("tpu", False)]
)
def test_platform_that_is_named(platforms, on_cpu, bare, monkeypatch):
    monkeypatch.setattr(FakeConfig, "jax_platforms", platforms)
    assert runtime.will_run_on_cpu() == on_cpu


@pytest.mark.parametrize("platforms", [None, ""])
def test_platform_that_is_not_named(platforms, bare, monkeypatch):
    monkeypatch.setattr(FakeConfig, "jax_platforms", platforms)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    assert runtime.will_run_on_cpu()
    with monkeypatch.context() as patch:
        patch.setattr(runtime.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
        assert not runtime.will_run_on_cpu()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [group] if group == "jax_plugins" else ())
    assert not runtime.will_run_on_cpu()


def test_accelerator_gets_the_cache_alone(bare, monkeypatch, tmp_path):
    monkeypatch.setattr(FakeConfig, "jax_platforms", "cuda")
    assert runtime.fast() == f"fast: compilation cache in {tmp_path / 'cache' / 'gan_jax'}"
    assert "XLA_FLAGS" not in os.environ
    assert bare.mallopt == []


# --- In processes of their own

# What a convolution compiles to, and how many programs came from the cache.
CONVOLVES = """
import json, sys
import jax, jax.numpy as jnp
from gan_jax.utils import runtime
report["said"] = runtime.RUNTIMES[sys.argv[1]]()
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
def f(x, w):
    return jax.lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
text = jax.jit(f).lower(jnp.ones((64, 8, 8, 64)), jnp.ones((4, 4, 64, 64))).compile().as_text()
print(json.dumps(report | {"hits": len(hits), "ynn": "ynn" in text}))
"""

# What the process is like after the import, and after `fast`, which two kinds of memory are freed in.
LOOKS = """
import os, resource
import jax
import numpy as np
import gan_jax.main
from gan_jax.utils import runtime
from jax._src import xla_bridge

def look():
    return {"environ": dict(os.environ), "started": xla_bridge.backends_are_initialized(),
        "cache": jax.config.jax_compilation_cache_dir, "folder": runtime.cache_folder().exists()}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

report = {"imported": look()}
if runtime._is_glibc():
    faults()
    report["plain_faults"] = [faults() for _ in range(3)]
runtime.fast()
report["set"] = look()
if runtime._is_glibc():
    faults()
    report["fast_faults"] = [faults() for _ in range(3)]
    small = [np.ones(1 << 16, np.uint8) for _ in range(1600)]
    kept = small.pop()
    del small
    report["before"] = resident()
    runtime.give_back()
    report["after"] = resident()
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What three processes saw: `first` looked around and then convolved, `second` did so with the cache that the
    first left, `plain` set nothing. `files` and `later`: the cache after the first and after the second."""
    cache = tmp_path_factory.mktemp("cache")
    first = python(LOOKS + CONVOLVES, "fast", XDG_CACHE_HOME=str(cache))
    files = set((cache / "gan_jax").iterdir())
    second = python("report = {}" + CONVOLVES, "fast", XDG_CACHE_HOME=str(cache))
    later = set((cache / "gan_jax").iterdir())
    plain = python("report = {}" + CONVOLVES, "plain", XDG_CACHE_HOME=str(cache))
    return SimpleNamespace(cache=cache, first=first, second=second, plain=plain, files=files, later=later)


def test_importing_sets_nothing_and_starts_no_backend(processes):
    imported = processes.first["imported"]
    assert not imported["started"]
    assert imported["cache"] is None
    assert [name for name in imported["environ"] if name.startswith(("XLA_FLAGS", "GLIBC_TUNABLES", *PREFIXES))] == []
    assert not imported["folder"]


def test_setting_starts_no_backend(processes):
    after = processes.first["set"]
    assert not after["started"]
    assert after["cache"] == str(processes.cache / "gan_jax")
    tried = jaxlib.__version__ in runtime.TRIED_JAXLIB
    assert after["environ"].get("XLA_FLAGS") == (runtime.CONVOLUTIONS_BY_EIGEN if tried else None)


def test_the_second_process_finds_what_the_first_compiled(processes):
    assert processes.files
    assert processes.first["hits"] < len(processes.files)
    assert processes.second["hits"] >= len(processes.files)
    assert processes.later == processes.files


@pytest.mark.skipif(jaxlib.__version__ not in runtime.TRIED_JAXLIB, reason="the flag was not tried with this jaxlib")
def test_the_flag_reaches_the_compiler(processes):
    """A flag in os.environ counts as long as the backend has not started, also after `import jax`."""
    assert not processes.first["ynn"]
    assert processes.plain["ynn"]


@pytest.mark.skipif(not runtime._is_glibc(), reason="mallopt is glibc's")
def test_freed_memory_is_not_faulted_in_again(processes):
    assert max(processes.first["fast_faults"]) < 10
    # A kernel with huge pages everywhere has few of them.
    assert min(processes.first["plain_faults"]) >= 32


@pytest.mark.skipif(not runtime._is_glibc(), reason="malloc_trim is glibc's")
def test_memory_that_is_given_back_leaves_the_process(processes):
    assert processes.first["before"] - processes.first["after"] > 80  # of the 100 MB that were freed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "--xla_force_host_platform_device_count=6"),
        ("--xla_cpu_other=1", "--xla_cpu_other=1 --xla_force_host_platform_device_count=6"),
        ("--xla_force_host_platform_device_count=2", "--xla_force_host_platform_device_count=2"),
        ("file_of_flags", "file_of_flags"),
    ],
)
def test_a_cpu_stands_in_for_devices_unless_the_user_has_said_how_many_it_is(bare, monkeypatch, before, after):
    if before:
        monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    runtime.stand_in(6)
    assert os.environ["XLA_FLAGS"] == after
    assert bare.config == {"jax_platforms": "cpu"}
    monkeypatch.setenv("XLA_FLAGS", "")  # which was not set before, and is put back
