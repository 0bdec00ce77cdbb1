"""How one pure step meets many devices. Only this room knows meshes, mapped axes and collectives.

Under `mesh` (jit) the step is given the global batch, which the compiler shards: its means are global by themselves.
Under `pmapped` each device is given its own shard, and means are taken over the devices. Randomness is drawn one key an
example, by its slot in the global batch, so that all layouts train on the same numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gan_jax.utils import runtime

AXIS = "data"
STREAMED = PartitionSpec(None, None, AXIS)  # of a call's minibatches, [steps, k, n, ...]


class Program:
    """A function compiled ahead of its first call, so that the compiler's memory is free by then: `compiled` is JAX's.

    The state of each call is donated.
    """

    def __init__(self, function, *arguments):
        *self._bound, _, _ = arguments
        self.compiled = function.lower(*arguments).compile()
        runtime.give_back()

    def __call__(self, state, data):
        """(the next state, metrics)."""
        return self.compiled(*self._bound, state, data)


class Devices(NamedTuple):
    """One layout of the examples over devices. The defaults are of code that sees the whole batch."""

    replicated: NamedSharding  # where state and resident data are: a copy on every device
    count: int = 1  # devices
    num_shards: int = 1  # of the batch, one of which the step's code is given: 1 under jit, `count` under pmap
    axis_name: str | None = None  # the mapped axis, for batch normalisation
    mean: Callable = lambda tree: tree  # tree -> its mean over the shards
    maximum: Callable = lambda tree: tree  # tree -> its maximum over the shards
    shard: Callable = lambda x: x  # array [n, ...] -> the same, its examples spread over the devices
    # (f, array [n, ...]) -> f of it, [n, ...]: each device applies f, with loops of its own, to its own examples
    apart: Callable = lambda function, x: function(x)
    shard_index: Callable = lambda: 0  # () -> the index of this shard
    compile: Callable | None = None  # (f, state, data) -> Program of f(state, data) -> (state, metrics)
    spread: Callable | None = None  # minibatches [steps, k, n, ...] of the host -> the same, spread over the devices

    def place(self, tree):
        """The tree with a copy on every device, those of other processes too: they must place the same."""
        if self.replicated.is_fully_addressable:
            return jax.device_put(tree, self.replicated)
        # jax.device_put would send the copies around, to compare them.
        return multihost_utils.host_local_array_to_global_array(tree, self.replicated.mesh, PartitionSpec())

    def placed_shapes(self, tree):
        """The shapes, dtypes and placement of what `place` would give, without its arrays."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), tree)

    def spread_shapes(self, tree):
        """The same of what `spread` would give on one host, for minibatches of these shapes [steps, k, n, ...]."""
        sharding, count = NamedSharding(self.replicated.mesh, STREAMED), self.num_shards

        def spread_shape(x):
            shape = x.shape if count == 1 else (*x.shape[:2], count, x.shape[2] // count, *x.shape[3:])
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

        return jax.tree.map(spread_shape, tree)


def example_keys(devices: Devices, key, n: int):
    """One key an example: [n] keys, folded from `key` and the example's slot in the global batch."""
    return devices.shard(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(example_slots(devices, n)))


def example_slots(devices: Devices, n: int):
    """The places in the global batch of this shard's n examples: uint32 [n]."""
    return jnp.uint32(devices.shard_index() * n) + jnp.arange(n, dtype=jnp.uint32)


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
        replicated,
        count=grid.size,
        shard=lambda x: jax.lax.with_sharding_constraint(x, by_example),
        apart=partial(_on_each_shard, grid),
        compile=compile_,
        spread=lambda tree: jax.tree.map(partial(jax.make_array_from_process_local_data, streamed), tree),
    )


def pmapped(devices: list | None = None) -> Devices:
    """`pmap` over the devices (all by default): each runs the step on its shard, and the step averages."""
    devices = in_order(devices or jax.devices())
    grid = Mesh(np.array(devices), (AXIS,))
    replicated, streamed = NamedSharding(grid, PartitionSpec()), NamedSharding(grid, STREAMED)

    def compile_(function, state, data):
        # pmap wants one argument that is mapped: the shard's index, which `shard_index` reads off the axis.
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

    return mapped_shard(len(devices), replicated)._replace(
        compile=compile_, spread=lambda tree: jax.tree.map(partial(_spread_shards, devices, streamed), tree)
    )


def mapped_shard(count: int, replicated: NamedSharding) -> Devices:
    """A step of which each of `count` devices does its shard, inside a function mapped over AXIS."""
    return Devices(
        replicated,
        count=count,
        num_shards=count,
        axis_name=AXIS,
        mean=lambda tree: jax.lax.pmean(tree, AXIS),
        maximum=lambda tree: jax.lax.pmax(tree, AXIS),
        shard_index=lambda: jax.lax.axis_index(AXIS),
    )


def _on_each_shard(grid: Mesh, function: Callable, x):
    if grid.size == 1:
        return function(x)
    spec = PartitionSpec(AXIS)
    # Compiled even where its caller is not: outside jit, shard_map compiles each operation of each call anew.
    return jax.jit(jax.shard_map(function, mesh=grid, in_specs=spec, out_specs=spec))(x)


def _is_spread(x) -> bool:
    return isinstance(getattr(x, "sharding", None), NamedSharding) and x.sharding.spec == STREAMED


def _spread_shards(devices: list, sharding: NamedSharding, x: np.ndarray) -> jax.Array:
    """This process's minibatches [steps, k, n, ...] as [steps, k, devices, n / devices, ...], a shard on each."""
    steps, k, n, *shape = x.shape
    count = sum(device.process_index == jax.process_index() for device in devices)
    return jax.make_array_from_process_local_data(sharding, x.reshape(steps, k, count, n // count, *shape))


LAYOUTS: dict[str, Callable[..., Devices]] = {"jit": mesh, "pmap": pmapped}
