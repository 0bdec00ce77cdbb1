"""What `--print_config` prints: the config, and where each of its values comes from."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from gan_jax.cli.command_line import load_config
from gan_jax.config import schema
from gan_jax.utils.keys import keys_of


def describe(config: ConfigDict, argument: str, flags: Mapping[str, object]) -> str:
    """A line `key = value  # origin` for each key of the config.

    Args:
      config: all of it, with what the command line changed.
      argument: of --config. The file is run once more: to compare its values with the defaults would not tell one that
        it leaves from one that it sets to the same.
      flags: what the command line sets, by dotted key.
    """
    values = schema.flatten(config.to_dict())
    with _assignments() as lines:
        in_file = dict(_set_keys(load_config(argument), lines))
    origins = _defaults(values) | in_file | {key: f"--config.{key}" for key in flags}
    shown = {f"{key} = {values[key]!r}": origins[key] for key in schema.table(values) | values if key in values}
    width = max(map(len, shown))
    return "\n".join(f"{assignment:{width}}  # {origin}" for assignment, origin in shown.items())


@contextmanager
def _assignments() -> Iterator[dict]:
    """Within it, notes who sets a field of a ConfigDict: {(its id, field): (it, path of the file, line)}."""
    plain, lines = ConfigDict.__setitem__, {}

    def noted(config, field, value):
        plain(config, field, value)
        frame = sys._getframe(1)
        # The line that says so: not those by which an update, an attribute or a whole dict comes here.
        while (
            frame.f_globals.get("__name__", "").startswith("ml_collections") or frame.f_code is schema.nested.__code__
        ):
            frame = frame.f_back
        # With the ConfigDict itself, which must live, or another one could have its id.
        lines[id(config), field] = config, Path(frame.f_code.co_filename).resolve(), frame.f_lineno

    ConfigDict.__setitem__ = noted
    try:
        yield lines
    finally:
        ConfigDict.__setitem__ = plain


def _set_keys(config: ConfigDict, lines: dict, start: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys that a config file sets, and where; those that only `default_config` set are not among them."""
    for field, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _set_keys(value, lines, f"{start}{field}.")
        elif (id(config), field) in lines:
            _, path, line = lines[id(config), field]
            if path != Path(schema.__file__).resolve():
                shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
                yield f"{start}{field}", f"{shown}, line {line}"


def _defaults(values: Mapping[str, object]) -> dict[str, str]:
    """What a value is that nobody set: the default of the part that has the key, where a config names the part."""
    origins = dict.fromkeys(values, "default")
    for group in schema.groups(values):
        if choice := group.choice:
            chosen = choice.entry(values[f"{group.start}{choice.key}"])
            origins |= {f"{group.start}{name}": f"default of {chosen}" for name in keys_of(choice.parts[chosen])}
    return origins
