"""The folder of one run: its config, and a check that nobody else's is written over."""

import json
from datetime import datetime
from pathlib import Path

from ml_collections import ConfigDict

from gan_jax.errors import InputError
from gan_jax.files import write_atomically
from gan_jax.schema import flatten

CONFIG = "config.json"


def fresh(config_name: str) -> Path:
    """A new folder's path, `runs/NAME-DATE-TIME`, in the current directory."""
    base = Path("runs") / f"{config_name}-{datetime.now():%Y%m%d-%H%M%S}"
    candidates = [base, *(base.with_name(f"{base.name}-{i}") for i in range(1, 1000))]
    return next(each for each in candidates if not each.exists())


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder this run's own: writes its config, or finds it there from an earlier start.

    Raises InputError where the folder holds another config, or cannot be written.
    """
    try:
        if (workdir / CONFIG).exists():
            require_same(workdir, read_config(workdir), config)
        else:
            write_atomically(workdir / CONFIG, (json.dumps(config.to_dict(), indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"cannot write to workdir {workdir}: {error.strerror}; choose another --workdir") from error


def read_config(workdir: Path) -> ConfigDict:
    """The config of the run in this folder. Raises InputError where there is none or it is not JSON."""
    path = workdir / CONFIG
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; --workdir must be the folder of a run") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); put back the config that the run was made with") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no config; put back the config that the run was made with")
    return ConfigDict(values).lock()


def require_same(workdir: Path, old: ConfigDict, new: ConfigDict) -> None:
    """Raises InputError, naming the keys, where the run's config `old` differs from `new`."""
    old, new = flatten(old.to_dict()), flatten(new.to_dict())
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    if changed:
        shown = ", ".join(f"{key} is {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(f"workdir {workdir} holds a run of another config ({shown}{more}); choose another --workdir")
