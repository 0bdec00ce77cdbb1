"""How the members of a program are spread over this process's devices, and how those of one device take a step."""

import json
import time
from pathlib import Path
from typing import NamedTuple

import jax

from gan_jax.devices import Devices, mesh
from gan_jax.errors import InputError
from gan_jax.files import read_json, write_atomically
from gan_jax.population import Population
from gan_jax.population_layout import Layout, population
from gan_jax.recipe import Setup

AUTO, WRITTEN_OUT = "auto", "unroll"
MEASURED = ("vmap", "map")
HOW = "how.json"  # of a program's folder: how its members were spread when it began
AT_ONCE = "at_once.json"  # of the folder of all members of a program that are too many to be trained at once
CALLS = 3  # of which the fastest counts


class Choice(NamedTuple):
    """What the user wants."""

    how: str  # of MEASURED, or AUTO: the faster one
    per_member: int  # devices that share a member's batch


def check(per_member: int) -> None:
    """Raises InputError where this machine's devices cannot be shared so."""
    if jax.local_device_count() % per_member:
        raise InputError(f"--devices_per_member={per_member} does not divide the {jax.local_device_count()} devices")


def check_how(setup: Setup, how: str) -> None:
    """Raises InputError where members like this one do not take their steps so."""
    if how != AUTO and _slow_in_a_loop(setup):
        raise InputError(f"--how={how} is not for networks that convolve on a CPU, where their steps are written out")


def devices_of_a_member(per_member: int) -> Devices:
    """What the setup of a member is built for."""
    if per_member == 1:
        return mesh(jax.local_devices()[:1])
    return population(WRITTEN_OUT, per_member).within  # the same however members take their steps


def at_once(setup: Setup, members: int, choice: Choice, folder: Path) -> int:
    """How many of these members, all like this one, are trained at once: all but where a loop is slow.

    That is kept in `folder`, as in `layout_for`.
    """
    if not _slow_in_a_loop(setup):
        return members
    count = jax.local_device_count() // choice.per_member
    _require_as_begun(folder / AT_ONCE, {"members at once": count})
    return count


def _slow_in_a_loop(setup: Setup) -> bool:
    """Convolutions on a CPU are: and over a batch of kernels."""
    convolves = setup.recipe.generator.convolves or setup.recipe.discriminator.convolves
    return convolves and jax.default_backend() == "cpu"


def layout_for(setups: list[Setup], choice: Choice, folder: Path) -> Layout:
    """How these members are spread, no more devices being taken than they need.

    It is kept in `folder`, so that a program that goes on takes the same steps. Raises InputError where it cannot.
    """
    groups = min(jax.local_device_count() // choice.per_member, len(setups))
    devices = jax.local_devices()[: groups * choice.per_member]
    now = {"devices": len(devices), "devices_per_member": choice.per_member}
    if not (folder / HOW).exists():
        write_atomically(folder / HOW, json.dumps(now | {"how": _settled(setups, choice, devices)}).encode())
    if choice.how != AUTO:
        now["how"] = choice.how
    begun = _require_as_begun(folder / HOW, now)
    return population(begun["how"], choice.per_member, devices)


def _require_as_begun(path: Path, now: dict) -> dict:
    """What the file holds, and where there is none what is so `now`. Raises InputError where the two differ."""
    if not path.exists():
        write_atomically(path, json.dumps(now).encode())
    begun = read_json(path)
    for name, value in now.items():
        if begun[name] != value:
            raise InputError(
                f"{path.parent} was begun with {name} {begun[name]}, which is {value} here; go on as it was begun, or "
                "remove that folder"
            )
    return begun


def _settled(setups: list[Setup], choice: Choice, devices: list) -> str:
    if _slow_in_a_loop(setups[0]):
        return WRITTEN_OUT
    return fastest(setups, choice.per_member, devices) if choice.how == AUTO else choice.how


def fastest(setups: list[Setup], per_member: int, devices: list) -> str:
    """Which of MEASURED takes less time for a call of these members on this machine."""
    steps = min(setups[0].config.steps_per_call, setups[0].config.num_steps)
    return min(MEASURED, key=lambda how: _seconds_of_a_call(setups, population(how, per_member, devices), steps))


def _seconds_of_a_call(setups: list[Setup], layout: Layout, steps: int) -> float:
    crowd = Population(setups, layout)
    crew, data = crowd.initial(), layout.within.place(setups[0].source.data)
    call, seconds = crowd.compiled(steps, crew), []
    for _ in range(CALLS):
        start = time.perf_counter()
        crew, _ = jax.block_until_ready(call(crew, data))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
