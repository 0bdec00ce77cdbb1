"""What a sweep is to run: its members, and which of them one compiled program trains together."""

import runpy
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gan_jax import schema
from gan_jax.errors import InputError


class Member(NamedTuple):
    """A run of a sweep."""

    number: int  # its place among all that the file yields
    overrides: dict  # {dotted config key: value}
    config: ConfigDict  # the base with these


def read_sweep(path: Path) -> list[dict]:
    """What `sweep()` of a Python file yields: a dict {dotted config key: value} for each member.

    Raises InputError, one line with the line at fault, where there is no such file or function, where it fails, or
    where it yields something else or nothing.
    """
    if not path.is_file():
        raise InputError(f"there is no sweep file {path}; give one such as experiments/sweeps/objectives.py")
    try:
        names = runpy.run_path(str(path))
        if not callable(names.get("sweep")):
            raise InputError(f"{path} has no function sweep(); it should yield a dict for each member")
        members = list(names["sweep"]())
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(_fault(path, error)) from error
    if not members:
        raise InputError(f"{path}: sweep() yields nothing; it should yield a dict for each member")
    for number, member in enumerate(members):
        if not isinstance(member, dict) or not all(isinstance(key, str) for key in member):
            raise InputError(
                f'{path}: member {number} is {member!r}; it should be a dict such as {{"objective.name": "wgan"}}'
            )
    return members


def _fault(path: Path, error: BaseException) -> str:
    frames = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename) == path]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    place = f"{path}, line {line}" if line else str(path)
    return f"{place}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'failed'}"


def members(base: ConfigDict, overrides: Iterable[dict]) -> list[Member]:
    """The members, each with its whole config, checked.

    Raises InputError, naming the member, where a key does not exist or a value makes no sense, or where two are alike.
    """
    schema.check(base)
    found, seen = [], {}
    for number, given in enumerate(overrides):
        changes = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
        try:
            config = _with(base, changes)
            schema.check(config)
        except InputError as error:
            raise InputError(f"member {number} {changes}: {error}") from error
        key = tuple(sorted(schema.flatten(config.to_dict()).items()))
        if key in seen:
            raise InputError(f"members {seen[key]} and {number} are the same run, {changes}; leave one out")
        seen[key] = number
        found.append(Member(number, changes, config.lock()))
    return found


def _with(base: ConfigDict, changes: dict) -> ConfigDict:
    for key in changes:
        if key not in schema.SCHEMA:
            raise InputError(schema.unknown_key(key))
    values = base.to_dict()
    for key, value in changes.items():
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place[group]
        # As on a command line an integer will do for a number; any other type is for `schema.check` to see.
        place[name] = float(value) if schema.SCHEMA[key].type is float and type(value) is int else value
    return ConfigDict(values)


def programs(found: list[Member]) -> list[list[Member]]:
    """The members in groups that one compiled program can train, in the order in which they first appear."""
    groups: dict[tuple, list[Member]] = {}
    for member in found:
        groups.setdefault(_apart(member.config), []).append(member)
    return list(groups.values())


def _apart(config: ConfigDict) -> tuple:
    """What runs of one program have in common."""
    return tuple(
        sorted((key, value) for key, value in schema.flatten(config.to_dict()).items() if key not in schema.varying())
    )


def describe(groups: list[list[Member]]) -> str:
    """The plan in words: each program, with what sets it apart and what varies within it."""
    flat = [schema.flatten(group[0].config.to_dict()) for group in groups]
    differing = [key for key in flat[0] if key not in schema.varying() and len({each[key] for each in flat}) > 1]
    total = sum(map(len, groups))
    lines = [f"{total} members in {len(groups)} program{'s' if len(groups) > 1 else ''}"]
    for i, (group, values) in enumerate(zip(groups, flat, strict=True)):
        apart = ", ".join(f"{key}={values[key]}" for key in differing) or "all alike but for what varies"
        lines.append(f"program {i}: {len(group)} members; {apart}")
        lines += [f"  {member.number:4d}  {_shown(member.overrides)}" for member in group]
    return "\n".join(lines)


def _shown(overrides: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in overrides.items())
