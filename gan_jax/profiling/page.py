"""The page of a profile: what was measured, in Markdown."""

import os
import platform
import resource
import sys
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gan_jax.profiling import hlo
from gan_jax.profiling.ceilings import Ceilings
from gan_jax.recipe import Setup

COSTLIEST = 5
LONGEST = 120  # letters of a place's name
# Of a place's name: what every operation has, or what only says how a loop is compiled.
_NOISE = ("while/body/closed_call/", "closed_call/", "shard_map/", "jit(body)/")


class Operation(NamedTuple):
    """All HLO operations of one kind that come from one place in the source."""

    seconds: float  # a step, summed over threads and devices
    kind: str
    place: str
    count: int  # HLO operations


class Traced(NamedTuple):
    """What the trace says."""

    steps: int
    seconds: float | None  # a step, while being traced
    operations: list[Operation]  # the costliest first
    problem: str | None  # why there are none


class Memory(NamedTuple):
    """Bytes."""

    program: Any  # jax's CompiledMemoryStats of one device; None where the backend does not say
    peak: int
    peak_of: str


class Measured(NamedTuple):
    """Everything of a profile."""

    steps: int  # of a call
    seconds: np.ndarray  # [calls], a step of each timed call
    compile_seconds: float
    flops: float  # a step
    bytes: float  # a step, over all devices
    counted_by_xla: tuple[float | None, float | None]  # FLOPs and bytes of a call on one device, in XLA's own count
    memory: Memory
    traced: Traced
    ceilings: Ceilings


def operations(program: hlo.Program, busy: dict[str, float], steps: int) -> list[Operation]:
    """The operations, the costliest first, from the seconds that each HLO operation took in so many steps."""
    by_name = {each.name: each for computation in program.computations.values() for each in computation}
    seconds, counts = defaultdict(float), Counter()
    for name, duration in busy.items():
        key = _kind_and_place(program, by_name, name)
        seconds[key] += duration / steps
        counts[key] += 1
    found = [Operation(value, *key, counts[key]) for key, value in seconds.items()]
    return sorted(found, key=lambda each: each.seconds, reverse=True)


def _kind_and_place(program: hlo.Program, by_name: dict[str, hlo.Instruction], name: str) -> tuple[str, str]:
    each = by_name.get(name)
    if not each:
        return "unknown", name
    kind = hlo.kind(program, each)
    if each.place or kind == "copy":
        return kind, shortened(each.place) or "(added by XLA)"
    # What XLA rewrites for many devices may lose its name; that of an operand tells nearly as much.
    operands = (by_name[operand].place for operand in each.operands if operand in by_name)
    near = next(filter(None, operands), "")
    return kind, f"(near) {shortened(near)}" if near else "(without a name)"


def shortened(place: str) -> str:
    """A place without what every operation has in its name."""
    if place.startswith("jit("):
        place = place.partition("/")[2]
    for noise in _NOISE:
        place = place.replace(noise, "")
    return place if len(place) <= LONGEST else place[:LONGEST] + "..."


def render(setup: Setup, measured: Measured, name: str, runs_with: str, workdir: Path) -> str:
    """The page."""
    rows = {**_what(setup, measured, runs_with), **_numbers(setup, measured), **_roofline(measured)}
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"# Profile of {name}\n\n| | |\n|---|---|\n{table}\n\n{_costliest(measured)}\n\n"
        f"The trace of {measured.traced.steps:,} steps: `tensorboard --logdir={workdir / 'profile'}`, or "
        "`perfetto_trace.json.gz` in there at https://ui.perfetto.dev.\n"
    )


def _what(setup: Setup, measured: Measured, runs_with: str) -> dict[str, str]:
    config = setup.config
    packages = ", ".join(f"{package} {version(package)}" for package in ("jax", "jaxlib", "flax", "optax"))
    return {
        "device": _device(setup.devices.count),
        "versions": f"{packages}, Python {platform.python_version()}",
        "runtime": runs_with.replace(str(Path.home()), "~"),
        "config": f"{config.precision}, matmul precision {config.matmul_precision}, batch {config.batch_size}"
        f"{micro_batches(config.accumulate)}, "
        f"{config.discriminator.steps} + 1 updates a step, "
        f"steps in a call: {measured.steps}, {config.parallel}",
    }


def micro_batches(count: int) -> str:
    """How a page says that gradients are accumulated."""
    return f" in {count} micro-batches" if count > 1 else ""


def _device(count: int) -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{count} x {device.device_kind}"
    return f"{count} x CPU ({_cpu_model()}, {os.cpu_count()} cores)"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _numbers(setup: Setup, measured: Measured) -> dict[str, str]:
    seconds, config, memory = _median(measured), setup.config, measured.memory
    low, high = np.quantile(measured.seconds, (0.25, 0.75))
    examples = config.batch_size * config.discriminator.steps / seconds
    flops, accessed = (
        quantity(value, unit) for value, unit in zip(measured.counted_by_xla, ("FLOP", "B"), strict=True)
    )
    program = memory.program
    parts = (
        f"arguments {quantity(program.argument_size_in_bytes, 'B')}, "
        f"temporaries {quantity(program.temp_size_in_bytes, 'B')}, "
        f"output {quantity(program.output_size_in_bytes, 'B')} (of it {quantity(program.alias_size_in_bytes, 'B')} in "
        "the arguments' place); "
        if program
        else ""
    )
    return {
        "time": f"**{seconds * 1e3:.4g} ms a step** (median of {len(measured.seconds)} calls, quartiles "
        f"{(high - low) / seconds:.0%} apart), {examples:,.0f} real examples/s",
        "compilation": f"{measured.compile_seconds:.1f} s, without a cache",
        "work": f"{quantity(measured.flops, 'FLOP')} a step in matrix products and convolutions",
        "traffic": f"{quantity(measured.bytes, 'B')} a step, were nothing kept in caches",
        "XLA's own count": f"{flops}, {accessed} a call on one device, with the body of each loop once",
        "memory": f"{parts}peak of {memory.peak_of} {quantity(memory.peak, 'B')}",
    }


def _roofline(measured: Measured) -> dict[str, str]:
    seconds, ceilings = _median(measured), measured.ceilings
    work, traffic = measured.flops / ceilings.flops, measured.bytes / ceilings.bytes  # seconds at each ceiling
    binding = "the matrix product" if work >= traffic else "memory"
    return {
        "ceilings here": f"matrix product of {ceilings.product}: {quantity(ceilings.flops, 'FLOP/s')}; pass over "
        f"memory: {quantity(ceilings.bytes, 'B/s')}",
        "reached": f"**{quantity(measured.flops / seconds, 'FLOP/s')}, {work / seconds:.1%}** of the matrix "
        f"product's; {quantity(measured.bytes / seconds, 'B/s')}, {traffic / seconds:.1%} of memory's",
        "roofline": f"{measured.flops / measured.bytes:.3g} FLOP a byte; the ceilings meet at "
        f"{ceilings.flops / ceilings.bytes:.3g}: {binding} binds, at {max(work, traffic) * 1e3:.3g} ms a step",
    }


def _costliest(measured: Measured) -> str:
    traced = measured.traced
    if traced.problem:
        return f"The costliest operations are not known: {traced.problem}."
    busy = sum(each.seconds for each in traced.operations)
    by_kind = Counter()
    for each in traced.operations:
        by_kind[each.kind] += each.seconds / busy
    rows = "\n".join(
        f"| {digits(each.seconds * 1e3)} | {each.seconds / busy:.1%} | {each.kind} | `{each.place}` | {each.count} |"
        for each in traced.operations[:COSTLIEST]
    )
    return (
        f"| ms a step | share | kind | where | HLO operations |\n|---|---|---|---|---|\n{rows}\n\n"
        f"All kinds: {', '.join(f'{kind} {share:.0%}' for kind, share in by_kind.most_common())}. Shares are of the "
        f"busy time, {busy * 1e3:.4g} ms a step: the time of all operations, summed over threads and devices, in a "
        f"step that took {traced.seconds * 1e3:.4g} ms while it was traced."
    )


def _median(measured: Measured) -> float:
    return float(np.median(measured.seconds))


def quantity(value: float | None, unit: str) -> str:
    """Three digits and a prefix: `79.2 MB`."""
    if value is None:
        return f"unknown {unit}"
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5 or prefix == "P":
            return f"{digits(value)} {prefix}{unit}"
        value /= 1000


def digits(value: float) -> str:
    """Three of them."""
    return f"{value:#.3g}".rstrip(".")


def peak_of_process() -> int:
    """The most memory that this process ever had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
