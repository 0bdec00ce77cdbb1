"""How the members of a program are spread over this machine's devices, and how those of one device take a step."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import jax

from gan_jax.devices import EACH, Layout, population
from gan_jax.errors import InputError
from gan_jax.files import read_json, write_atomically
from gan_jax.population import Population
from gan_jax.recipe import Setup

AUTO = "auto"
MEASURED = ("vmap", "map")
HOW = "how.json"  # of a program's folder: which of MEASURED was faster
CALLS = 3  # of which the fastest counts


class Choice(NamedTuple):
    """What the user wants."""

    how: str  # of MEASURED, or AUTO: the faster one
    per_member: int  # devices that share a member's batch


def layout_for(setups: list[Setup], choice: Choice, folder: Path) -> tuple[Layout, int]:
    """How these members are spread over the devices, and how many are trained at once (0: all).

    What was measured is kept in `folder`, so that a sweep that goes on takes the same steps. Raises InputError where
    the devices, or the batch, cannot be shared so.
    """
    _check(setups[0].config.batch_size, choice.per_member)
    if _convolves(setups[0]) and jax.default_backend() == "cpu":  # slow there in a loop, or over a batch of kernels
        layout = population(EACH["unroll"], choice.per_member)
        return layout, layout.count
    how = choice.how if choice.how != AUTO else read_json(folder / HOW, None)
    if how is None:
        how = fastest(setups, choice.per_member)
        write_atomically(folder / HOW, json.dumps(how).encode())
    return population(EACH[how], choice.per_member), 0


def _check(batch_size: int, per_member: int) -> None:
    for what, count in (("devices", jax.device_count()), ("examples of batch_size", batch_size)):
        if count % per_member:
            raise InputError(f"--devices_per_member={per_member} does not divide the {count} {what}")


def _convolves(setup: Setup) -> bool:
    return setup.recipe.generator.convolves or setup.recipe.discriminator.convolves


def fastest(setups: list[Setup], per_member: int) -> str:
    """Which of MEASURED takes less time for a call of these members on this machine."""
    steps = min(setups[0].config.steps_per_call, setups[0].config.num_steps)
    return min(MEASURED, key=lambda how: _seconds_of_a_call(setups, population(EACH[how], per_member), steps))


def _seconds_of_a_call(setups: list[Setup], layout: Layout, steps: int) -> float:
    crowd = Population(setups, layout)
    crew, data = crowd.initial(), layout.within.place(setups[0].source.data)
    call, seconds = crowd.compiled(steps, crew), []
    for _ in range(CALLS):
        start = time.perf_counter()
        crew, _ = jax.block_until_ready(call(crew, data))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
