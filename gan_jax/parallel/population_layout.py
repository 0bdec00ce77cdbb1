"""How the members of a population are spread over devices, and how those of one device take their steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gan_jax.parallel.devices import AXIS, Devices, Program, mapped_shard

MEMBERS = "population"


class Layout(NamedTuple):
    """How a population of runs is spread over devices."""

    count: int  # groups of devices, each with its share of the members
    within: Devices  # what a member's step is given: the devices of its group
    place: Callable  # tree of [members, ...] -> the same, the members spread over the groups
    sharding: NamedSharding  # of such a tree
    compile: Callable  # (f, state, data) -> Program of f, which is of one member, on all members


def population(how: str, per_member: int = 1, devices: list | None = None) -> Layout:
    """Members spread over the devices (all by default), in groups of `per_member` that share each member's batch.

    Groups do not communicate.

    Args:
      how: a key of OVER_MEMBERS.
    """
    grid = Mesh(np.array(devices or jax.devices()).reshape(-1, per_member), (MEMBERS, AXIS))
    by_member, everywhere = NamedSharding(grid, PartitionSpec(MEMBERS)), NamedSharding(grid, PartitionSpec())

    def compile_(function, state, data):
        specs = {"in_specs": (PartitionSpec(MEMBERS), PartitionSpec()), "out_specs": PartitionSpec(MEMBERS)}
        # Unchecked, as under pmap: the step itself takes the means over the devices of a group.
        spread = jax.shard_map(OVER_MEMBERS[how](function), mesh=grid, check_vma=False, **specs)
        jitted = jax.jit(spread, in_shardings=(by_member, everywhere), out_shardings=by_member, donate_argnums=0)
        return Program(jitted, state, data)

    within = mapped_shard(per_member, everywhere) if per_member > 1 else Devices(everywhere)
    return Layout(len(grid.devices), within, lambda tree: jax.device_put(tree, by_member), by_member, compile_)


def _written_out(function: Callable) -> Callable:
    function = jax.jit(function)  # traced once

    def unrolled(members, data):
        count = jax.tree.leaves(members)[0].shape[0]
        outputs = [function(jax.tree.map(lambda x, i=i: x[i], members), data) for i in range(count)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    return unrolled


OVER_MEMBERS = {  # (f(member, data) of one member) -> the same of the members of one device, [members, ...]
    "vmap": lambda function: jax.vmap(function, in_axes=(0, None)),
    "map": lambda function: lambda members, data: jax.lax.map(lambda member: function(member, data), members),
    "unroll": _written_out,
}
