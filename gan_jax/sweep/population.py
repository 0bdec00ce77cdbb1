"""Many runs as one program: runs that differ in traced numbers alone train together, along a leading axis [members].

A member's trajectory is that of the same run by itself, up to rounding. A member whose metrics leave the finite numbers
is frozen in its last good state; the others go on.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from gan_jax.config.build import Setup, first_state, merge_setups
from gan_jax.parallel.devices import Devices, mesh
from gan_jax.parallel.population_layout import Layout, population
from gan_jax.step import regularizers, step
from gan_jax.step.state import Hyperparameters, TrainState

VMAP, MAP, UNROLL = "vmap", "map", "unroll"
WIDE = 128  # units of an MLP's hidden layer, from which on `map` is faster on a CPU (experiments/benchmarks/README.md)


def rule(setup: Setup) -> str:
    """How the members on one device take a step: as their networks and the backend say, never a stopwatch.

    The ways add in different orders, so that a run's bits depend on this. MLPs take their steps together (`vmap`); wide
    ones on a CPU one after another (`map`), where a member's activations then stay in the cache. Convolutional networks
    always do: a convolution under `vmap` is a grouped one, which is slow. On a CPU, where a convolution in a loop is
    slow as well, their steps are written out (`unroll`).
    """
    on_cpu, players = jax.default_backend() == "cpu", (setup.config.generator, setup.config.discriminator)
    if setup.recipe.generator.convolves or setup.recipe.discriminator.convolves:
        return UNROLL if on_cpu else MAP
    return MAP if on_cpu and max(player.width for player in players) >= WIDE else VMAP


def devices_of_a_member(per_member: int) -> Devices:
    """What a member's setup is built for: one device, or `per_member` that share its batch."""
    return mesh(jax.local_devices()[:1]) if per_member == 1 else population(UNROLL, per_member).within


class MemberState(struct.PyTreeNode):
    """One run of a population or, with a leading axis, all of them."""

    state: TrainState
    alive: jax.Array  # int32, 1; 0 once a metric was not finite: the state is then the one before that call


class PopulationState(struct.PyTreeNode):
    """A population between two calls."""

    step: jax.Array  # int32: of the members that are alive
    members: MemberState  # each leaf [members, ...]


class Population:
    """The compiled program of runs that differ in traced numbers alone."""

    def __init__(self, setups: Sequence[Setup], layout: Layout):
        """`setups`: of the members; the last one is repeated until every group of devices has equally many."""
        padded = [*setups, *[setups[-1]] * (-len(setups) % layout.count)]
        self.setup, self._hyperparameters = merge_setups(padded)
        self._keys = jnp.stack([setup.keys.training for setup in padded])
        self._layout = layout

    def initial(self, other: TrainState | None = None) -> PopulationState:
        """The state before the first step; every member takes what its config says from the `other` run."""
        first = jax.jit(self._first)(self._hyperparameters, self._keys, other)
        return PopulationState(self._layout.within.place(first.step), self._layout.place(first.members))

    def abstract(self) -> PopulationState:
        """The shapes, dtypes and placement of what `initial` gives."""
        shapes = jax.eval_shape(self._first, self._hyperparameters, self._keys, None)
        by_member = partial(jax.ShapeDtypeStruct, sharding=self._layout.sharding)
        members = jax.tree.map(lambda x: by_member(x.shape, x.dtype), shapes.members)
        return PopulationState(self._layout.within.placed_shapes(shapes.step), members)

    def compiled(self, steps: int, state: PopulationState) -> Callable:
        """The program of `steps` steps: (state, donated; data) -> (state, metrics {name: [members, steps]})."""
        function = partial(_advance, self.setup, self._layout.within, steps)
        return partial(_call, steps, self._layout.compile(function, state.members, self.setup.source.data))

    def _first(self, hyperparameters: Hyperparameters, keys: jax.Array, other: TrainState | None) -> PopulationState:
        init = jax.vmap(partial(first_state, self.setup), in_axes=(0, 0, None))
        alive = jnp.ones(len(keys), jnp.int32)
        return PopulationState(jnp.int32(0), MemberState(init(hyperparameters, keys, other), alive))


def _call(steps: int, program: Callable, state: PopulationState, data):
    members, metrics = program(state.members, data)
    return PopulationState(state.step + steps, members), metrics


def _advance(setup: Setup, devices: Devices, steps: int, member: MemberState, data):
    state, metrics = step.train_steps(setup.recipe, devices, setup.source, steps, member.state, data)
    alive = member.alive * jnp.all(jnp.stack([jnp.all(jnp.isfinite(values)) for values in metrics.values()]))
    kept = jax.tree.map(lambda new, old: jnp.where(alive == 1, new, old), state, member.state)
    return MemberState(kept, alive), metrics


def only_own(state: TrainState, hyperparameters: Hyperparameters) -> TrainState:
    """One run of a population as it would be alone, with these hyperparameters and what its regularisers need."""
    own = regularizers.initial(hyperparameters)
    if own is not None:
        names = [name for name, value in vars(own).items() if value is not None]
        own = own.replace(**{name: getattr(state.regularizers, name) for name in names})
    return state.replace(hyperparameters=hyperparameters, regularizers=own)
