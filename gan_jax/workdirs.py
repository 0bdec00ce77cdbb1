"""The folder of one run: its config, and a check that nobody else's is written over."""

import fcntl
import itertools
import json
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ml_collections import ConfigDict

from gan_jax.errors import InputError
from gan_jax.files import write_atomically
from gan_jax.schema import flatten

CONFIG = "config.json"


def fresh(config_name: str) -> Path:
    """Makes a new folder, `runs/NAME-DATE-TIME`, in the current directory."""
    base = Path("runs") / f"{config_name}-{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(1))):
        path = base.with_name(base.name + suffix)
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path


@contextmanager
def claimed(workdir: Path, config: ConfigDict):
    """Within it the folder is this process's own, with its config in it, new or from an earlier start of the run.

    Raises InputError where the folder holds another config or a run without one, cannot be written, or is in use.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write to workdir {workdir}: {error.strerror}; choose another --workdir") from error
    with lock:  # the system lets go of it when the process ends, however it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"workdir {workdir} is in use by another process; choose another --workdir") from error
        _settle(workdir, config)
        yield


def _settle(workdir: Path, config: ConfigDict) -> None:
    if (workdir / CONFIG).exists():
        return require_same(workdir, read_config(workdir), config)
    if (workdir / "metrics.jsonl").exists() or (workdir / "checkpoints").exists():
        raise InputError(f"workdir {workdir} holds a run without its {CONFIG}; put it back or choose another --workdir")
    write_atomically(workdir / CONFIG, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in this folder. Raises InputError where there is none or it is not JSON."""
    path = workdir / CONFIG
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; --workdir must be the folder of a run") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); put back the config that the run was made with") from error
    if not isinstance(values, dict) or any("." in key for key in values):
        raise InputError(f"{path} holds no config; put back the config that the run was made with")
    return ConfigDict(values).lock()


def require_same(workdir: Path, old: ConfigDict, new: ConfigDict) -> None:
    """Raises InputError, naming the keys, where the run's config `old` differs from `new`."""
    old, new = flatten(old.to_dict()), flatten(new.to_dict())
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    if changed:
        shown = ", ".join(f"{key} is {_shown(old, key)} there, {_shown(new, key)} here" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(f"workdir {workdir} holds a run of another config ({shown}{more}); choose another --workdir")


def _shown(values: dict, key: str) -> str:
    return repr(values[key]) if key in values else "missing"
