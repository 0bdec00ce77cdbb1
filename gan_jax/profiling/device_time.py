"""How long each operation of a compiled program kept the device busy, from the trace of `jax.profiler.trace`."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

# Of XLA's thread pool on a CPU: a task is recorded where it is handed over, and starts and stops elsewhere. What an
# operation hands over is its own time, and so is what that hands over in turn.
_RECORD, _START, _STOP = (f"ThreadpoolListener::{name}" for name in ("Record", "StartRegion", "StopRegion"))
_EXECUTOR = "ThunkExecutor::"  # it only chooses what runs next


class _Span(NamedTuple):
    """Something that a thread or a stream did; spans of one line lie inside or behind each other."""

    start: float  # nanoseconds
    end: float
    operation: str | None
    task: int | None  # of the thread pool


def busy_seconds(folder: Path) -> dict[str, float]:
    """Seconds of each operation of the compiled programs in the newest trace below `folder`, by its name there.

    Summed over threads and devices, so that they may add up to more than has passed; what one operation does inside
    another counts for the inner one alone. Raises ValueError where the trace has nothing of the kind.
    """
    paths = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise ValueError("the profiler wrote no trace")
    lines = list(_lines(ProfileData.from_file(str(paths[-1]))))
    own, owners = defaultdict(float), {}
    for line in lines:
        _add_line(line, own, owners)
    seconds = defaultdict(float)
    for (operation, task), nanoseconds in own.items():
        operation = _owner(operation, task, owners)
        if operation:
            seconds[operation] += nanoseconds * 1e-9
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
        for line in operations or lines:
            if line.name != "python":
                yield line.events


def _add_line(events: Iterable, own: dict, owners: dict) -> None:
    """Adds the time of a line's spans, without that of the spans inside them, to `own`, by (operation, task).

    `owners` learns, for each task that is handed over here, the (operation, task) that does so.
    """
    spans, records = _read(events)
    points = sorted(
        [(span.start, -span.end, span) for span in spans] + [(time, 0.0, task) for time, task in records],
        key=lambda point: point[:2],
    )
    stack = []
    for time, _, what in points:
        while stack and stack[-1].end <= time:
            stack.pop()
        outer = stack[-1] if stack else None
        if not isinstance(what, _Span):
            owners[what] = (outer.operation, outer.task) if outer else (None, None)
            continue
        end = min(what.end, outer.end) if outer else what.end  # clocks are read one after the other
        own[what.operation, what.task] += end - time
        if outer:
            own[outer.operation, outer.task] -= end - time
        stack.append(what._replace(end=end))


def _read(events: Iterable) -> tuple[list[_Span], list[tuple[float, int]]]:
    """The spans of a line, and (time, task) wherever a task is handed over."""
    spans, records, started = [], [], None
    for event in events:
        name = event.name
        if name.startswith("end: "):
            continue
        start, end = event.start_ns, event.start_ns + event.duration_ns
        if name == _RECORD:
            records.append((start, dict(event.stats).get("_p")))
        elif name == _START:
            started = (start, dict(event.stats).get("_c"))
        elif name == _STOP:
            if started:
                spans.append(_Span(started[0], start, None, started[1]))
            started = None
        elif name.startswith(_EXECUTOR):
            spans.append(_Span(start, end, None, None))
        else:
            operation = dict(event.stats).get("hlo_op")
            if operation:
                spans.append(_Span(start, end, operation, None))
    return spans, records


def _owner(operation: str | None, task: int | None, owners: dict) -> str | None:
    while operation is None and task is not None:
        operation, task = owners.get(task, (None, None))
    return operation
