"""`--mode=plan`: what a step needs on a machine that one does not have, and how long it should take there.

The program is compiled for as many fake devices of this machine's CPU; nothing of it is executed.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from gan_jax import data
from gan_jax.analysis.chips import CHIPS, Chip, Interconnect, Machine, Peak, interconnect
from gan_jax.analysis.profiling import bytes_accessed, compiled_step, hlo, step_flops, step_traffic
from gan_jax.analysis.profiling.page import digits, micro_batches, quantity, shortened, table
from gan_jax.config import build, schema
from gan_jax.config.build import Setup
from gan_jax.data import Source
from gan_jax.data.stored import Images, room_of
from gan_jax.parallel.devices import LAYOUTS
from gan_jax.training.loop import call_shapes
from gan_jax.utils.errors import InputError

SHOWN = 8  # of the collectives


class Planned(NamedTuple):
    """A step on each device of a machine."""

    setup: Setup
    parameters: tuple[int, int]  # of G and of D
    memory: dict[str, int]  # bytes on each device: of state, data, temporaries and results that are in no state's place
    flops: int  # in matrix products and convolutions of the whole step, by formula
    counted_by_xla: float | None  # FLOPs on one device; None where there are loops, whose bodies it counts once
    traffic: float  # bytes that a device reads and writes in its memory
    collectives: Sequence[hlo.Collective]


class Prediction(NamedTuple):
    """Seconds of a step's parts on each device, and the efficiency of weak scaling."""

    products: float  # at the peak of the chip's matrix products
    traffic: float  # at the full bandwidth of its memory
    compute: float  # by the roofline: the longer of the two
    transfer: float  # at the full bandwidth of the interconnect
    latency: float  # of all collectives
    communication: float  # both, one after the other
    efficiency: float  # where nothing is computed during a collective: compute / (compute + communication)
    overlapped_efficiency: float  # where all communication that can be is hidden behind the computing


def plan(config: ConfigDict, machine: Machine, name: str) -> str:
    """The page, in Markdown. Raises InputError where the config or the machine makes no sense."""
    links, chip = interconnect(machine), CHIPS[machine.chip]
    planned = planned_step(config, machine)
    peak = chip.peak(config.precision, config.matmul_precision)
    times = predict(planned, machine.count, chip, peak, links)
    binding = "matrix products bind" if times.products >= times.traffic else "memory binds"
    shortest = max(times.compute, times.communication)
    examples = config.batch_size * config.discriminator.steps / shortest
    rows = {
        **_needs(planned, machine, chip),
        "chip": f"matrix products {quantity(peak.flops, 'FLOP/s')} ({peak.how}), memory "
        f"{quantity(chip.bandwidth, 'B/s')}, by the data sheet",
        "interconnect": f"{quantity(links.bandwidth, 'B/s')} from each device ({links.source}), "
        f"{digits(links.latency * 1e6)} us a collective",
        "computing": f"{_ms(times.compute)} a step at least: matrix products {_ms(times.products)}, traffic "
        f"{_ms(times.traffic)}; {binding}",
        "communication": f"{_ms(times.communication)} a step: transfers {_ms(times.transfer)}, latencies "
        f"{_ms(times.latency)}",
        "weak scaling": f"**efficiency {times.efficiency:.1%}** with no overlap, "
        f"{times.overlapped_efficiency:.1%} with all that can be",
        "step": f"{_ms(times.compute + times.communication)} with no overlap, {_ms(shortest)} with all: "
        f"at most {examples:,.0f} real examples/s",
    }
    heading = f"# Plan of {name} on {machine.count:,} x {machine.chip}"
    return f"{heading}\n\n{table(rows)}\n\n{_collectives(planned.collectives, machine.count, links)}\n"


def planned_step(config: ConfigDict, machine: Machine) -> Planned:
    """What a step of this config is on the machine, whose devices this process's CPU has to stand in for."""
    if jax.device_count() < machine.count:
        raise InputError(
            f"XLA_FLAGS make this CPU {jax.device_count()} devices, and the plan needs {machine.count}; leave "
            "--xla_force_host_platform_device_count out of XLA_FLAGS; or a part of yours computes with JAX while it "
            "is imported, which starts JAX too early"
        )
    schema.check(config)
    # A convolution as an accelerator has it, and a single step a call: the form that a CPU likes is not asked for.
    plain = ConfigDict(config.to_dict() | {"convolution": "plain", "steps_per_call": 1}).lock()
    devices = LAYOUTS[config.parallel](jax.devices()[: machine.count])
    setup = build.build_on(_source(config, CHIPS[machine.chip].memory), plain, devices, runs=False)
    state, written_out = build.abstract_state(setup), config.accumulate == 1
    # Written out, so that nothing hides in a loop; micro-batches, which are there to save memory, stay one.
    compiled = compiled_step(setup, unroll=written_out)
    flops, analysis, resident = step_flops(setup), compiled.memory_analysis(), _bytes(call_shapes(setup, 1))
    if setup.source.streamed:  # a call's minibatches, and those of the next
        resident = 2 * config.steps_per_call * resident // machine.count
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Planned(
        setup=setup,
        parameters=(_count(state.generator.params), _count(state.discriminator.params)),
        memory={"state": _bytes(state), "data": resident, "temporaries": analysis.temp_size_in_bytes + results},
        flops=flops,
        counted_by_xla=compiled.cost_analysis()["flops"] if written_out else None,
        traffic=bytes_accessed(compiled) if written_out else step_traffic(setup),
        collectives=hlo.collectives(hlo.parse(compiled.as_text())),
    )


def _source(config: ConfigDict, memory: float) -> Source:
    """The data that the config names; of a set that lies on a disk its shapes alone, as they would lie on the chip."""
    values = config.data.to_dict()
    if not _may_be_streamed(config):
        return data.make_source(values)
    source = data.make_source(values | {"placement": "stream"})  # which decodes no more than it must
    if source.items is not None:  # an iterable, which is never anything else
        return source
    whole = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((source.size, *x.shape[1:]), x.dtype), source.rows(np.zeros(1, np.int64))
    )
    fits = _bytes(whole) <= room_of(int(memory))
    resident = config.data.placement == "device" or (fits and config.data.placement != "stream")
    return source._replace(rows=None, data=whole) if resident else source


def _may_be_streamed(config: ConfigDict) -> bool:
    return isinstance(data.open_set(config.data.to_dict()), Images)


def _count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def predict(planned: Planned, count: int, chip: Chip, peak: Peak, links: Interconnect) -> Prediction:
    """The times of a step on `count` devices of which only the data sheet is known."""
    products, traffic = planned.flops / count / peak.flops, planned.traffic / chip.bandwidth
    transfer = sum(collective.sent(count) for collective in planned.collectives) / links.bandwidth
    latency = sum(collective.count for collective in planned.collectives) * links.latency
    compute, communication = max(products, traffic), transfer + latency
    efficiencies = compute / (compute + communication), compute / max(compute, communication)
    return Prediction(products, traffic, compute, transfer, latency, communication, *efficiencies)


def _needs(planned: Planned, machine: Machine, chip: Chip) -> dict[str, str]:
    config, counted, runs, sent = planned.setup.config, "", Counter(), Counter()
    if planned.counted_by_xla is not None:
        share = planned.counted_by_xla * machine.count / planned.flops
        counted = f"; XLA's own count there: {quantity(planned.counted_by_xla, 'FLOP')}, over all devices {share:.3g} "
        counted += "times the whole"
    for collective in planned.collectives:
        runs[collective.kind] += collective.count
        sent[collective.kind] += collective.count * collective.bytes
    exchanged = (f"{runs[kind]:,} {kind} of {quantity(sent[kind], 'B')}" for kind in runs)
    return {
        "machine": f"hosts: {machine.hosts:,}, {machine.chip} on each: {machine.devices_per_host}; fake devices of a "
        "CPU stood in for them",
        "config": f"{config.precision}, matmul precision {config.matmul_precision}, batch {config.batch_size:,} "
        f"({config.batch_size // machine.count:,} on a device{micro_batches(config.accumulate)}), "
        f"{config.discriminator.steps} + 1 updates a step, {config.parallel}",
        "parameters": "G {:,}, D {:,}".format(*planned.parameters),
        "memory": _memory(planned, chip.memory),
        "work": f"{quantity(planned.flops, 'FLOP')} a step in matrix products and convolutions, "
        f"{quantity(planned.flops / machine.count, 'FLOP')} on a device{counted}",
        "traffic": f"{quantity(planned.traffic, 'B')} a step in the memory of a device, were nothing kept in caches",
        "collectives": f"{', '.join(exchanged) or 'none'} a step on each device",
    }


def _memory(planned: Planned, room: float) -> str:
    streamed, total = planned.setup.source.streamed, sum(planned.memory.values())
    state, held, temporaries = (quantity(size, "B") for size in planned.memory.values())
    parts = (
        f"state {state}, data {held} ({'streamed' if streamed else 'a copy on each'}), temporaries {temporaries}; "
        f"together {quantity(total, 'B')} of {quantity(room, 'B')} on a device, {digits(100 * total / room)}%: "
    )
    if total <= room:
        return f"{parts}**fits**"
    remedies = "take more devices or a smaller batch_size, or a larger accumulate"
    if not streamed and _may_be_streamed(planned.setup.config):
        remedies += "; data.placement=stream keeps the data off the device"
    return f"{parts}**does not fit**: {remedies}"


def _ms(seconds: float) -> str:
    return f"{digits(seconds * 1e3)} ms"


def _collectives(collectives: Sequence[hlo.Collective], count: int, links: Interconnect) -> str:
    """The table of the largest ones, on `count` devices."""
    by_size = sorted(collectives, key=lambda collective: collective.count * collective.bytes, reverse=True)
    if not by_size:
        return "No collectives: nothing is exchanged."
    lines = ["| collective | times a step | bytes | transfer | where its first part comes from |", "|---" * 5 + "|"]
    for collective in by_size[:SHOWN]:
        # XLA names one that it combined of several `a/(b:c)`.
        first = shortened(collective.place.partition(":")[0].replace("/(", "/").removeprefix("("))
        cells = collective.kind, str(collective.count), quantity(collective.bytes, "B")
        lines.append(f"| {' | '.join(cells)} | {_ms(collective.sent(count) / links.bandwidth)} | `{first}` |")
    if rest := by_size[SHOWN:]:
        lines += ["", f"And {len(rest)} smaller ones, {quantity(sum(x.count * x.bytes for x in rest), 'B')}."]
    return "\n".join(lines)
