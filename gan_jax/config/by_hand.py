"""Parts that were handed to `gan_jax.build`: the config names them by import path, like any part of one's own.

One that can be imported is named by its own path. Any other (an instance, a lambda, a function of a notebook) becomes
an attribute of the module `by_hand.ARGUMENT`, which lies in no file and lives as long as this process.
"""

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import partial
from types import ModuleType
from typing import Any

from gan_jax.config import schema
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import is_path, parameters_of

KEYS = {  # argument of `build`: the config key that names such a part
    "objective": "objective.name",
    "penalty": "penalty.name",
    "generator": "generator.network",
    "discriminator": "discriminator.network",
    "generator_optimizer": "generator.optimizer.name",
    "discriminator_optimizer": "discriminator.optimizer.name",
    "move": "moves",
    "prior": "latent.prior",
    "generator_penalty": "generator.penalty.name",
    "source": "data.name",
    "scores": "evaluation.scores",
}


class _Parts(ModuleType):
    """What was handed over as one argument of `build`, by name."""

    def __getattr__(self, name: str):
        """Of what this process has not, and the config of a run names."""
        if name.startswith("__"):  # Python asks these of every module
            raise AttributeError(name)
        argument = self.__name__.rpartition(".")[2]
        raise InputError(
            f"{self.__name__}:{name} was handed over and lies in no file; build this run from Python, with "
            f"gan_jax.build(config, {argument}=...)"
        )


for _argument in KEYS:
    sys.modules.setdefault(f"by_hand.{_argument}", _Parts(f"by_hand.{_argument}"))


def with_parts(config, parts: Mapping[str, Any]):
    """The config with the paths of these parts, by argument of `build`; None: as it is. `scores` are several."""
    lists = {argument: part if argument == "scores" else [part] for argument, part in parts.items() if part is not None}
    changes = {KEYS[argument]: ",".join(_path(argument, part) for part in some) for argument, some in lists.items()}
    if not changes:
        return config
    values = schema.flatten(schema.with_own_keys(config, changes).to_dict())
    return schema.nested(values | changes).lock()


def with_source(config, handed: Any, source: Any):
    """The config of a run on data that was `handed` over, of which `source` was made."""
    changed = config.copy_and_resolve_references().unlock()
    changed.data.name = _kept("source", handed, partial(_same, source))
    return changed.lock()


def _path(argument: str, part: Any) -> str:
    """An import path of the part; a text is a name already."""
    if isinstance(part, str):
        return part
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", "")
    path = f"{module}:{name}"
    if is_path(path) and module != "__main__" and getattr(sys.modules.get(module), name, None) is part:
        return path
    is_made = argument in ("generator", "discriminator") and not (inspect.isclass(part) or inspect.isroutine(part))
    return _kept(argument, part, _network(part) if is_made else part)


def _network(part: Any) -> Callable:
    """A function that returns this network; with the parameter by which it is known to have a use for labels."""
    call = part[1] if isinstance(part, tuple) and len(part) > 1 else part
    return partial(_same_of_classes if callable(call) and "label" in parameters_of(call) else _same, part)


def _kept(argument: str, part: Any, named: Any) -> str:
    """The path at which `named` is kept: of the part's code, with a hash of its fields, the same in every process."""
    fields = ""
    if argument not in ("source", "scores") and (is_dataclass(part) or isinstance(part, tuple | partial)):
        text = re.sub(r" at 0x[0-9a-f]+", "", repr(part))
        fields = f"_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    code = part.func if isinstance(part, partial) else getattr(part, "measure", part)
    name = getattr(code, "__qualname__", type(code).__qualname__).rpartition("<locals>.")[2]
    name = re.sub(r"\W+", "_", name).strip("_") + fields
    setattr(sys.modules[f"by_hand.{argument}"], name, named)
    return f"by_hand.{argument}:{name}"


def _same(part: Any) -> Any:
    """What a registry calls to have a part that is made already."""
    return part


def _same_of_classes(part: Any, classes: int = 0) -> Any:
    return part
