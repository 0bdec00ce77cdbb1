"""Many runs as one program: runs that differ in `recipe.VARYING` alone train together, a leading axis their number.

A member's trajectory is that of the same run by itself, up to rounding. A member that leaves the finite numbers is
frozen in its last good state; the others go on.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gan_jax import overfitting, step
from gan_jax.devices import Program
from gan_jax.population_layout import Layout
from gan_jax.recipe import Setup, together
from gan_jax.state import Hyperparameters, Memory, TrainState
from gan_jax.step import init_state


class MemberState(struct.PyTreeNode):
    """One run of a population, or, with a leading axis, all of them."""

    state: TrainState
    alive: jax.Array  # int32, 1; 0 once a metric was not finite: the state is then that before the call where it was


class Crew(struct.PyTreeNode):
    """A population between two calls."""

    step: jax.Array  # int32: of those that are alive
    members: MemberState  # each leaf [members, ...]


class Call(NamedTuple):
    """(crew, data) -> (crew after `steps` steps, metrics {name: [members, steps]}); the crew is donated."""

    steps: int
    program: Program

    def __call__(self, crew: Crew, data):
        """One call."""
        members, metrics = self.program(crew.members, data)
        return Crew(crew.step + self.steps, members), metrics


class Population:
    """The compiled program of runs that differ in VARYING alone."""

    def __init__(self, setups: Sequence[Setup], layout: Layout):
        """`setups`: of the members; the last one is repeated until every group of the layout has as many."""
        self.members = len(setups)
        missing = -len(setups) % layout.count
        padded = [*setups, *[setups[-1]] * missing]
        self.setup, self._hyperparameters = together(padded)
        self._keys = jnp.stack([setup.keys.training for setup in padded])
        self._layout = layout

    def initial(self) -> Crew:
        """Before the first step."""
        init = jax.vmap(partial(init_state, self.setup.recipe, shape=self.setup.source.shape))
        return self._spread(jax.jit(self._crew(init))(self._hyperparameters, self._keys))

    def abstract(self) -> Crew:
        """The shapes, dtypes and placement of what `initial` gives."""
        init = jax.vmap(partial(init_state, self.setup.recipe, shape=self.setup.source.shape))
        shapes = jax.eval_shape(self._crew(init), self._hyperparameters, self._keys)
        return Crew(
            self._typed(shapes.step, self._layout.within.replicated),
            jax.tree.map(lambda x: self._typed(x, self._layout.sharding), shapes.members),
        )

    def compiled(self, steps: int, crew: Crew) -> "Call":
        """The program that takes `steps` steps."""
        function = partial(_advance, self.setup, self._layout.within, steps)
        return Call(steps, self._layout.compile(function, crew.members, self.setup.source.data))

    @staticmethod
    def _crew(init: Callable) -> Callable:
        def made(hyperparameters, keys):
            states = init(hyperparameters, keys)
            return Crew(jnp.int32(0), MemberState(states, jnp.ones(len(keys), jnp.int32)))

        return made

    def _spread(self, crew: Crew) -> Crew:
        return Crew(self._layout.within.place(crew.step), self._layout.place(crew.members))

    @staticmethod
    def _typed(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def only_own(state: TrainState, hyperparameters: Hyperparameters) -> TrainState:
    """One run of a population as it would be by itself: with these hyperparameters, and the memory that they need."""
    own, memory = overfitting.initial(hyperparameters), state.memory
    if own is not None:
        adaptive = None if own.adaptive is None else memory.adaptive
        own = Memory(adaptive, None if own.averages is None else memory.averages)
    return state.replace(hyperparameters=hyperparameters, memory=own)


def _advance(setup: Setup, within, steps: int, member: MemberState, data):
    state, metrics = step.train_steps(setup.recipe, within, setup.source, steps, member.state, data)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(each)) for each in metrics.values()]))
    alive = member.alive * finite
    kept = jax.tree.map(partial(_where, alive == 1), state, member.state)
    return MemberState(kept, alive), metrics


def _where(condition, x, y):
    return jnp.where(condition, x, y)
