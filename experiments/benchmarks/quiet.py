"""How busy the machine is with something else: a block of work that others disturbed says nothing about speed."""

import time
from typing import NamedTuple

import psutil

THRESHOLD = 0.06  # of all CPUs


class Usage(NamedTuple):
    """Seconds so far, of the clock, of all CPUs together, of this process and its children."""

    clock: float
    busy: float
    own: float


def cpu_seconds() -> tuple[float, float]:
    """Busy CPU seconds so far: of the whole machine (stolen ones too), and of this process with all its children."""
    times = psutil.cpu_times()
    process = psutil.Process()
    own = sum(process.cpu_times()[:4])  # its own, and those of children that have ended
    own += sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return sum(times) - times.idle - getattr(times, "iowait", 0.0), own


def usage() -> Usage:
    """Where the counters stand."""
    return Usage(time.perf_counter(), *cpu_seconds())


def others(before: Usage, after: Usage) -> float:
    """The share of all CPUs that other processes used in between (the counters tick every 10 ms)."""
    clock, busy, own = (late - early for late, early in zip(after, before, strict=True))
    return max(0.0, busy - own) / (clock * psutil.cpu_count())
