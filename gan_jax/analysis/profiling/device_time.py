"""How long each operation of a compiled program kept the device busy, from the trace of `jax.profiler.trace`."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

# Of XLA's thread pool on a CPU: a task is recorded where it is handed over, and starts and stops elsewhere. What an
# operation hands over is its own time, and so is what that hands over in turn.
_RECORD, _START, _STOP = (f"ThreadpoolListener::{name}" for name in ("Record", "StartRegion", "StopRegion"))
_EXECUTOR = "ThunkExecutor::"  # it only chooses what runs next


class _Span(NamedTuple):
    """Something that a thread or a stream did. Spans of one line lie inside or behind each other."""

    start: float  # nanoseconds
    end: float
    owner: str | int | None  # the operation, or the task of the thread pool, whose time this is
    hands_over: bool = False  # whether it is the moment at which the task `owner` is handed over


def busy_seconds(folder: Path) -> dict[str, float]:
    """Seconds of each operation of the compiled programs in the newest trace below `folder`, by its name there.

    Summed over threads and devices, so that they may add up to more than has passed; what one operation does inside
    another counts for the inner one alone. Raises ValueError where the trace has nothing of the kind.
    """
    paths = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise ValueError("the profiler wrote no trace")
    nanoseconds, handed_over_by, seconds = Counter(), {}, Counter()
    for events in _lines(ProfileData.from_file(str(paths[-1]))):
        stack = [_Span(-math.inf, math.inf, None)]
        for span in sorted(_spans(events), key=lambda span: (span.start, -span.end)):
            while stack[-1].end <= span.start:
                stack.pop()
            outer = stack[-1]
            if span.hands_over:
                handed_over_by[span.owner] = outer.owner
                continue
            span = span._replace(end=min(span.end, outer.end))  # clocks are read one after the other
            nanoseconds[span.owner] += span.end - span.start
            nanoseconds[outer.owner] -= span.end - span.start  # which is the inner one's alone
            stack.append(span)
    for owner, duration in nanoseconds.items():
        while isinstance(owner, int):
            owner = handed_over_by.get(owner)
        if owner:
            seconds[owner] += duration * 1e-9
    if sum(seconds.values()) <= 0:
        raise ValueError("the profiler wrote a trace without the device's operations")
    return dict(seconds)


def _lines(data: ProfileData) -> Iterator[Iterable]:
    """The events of each thread or stream that computed."""
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        lines = list(plane.lines)
        # A TPU shows its modules, steps and operations as three lines; a GPU its streams; a CPU all of its threads.
        operations = [line for line in lines if line.name == "XLA Ops"]
        yield from (line.events for line in operations or lines if line.name != "python")


def _spans(events: Iterable) -> Iterator[_Span]:
    started = None  # (start, task) of the thread pool's task at hand
    for event in events:
        name, start, end, stats = event.name, event.start_ns, event.start_ns + event.duration_ns, dict(event.stats)
        if name == _RECORD:
            yield _Span(start, start, stats.get("_p"), hands_over=True)
        elif name == _START:
            started = start, stats.get("_c")
        elif name == _STOP and started:
            yield _Span(started[0], start, started[1])
            started = None
        elif name.startswith(_EXECUTOR):
            yield _Span(start, end, None)
        elif not name.startswith("end: ") and "hlo_op" in stats:
            yield _Span(start, end, stats["hlo_op"])
