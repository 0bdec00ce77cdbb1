"""What makes the process fast, set by `main` before JAX's backend starts: XLA flag, allocator, dispatch, cache.

Importing this module sets nothing, and nothing here overrides what the user has set.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

import jax
import jaxlib

from gan_jax.utils.files import require_writable

# XLA ends the process at a flag that it does not know, so this is for the versions of jaxlib with which it was tried.
# They send convolutions to YNN by default, which is slower there than Eigen.
CONVOLUTIONS_BY_EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
TRIED_JAXLIB = ("0.10.2", "0.12.0.1")

MOST_DEVICES = 2048  # that a CPU can be: JAX (0.10.2) takes those above for another process's
DEVICE_COUNT = "--xla_force_host_platform_device_count"  # as how many devices XLA shows a CPU

# Of glibc's malloc.h: [(parameter, value)]. Large arrays come from the heap, which is not given back to the kernel
# between steps: each page given back is a page fault in the next step. The number of arenas stays as it is: with one
# for all threads, those that run small networks wait for each other, and for its free list, in pieces since compiling.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MALLOPT = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_MAX, 0))


def fast() -> str:
    """Sets what fits this machine, before JAX's backend starts; returns one line of what was set and what was not."""
    on_cpu = [_set_xla_flag(), _set_allocator(), _set_dispatch()] if will_run_on_cpu() else []
    return "fast: " + "; ".join([*on_cpu, _set_compilation_cache()])


RUNTIMES = {"fast": fast, "plain": lambda: "plain"}


def will_run_on_cpu() -> bool:
    """Whether JAX will compute on the CPU, as far as can be told without starting a backend.

    Where nobody has said so, an installed plugin or libtpu counts as an accelerator, be there a device or not.
    """
    if jax.config.jax_platforms:
        return jax.config.jax_platforms.split(",")[0] == "cpu"
    return not (
        os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS")
        or importlib.util.find_spec("jax_plugins")
        or importlib.util.find_spec("libtpu")
        or importlib.metadata.entry_points(group="jax_plugins")
    )


def _set_xla_flag() -> str:
    if jaxlib.__version__ not in TRIED_JAXLIB:
        return f"no XLA flag, untried with jaxlib {jaxlib.__version__}"
    return f"XLA_FLAGS {CONVOLUTIONS_BY_EIGEN}" if _add_xla_flag(CONVOLUTIONS_BY_EIGEN) else "XLA_FLAGS as given"


def _add_xla_flag(flag: str) -> bool:
    """Appends it to XLA_FLAGS; False where the user has set this flag, or keeps flags in a file."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flag.split("=")[0].lstrip("-") in flags or flags[:1] not in ("", "-"):  # without a dash it names a file
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    return True


def share_cpu() -> str:
    """Before JAX's backend starts: makes a CPU as many devices as it has cores; one line of what was set.

    One program of small networks leaves most cores idle; one on each of them, with its share of a population, does not.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    is_set = will_run_on_cpu() and _add_xla_flag(f"{DEVICE_COUNT}={count}")
    return f"{count} CPU devices" if is_set else "devices as given"


def stand_in(count: int) -> None:
    """Before JAX's backend starts: the CPU, as `count` devices, takes the place of whatever else there is.

    Where XLA_FLAGS already say how many devices a CPU is, or name a file, they stay as they are.
    """
    jax.config.update("jax_platforms", "cpu")
    _add_xla_flag(f"{DEVICE_COUNT}={count}")


def _set_allocator() -> str:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return "malloc as given"
    if not _is_glibc():
        return "malloc as it is, not glibc's"
    mallopt = ctypes.CDLL(None).mallopt
    refused = [str(parameter) for parameter, value in MALLOPT if not mallopt(parameter, value)]
    return "malloc keeps freed memory" + (f" (refused: {', '.join(refused)})" if refused else "")


def give_back() -> None:
    """Gives freed memory back to the kernel, where the allocator can: for after a compilation, which needs much."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return sys.platform == "linux" and platform.libc_ver()[0] == "glibc"


def _set_dispatch() -> str:
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" in os.environ or not jax.config.read("jax_cpu_enable_async_dispatch"):
        return "dispatch as given"
    # Each call that waits in a queue already holds the memory of its temporaries: one at a time, that is needed once.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return "one call at a time"


def _set_compilation_cache() -> str:
    is_set = "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir is not None
    if is_set or not jax.config.jax_enable_compilation_cache:
        return "compilation cache as given"
    folder = cache_folder()
    if not folder.is_absolute():
        return "no compilation cache, there is no home folder"
    try:
        # JAX runs the machine code that it finds there: nobody else may write it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_writable(folder)
    except OSError as error:
        return f"no compilation cache, {folder}: {error.strerror}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs too: a start has dozens of them, each a fraction of a second.
    for name, value in (("min_compile_time_secs", 0.0), ("min_entry_size_bytes", -1)):
        if f"JAX_PERSISTENT_CACHE_{name.upper()}" not in os.environ:
            jax.config.update(f"jax_persistent_cache_{name}", value)
    return f"compilation cache in {folder}"


def cache_folder() -> Path:
    """Where compiled programs are kept: $XDG_CACHE_HOME/gan_jax, or ~/.cache/gan_jax."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is not valid there, by the specification, and is to be ignored.
    return Path(folder if os.path.isabs(folder) else os.path.expanduser("~/.cache")) / "gan_jax"
