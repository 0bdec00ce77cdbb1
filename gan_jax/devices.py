"""How one pure step meets many devices: the only place that knows meshes, mapped axes and collectives.

The step is written for the examples that it is given. Under `mesh` (jit) it is given the global batch, which the
compiler shards, and means over the batch are global by themselves; under `pmapped` each device is given its own part,
knows where in the batch that part begins, and means are taken over the devices. Randomness is drawn one key an
example, keyed by its slot in the global batch, so that all of them train on the same numbers.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gan_jax import runtime

AXIS = "data"
MEMBERS = "population"
STREAMED = PartitionSpec(None, None, AXIS)  # of a call's minibatches, [steps, k, n, ...]


class Program:
    """A function compiled for arguments of these shapes ahead of its first call; the state of each call is donated.

    What the compiler needed is then free again before the call needs memory. `compiled` is JAX's own view of it.
    """

    def __init__(self, function, *arguments):
        *self._bound, _, _ = arguments
        self.compiled = function.lower(*arguments).compile()
        runtime.give_back()

    def __call__(self, state, data):
        """(the next state, metrics)."""
        return self.compiled(*self._bound, state, data)


class Devices(NamedTuple):
    """One layout of the examples over devices; see the module for what it promises."""

    count: int  # devices
    parts: int  # the number of parts in which a step's code sees the batch
    axis_name: str | None  # the mapped axis, for batch normalisation
    mean: Callable  # tree -> its mean over the parts
    maximum: Callable  # tree -> its maximum over the parts
    shard: Callable  # array [n, ...] -> the same, its examples spread over the devices
    apart: Callable  # (f, array [n, ...]) -> f of it, [n, ...]: each device of its examples, with loops of its own
    part: Callable  # () -> the index of this part
    compile: Callable  # (f, state, data) -> Program of f(state, data) -> (state, metrics), with data where it lies
    spread: Callable  # minibatches [steps, k, n, ...] of the host -> the same, their examples spread over the devices
    replicated: NamedSharding  # where state and resident data are: a copy on every device

    def place(self, tree):
        """The tree with a copy on every device, those of other processes too: they must place the same."""
        if self.replicated.is_fully_addressable:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(partial(_on_all_processes, self.replicated), tree)

    def placed_shapes(self, tree):
        """The shapes, dtypes and placement of what `place` would give, without its arrays."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def spread_shapes(self, tree):
        """The same of what `spread` would give on one host, for minibatches of these shapes [steps, k, n, ...]."""
        return jax.tree.map(self._spread_shape, tree)

    def _spread_shape(self, x):
        steps, k, n, *shape = x.shape
        shape = (n, *shape) if self.parts == 1 else (self.parts, n // self.parts, *shape)
        return jax.ShapeDtypeStruct((steps, k, *shape), x.dtype, sharding=NamedSharding(self.replicated.mesh, STREAMED))


def _on_all_processes(replicated: NamedSharding, x) -> jax.Array:
    """This process's copies as an array of all processes. jax.device_put would send them around, to compare them."""
    if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(replicated, x.ndim):
        return x
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _on_all_processes(replicated, jax.random.key_data(x))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    return jax.make_array_from_process_local_data(replicated, np.asarray(x))


def anywhere(answer: bool) -> jax.Array:
    """Whether any process says so, once their devices have told each other; all must ask."""
    by_device, function = _ballot()
    own = np.full(jax.local_device_count(), answer)
    return function(jax.make_array_from_process_local_data(by_device, own))


@cache
def _ballot():
    grid = Mesh(np.array(in_order(jax.devices())), (AXIS,))
    everywhere = NamedSharding(grid, PartitionSpec())
    return NamedSharding(grid, PartitionSpec(AXIS)), jax.jit(jnp.any, out_shardings=everywhere)


def example_keys(devices: Devices, key, n: int):
    """One key an example: [n] keys, folded from `key` and the example's slot in the global batch."""
    return devices.shard(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(example_slots(devices, n)))


def example_slots(devices: Devices, n: int):
    """The places in the global batch of this part's n examples: uint32 [n]."""
    return jnp.uint32(devices.part() * n) + jnp.arange(n, dtype=jnp.uint32)


def in_order(devices: list) -> list:
    """Those of a process next to each other, as its slots of the batch are: jax.devices() need not have them so."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def mesh(devices: list | None = None) -> Devices:
    """`jit` over a one-dimensional mesh of the devices (all by default): the compiler places the collectives."""
    grid = Mesh(np.array(in_order(devices or jax.devices())), (AXIS,))
    replicated = NamedSharding(grid, PartitionSpec())
    by_example = NamedSharding(grid, PartitionSpec(AXIS))
    streamed = NamedSharding(grid, STREAMED)

    def compile_(function, state, data):
        of_data = jax.tree.map(lambda x: streamed if _is_spread(x) else replicated, data)
        jitted = jax.jit(function, in_shardings=(replicated, of_data), out_shardings=replicated, donate_argnums=0)
        return Program(jitted, state, data)

    return Devices(
        count=grid.size,
        parts=1,
        axis_name=None,
        mean=lambda tree: tree,
        maximum=lambda tree: tree,
        shard=lambda x: jax.lax.with_sharding_constraint(x, by_example),
        apart=_together if grid.size == 1 else partial(_apart, grid),
        part=lambda: 0,
        compile=compile_,
        spread=lambda tree: jax.tree.map(partial(jax.make_array_from_process_local_data, streamed), tree),
        replicated=replicated,
    )


def pmapped(devices: list | None = None) -> Devices:
    """`pmap` over the devices (all by default): each runs the step on its part, and the step averages."""
    devices = in_order(devices or jax.devices())
    grid = Mesh(np.array(devices), (AXIS,))
    replicated, streamed = NamedSharding(grid, PartitionSpec()), NamedSharding(grid, STREAMED)

    def compile_(function, state, data):
        # pmap wants one argument that is mapped: the index of the part, which `part` reads off the axis anyway.
        mapped = jax.pmap(
            lambda index, state, data: function(state, data),
            axis_name=AXIS,
            in_axes=(0, None, jax.tree.map(lambda x: STREAMED.index(AXIS) if _is_spread(x) else None, data)),
            out_axes=None,
            devices=devices,
            donate_argnums=1,
        )
        own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
        index = jax.make_array_from_process_local_data(NamedSharding(grid, PartitionSpec(AXIS)), np.array(own))
        return Program(mapped, index, state, data)

    return _mapped_part(len(devices), replicated)._replace(
        compile=compile_, spread=lambda tree: jax.tree.map(partial(_spread_parts, devices, streamed), tree)
    )


def _together(function: Callable, x):
    return function(x)


def _apart(grid: Mesh, function: Callable, x):
    spec = PartitionSpec(AXIS)
    # Compiled even where its caller is not: outside jit, shard_map compiles each operation of each call anew.
    return jax.jit(jax.shard_map(function, mesh=grid, in_specs=spec, out_specs=spec))(x)


class Layout(NamedTuple):
    """How a population of runs is spread over devices."""

    count: int  # groups of devices, each with its share of the members
    within: Devices  # what a member's step is given: the devices of its group
    place: Callable  # tree of [members, ...] -> the same, the members spread over the groups
    sharding: NamedSharding  # of such a tree
    compile: Callable  # (f, state, data) -> Program of f, which is of one member, on all members


def population(each: Callable, per_member: int = 1, devices: list | None = None) -> Layout:
    """Members spread over the devices (all by default), in groups of `per_member` that share each member's batch.

    Groups do not communicate.

    Args:
      each: (f(member, data) of one member) -> the same of many, on one device: see EACH.
    """
    grid = Mesh(np.array(devices or jax.devices()).reshape(-1, per_member), (MEMBERS, AXIS))
    by_member, everywhere = NamedSharding(grid, PartitionSpec(MEMBERS)), NamedSharding(grid, PartitionSpec())

    def compile_(function, state, data):
        specs = {"in_specs": (PartitionSpec(MEMBERS), PartitionSpec()), "out_specs": PartitionSpec(MEMBERS)}
        # Unchecked, as under pmap: the step itself takes the means over the devices of a group.
        spread = jax.shard_map(each(function), mesh=grid, check_vma=False, **specs)
        jitted = jax.jit(spread, in_shardings=(by_member, everywhere), out_shardings=by_member, donate_argnums=0)
        return Program(jitted, state, data)

    within = _mapped_part(per_member, everywhere) if per_member > 1 else _alone(everywhere)
    return Layout(len(grid.devices), within, lambda tree: jax.device_put(tree, by_member), by_member, compile_)


def _by_vmap(function: Callable) -> Callable:
    return jax.vmap(function, in_axes=(0, None))


def _one_by_one(function: Callable) -> Callable:
    return lambda members, data: jax.lax.map(lambda member: function(member, data), members)


def _written_out(function: Callable) -> Callable:
    function = jax.jit(function)  # traced once

    def each(members, data):
        count = jax.tree.leaves(members)[0].shape[0]
        outputs = [function(jax.tree.map(lambda x, i=i: x[i], members), data) for i in range(count)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    return each


EACH = {"vmap": _by_vmap, "map": _one_by_one, "unroll": _written_out}  # how the members of one device take a step


def _alone(replicated: NamedSharding) -> Devices:
    """A step on one device, among others that do the same with other members."""
    return Devices(
        count=1,
        parts=1,
        axis_name=None,
        mean=lambda tree: tree,
        maximum=lambda tree: tree,
        shard=lambda x: x,
        apart=_together,
        part=lambda: 0,
        compile=None,
        spread=None,
        replicated=replicated,
    )


def _mapped_part(count: int, replicated: NamedSharding) -> Devices:
    """A step of which each of `count` devices does its part, inside a mapped function."""
    return Devices(
        count=count,
        parts=count,
        axis_name=AXIS,
        mean=lambda tree: jax.lax.pmean(tree, AXIS),
        maximum=lambda tree: jax.lax.pmax(tree, AXIS),
        shard=lambda x: x,
        apart=_together,
        part=lambda: jax.lax.axis_index(AXIS),
        compile=None,
        spread=None,
        replicated=replicated,
    )


def _is_spread(x) -> bool:
    return isinstance(getattr(x, "sharding", None), NamedSharding) and x.sharding.spec == STREAMED


def _spread_parts(devices: list, sharding: NamedSharding, x: np.ndarray) -> jax.Array:
    """This process's minibatches [steps, k, n, ...] as [steps, k, devices, n / devices, ...], a part on each device."""
    steps, k, n, *shape = x.shape
    count = sum(device.process_index == jax.process_index() for device in devices)
    return jax.make_array_from_process_local_data(sharding, x.reshape(steps, k, count, n // count, *shape))


def room_for_data() -> int:
    """Bytes that a resident data set may take of each device: half of an accelerator, a quarter of a CPU's memory."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return room_of(statistics["bytes_limit"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # none outside a container, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory // 4


def room_of(memory: int) -> int:
    """What `room_for_data` is of an accelerator with so many bytes."""
    return memory // 2


LAYOUTS: dict[str, Callable[..., Any]] = {"jit": mesh, "pmap": pmapped}
