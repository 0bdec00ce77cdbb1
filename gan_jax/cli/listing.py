"""What `python -m gan_jax list` prints: configs, parts, scores and keys by name, and what each says of itself."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from gan_jax.cli.command_line import CONFIGS
from gan_jax.config import schema
from gan_jax.evaluation.features.extractors import Kind
from gan_jax.evaluation.metrics.comparison import HIGHER, LOWER, SCORES
from gan_jax.networks import Family
from gan_jax.objectives import Objective
from gan_jax.step.optimizers import of_optax
from gan_jax.step.state import Move
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import Key, imported, is_path, keys_of

CHOSEN_BY = {  # kind of part: the config key that chooses one; *: of either player
    "objectives": "objective.name",
    "penalties": "penalty.name",
    "generator_penalties": "generator.penalty.name",
    "networks": "*.network",
    "optimizers": "*.optimizer.name",
    "moves": "moves",
    "priors": "latent.prior",
    "data": "data.name",
    "extractors": "evaluation.extractor",
}


class Row(NamedTuple):
    """Something that there is."""

    text: str  # one line
    keys: dict[str, Key]  # its config keys, dotted


def listing(kind: str, pattern: str = "") -> str:
    """The names of this kind that have `pattern` in them, or match it as a glob, each with its text and its keys.

    Of a kind of part, `pattern` may be the import path of one's own. Raises InputError where there is no such name.
    """
    if kind not in KINDS:
        raise InputError(f"there is no list of {kind}; there are {', '.join(KINDS)}")
    rows = KINDS[kind]() if kind not in CHOSEN_BY else _parts(kind, pattern)
    matching = [name for name in rows if pattern in name or fnmatchcase(name, pattern)]
    if not matching:
        raise InputError(f"none of the {kind} is named like {pattern}; there are {', '.join(rows)}")
    lines, width = [], max(map(len, matching))
    for name in matching:
        lines.append(f"{name:{width}}  {rows[name].text}".rstrip())
        lines += [f"    {key} = {_words(about)}" for key, about in rows[name].keys.items()]
    head = [f"{CHOSEN_BY[kind]} is one of these, or MODULE:NAME"] if kind in CHOSEN_BY else []
    return "\n".join(head + lines)


def _words(key: Key) -> str:
    return f"{key.default!r} ({key.rule.words}): {key.text}{'; a sweep may vary it' if key.traced else ''}"


def _parts(kind: str, pattern: str) -> dict[str, Row]:
    chosen_by, rows = CHOSEN_BY[kind], {}
    own = {chosen_by.replace("*", player): pattern for player in Family._fields} if is_path(pattern) else {}
    for group in schema.groups(own):
        choice = group.choice
        if choice and fnmatchcase(f"{group.start}{choice.key}", chosen_by):
            for name, part in choice.parts.items():
                row = rows.setdefault(name, Row(_text(name, choice.registry), {}))
                row.keys.update({f"{group.start}{key}": about for key, about in keys_of(part).items()})
        elif kind == "moves" and group.needs and group.needs.key == chosen_by:  # the keys of a move, in their own group
            (name,), (take,) = group.needs.values, group.parts
            rows[name].keys.update({f"{group.start}{key}": about for key, about in keys_of(take).items()})
    rows = {name: Row(row.text, _of_either_player(row.keys)) for name, row in rows.items()}
    for name, optimizer in of_optax().items() if kind == "optimizers" else ():
        keys = {f"*.optimizer.{key}": about for key, about in keys_of(optimizer).items()}
        rows[name] = Row(f"{_first_line(optimizer)} (optax)", keys)
    return rows


def _of_either_player(keys: Mapping[str, Key]) -> dict[str, Key]:
    """The keys, with one `*.KEY` for two that are alike in G and D."""
    shown = {}
    for key, about in keys.items():
        player, _, rest = key.partition(".")
        twins = [keys.get(f"{other}.{rest}") for other in Family._fields]
        shown[f"*.{rest}" if player in Family._fields and twins == [about, about] else key] = about
    return shown


def _text(name: str, registry: Mapping[str, Any]) -> str:
    """The first line of what a part says of itself; of a shipped family of networks, its module does."""
    entry = registry[name]
    if isinstance(entry, Objective):
        return entry.text
    part = entry if name in registry else imported(name)
    if isinstance(part, Family):
        part = sys.modules[part.generator.__module__]
    elif isinstance(part, Move | Kind):
        part = part.take if isinstance(part, Move) else part.make
    text = _first_line(part)
    return "" if text.startswith(f"{part.__name__}(") else text  # what `dataclasses` writes where there is none


def _first_line(part: Any) -> str:
    return inspect.cleandoc(part.__doc__ or "").partition("\n")[0]  # not a base class's, as inspect.getdoc has it


def _configs() -> dict[str, Row]:
    rows = {}
    for name in sorted(path.stem for path in CONFIGS.glob("[!_]*.py")):
        module = importlib.import_module(f"gan_jax.configs.{name}")
        variants = ", ".join(f":{variant}" for variant in getattr(module, "VARIANTS", ()))
        text = inspect.getdoc(module).partition("\n")[0]
        rows[f"configs/{name}.py"] = Row(f"{text} Variants: {variants}" if variants else text, {})
    return rows


def _scores() -> dict[str, Row]:
    better = {LOWER: "; lower is better", HIGHER: "; higher is better", 0: ""}
    rows = ((name.format("EXTRACTOR"), metric) for name, metric in SCORES.items())
    return {name: Row(f"{metric.text}{better[metric.better]}; needs {metric.needs.value}", {}) for name, metric in rows}


def _keys() -> dict[str, Row]:
    return {name: Row(_words(key), {}) for name, key in schema.table().items()}


KINDS = {"configs": _configs} | dict.fromkeys(CHOSEN_BY) | {"scores": _scores, "keys": _keys}
