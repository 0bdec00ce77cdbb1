"""The page of a profile: what was measured, in Markdown."""

import os
import platform
import resource
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from gan_jax.analysis.profiling import hlo
from gan_jax.analysis.profiling.ceilings import Ceilings
from gan_jax.config.build import Setup

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
    return kind, shortened(instruction.place) or ("(added by XLA)" if kind == "copy" else "(without a name)")


def shortened(place: str) -> str:
    """A place without what every operation has in its name."""
    if place.startswith("jit("):
        place = place.partition("/")[2]
    for noise in _NOISE:
        place = place.replace(noise, "")
    return place if len(place) <= LONGEST else place[:LONGEST] + "..."


def table(rows: dict[str, str]) -> str:
    """A table of two columns, without a heading."""
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def setting(setup: Setup, steps: int, runs_with: str) -> dict[str, str]:
    """The rows on what was measured, with so many steps in a call."""
    config, device = setup.config, jax.devices()[0]
    kind = f"CPU ({_cpu_model()}, {os.cpu_count()} cores)" if device.platform == "cpu" else device.device_kind
    packages = ", ".join(f"{package} {version(package)}" for package in ("jax", "jaxlib", "flax", "optax"))
    return {
        "device": f"{setup.devices.count} x {kind}",
        "versions": f"{packages}, Python {platform.python_version()}",
        "runtime": runs_with.replace(str(Path.home()), "~"),
        "config": f"{config.precision}, matmul precision {config.matmul_precision}, batch {config.batch_size}"
        f"{micro_batches(config.accumulate)}, {config.discriminator.steps} + 1 updates a step, "
        f"steps in a call: {steps}, {config.parallel}",
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


def times(setup: Setup, seconds: np.ndarray, compile_seconds: float) -> dict[str, str]:
    """The rows on time, from the seconds a step of each timed call, [calls]."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    examples = setup.config.batch_size * setup.config.discriminator.steps / median
    return {
        "time": f"**{median * 1e3:.4g} ms a step** (median of {len(seconds)} calls, quartiles "
        f"{(high - low) / median:.0%} apart), {examples:,.0f} real examples/s",
        "compilation": f"{compile_seconds:.1f} s, without a cache",
    }


def needs(compiled, flops: float, accessed: float, peak: int, peak_of: str) -> dict[str, str]:
    """The rows of a step's FLOPs and bytes over all devices, of what XLA says of a call, and of the peak of memory."""
    counted, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    parts = ""
    if memory:
        arguments, temporaries, output, aliased = (
            quantity(getattr(memory, f"{part}_size_in_bytes"), "B") for part in ("argument", "temp", "output", "alias")
        )
        parts = f"arguments {arguments}, temporaries {temporaries}, output {output} (of it {aliased} in the arguments' "
        parts += "place); "
    return {
        "work": f"{quantity(flops, 'FLOP')} a step in matrix products and convolutions",
        "traffic": f"{quantity(accessed, 'B')} a step, were nothing kept in caches",
        "XLA's own count": f"{quantity(counted.get('flops'), 'FLOP')}, {quantity(counted.get('bytes accessed'), 'B')} "
        "a call on one device, with the body of each loop once",
        "memory": f"{parts}peak of {peak_of} {quantity(peak, 'B')}",
    }


def roofline(flops: float, accessed: float, seconds: float, ceilings: Ceilings) -> dict[str, str]:
    """The rows that hold a step's FLOPs and bytes, over all devices, against what these can do in its seconds."""
    work, traffic = flops / ceilings.flops, accessed / ceilings.bytes  # seconds at each ceiling
    binding = "the matrix product" if work >= traffic else "memory"
    return {
        "ceilings here": f"matrix product of {ceilings.product}: {quantity(ceilings.flops, 'FLOP/s')}; pass over "
        f"memory: {quantity(ceilings.bytes, 'B/s')}",
        "reached": f"**{quantity(flops / seconds, 'FLOP/s')}, {work / seconds:.1%}** of the matrix "
        f"product's; {quantity(accessed / seconds, 'B/s')}, {traffic / seconds:.1%} of memory's",
        "roofline": f"{flops / accessed:.3g} FLOP a byte; the ceilings meet at "
        f"{ceilings.flops / ceilings.bytes:.3g}: {binding} binds, at {max(work, traffic) * 1e3:.3g} ms a step",
    }


def costliest(operations: list[Operation], traced_seconds: float) -> str:
    """The table of the costliest operations, from the costliest on, in a step that took so long while traced."""
    busy, shares = sum(operation.seconds for operation in operations), Counter()
    for operation in operations:
        shares[operation.kind] += operation.seconds / busy
    rows = "\n".join(
        f"| {digits(seconds * 1e3)} | {seconds / busy:.1%} | {kind} | `{place}` | {count} |"
        for seconds, kind, place, count in operations[:COSTLIEST]
    )
    return (
        f"| ms a step | share | kind | where | HLO operations |\n|---|---|---|---|---|\n{rows}\n\n"
        f"All kinds: {', '.join(f'{kind} {share:.0%}' for kind, share in shares.most_common())}. Shares are of the "
        f"busy time, {busy * 1e3:.4g} ms a step: the time of all operations, summed over threads and devices, in a "
        f"step that took {traced_seconds * 1e3:.4g} ms while it was traced."
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
