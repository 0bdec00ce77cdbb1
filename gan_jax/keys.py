"""Config keys are the parameters of parts: default, type, range and meaning stand once, where the part is written.

A part is a function, a dataclass (so a Linen module) or a NamedTuple. Its config keys are those of its parameters that
are annotated with a `Rule`:

    def soft_hinge(margin: Annotated[float, POSITIVE, "distance at which an example costs nothing", TRACED] = 1.0): ...

What follows a Rule: a text, which docs/configuration.md shows, and any of the marks TRACED, SCHEDULED and `Needs`.
Parameters without a Rule are what the program itself hands over: shapes, keys, arrays.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from gan_jax.errors import InputError


class Rule(NamedTuple):
    """One key's type, condition, and both in words."""

    type: type
    holds: Callable[[Any], bool]
    words: str


POSITIVE_INT = Rule(int, lambda value: 0 < value < 2**31, "a positive integer")
COUNT = Rule(int, lambda value: 0 <= value < 2**31, "an integer, 0 or more")
NON_NEGATIVE = Rule(float, lambda value: 0 <= value < float("inf"), "a number, 0 or more")
POSITIVE = Rule(float, lambda value: 0 < value < float("inf"), "a number greater than 0")
FRACTION = Rule(float, lambda value: 0 <= value < 1, "a number from 0 to 1, 1 excluded")
SHARE = Rule(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
FLAG = Rule(bool, lambda value: True, "True or False")
TEXT = Rule(str, lambda value: True, "a string")


def one_of(names: Iterable[str]) -> Rule:
    """The rule that a key is one of `names`."""
    names = tuple(names)
    return Rule(str, lambda value: value in names, "one of " + ", ".join(names))


class Mark(Enum):
    """What else a key may be."""

    TRACED = "a number that a compiled step takes as an array: the runs of one program may differ in it"
    SCHEDULED = "a traced number with a second key, NAME_to: where it ends after the burn-in; 0: it is constant"


TRACED, SCHEDULED = Mark.TRACED, Mark.SCHEDULED


class Needs(NamedTuple):
    """A key that does nothing unless another one is set: it must then have its default.

    `key` is dotted, from the root of the config. With `values` it must have one of them; without, any but its default.
    """

    key: str
    values: tuple = ()


class Key(NamedTuple):
    """One config key, without its group."""

    default: Any
    rule: Rule
    text: str
    traced: bool = False
    needs: Needs | None = None

    @property
    def optional(self) -> bool:
        """Whether the compiled step does without the number where no run of the program has any: its default is 0."""
        return self.traced and self.default == 0


@cache
def keys_of(part: Callable) -> Mapping[str, Key]:
    """The config keys of a part, by the names of its parameters, in their order.

    Raises TypeError where one has no default: a config is complete without it.
    """
    hints = get_type_hints(part, include_extras=True)
    keys = {}
    for name, parameter in inspect.signature(part).parameters.items():
        marks = getattr(hints.get(name), "__metadata__", ())
        rule = next((mark for mark in marks if isinstance(mark, Rule)), None)
        if rule is None:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise TypeError(f"the config key {name} of {part.__module__}.{part.__qualname__} has no default")
        text = next((mark for mark in marks if isinstance(mark, str)), "")
        needs = next((mark for mark in marks if isinstance(mark, Needs)), None)
        keys[name] = Key(parameter.default, rule, text, TRACED in marks or SCHEDULED in marks, needs)
        if SCHEDULED in marks:
            keys[f"{name}_to"] = Key(0.0, rule, f"where {name} ends after the burn-in; 0: constant", True, needs)
    return keys


def arguments(part: Callable, *values: Mapping[str, Any]) -> dict[str, Any]:
    """Of `values`, of which later ones win, the ones that are parameters of the part, by name."""
    names = inspect.signature(part).parameters
    return {name: value for mapping in values for name, value in mapping.items() if name in names}


def union(parts: Mapping[str, Callable]) -> dict[str, Key]:
    """The keys of all `parts`, by name. Raises TypeError where two of them disagree on a default."""
    keys = {}
    for part in parts.values():
        for name, key in keys_of(part).items():
            if keys.setdefault(name, key).default != key.default:
                raise TypeError(f"{part.__qualname__} has the default {key.default!r} for {name}; another part differs")
    return keys


def require_defaults(prefix: str, choice: str, chosen: str, parts: Mapping[str, Callable], values: Mapping[str, Any]):
    """Refuses what would do nothing: raises InputError where a key that the chosen part lacks has not its default.

    Args:
      prefix: the group of the config that `values` are, such as "data".
      choice: the key of the group that names the part, such as "name".
      chosen: the name of the part among `parts`.
    """
    for name, key in union(parts).items():
        if name not in keys_of(parts[chosen]) and values.get(name, key.default) != key.default:
            others = ", ".join(other for other, part in parts.items() if name in keys_of(part))
            raise InputError(
                f"config key {prefix}.{name} is {values[name]!r}, but {chosen} has no {name}; "
                f"set it to {key.default!r}, or {prefix}.{choice} to one of {others}"
            )
