"""Config keys are the parameters of parts: default, type, range and meaning stand once, where the part is written.

A part is a function, a dataclass (so a Linen module) or a NamedTuple. Its config keys are those of its parameters that
are annotated with a `Rule`:

    def soft_hinge(margin: Annotated[float, POSITIVE, "logit at which a loss is 0", TRACED] = 1.0): ...

What follows a Rule: a text, which docs/configuration.md shows, and any of the marks TRACED, COMMON, SCHEDULED, `Needs`.
Parameters without a Rule are what the program itself hands over: shapes, keys, arrays.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, get_type_hints

from gan_jax.utils.errors import InputError, one_line, users_code


class Rule(NamedTuple):
    """One key's type, condition, and both in words."""

    type: type
    holds: Callable[[Any], bool]
    words: str
    options: tuple[str, ...] = ()  # the values that are right, where they are few


POSITIVE_INT = Rule(int, lambda value: 0 < value < 2**31, "a positive integer")
COUNT = Rule(int, lambda value: 0 <= value < 2**31, "an integer, 0 or more")
NON_NEGATIVE = Rule(float, lambda value: 0 <= value < float("inf"), "a number, 0 or more")
POSITIVE = Rule(float, lambda value: 0 < value < float("inf"), "a number greater than 0")
FRACTION = Rule(float, lambda value: 0 <= value < 1, "a number from 0 to 1, 1 excluded")
SHARE = Rule(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
FLAG = Rule(bool, lambda value: True, "True or False")
TEXT = Rule(str, lambda value: True, "a string")
PATHS = Rule(str, lambda value: all(map(is_path, paths(value))), "import paths MODULE:NAME with commas between")


class Registry(dict):
    """Parts by name. A name that it lacks is an import path, `module:attribute`, of a part of one's own.

    Such a part is imported when it is asked for, and stays out of the registry: which parts a config may name does not
    depend on the configs before it.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        entry: Callable[[Any], Any] = lambda part: part,
        path_of: Callable[[str], str | None] = lambda name: name if is_path(name) else None,
    ):
        """Args:
        entry: what is imported -> an entry of the registry; TypeError where it can be none.
        path_of: a name -> the import path that it stands for, or None.
        """
        super().__init__(parts)
        self._entry, self.path_of = entry, path_of

    def __missing__(self, name: str):
        """The entry at an import path. KeyError where the name is none; InputError where nothing can be imported."""
        path = self.path_of(name)
        if path is None:
            raise KeyError(name)
        part = imported(path)
        with users_code(name):
            try:
                return self._entry(part)
            except TypeError as error:
                raise InputError(f"{name} is {error}") from error


def is_path(name: Any) -> bool:
    """Whether a part's name is an import path, `module:attribute`."""
    return isinstance(name, str) and re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", name) is not None


def paths(names: str) -> list[str]:
    """The import paths that a text has with commas between."""
    return names.split(",") if names else []


def imported(path: str) -> Any:
    """The object at `module:attribute`. Raises InputError, one line, where it is not there or fails."""
    name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"{path}: {name} imports {error.name}, which is not installed") from error
        right = "start where it lies, or give the --config beside which it lies"
        folders = ", ".join(import_folders())
        raise InputError(f"{path}: there is no module {name} in {folders}, nor is it installed; {right}") from error
    except (Exception, SystemExit) as error:  # whatever is wrong in the user's file
        why = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path}: {name} cannot be imported: {why}") from error
    if not hasattr(module, attribute):
        own = [other for other, value in vars(module).items() if other[0] != "_" and _is_of(name, value)]
        close = "".join(f"did you mean {other}? " for other in get_close_matches(attribute, own, n=1))
        file = getattr(module, "__file__", "built in")
        raise InputError(f"{path}: {name} ({file}) has no {attribute}; {close}it has {', '.join(own)}")
    return getattr(module, attribute)


def _is_of(module: str, value: Any) -> bool:
    """Whether a module made what it holds, and did not import it."""
    named = inspect.isclass(value) or inspect.isroutine(value)
    return not inspect.ismodule(value) and (not named or value.__module__ == module)


def import_folders() -> list[str]:
    """The folders in which modules are sought, beside Python's own."""
    folders = (folder for folder in sys.path if "lib/python" not in folder and "__editable__" not in folder)
    return list(dict.fromkeys(map(os.path.abspath, folders)))


def function(part: Any) -> Callable:
    """The part, if it can be called; else TypeError."""
    if not callable(part):
        raise TypeError(f"a {type(part).__name__}, not a function or a class")
    return part


def one_of(names: Iterable[str]) -> Rule:
    """The rule that a key is one of `names`."""
    names = tuple(names)
    return Rule(str, lambda value: value in names, "one of " + ", ".join(names), names)


class Mark(Enum):
    """What else a key may be."""

    # One whose default is 0 is off at 0: the step's numbers then lack it, and nothing is compiled for it.
    TRACED = "a number that a compiled step takes as an array: the runs of one program may differ in it"
    COMMON = "a key that most parts have: one without it ignores its value, where any other key is refused"
    SCHEDULED = "a traced number with a second key, NAME_to: where it ends after the burn-in; 0: it is constant"


TRACED, COMMON, SCHEDULED = Mark


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
    common: bool = False

    @property
    def optional(self) -> bool:
        """Whether the compiled step does without the number where no run of the program has any: its default is 0."""
        return self.traced and self.default == 0


def parameters_of(part: Callable) -> Mapping[str, inspect.Parameter]:
    """A part's parameters by name; of a class whose metaclass hides them, as NNX's does, those of its __init__."""
    shown, whole = inspect.signature(part).parameters, getattr(part, "func", part)
    if isinstance(whole, type) and shown and all(parameter.kind in _ANY for parameter in shown.values()):
        return dict(list(inspect.signature(whole.__init__).parameters.items())[1:])
    return shown


def hints_of(part: Callable) -> dict[str, Any]:
    """The annotations of a part's parameters by name; of a class, those of its fields and of its __init__."""
    whole = getattr(part, "func", part)  # of a partial, its function
    hints = get_type_hints(whole, include_extras=True)
    return hints | get_type_hints(whole.__init__, include_extras=True) if isinstance(whole, type) else hints


_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def keys_of(part: Any) -> Mapping[str, Key]:
    """The config keys of a part, by the names of its parameters, in their order.

    Of a part that is made already those that it says itself, as its `config_keys`.
    Raises TypeError where one has no default: a config is complete without it.
    """
    to_be_made = inspect.isclass(part) or inspect.isroutine(part) or isinstance(part, partial)
    if not to_be_made and hasattr(part, "config_keys"):
        return part.config_keys
    return _keys_of(part) if to_be_made or hasattr(part, "__signature__") else {}


@cache
def _keys_of(part: Callable) -> Mapping[str, Key]:
    hints, keys = hints_of(part), {}
    for name, parameter in parameters_of(part).items():
        marks = getattr(hints.get(name), "__metadata__", ())
        rule = next((mark for mark in marks if isinstance(mark, Rule)), None)
        if rule is None:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise TypeError(f"the config key {name} of {part.__module__}.{part.__qualname__} has no default")
        text = next((mark for mark in marks if isinstance(mark, str)), "")
        needs = next((mark for mark in marks if isinstance(mark, Needs)), None)
        keys[name] = Key(parameter.default, rule, text, TRACED in marks or SCHEDULED in marks, needs, COMMON in marks)
        if SCHEDULED in marks:
            keys[f"{name}_to"] = Key(0.0, rule, f"where {name} ends after the burn-in; 0: constant", True, needs)
    return keys


def arguments(part: Callable, values: Mapping[str, Any], context: Mapping[str, Any] = MappingProxyType({})) -> dict:
    """What a part is called with: its config keys from `values`, its other parameters from `context`."""
    parameters = parameters_of(part)
    own = {name: values[name] for name in keys_of(part) if name in parameters and name in values}
    return own | {name: context[name] for name in parameters if name in context}


def bind(prefix: str, part: Callable, values: Mapping[str, Any], **context) -> Callable[[Mapping], Callable]:
    """A part with its config values, as a function of the traced numbers of a step: numbers -> partial(part, ...).

    Args:
      prefix: of the part's config keys, dotted.
      values: of these, by name; the part takes its traced ones from the numbers, or its default where they lack it.
      context: what the program hands over; a part takes what it has a parameter for.
    """
    parameters = parameters_of(part)  # without the ends, KEY_to, of scheduled numbers
    traced = {name: f"{prefix}.{name}" for name, key in keys_of(part).items() if key.traced and name in parameters}
    static = {name: value for name, value in arguments(part, values, context).items() if name not in traced}

    def of_numbers(numbers):
        return partial(part, **static, **{name: numbers[key] for name, key in traced.items() if key in numbers})

    return of_numbers


def union(parts: Mapping[str, Callable]) -> dict[str, Key]:
    """The keys of all these parts. Raises TypeError where two of them have a key of one name that is not the same."""
    keys = {}
    for part_name, part in parts.items():
        for name, key in keys_of(part).items():
            if _facts(keys.setdefault(name, key)) != _facts(key):
                raise TypeError(f"{part_name} has another default, range or mark of {name} than the parts before it")
    return keys


def _facts(key: Key) -> tuple:
    return key.default, key.traced, key.common, key.needs, key.rule.type, key.rule.words


def require_defaults(
    prefix: str, choice: str, chosen: str, parts: Mapping[str, Callable], values: Mapping[str, Any]
) -> None:
    """Raises InputError where a key that the chosen part does not have is set: it would do nothing.

    Args:
      prefix: of the group, dotted, such as "objective".
      choice: the key of the group that names the part, such as "name".
      chosen: the part's name among `parts`.
      values: of the group, by the keys' names; one that it lacks has its default.
    """
    has = keys_of(parts[chosen])
    for name, key in union(parts).items():
        if name not in has and not key.common and values.get(name, key.default) != key.default:
            able = [other for other in parts if name in keys_of(parts[other])]
            raise InputError(
                f"config key {prefix}.{name} is {values[name]!r}, but {chosen} has no {name}; set it to "
                f"{key.default!r}, or {prefix}.{choice} to one of {', '.join(able)}"
            )
