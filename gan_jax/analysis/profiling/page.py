"""The page of a profile: what was measured, in Markdown."""

import os
import platform
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import jax

from gan_jax.analysis.profiling import hlo
from gan_jax.config.build import Setup

COSTLIEST = 5
LONGEST = 120  # letters of a place's name
# Of a place's name: what every operation has, or what only says how a loop is compiled.
_NOISE = ("while/body/closed_call/", "closed_call/", "shard_map/", "jit(body)/")


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
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return model[1] if model else platform.processor()


def costliest(program: hlo.Program, busy: dict[str, float], steps: int, traced_seconds: float) -> str:
    """The table of the operations that take longest; those of one kind and place in the source are one.

    `busy`: the seconds of each HLO operation in so many steps, each of which took `traced_seconds`.
    """
    by_name = {instruction.name: instruction for lines in program.computations.values() for instruction in lines}
    total, seconds, counts, shares = sum(busy.values()), Counter(), Counter(), Counter()
    for name, duration in busy.items():
        kind, place = "unknown", name
        if instruction := by_name.get(name):
            kind = hlo.kind(program, instruction)
            nameless = "(added by XLA)" if kind == "copy" else "(without a name)"
            place = shortened(instruction.place) or nameless
        seconds[kind, place] += duration
        counts[kind, place] += 1
        shares[kind] += duration / total
    rows = "\n".join(
        f"| {digits(duration / steps * 1e3)} | {duration / total:.1%} | {kind} | `{place}` | {counts[kind, place]} |"
        for (kind, place), duration in seconds.most_common(COSTLIEST)
    )
    return (
        f"| ms a step | share | kind | where | HLO operations |\n|---|---|---|---|---|\n{rows}\n\n"
        f"All kinds: {', '.join(f'{kind} {share:.0%}' for kind, share in shares.most_common())}. Shares are of the "
        f"busy time, {total / steps * 1e3:.4g} ms a step: the time of all operations, summed over threads and devices, "
        f"in a step that took {traced_seconds * 1e3:.4g} ms while it was traced."
    )


def shortened(place: str) -> str:
    """A place without what every operation has in its name."""
    if place.startswith("jit("):
        place = place.partition("/")[2]
    for noise in _NOISE:
        place = place.replace(noise, "")
    return place if len(place) <= LONGEST else place[:LONGEST] + "..."


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
