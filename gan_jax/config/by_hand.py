"""Parts that were handed to `gan_jax.build`: the config names them by import path, like any part of one's own.

One that can be imported is named by its own path. Any other (an instance, a lambda, a function of a notebook) becomes
an attribute of the module `by_hand.ARGUMENT`, which lies in no file and lives as long as this process.
"""

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.config import schema
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import is_path

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
            f"{self.__name__}:{name} was handed over and lies in no file; from Python, give the same to "
            f"gan_jax.build(config, {argument}=...) or gan_jax.load(workdir, {argument}=...)"
        )


for _argument in KEYS:
    sys.modules.setdefault(f"by_hand.{_argument}", _Parts(f"by_hand.{_argument}"))


def with_parts(config, parts: Mapping[str, Any]):
    """The config with the paths of these parts, by argument of `build`; None: as it is. `scores` may be several."""
    lists = {
        argument: part if argument == "scores" and isinstance(part, list) else [part]
        for argument, part in parts.items()
        if part is not None
    }
    changes = {KEYS[argument]: ",".join(_path(argument, part) for part in some) for argument, some in lists.items()}
    if not changes:
        return config
    values = schema.flatten(schema.with_own_keys(config, changes).to_dict())
    return schema.nested(values | changes).lock()


def _path(argument: str, part: Any) -> str:
    """An import path of the part; a text is a name already."""
    if isinstance(part, str):
        return part
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", "")
    path = f"{module}:{name}"
    if is_path(path) and module != "__main__" and getattr(sys.modules.get(module), name, None) is part:
        return path
    return _kept(argument, part)


def _kept(argument: str, part: Any) -> str:
    """The path at which a part is kept: of its name, with a hash of what it is, the same in every process.

    Without the hash, a run would go on with another part of that name. Data is told apart by its content, and a score
    is called so in every file.
    """
    code = part.func if isinstance(part, partial) else getattr(part, "measure", part)
    name = getattr(code, "__qualname__", type(code).__qualname__).rpartition("<locals>.")[2]
    name = re.sub(r"\W+", "_", name).strip("_")
    if argument not in ("source", "scores"):
        name += f"_{hashlib.sha256(_described(part, set()).encode()).hexdigest()[:8]}"
    setattr(sys.modules[f"by_hand.{argument}"], name, part)
    return f"by_hand.{argument}:{name}"


def _described(part: Any, seen: set[int]) -> str:
    """What a part is made of: the code of functions, what they have closed over, fields of objects, their arrays.

    `seen`: the ids of functions that are described already.
    """
    inner: Any = ()
    if isinstance(part, FunctionType) and id(part) not in seen:
        seen.add(id(part))
        inner = part.__code__, part.__defaults__, part.__kwdefaults__, inspect.getclosurevars(part).nonlocals
    elif isinstance(part, CodeType):
        inner = part.co_code.hex(), part.co_names, part.co_consts
    elif isinstance(part, partial):
        inner = part.func, part.args, part.keywords
    elif is_dataclass(part) and not isinstance(part, type):
        inner = tuple(getattr(part, field.name, None) for field in fields(part))
    elif isinstance(part, Mapping):
        inner = tuple(part.items())
    elif isinstance(part, tuple | list):
        inner = part
    elif isinstance(part, set | frozenset):  # whose order differs from process to process
        inner = sorted(map(repr, part))
    elif isinstance(part, np.ndarray | jax.Array):
        is_key = isinstance(part, jax.Array) and jnp.issubdtype(part.dtype, jax.dtypes.prng_key)
        return hashlib.sha256(np.asarray(jax.random.key_data(part) if is_key else part).tobytes()).hexdigest()
    elif not isinstance(part, FunctionType):
        leaves = jax.tree.leaves(part)  # of a module of NNX
        if not leaves or leaves[0] is part:
            return re.sub(r" at 0x[0-9a-f]+", "", repr(part))
        inner = repr(part), *leaves
    return f"{getattr(part, '__qualname__', type(part).__qualname__)}({', '.join(_described(x, seen) for x in inner)})"
