"""What a step needs on each device of a machine that one does not have."""

import math
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from gan_jax import data, recipe, schema, step
from gan_jax.data import Source
from gan_jax.devices import LAYOUTS
from gan_jax.errors import InputError
from gan_jax.keys import keys_of
from gan_jax.loader import call_shapes
from gan_jax.memory import room_of
from gan_jax.plan.chips import CHIPS, Machine
from gan_jax.plan.prediction import Work
from gan_jax.profiling import hlo, step_flops
from gan_jax.recipe import Setup
from gan_jax.state import TrainState


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


class Planned(NamedTuple):
    """A step on each device of a machine."""

    setup: Setup
    parameters: tuple[int, int]  # of G and of D
    memory: Memory
    flops: int  # of the whole step, by formula
    work: Work
    counted_by_xla: float | None  # FLOPs on one device; None where there are loops, whose bodies it counts once


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
    setup = recipe.build(plain, devices, _source(config, CHIPS[machine.chip].memory), runs=False)
    state, rows = (
        recipe.abstract_state(setup),
        call_shapes(setup.source, setup.devices, 1, config.discriminator.steps, config.batch_size),
    )
    compiled = _compile(setup, state, rows)
    program, flops = hlo.parse(compiled.as_text()), step_flops(setup)
    return Planned(
        setup=setup,
        parameters=(_count(state.generator.params), _count(state.discriminator.params)),
        memory=_memory(setup, compiled.memory_analysis(), _bytes(state), _bytes(rows), config.steps_per_call),
        flops=flops,
        work=Work(flops / machine.count, hlo.bytes_accessed(program), hlo.collectives(program)),
        counted_by_xla=compiled.cost_analysis()["flops"] if config.accumulate == 1 else None,
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


def _compile(setup: Setup, state: TrainState, rows):
    # Written out, so that nothing hides in a loop; micro-batches may be too many for it.
    planned = setup.recipe._replace(unroll=setup.config.accumulate == 1)
    one_step = partial(step.train_steps, planned, setup.devices, setup.source, 1)
    return setup.devices.compile(one_step, state, rows).compiled


def _memory(setup: Setup, program, state: int, held: int, steps_per_call: int) -> Memory:
    """Of a device, from the bytes of the state and of one step's data."""
    if setup.source.streamed:
        held = 2 * steps_per_call * held // setup.devices.count  # a call's minibatches, and those of the next
    streamable = not setup.source.streamed and _may_be_streamed(setup.config)
    results = program.output_size_in_bytes - program.alias_size_in_bytes
    return Memory(state, held, streamable, program.temp_size_in_bytes + results)


def _may_be_streamed(config: ConfigDict) -> bool:
    return "placement" in keys_of(data.SOURCES[data.entry(config.data.name)])


def _count(tree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
