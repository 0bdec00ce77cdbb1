"""What a step needs on each device of a machine that one does not have, and how long it should take there."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from gan_jax import data
from gan_jax.analysis.plan.chips import CHIPS, Chip, Interconnect, Machine, Peak
from gan_jax.analysis.profiling import bytes_accessed, compiled_step, hlo, step_flops, step_traffic
from gan_jax.config import build, schema
from gan_jax.config.build import Setup
from gan_jax.data import Source
from gan_jax.data.stored import room_of
from gan_jax.parallel.devices import LAYOUTS
from gan_jax.training.loop import call_shapes
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import keys_of

# Bytes that each of n devices sends, for every byte of its own operand: with rings, which are optimal in bytes.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}


class Memory(NamedTuple):
    """Bytes on each device."""

    state: int
    data: int
    streamable: bool  # whether the data lies there whole, and need not
    temporaries: int  # and the results that are not in the state's place

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.data + self.temporaries


class Work(NamedTuple):
    """What one device does in a step."""

    flops: float  # of matrix products and convolutions
    traffic: float  # bytes that it reads and writes in its memory
    collectives: Sequence[hlo.Collective]


class Planned(NamedTuple):
    """A step on each device of a machine."""

    setup: Setup
    parameters: tuple[int, int]  # of G and of D
    memory: Memory
    flops: int  # of the whole step, by formula
    work: Work
    counted_by_xla: float | None  # FLOPs on one device; None where there are loops, whose bodies it counts once


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


def transfer_seconds(collective: hlo.Collective, count: int, links: Interconnect) -> float:
    """Of all its runs in a step, on `count` devices."""
    return collective.count * SENT[collective.kind](count) * collective.bytes / links.bandwidth


def predict(work: Work, count: int, chip: Chip, peak: Peak, links: Interconnect) -> Prediction:
    """The times of a step's work on each of `count` devices of which only the data sheet is known."""
    products, traffic = work.flops / peak.flops, work.traffic / chip.bandwidth
    transfer = sum(transfer_seconds(collective, count, links) for collective in work.collectives)
    latency = sum(collective.count for collective in work.collectives) * links.latency
    compute, communication = max(products, traffic), transfer + latency
    efficiencies = compute / (compute + communication), compute / max(compute, communication)
    return Prediction(products, traffic, compute, transfer, latency, communication, *efficiencies)


def planned_step(config: ConfigDict, machine: Machine) -> Planned:
    """What a step of this config is on the machine, whose devices this process's CPU has to stand in for."""
    if jax.device_count() < machine.count:
        raise InputError(
            f"XLA_FLAGS make this CPU {jax.device_count()} devices, and the plan needs {machine.count}; leave "
            "--xla_force_host_platform_device_count out of XLA_FLAGS"
        )
    schema.check(config)
    # A convolution as an accelerator has it, and a single step a call: the form that a CPU likes is not asked for.
    plain = ConfigDict(config.to_dict() | {"convolution": "plain", "steps_per_call": 1}).lock()
    devices = LAYOUTS[config.parallel](jax.devices()[: machine.count])
    setup = build.build(plain, devices, _source(config, CHIPS[machine.chip].memory), runs=False)
    state, written_out = build.abstract_state(setup), config.accumulate == 1
    # Written out, so that nothing hides in a loop; micro-batches, which are there to save memory, stay one.
    compiled = compiled_step(setup, unroll=written_out)
    flops = step_flops(setup)
    traffic = bytes_accessed(compiled) if written_out else step_traffic(setup)
    return Planned(
        setup=setup,
        parameters=(_count(state.generator.params), _count(state.discriminator.params)),
        memory=_memory(setup, compiled.memory_analysis(), _bytes(state), config.steps_per_call),
        flops=flops,
        work=Work(flops / machine.count, traffic, hlo.collectives(hlo.parse(compiled.as_text()))),
        counted_by_xla=compiled.cost_analysis()["flops"] if written_out else None,
    )


def _source(config: ConfigDict, memory: float) -> Source:
    """The data that the config names; of a set that lies on a disk its shapes alone, as they would lie on the chip."""
    values = config.data.to_dict()
    if not _may_be_streamed(config):
        return data.make_source(values)
    source = data.make_source(values | {"placement": "stream"})  # which decodes no more than it must
    whole = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((source.size, *x.shape[1:]), x.dtype), source.rows(np.zeros(1, np.int64))
    )
    fits = _bytes(whole) <= room_of(int(memory))
    if config.data.placement == "stream" or not (fits or config.data.placement == "device"):
        return source
    return source._replace(rows=None, data=whole)


def _memory(setup: Setup, program, state: int, steps_per_call: int) -> Memory:
    """Of a device, from the bytes of the state and XLA's analysis of a step."""
    held, streamed = _bytes(call_shapes(setup, 1)), setup.source.streamed
    if streamed:
        held = 2 * steps_per_call * held // setup.devices.count  # a call's minibatches, and those of the next
    streamable = not streamed and _may_be_streamed(setup.config)
    results = program.output_size_in_bytes - program.alias_size_in_bytes
    return Memory(state, held, streamable, program.temp_size_in_bytes + results)


def _may_be_streamed(config: ConfigDict) -> bool:
    return "placement" in keys_of(data.SOURCES[data.entry(config.data.name)])


def _count(tree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
