"""The page of a profile: what was measured, in Markdown."""

import os
import platform
import resource
import sys
from collections import Counter
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


class Measured(NamedTuple):
    """Everything of a profile."""

    steps: int  # of a call
    seconds: np.ndarray  # [calls], a step of each timed call
    compile_seconds: float
    flops: float  # a step
    bytes: float  # a step, over all devices
    counted_by_xla: dict[str, float]  # the cost analysis of a call on one device; empty where the backend has none
    memory: Any  # jax's CompiledMemoryStats of one device; None where the backend does not say
    peak: tuple[int, str]  # bytes, and of what
    traced_steps: int
    traced_seconds: float  # a step, while being traced
    operations: list[Operation]  # the costliest first
    problem: str | None  # why there are none
    ceilings: Ceilings


def operations(program: hlo.Program, busy: dict[str, float], steps: int) -> list[Operation]:
    """The operations, the costliest first, from the seconds that each HLO operation took in so many steps."""
    by_name = {instruction.name: instruction for lines in program.computations.values() for instruction in lines}
    seconds, counts = Counter(), Counter()
    for name, duration in busy.items():
        key = _kind_and_place(program, by_name, name)
        seconds[key] += duration / steps
        counts[key] += 1
    return [Operation(value, *key, counts[key]) for key, value in seconds.most_common()]


def _kind_and_place(program: hlo.Program, by_name: dict[str, hlo.Instruction], name: str) -> tuple[str, str]:
    instruction = by_name.get(name)
    if not instruction:
        return "unknown", name
    kind = hlo.kind(program, instruction)
    if instruction.place or kind == "copy":
        return kind, shortened(instruction.place) or "(added by XLA)"
    # What XLA rewrites for many devices may lose its name; that of an operand tells nearly as much.
    operands = (by_name[operand].place for operand in instruction.operands if operand in by_name)
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
    return (
        f"# Profile of {name}\n\n{table(rows)}\n\n{_costliest(measured)}\n\n"
        f"The trace of {measured.traced_steps:,} steps: `tensorboard --logdir={workdir / 'profile'}`, or "
        "`perfetto_trace.json.gz` in there at https://ui.perfetto.dev.\n"
    )


def table(rows: dict[str, str]) -> str:
    """A table of two columns, without a heading."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _what(setup: Setup, measured: Measured, runs_with: str) -> dict[str, str]:
    config, device = setup.config, jax.devices()[0]
    kind = f"CPU ({_cpu_model()}, {os.cpu_count()} cores)" if device.platform == "cpu" else device.device_kind
    packages = ", ".join(f"{package} {version(package)}" for package in ("jax", "jaxlib", "flax", "optax"))
    return {
        "device": f"{setup.devices.count} x {kind}",
        "versions": f"{packages}, Python {platform.python_version()}",
        "runtime": runs_with.replace(str(Path.home()), "~"),
        "config": f"{config.precision}, matmul precision {config.matmul_precision}, batch {config.batch_size}"
        f"{micro_batches(config.accumulate)}, {config.discriminator.steps} + 1 updates a step, "
        f"steps in a call: {measured.steps}, {config.parallel}",
    }


def micro_batches(count: int) -> str:
    """How a page says that gradients are accumulated."""
    return f" in {count} micro-batches" if count > 1 else ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _numbers(setup: Setup, measured: Measured) -> dict[str, str]:
    low, seconds, high = np.quantile(measured.seconds, (0.25, 0.5, 0.75))
    examples = setup.config.batch_size * setup.config.discriminator.steps / seconds
    counted = measured.counted_by_xla
    return {
        "time": f"**{seconds * 1e3:.4g} ms a step** (median of {len(measured.seconds)} calls, quartiles "
        f"{(high - low) / seconds:.0%} apart), {examples:,.0f} real examples/s",
        "compilation": f"{measured.compile_seconds:.1f} s, without a cache",
        "work": f"{quantity(measured.flops, 'FLOP')} a step in matrix products and convolutions",
        "traffic": f"{quantity(measured.bytes, 'B')} a step, were nothing kept in caches",
        "XLA's own count": f"{quantity(counted.get('flops'), 'FLOP')}, {quantity(counted.get('bytes accessed'), 'B')} "
        "a call on one device, with the body of each loop once",
        "memory": f"{_memory(measured.memory)}peak of {measured.peak[1]} {quantity(measured.peak[0], 'B')}",
    }


def _memory(program) -> str:
    if not program:
        return ""
    arguments, temporaries, output, aliased = (
        quantity(getattr(program, f"{part}_size_in_bytes"), "B") for part in ("argument", "temp", "output", "alias")
    )
    return (
        f"arguments {arguments}, temporaries {temporaries}, output {output} (of it {aliased} in the arguments' place); "
    )


def _roofline(measured: Measured) -> dict[str, str]:
    seconds, ceilings = float(np.median(measured.seconds)), measured.ceilings
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
    if measured.problem:
        return f"The costliest operations are not known: {measured.problem}."
    busy, shares = sum(operation.seconds for operation in measured.operations), Counter()
    for operation in measured.operations:
        shares[operation.kind] += operation.seconds / busy
    rows = "\n".join(
        f"| {digits(seconds * 1e3)} | {seconds / busy:.1%} | {kind} | `{place}` | {count} |"
        for seconds, kind, place, count in measured.operations[:COSTLIEST]
    )
    return (
        f"| ms a step | share | kind | where | HLO operations |\n|---|---|---|---|---|\n{rows}\n\n"
        f"All kinds: {', '.join(f'{kind} {share:.0%}' for kind, share in shares.most_common())}. Shares are of the "
        f"busy time, {busy * 1e3:.4g} ms a step: the time of all operations, summed over threads and devices, in a "
        f"step that took {measured.traced_seconds * 1e3:.4g} ms while it was traced."
    )


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
