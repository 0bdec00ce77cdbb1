"""The folder of one run: its config, and a check that nobody else's is written over."""

import fcntl
import io
import itertools
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from gan_jax.config.schema import CadenceKeys, completed, flatten, names_a_path, nested, table
from gan_jax.data import Source
from gan_jax.data.source import content, example_labels
from gan_jax.parallel import agreement
from gan_jax.runs.checkpoints import saved_steps
from gan_jax.step.schedules import LENGTHS
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import read_json, write_atomically
from gan_jax.utils.keys import import_folders

CONFIG, DATA = "config.json", "data.json"
IMPORTS = "imports.json"  # the folders in which the modules lay that a config names; of a config that names none: not
INIT = "init.json"  # where a run starts whose config has init.run, and what it takes from there
PROGRAM = "program.json"  # of the folder of a sweep's member
LABELS = "labels.npy"  # vectors of labels that pictures are made with, where labels are vectors
CHANGES = "changes.jsonl"  # a line for each start of a run with other keys: {"step": ..., KEY: [before, from then on]}
# What may differ between two starts of a run: where data lies and how it gets to the device; how often something is
# done; how the run is scored, and when it stops.
OF_THE_DATA = ("data.dir", "data.placement", "data.workers")
MAY_DIFFER = (*OF_THE_DATA, "steps_per_call", *CadenceKeys._fields)
MAY_DIFFER_BETWEEN_PROCESSES = ("data.dir", "data.workers")  # of one run: the data is compared by its content
MAY_DIFFER_GROUPS = ("evaluation.", "stop.")  # keys that begin so
NOT_FOR_SAMPLES = ("data", "evaluation", "stop")  # groups of keys
LOCK = ".lock"
_DATA_TYPES = {"shape": list, "size": int, "classes": list, "identity": str}  # fields of data.json, as of a Source
SEEN_WITHIN = 60  # seconds in which a file that one host writes is to be seen by another


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
    """Within it the folder is this run's own, with its config in it, new or from an earlier start of the run.

    Of several processes the first one holds it for all. Raises InputError where the folder holds another config or a
    run without one, cannot be written, is in use, or is not the same for all processes.
    """
    with ExitStack() as stack:
        token = agreement.by_first(lambda: _claim(stack, workdir, config))
        if agreement.several():
            agreement.all_or_none(partial(require_shared, workdir, token))
        yield


def _claim(stack: ExitStack, workdir: Path, config: ConfigDict) -> str:
    """Locks the folder and writes a random token into its lock, by which the other processes know the folder."""
    lock = stack.enter_context(locked(workdir))
    is_new = not (workdir / CONFIG).exists()
    if (workdir / PROGRAM).exists() and not (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} is a member of a sweep that has not come to its end; go on with the sweep first")
    if not is_new:
        _require_same_run(workdir, read_config(workdir), config)
    elif (workdir / "metrics.jsonl").exists() or (workdir / "checkpoints").exists():
        raise InputError(f"workdir {workdir} holds a run without its {CONFIG}; put it back or choose another --workdir")
    settle_start(workdir, config.init.run)
    if is_new:
        write_config(workdir, config)
    token = secrets.token_hex(8)
    lock.truncate(0)
    lock.write(token)
    lock.flush()
    os.fsync(lock.fileno())  # NFS shows others what is written when the file is closed, which is at the end of the run
    return token


def settle_start(folder: Path, name: str) -> None:
    """Notes in INIT, once, which checkpoint `init.run` names as things are now. Raises InputError without one."""
    if name and not (folder / INIT).exists():
        write_atomically(folder / INIT, (json.dumps(start_of(name)) + "\n").encode())


def start_of(name: str) -> dict:
    """The checkpoint that FOLDER, FOLDER:STEP or FOLDER:best names as things are now. Raises InputError without one."""
    run, which = re.fullmatch(r"(.+?)(?::(\d+|best))?", name, re.DOTALL).groups(default="newest")
    path, wrong = Path(run).absolute(), f"config key init.run is {name!r}, but"
    if not (path / CONFIG).is_file():
        raise InputError(f"{wrong} there is no run in {path}; it must be FOLDER, FOLDER:STEP or FOLDER:best")
    kinds = {"newest": ["checkpoints"], "best": ["best"]}.get(which, ["best", "checkpoints"])
    kept = [(step, kind) for kind in kinds for step in saved_steps(path / kind)]
    fitting = [(step, kind) for step, kind in kept if which in ("newest", "best", str(step))]
    if not fitting:
        without = "give a STEP, or train it with evaluation.best set" if which == "best" else "train it first"
        right = f"it has {', '.join(map(str, sorted({step for step, _ in kept})))}" if kept else without
        raise InputError(f"{wrong} that run has no checkpoint {which}; {right}")
    step, kind = max(fitting)
    return {"run": name, "folder": str(path), "checkpoints": kind, "step": step}


def require_shared(workdir: Path, token: str) -> None:
    """Raises InputError where the folder is not the one that the first process has claimed, and marked by `token`."""
    end = time.monotonic() + SEEN_WITHIN
    while True:  # another host's file may be seen with a delay
        with suppress(OSError):
            if (workdir / LOCK).read_text() == token:
                return
        if time.monotonic() > end:
            raise InputError(f"workdir {workdir} is not that of process 0; all must share the folder of --workdir")
        time.sleep(1)


@contextmanager
def locked(workdir: Path, shared: bool = False, wait: bool = False):
    """Within it the folder, which it makes, is this process's own, or that of those who share it. Yields its lock.

    Raises InputError where it cannot be so; where somebody else has it now, one can wait instead.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / LOCK).open("a+")  # readable too, or NFS does not share it
    except OSError as error:
        raise InputError(f"cannot write to workdir {workdir}: {error.strerror}; choose another --workdir") from error
    with lock:  # the system lets go of it when the process ends, however it ends
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(lock, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"workdir {workdir} is in use by another process; choose another --workdir") from error
        except OSError as error:
            raise InputError(f"cannot lock {lock.name}: {error.strerror}; choose another --workdir") from error
        yield lock


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes the config of a run, and where the parts that it names by import path were found."""
    write_atomically(workdir / CONFIG, (json.dumps(config.to_dict(), indent=2) + "\n").encode())
    if names_a_path(flatten(config.to_dict())):
        write_atomically(workdir / IMPORTS, (json.dumps(import_folders(), indent=2) + "\n").encode())


def read_config(workdir: Path, whole: bool = True) -> ConfigDict:
    """The config of the run in this folder, complete, also if the run was made before some keys existed.

    The parts that it names by import path are sought where they were when it began, too. Where not the `whole` is
    needed, NOT_FOR_SAMPLES are as they stand in the file, and no part that they name is imported.
    Raises InputError where there is none, it is not JSON, or it has a key that there never was.
    """
    path, right = workdir / CONFIG, "put back the config that the run was made with"
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; --workdir must be the folder of a run") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); {right}") from error
    folders = read_json(workdir / IMPORTS, [])
    if not (isinstance(folders, list) and all(isinstance(folder, str) for folder in folders)):
        raise InputError(f"{workdir / IMPORTS} does not list folders; remove it, and start where the modules lie")
    sys.path += [folder for folder in folders if folder not in sys.path]
    try:
        if isinstance(values, dict):
            apart = {} if whole else {group: values.pop(group) for group in NOT_FOR_SAMPLES if group in values}
            known = flatten(completed(ConfigDict(values).to_dict()).to_dict())
            return nested(known | flatten(ConfigDict(apart).to_dict())).lock()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except ValueError:  # a dot in a key, at any depth
        pass
    raise InputError(f"{path} holds no config; {right}")


def pictures(workdir: Path) -> dict[int, Path]:
    """The pictures samples/STEP.png of a run by step, in order; not those NAME-STEP.png that callbacks draw."""
    paths = (path for path in (workdir / "samples").glob("*.png") if path.stem.isdecimal())
    return dict(sorted((int(path.stem), path) for path in paths))


def may_differ(key: str) -> bool:
    """Whether a config key may have another value when a run is started again."""
    return key in MAY_DIFFER or key.startswith(MAY_DIFFER_GROUPS)


def require_same(
    workdir: Path, old: ConfigDict, new: ConfigDict, may_differ: Callable[[str], bool] = may_differ
) -> None:
    """Raises InputError, naming the keys, where `old` differs from `new` in others than those that may differ."""
    changed = differences(old, new)
    fixed = [key for key in changed if not may_differ(key)]
    if fixed:
        shown = ", ".join("{} is {!r} there, {!r} here".format(key, *changed[key]) for key in fixed[:3])
        more = f" and {len(fixed) - 3} more" if len(fixed) > 3 else ""
        raise InputError(f"workdir {workdir} holds a run of another config ({shown}{more}); choose another --workdir")


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple]:
    """The keys in which two configs differ, dotted: (the value of `old`, that of `new`)."""
    old, new = flatten(old.to_dict()), flatten(new.to_dict())
    pairs = {key: (old.get(key, "missing"), new.get(key, "missing")) for key in old | new}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def settle_config(workdir: Path, config: ConfigDict, step: int) -> None:
    """Writes the config of a start that goes on from `step`, now that nothing refuses it, and notes what it changes."""
    if changed := differences(read_config(workdir), config):
        with (workdir / CHANGES).open("a") as file:
            file.write(json.dumps({"step": step} | changed) + "\n")
    write_config(workdir, config)


def _require_same_run(workdir: Path, old: ConfigDict, new: ConfigDict) -> None:
    """Raises InputError where a start with the config `new` would not go on with the run that has the config `old`."""
    longer = {"num_steps", *LENGTHS} if old.num_steps != new.num_steps else ()
    require_same(workdir, old, new, lambda key: may_differ(key) or key in longer)
    if longer:
        _require_same_course(workdir, flatten(old.to_dict()), flatten(new.to_dict()))


def _require_same_course(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises InputError where a run of another num_steps would not have taken the same steps so far."""
    before, now, missing = old["num_steps"], new["num_steps"], {}
    there = f"num_steps is {before} in {workdir}, {now} here"
    if now < before:
        raise InputError(f"{there}; it may only grow")
    defaults = table(new)
    for length, runs_over_it in LENGTHS.items():
        on = [key for key in defaults if runs_over_it(key) and new[key] != defaults[key].default]
        if new[length] == (steps := old[length] or before):
            continue
        if on:
            missing[on[0]] = f"--config.{length}={steps}"
        elif new[length] != old[length]:
            raise InputError(f"{length} is {old[length]} in {workdir}, {new[length]} here; choose another --workdir")
    if missing:
        raise InputError(
            f"{there}, which would change the course of {' and '.join(missing)}; add {' '.join(missing.values())}"
        )


def settle_data(workdir: Path, source: Source) -> None:
    """Notes what a run is trained on, and holds its later starts to it.

    Raises InputError where the data has another shape, size or labels than it had; of other changes a line is printed.
    """
    fields = {name: getattr(source, name) for name in _DATA_TYPES}
    fields["identity"] = source.identity or content(source).get("hash", "")
    new = json.loads(json.dumps(fields | ({"attributes": source.attributes} if source.attributes else {})))
    old = _known_data(workdir) or new
    for name in ("shape", "size", "classes", "attributes"):
        if old.get(name, []) != new.get(name, []):
            is_names = name in ("classes", "attributes")
            was, now = (len(about.get(name, [])) if is_names else about[name] for about in (old, new))
            raise InputError(
                f"the data is not what the run in {workdir} began with: its {name} was {was} and is {now}; "
                "put it back, or choose another --workdir"
            )
    if old["identity"] != new["identity"] and old["identity"]:
        files = "the files of the data, or their times, have changed since the run began"
        examples = "the data gives other examples than when the run began, which does not go on to the same bits"
        print(files if source.identity else examples, file=sys.stderr)
    write_atomically(workdir / DATA, (json.dumps(new) + "\n").encode())
    if source.attributes and not (workdir / LABELS).exists():
        buffer = io.BytesIO()
        np.save(buffer, example_labels(source))
        write_atomically(workdir / LABELS, buffer.getvalue())


def known_source(workdir: Path) -> Source | None:
    """A source of the shape and the labels of the run's examples, without any: all that sampling needs."""
    about = _known_data(workdir)
    if about is None:
        return None
    source = Source(tuple(about["shape"]), draw=None, std=1.0, size=about["size"], classes=tuple(about["classes"]))
    if not about.get("attributes"):
        return source
    try:
        labels = np.load(workdir / LABELS, allow_pickle=False)
    except (OSError, ValueError):
        return None  # it is drawn from the data again
    own = {"attributes": tuple(about["attributes"]), "size": len(labels), "data": {"label": labels}}
    return source._replace(draw=lambda data, indices, keys: data, **own)


def _known_data(workdir: Path) -> dict | None:
    """What a run has noted of its data; None where it has not. Raises InputError where that cannot be understood."""
    path = workdir / DATA
    about = read_json(path)
    if about is None:
        return None
    whole = isinstance(about, dict) and all(isinstance(about.get(name), kind) for name, kind in _DATA_TYPES.items())
    if not whole or not all(isinstance(side, int) for side in about["shape"]):
        raise InputError(f"{path} does not describe the data of a run; remove it to begin it anew")
    return about
