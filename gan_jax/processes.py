"""Several processes of one run: how they find each other, agree on what to do, and end together.

Each has some of the devices, and all make the same calls in the same order. What one of them alone knows (a signal, a
mistake, what lies on the disk) becomes known to all before any acts on it: a process that left the others would keep
them waiting in their next collective. With one process everything here is local and costs nothing.
"""

import ctypes
import itertools
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax

from gan_jax.devices import anywhere
from gan_jax.errors import AgreedError, InputError

# Seconds. A process that has not been heard of for so long is taken for dead, where no collective has noticed before.
HEARTBEAT = 30
JOIN_WITHIN = 300  # for all processes to be there
AGREE_WITHIN = 24 * 3600  # between processes that live: one may be scoring for long

_AND_NOW = "so this one ends too; the same command in all of them goes on from the newest checkpoint"
GONE = f"another process of this run is gone, {_AND_NOW}"
_ABORTED = f"error: JAX gives up, most likely since another process of this run is gone, {_AND_NOW}"
_APART = (
    "the processes of the run did not find each other; start all of them, each with --num_processes, a --process_id of "
    "its own and the --coordinator=HOST:PORT of process 0, or give --num_processes=1 to one that is alone"
)
# What is said of a collective, or of JAX's coordinator, whose other end is gone.
_LOST = re.compile(
    r"Gloo \w+ failed|Connection (reset|closed) by peer|NCCL.*(remote|peer)|[Cc]oordination ?[Ss]ervice|GetKeyValue"
)


class Place(NamedTuple):
    """Where this process is among those of its run; None is for JAX to find out."""

    count: int | None
    index: int | None
    coordinator: str | None  # HOST:PORT of process 0
    device: int | None = None  # the only one of this host's devices that is this process's; None: all of them


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Before JAX's backend starts: joins the processes of the run, if there are several.

    Args:
      coordinator, count, index: what the flags say; what they leave out, the environment may.

    Raises InputError where they contradict each other. Where the processes do not find each other within JOIN_WITHIN,
    JAX ends this one, and a line with exit status 2 is its last.
    """
    place = find(coordinator, count, index, os.environ)
    if place is None:
        if count == 1 or not _on_tpu_vm():
            return
        place = Place(None, None, None)  # one host of a pod must not start without the others
    _end_where_jax_aborts()
    # JAX's own answer to SIGTERM would take the place of ours, which the training loop asks.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            local_device_ids=place.device,
            cluster_detection_method=None if place.coordinator is None else "deactivate",  # who finds what is missing
            initialization_timeout=JOIN_WITHIN,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:  # JAX's own is a RuntimeError
        raise InputError(f"{_APART} ({' '.join(str(error).split())[:200]})") from error
    global _joined
    _joined = True
    _require_equal_shares()


def _require_equal_shares() -> None:
    """Raises AgreedError, in all processes alike, unless all have as many devices: each reads as much of a batch."""
    counts = Counter(device.process_index for device in jax.devices())
    odd = [index for index in sorted(counts) if counts[index] != counts[0]]
    if odd:
        raise AgreedError(
            f"process {odd[0]} has {counts[odd[0]]} devices, process 0 has {counts[0]}; give all of them as many"
        )


def find(coordinator: str | None, count: int | None, index: int | None, environ: Mapping[str, str]) -> Place | None:
    """The place that flags and environment give; None for a process by itself. See `join`.

    Each by its flag, else by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or JOB_COMPLETION_INDEX,
    which an indexed Kubernetes job sets); where nothing says how many there are, by Open MPI's or Slurm's variables or
    a TPU pod's, from which JAX finds the rest.
    """
    count = _number(environ, "JAX_NUM_PROCESSES") if count is None else count
    if count == 1:
        return None
    if index is None:
        index = _number(environ, "JAX_PROCESS_ID")
    if count is None and (coordinator is not None or index is not None):
        raise InputError("--coordinator and --process_id are for several processes; give --num_processes too")
    coordinator = coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    if count is None:
        return _from_launcher(coordinator, environ)
    return _checked(Place(count, _number(environ, "JOB_COMPLETION_INDEX") if index is None else index, coordinator))


def _from_launcher(coordinator: str | None, environ: Mapping[str, str]) -> Place | None:
    if (_number(environ, "OMPI_COMM_WORLD_SIZE") or 1) > 1:
        if coordinator is None and "OMPI_MCA_orte_hnp_uri" not in environ:  # which Open MPI set up to version 4
            raise InputError("Open MPI does not say where process 0 is; set JAX_COORDINATOR_ADDRESS to its HOST:PORT")
        names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
        size, rank, device = (_number(environ, name) for name in names)
        return Place(size, rank, coordinator, device)
    by_srun = {"SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= set(environ)
    by_srun = by_srun and (_number(environ, "SLURM_NTASKS") or 1) > 1
    of_a_pod = "," in environ.get("TPU_WORKER_HOSTNAMES", "")
    return Place(None, None, None) if by_srun or of_a_pod else None


def _on_tpu_vm() -> bool:
    """Whether this is a host with TPUs that JAX will use: perhaps one of a pod's."""
    from importlib.util import find_spec

    platforms = jax.config.jax_platforms
    if (platforms and "tpu" not in platforms) or not find_spec("libtpu"):
        return False
    return any(os.path.exists(device) for device in ("/dev/accel0", "/dev/vfio/0"))


def _checked(place: Place) -> Place:
    if place.count < 1:
        raise InputError(f"--num_processes is {place.count}; it must be 1 or more")
    if place.index is None or not 0 <= place.index < place.count:
        given = "missing" if place.index is None else place.index
        raise InputError(f"--process_id is {given}; of {place.count} processes it is 0 to {place.count - 1}")
    host, colon, port = (place.coordinator or "").rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(
            f"--coordinator is {place.coordinator or 'missing'}; it must be HOST:PORT, where process 0 is reached"
        )
    return place


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is not None and not text.isdecimal():
        raise InputError(f"the environment's {name} is {text!r}; it must be an integer, 0 or more")
    return None if text is None else int(text)


def several() -> bool:
    """Whether this run has more than one process. Starts no backend where there is one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes logs, pictures and whatever else is written once."""
    return not several() or jax.process_index() == 0


def all_or_none(function: Callable[[], Any], often: bool = False, within: float = AGREE_WITHIN) -> Any:
    """What the function returns, if no process makes a mistake in it; else an AgreedError in every process.

    A mistake is an InputError or an OSError. All must call it, and the function must not wait for the others.

    Args:
      often: it is asked at every call: that all is well is then told by the devices, which costs the least.
      within: seconds in which the others must have answered; else this one takes them for lost.
    """
    if not several():
        return function()
    result, wrong = None, ""
    try:
        result = function()
    except InputError as error:
        wrong = str(error) or "failed"
    except OSError as error:
        wrong = f"{error.filename or 'a file'}: {error.strerror or error}"
    if often and not anywhere(bool(wrong)):
        return result
    wrongs = {index: text for index, text in enumerate(_gathered(wrong, within)) if text}
    if not wrongs:
        return result
    index, text = next(iter(wrongs.items()))
    raise AgreedError(text if set(wrongs.values()) == {text} and len(wrongs) > 1 else f"process {index}: {text}")


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
        shown, there = own.get(name, "missing"), first.get(name, "missing")
        raise InputError(
            f"{what} {name}{more}: {shown} here, {there} in process 0; start all processes of a run with the same"
        )


def together(question: Callable[[], bool]) -> Callable[[], bool]:
    """A yes-or-no question as all processes answer it: yes in all of them, a call after one of them said so.

    The answers of one call are read at the next one, so that no process waits for its devices to ask.
    """
    return _Together(question) if several() else question


class _Together:
    def __init__(self, question: Callable[[], bool]):
        self._question, self._answer = question, None

    def __call__(self) -> bool:
        before = self._answer is not None and bool(self._answer)
        self._answer = anywhere(self._question())
        return before


def _gathered(text: str, within: float = AGREE_WITHIN) -> list[str]:
    """Every process's text, by the process: told through JAX's coordinator, so that no device has to be waited for."""
    from jax._src.distributed import global_state  # JAX has no public way to it; Orbax goes this one

    client, number, own = global_state.client, next(_gatherings), jax.process_index()
    client.key_value_set(_key(number, own), text)
    timeout = int(within * 1000)  # milliseconds
    texts = [client.blocking_key_value_get(_key(number, i), timeout) for i in range(jax.process_count())]
    if number >= 2:  # who has told this one has read all of the last one, and nobody needs the one before that
        client.key_value_delete(_key(number - 2, own))
    return texts


_gatherings = itertools.count()


def _key(number: int, index: int) -> str:
    return f"gan_jax/{number}/{index}"


def means_loss(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    if not several() or isinstance(error, (InputError, OSError)):
        return False
    return isinstance(error, (RuntimeError, ValueError)) and bool(_LOST.search(str(error)))


def leave(status: int) -> NoReturn:
    """Ends this process at once: at a usual exit it would wait for the others, who wait for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_where_jax_aborts() -> None:
    """Turns the abort by which JAX's client ends a process whose run has lost another one into one line and status 1.

    Where nothing else notices, since the others wait in a collective, that is HEARTBEAT seconds later; the loss of
    process 0 it knows at once. It tells nobody else: the callback that it once had crashes (jax 0.10.2).
    """
    global _on_abort
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(_aborted)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)


def _aborted(_: int) -> None:
    os.write(2, f"{_ABORTED if _joined else f'error: {_APART}'}\n".encode())
    os._exit(1 if _joined else 2)


_joined = False  # whether all processes were there once
_on_abort = None  # C calls it: it must not be collected
