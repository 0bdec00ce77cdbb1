"""What a sweep is to run: its members, and which of them one compiled program trains together."""

import runpy
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gan_jax.config import schema
from gan_jax.utils.errors import InputError


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
        overrides = list(names["sweep"]())
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = frames[-1].lineno if frames else getattr(error, "lineno", None)
        place, reason = f"{path}, line {line}" if line else path, (str(error).splitlines() or ["failed"])[0]
        raise InputError(f"{place}: {type(error).__name__}: {reason}") from error
    if not overrides:
        raise InputError(f"{path}: sweep() yields nothing; it should yield a dict for each member")
    for number, keys in enumerate(overrides):
        if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
            example = '{"objective.name": "wgan"}'
            raise InputError(f"{path}: member {number} is {keys!r}; it should be a dict such as {example}")
    return overrides


def members(base: ConfigDict, overrides: Iterable[dict]) -> list[Member]:
    """The members, each with its whole config, checked.

    Raises InputError, naming the member, where a key does not exist or a value makes no sense, or where two are alike.
    """
    base = schema.with_own_keys(base)
    schema.check(base)
    planned, numbers = [], {}
    for number, values in enumerate(overrides):
        changes = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
        try:
            config = _with(base, changes)
            schema.check(config)
        except InputError as error:
            raise InputError(f"member {number} {changes}: {error}") from error
        first = numbers.setdefault(tuple(schema.flatten(config.to_dict()).items()), number)
        if first != number:
            raise InputError(f"members {first} and {number} are the same run, {changes}; leave one out")
        planned.append(Member(number, changes, config.lock()))
    return planned


def _with(base: ConfigDict, changes: dict) -> ConfigDict:
    values = schema.flatten(schema.with_own_keys(base, changes).to_dict())
    keys = schema.table(values | changes)
    for key, value in changes.items():
        if key not in keys:
            raise InputError(schema.unknown_key(key, values | changes))
        # As on a command line an integer will do for a number; any other type is for `schema.check` to see.
        values[key] = float(value) if keys[key].rule.type is float and type(value) is int else value
    return schema.nested(values)


def programs(planned: list[Member]) -> list[list[Member]]:
    """The members in groups that one compiled program can train, in the order in which they first appear."""
    groups: dict[tuple, list[Member]] = {}
    for member in planned:
        groups.setdefault(tuple(_compiled_keys(member).items()), []).append(member)
    return list(groups.values())


def _compiled_keys(member: Member) -> dict:
    """The keys that runs of one program have in common."""
    values = schema.flatten(member.config.to_dict())
    free = schema.varying(values)
    return {key: value for key, value in values.items() if key not in free}


def describe(groups: list[list[Member]]) -> str:
    """The plan in words: each program, with what sets it apart and what varies within it."""
    compiled = [_compiled_keys(group[0]) for group in groups]
    differing = [key for key in compiled[0] if len({keys[key] for keys in compiled}) > 1]
    lines = [f"{sum(map(len, groups))} members in {len(groups)} program{'s' if len(groups) > 1 else ''}"]
    for i, (group, keys) in enumerate(zip(groups, compiled, strict=True)):
        apart = _in_words({key: keys[key] for key in differing}) or "the members differ only in what may vary"
        lines.append(f"program {i}: {len(group)} members; {apart}")
        lines += [f"  {member.number:4d}  {_in_words(member.overrides)}" for member in group]
    return "\n".join(lines)


def _in_words(keys: dict) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items())
