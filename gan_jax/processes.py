"""Several processes of one run: how they find each other, agree on what to do, and end together.

Each has some of the devices, and all make the same calls in the same order. What one of them alone knows (a signal, a
mistake, what lies on the disk) becomes known to all before any acts on it: a process that left the others would keep
them waiting in their next collective. With one process everything here is local and costs nothing.
"""

import ctypes
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gan_jax.errors import AgreedError, InputError

# A process that has not been heard of for so many seconds is taken for dead, where no collective has noticed before.
HEARTBEAT = 30
_AND_NOW = "so this one ends too; the same command in all of them goes on from the newest checkpoint"
GONE = f"another process of this run is gone, {_AND_NOW}"
_ABORTED = f"error: JAX gives up, most likely since another process of this run is gone, {_AND_NOW}"
# What XLA says in a collective whose other end is gone, by the library that moves the bytes.
_LOST = ("Gloo", "NCCL", "Connection reset by peer", "coordination service", "CoordinationService")


class Place(NamedTuple):
    """Where this process is among those of its run; None is for JAX to find out."""

    count: int | None
    index: int | None
    coordinator: str | None  # HOST:PORT of process 0
    device: int | None = None  # the only one of this host's devices that is this process's; None: all of them


def join(coordinator: str | None, count: int | None, index: int | None) -> str:
    """Before JAX's backend starts: joins the processes of the run; one line of what this one is.

    Args:
      coordinator, count, index: what the flags say; what they leave out, the environment may.

    Raises InputError where they contradict each other, or where the processes do not find each other.
    """
    place = find(coordinator, count, index, os.environ)
    if place is None:
        return "1 process"
    by_jax = None if place.coordinator is None else "deactivate"  # who finds out what is missing
    _end_where_jax_aborts()
    # JAX's own answer to SIGTERM would take the place of ours, which the training loop asks.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            local_device_ids=place.device,
            cluster_detection_method=by_jax,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:  # JAX's own is a RuntimeError
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the processes of the run did not find each other ({reason}); give each --num_processes, a --process_id "
            "of its own and --coordinator=HOST:PORT of process 0, or --num_processes=1 to one that is alone"
        ) from error
    _require_equal_shares()
    return f"process {jax.process_index()} of {jax.process_count()}"


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

    By flags, else by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or JOB_COMPLETION_INDEX, which an
    indexed Kubernetes job sets), else by Open MPI's or Slurm's variables or on a TPU, where JAX finds the coordinator.
    """
    if count == 1:
        return None
    if count is not None and count < 1:
        raise InputError(f"--num_processes is {count}; it must be 1 or more")
    if count is None and (index is not None or coordinator is not None):
        raise InputError("--coordinator and --process_id are for several processes; give --num_processes too")
    coordinator = coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    if count is not None:
        return _checked(Place(count, index, coordinator))
    if "JAX_NUM_PROCESSES" in environ:
        count = _number(environ, "JAX_NUM_PROCESSES")
        name = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environ else "JOB_COMPLETION_INDEX"
        index = _number(environ, name) if name in environ else None
        return _checked(Place(count, index, coordinator)) if count > 1 else None
    return _from_launcher(coordinator, environ)


def _from_launcher(coordinator: str | None, environ: Mapping[str, str]) -> Place | None:
    if _number(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        if coordinator is None and "OMPI_MCA_orte_hnp_uri" not in environ:  # which Open MPI set up to version 4
            raise InputError("Open MPI does not say where process 0 is; set JAX_COORDINATOR_ADDRESS to its HOST:PORT")
        names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
        size, rank, device = (_number(environ, name) for name in names)
        return Place(size, rank, coordinator, device)
    by_srun = {"SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= set(environ)
    if by_srun and _number(environ, "SLURM_NTASKS") > 1:
        return Place(None, None, None)
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return Place(None, None, None) if len(hosts) > 1 or _on_tpu_vm() else None


def _on_tpu_vm() -> bool:
    """Whether this is a host with TPUs that JAX will use: one of a pod's must not start without the others."""
    from importlib.util import find_spec

    platforms = jax.config.jax_platforms
    if (platforms and "tpu" not in platforms) or not find_spec("libtpu"):
        return False
    return any(os.path.exists(device) for device in ("/dev/accel0", "/dev/vfio/0"))


def _checked(place: Place) -> Place:
    if place.index is None or not 0 <= place.index < place.count:
        given = "missing" if place.index is None else place.index
        raise InputError(f"--process_id is {given}; of {place.count} processes it is 0 to {place.count - 1}")
    host, colon, port = (place.coordinator or "").rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise InputError(
            f"--coordinator is {place.coordinator or 'missing'}; it must be HOST:PORT, where process 0 is reached"
        )
    return place


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "0")
    if not text.isdecimal():
        raise InputError(f"the environment's {name} is {text!r}; it must be an integer, 0 or more")
    return int(text)


def several() -> bool:
    """Whether this run has more than one process. Starts no backend where there is one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes logs, pictures and whatever else is written once."""
    return not several() or jax.process_index() == 0


def all_or_none(function: Callable[[], Any]) -> Any:
    """What the function returns, if it raises no InputError in any process; else an AgreedError in every process.

    All must call it, and the function must not wait for the others.
    """
    if not several():
        return function()
    result, wrong = None, ""
    try:
        result = function()
    except InputError as error:
        wrong = str(error) or "failed"
    wrongs = {index: text for index, text in enumerate(_gathered(wrong)) if text}
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
        self._answer = _any(self._question())
        return before


def _any(answer: bool) -> jax.Array:
    """Whether any process says so, once their devices have told each other."""
    by_device, function = _ballot()
    own = np.full(jax.local_device_count(), answer)
    return function(jax.make_array_from_process_local_data(by_device, own))


@cache
def _ballot():
    grid = Mesh(np.array(jax.devices()), ("devices",))
    everywhere = NamedSharding(grid, PartitionSpec())
    return NamedSharding(grid, PartitionSpec("devices")), jax.jit(jnp.any, out_shardings=everywhere)


def _gathered(text: str) -> list[str]:
    """Every process's text, by the process."""
    from jax.experimental import multihost_utils

    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))
    if not lengths.any():
        return [""] * len(lengths)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def means_loss(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    return several() and any(words in str(error) for words in _LOST)


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
    os.write(2, f"{_ABORTED}\n".encode())
    os._exit(1)


_on_abort = None  # C calls it: it must not be collected
