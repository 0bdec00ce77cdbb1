"""How the processes of one run find each other, and what ends one whose run has lost another."""

import ctypes
import os
import signal
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

import jax

from gan_jax.parallel.agreement import GONE
from gan_jax.utils.errors import AgreedError, InputError

# Seconds. A process that has not been heard of for so long is taken for dead, where no collective has noticed before.
HEARTBEAT = 30
JOIN_WITHIN = 300  # for all processes to be there

_ABORTED = f"error: JAX gives up, most likely since {GONE}"
_APART = (
    "the processes of the run did not find each other; start all of them, each with --num_processes, a --process_id of "
    "its own and the --coordinator=HOST:PORT of process 0, or give --num_processes=1 to one that is alone"
)


class Place(NamedTuple):
    """Where this process is among those of its run; None is for JAX to find out."""

    count: int | None
    index: int | None
    coordinator: str | None  # HOST:PORT of process 0
    device: int | None = None  # the only one of this host's devices that is this process's; None: all of them


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the processes of the run, if there are several. Call it before JAX's backend starts.

    What the flags, the arguments, leave out, the environment may say. Raises InputError where they contradict each
    other. Where the processes do not find each other within JOIN_WITHIN, JAX ends this one: one line, exit status 2.
    """
    place = find(coordinator, count, index, os.environ)
    if place is None:
        if count == 1 or not _on_tpu_vm():
            return
        place = Place(None, None, None)  # one host of a pod must not start without the others
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _aborted)
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
    counts = Counter(device.process_index for device in jax.devices())
    for index in sorted(counts):
        if counts[index] != counts[0]:  # each process reads as much of a batch; all of them see this alike
            here = f"process {index} has {counts[index]} devices"
            raise AgreedError(f"{here}, process 0 has {counts[0]}; give all of them as many")


def find(coordinator: str | None, count: int | None, index: int | None, environ: Mapping[str, str]) -> Place | None:
    """The place that flags and environment give; None for a process by itself. See `join`.

    Each by its flag, else by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or JOB_COMPLETION_INDEX,
    which an indexed Kubernetes job sets); where nothing says how many there are, by Open MPI's or Slurm's variables or
    a TPU pod's, from which JAX finds the rest.

    JAX's detection does not do for this: it reads none of these variables but the first, takes the processes of Open
    MPI 5 for runs of their own, and in Kubernetes asks the cluster even for a process that is alone (jax 0.10.2).
    """
    count = _number(environ, "JAX_NUM_PROCESSES") if count is None else count
    if count == 1:
        return None
    index = _number(environ, "JAX_PROCESS_ID") if index is None else index
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
    platforms = jax.config.jax_platforms
    if (platforms and "tpu" not in platforms) or not find_spec("libtpu"):
        return False
    return any(os.path.exists(device) for device in ("/dev/accel0", "/dev/vfio/0"))


def _checked(place: Place) -> Place:
    if place.count < 1:
        raise InputError(f"--num_processes is {place.count}; it must be 1 or more")
    if place.index is None or not 0 <= place.index < place.count:
        shown = "missing" if place.index is None else place.index
        raise InputError(f"--process_id is {shown}; of {place.count} processes it is 0 to {place.count - 1}")
    host, _, port = (place.coordinator or "").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        shown = place.coordinator or "missing"
        raise InputError(f"--coordinator is {shown}; it must be HOST:PORT, where process 0 is reached")
    return place


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is not None and not text.isdecimal():
        raise InputError(f"the environment's {name} is {text!r}; it must be an integer, 0 or more")
    return None if text is None else int(text)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """Turns the abort by which JAX's client ends a process whose run has lost another one into one line and status 1.

    Where nothing else notices, since the others wait in a collective, that is HEARTBEAT seconds later; the loss of
    process 0 it knows at once. It tells nobody else: the callback that it once had crashes (jax 0.10.2).
    """
    os.write(2, f"{_ABORTED if _joined else f'error: {_APART}'}\n".encode())
    os._exit(1 if _joined else 2)


_joined = False  # whether all processes were there once
