"""The page of a plan, in Markdown."""

from collections import Counter

from gan_jax.analysis.plan.chips import CHIPS, Chip, Interconnect, Machine, Peak
from gan_jax.analysis.plan.planned import Memory, Planned, Prediction, transfer_seconds
from gan_jax.analysis.profiling.page import digits, micro_batches, quantity, shortened, table

SHOWN = 8  # of the collectives


def render(
    planned: Planned, machine: Machine, peak: Peak, links: Interconnect, prediction: Prediction, name: str
) -> str:
    """The page."""
    rows = {
        **_what(planned, machine),
        **_needs(planned, machine),
        **_assumed(CHIPS[machine.chip], peak, links),
        **_predicted(planned, prediction),
    }
    heading = f"# Plan of {name} on {machine.count:,} x {machine.chip}"
    return f"{heading}\n\n{table(rows)}\n\n{_collectives(planned, machine.count, links)}\n"


def _what(planned: Planned, machine: Machine) -> dict[str, str]:
    config = planned.setup.config
    generator, discriminator = planned.parameters
    return {
        "machine": f"hosts: {machine.hosts:,}, {machine.chip} on each: {machine.devices_per_host}; fake devices of a "
        "CPU stood in for them",
        "config": f"{config.precision}, matmul precision {config.matmul_precision}, batch {config.batch_size:,} "
        f"({config.batch_size // machine.count:,} on a device{micro_batches(config.accumulate)}), "
        f"{config.discriminator.steps} + 1 updates a step, {config.parallel}",
        "parameters": f"G {generator:,}, D {discriminator:,}",
    }


def _needs(planned: Planned, machine: Machine) -> dict[str, str]:
    work = planned.work
    return {
        "memory": _memory(planned.memory, planned.setup.source.streamed, CHIPS[machine.chip].memory),
        "work": f"{quantity(planned.flops, 'FLOP')} a step in matrix products and convolutions, "
        f"{quantity(work.flops, 'FLOP')} on a device{_counted(planned, machine)}",
        "traffic": f"{quantity(work.traffic, 'B')} a step in the memory of a device, were nothing kept in caches",
        "collectives": _total(planned),
    }


def _counted(planned: Planned, machine: Machine) -> str:
    if planned.counted_by_xla is None:
        return ""
    of_whole = planned.counted_by_xla * machine.count / planned.flops
    counted = quantity(planned.counted_by_xla, "FLOP")
    return f"; XLA's own count there: {counted}, over all devices {of_whole:.3g} times the whole"


def _memory(memory: Memory, streamed: bool, room: float) -> str:
    parts = (
        f"state {quantity(memory.state, 'B')}, data {quantity(memory.data, 'B')} "
        f"({'streamed' if streamed else 'a copy on each'}), temporaries {quantity(memory.temporaries, 'B')}; together "
        f"{quantity(memory.total, 'B')} of {quantity(room, 'B')} on a device, {digits(100 * memory.total / room)}%: "
    )
    if memory.total <= room:
        return f"{parts}**fits**"
    remedies = "take more devices or a smaller batch_size, or a larger accumulate"
    if memory.streamable:
        remedies += "; data.placement=stream keeps the data off the device"
    return f"{parts}**does not fit**: {remedies}"


def _total(planned: Planned) -> str:
    runs, sent = Counter(), Counter()
    for collective in planned.work.collectives:
        runs[collective.kind] += collective.count
        sent[collective.kind] += collective.count * collective.bytes
    shown = (f"{runs[kind]:,} {kind} of {quantity(sent[kind], 'B')}" for kind in runs)
    return f"{', '.join(shown) or 'none'} a step on each device"


def _assumed(chip: Chip, peak: Peak, links: Interconnect) -> dict[str, str]:
    return {
        "chip": f"matrix products {quantity(peak.flops, 'FLOP/s')} ({peak.how}), memory "
        f"{quantity(chip.bandwidth, 'B/s')}, by the data sheet",
        "interconnect": f"{quantity(links.bandwidth, 'B/s')} from each device ({links.source}), "
        f"{digits(links.latency * 1e6)} us a collective",
    }


def _predicted(planned: Planned, prediction: Prediction) -> dict[str, str]:
    binding = "matrix products bind" if prediction.products >= prediction.traffic else "memory binds"
    shortest = max(prediction.compute, prediction.communication)
    examples = planned.setup.config.batch_size * planned.setup.config.discriminator.steps
    return {
        "computing": f"{_ms(prediction.compute)} a step at least: matrix products {_ms(prediction.products)}, traffic "
        f"{_ms(prediction.traffic)}; {binding}",
        "communication": f"{_ms(prediction.communication)} a step: transfers {_ms(prediction.transfer)}, latencies "
        f"{_ms(prediction.latency)}",
        "weak scaling": f"**efficiency {prediction.efficiency:.1%}** with no overlap, "
        f"{prediction.overlapped_efficiency:.1%} with all that can be",
        "step": f"{_ms(prediction.compute + prediction.communication)} with no overlap, {_ms(shortest)} with all: "
        f"at most {examples / shortest:,.0f} real examples/s",
    }


def _ms(seconds: float) -> str:
    return f"{digits(seconds * 1e3)} ms"


def _collectives(planned: Planned, count: int, links: Interconnect) -> str:
    by_size = sorted(planned.work.collectives, key=lambda one: one.count * one.bytes, reverse=True)
    if not by_size:
        return "No collectives: nothing is exchanged."
    rows = "\n".join(
        f"| {one.kind} | {one.count} | {quantity(one.bytes, 'B')} | {_ms(transfer_seconds(one, count, links))} "
        f"| `{_first(one.place)}` |"
        for one in by_size[:SHOWN]
    )
    rest = by_size[SHOWN:]
    more = f"\n\nAnd {len(rest)} smaller ones, {quantity(sum(x.count * x.bytes for x in rest), 'B')}." if rest else ""
    head = "| collective | times a step | bytes | transfer | where its first part comes from |\n|---|---|---|---|---|"
    return f"{head}\n{rows}{more}"


def _first(place: str) -> str:
    """Of a collective that XLA combined of several, `a/(b:c)`, the place of the first."""
    return shortened(place.partition(":")[0].replace("/(", "/").removeprefix("("))
