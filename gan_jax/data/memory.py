"""How much memory a resident data set may take."""

import os
from contextlib import suppress
from pathlib import Path

import jax


def room_for_data() -> int:
    """Bytes that a resident data set may take of each device: half of an accelerator, a quarter of a CPU's memory."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return room_of(statistics["bytes_limit"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # none outside a container, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory // 4


def room_of(memory: int) -> int:
    """What `room_for_data` is of an accelerator with so many bytes."""
    return memory // 2
