"""How several processes of one run agree on what to do, and end together; with one process it costs nothing.

All make the same calls in the same order. What one of them alone knows (a signal, a mistake, what lies on the disk)
becomes known to all before any acts on it: others would wait for a process that left, in their next collective.
"""

import hashlib
import importlib.metadata
import itertools
import json
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import gan_jax
from gan_jax.parallel.devices import AXIS, in_order
from gan_jax.utils.errors import AgreedError, InputError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")  # of which a run's numbers are made
AGREE_WITHIN = 24 * 3600  # seconds between processes that live: one may be scoring for long
GONE = (
    "another process of this run is gone, so this one ends too; the same command in all of them goes on from the "
    "newest checkpoint"
)
# What is said of a collective, or of JAX's coordinator, whose other end is gone.
_LOST = re.compile(
    r"Gloo \w+ failed|Connection (reset|closed) by peer|NCCL.*(remote|peer)|[Cc]oordination ?[Ss]ervice|GetKeyValue"
)


def several() -> bool:
    """Whether this run has more than one process. Starts no backend where there is one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes logs, pictures and whatever else is written once."""
    return not several() or jax.process_index() == 0


def all_or_none(function: Callable[[], Any], often: bool = False, within: float = AGREE_WITHIN) -> Any:
    """What the function returns, if no process makes a mistake in it; else an AgreedError in every process.

    A mistake is an InputError or an OSError. All must call it, and the function must not wait for the others.

    `often`: the devices tell that all is well, which costs the least. `within`: seconds after which others are lost.
    """
    if not several():
        return function()
    result, mistake = None, ""
    try:
        result = function()
    except InputError as error:
        mistake = str(error) or "failed"
    except OSError as error:
        mistake = f"{error.filename or 'a file'}: {error.strerror or error}"
    if often and not _anywhere(bool(mistake)):
        return result
    mistakes = [(index, text) for index, text in enumerate(_gathered(mistake, within)) if text]
    if not mistakes:
        return result
    index, text = mistakes[0]
    alike = len(mistakes) > 1 and all(other == text for _, other in mistakes)
    raise AgreedError(text if alike else f"process {index}: {text}")


def from_first(value: Any) -> Any:
    """The first process's value, which JSON must be able to hold, in all of them."""
    if not several():
        return value
    return json.loads(_gathered(json.dumps(value) if is_first() else "")[0])


def by_first(function: Callable[[], Any]) -> Any:
    """What the function returns in the first process, the only one to call it, in all; as in `all_or_none`."""
    return from_first(all_or_none(lambda: function() if is_first() else None))


def require_equal(what: str, own: Mapping[str, Any]) -> None:
    """Raises AgreedError, naming a process and what differs in it, unless `own` is the same in all processes."""
    first = from_first(dict(own))
    all_or_none(lambda: _compare(what, json.loads(json.dumps(dict(own))), first))


def _compare(what: str, own: dict, first: dict) -> None:
    differing = [name for name in sorted(own | first) if own.get(name) != first.get(name)]
    if differing:
        name, more = differing[0], f" and {len(differing) - 1} more differ" if len(differing) > 1 else " differs"
        values = f"{own.get(name, 'missing')} here, {first.get(name, 'missing')} in process 0"
        raise InputError(f"{what} {name}{more}: {values}; start all processes of a run with the same")


def code_versions(own: Iterable[str] = ()) -> dict[str, str]:
    """What a process runs: a hash of each file of this package and of the modules `own`, and the versions of packages.

    Shipped configs do not count: the keys of a config are compared by themselves.
    """
    package = Path(gan_jax.__file__).parent
    versions = {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    files = {path.relative_to(package.parent).as_posix(): path for path in sorted(package.rglob("*.py"))}
    files = {name: path for name, path in files.items() if not name.startswith("gan_jax/configs/")}
    modules = {name: sys.modules[name] for name in own if name in sys.modules}
    files |= {name: Path(module.__file__) for name, module in modules.items() if getattr(module, "__file__", None)}
    return versions | {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files.items()}


def in_any_process(question: Callable[[], bool]) -> Callable[[], bool]:
    """A yes-or-no question as all processes answer it: yes in all of them, a call after one of them said so.

    The answers of one call are read at the next one, so that no process waits for its devices to ask.
    """
    if not several():
        return question
    answer = False

    def ask() -> bool:
        nonlocal answer
        before, answer = bool(answer), _anywhere(question())
        return before

    return ask


def _anywhere(answer: bool) -> jax.Array:
    """Whether any process says so; all must ask. multihost_utils.process_allgather would wait for the devices."""
    by_device, any_of = _ballot()
    own = np.full(jax.local_device_count(), answer)
    return any_of(jax.make_array_from_process_local_data(by_device, own))


@cache
def _ballot():
    grid = Mesh(np.array(in_order(jax.devices())), (AXIS,))
    everywhere = NamedSharding(grid, PartitionSpec())
    return NamedSharding(grid, PartitionSpec(AXIS)), jax.jit(jnp.any, out_shardings=everywhere)


def _gathered(text: str, within: float = AGREE_WITHIN) -> list[str]:
    """Every process's text, by the process: told through JAX's coordinator.

    JAX has no public way to it. Its multihost_utils gather on the devices: without a time limit, and after the steps
    before. Above all Orbax's barriers are such gatherings: what a process that could not read a checkpoint tells would
    be taken for the answer to one.
    """
    from jax._src.distributed import global_state

    client, number, own = global_state.client, next(_gatherings), jax.process_index()
    client.key_value_set(f"gan_jax/{number}/{own}", text)
    keys = [f"gan_jax/{number}/{index}" for index in range(jax.process_count())]
    texts = [client.blocking_key_value_get(key, int(within * 1000)) for key in keys]  # milliseconds
    if number >= 2:  # who has told this one has read all of the last one, and nobody needs the one before that
        client.key_value_delete(f"gan_jax/{number - 2}/{own}")
    return texts


_gatherings = itertools.count()


def says_process_is_gone(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    of_jax = isinstance(error, (RuntimeError, ValueError)) and not isinstance(error, InputError)
    return several() and of_jax and bool(_LOST.search(str(error)))
