"""Where the files of a sweep are, and what they say of its members."""

import hashlib
import json
import shutil
from pathlib import Path

from gan_jax.config.schema import RENAMED, flatten, nested
from gan_jax.runs import workdirs
from gan_jax.sweep.plan import Member
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import read_json, write_atomically

PROGRAMS = "programs"  # the folder of theirs
END = "member.json"  # of a member's folder, once it has come to its end: {"status": ..., "seconds": ...}
PROGRAM = workdirs.PROGRAM  # of a member's folder: the name of the program that trains it
DIVERGED = "diverged.json"  # of a member that left the finite numbers: {"step": ..., "why": ...}
PICTURE, POINTS = "samples.png", "points"  # the last samples; of data in the plane, samples at every sample_every
CHECKPOINTS = "checkpoints"  # of a program; in a member's folder, of its last state
SCORES, METRICS = "evaluation.json", "metrics.jsonl"


def member_folder(workdir: Path, member: Member) -> Path:
    """Where a member's files are."""
    return workdir / "members" / f"{member.number:04d}"


def program_folder(workdir: Path, members: list[Member]) -> Path:
    """Where the files of these members' program are: other members, or other configs, have another folder.

    A key that there was not when a member began does not count.
    """
    configs = [_as_begun(workdir, member) for member in members]
    fixed = [{key: value for key, value in config.items() if key not in workdirs.OF_THE_DATA} for config in configs]
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
    return workdir / PROGRAMS / digest[:12]


def _as_begun(workdir: Path, member: Member) -> dict:
    """A member's values by dotted key, without keys that there were not when it began: they are at their default."""
    values = flatten(member.config.to_dict())
    begun = flatten(read_json(member_folder(workdir, member) / workdirs.CONFIG, values))
    return {key: values[RENAMED.get(key, key)] for key in begun}


def require_same(workdir: Path, members: list[Member]) -> None:
    """Raises InputError where the folder holds a run, or another sweep: members of these numbers and other configs."""
    if (workdir / workdirs.CONFIG).exists():
        raise InputError(f"workdir {workdir} holds a run; choose another --workdir")
    for member in members:
        folder = member_folder(workdir, member)
        if (folder / workdirs.CONFIG).exists():
            old = workdirs.read_config(folder)
            workdirs.require_same(folder, old, member.config, workdirs.OF_THE_DATA.__contains__)


def settle(path: Path, values: dict) -> None:
    """Notes how a program is trained. Raises InputError where it was begun otherwise: it must take the same steps."""
    earlier = read_json(path, values)
    for name, value in values.items():
        if earlier[name] != value:
            raise InputError(
                f"{path.parent} was begun with {name} {earlier[name]}, which is {value} here; go on as it was begun, "
                "or remove that folder"
            )
    write_atomically(path, json.dumps(values).encode())


def begin(workdir: Path, member: Member, program: str, anew: bool) -> None:
    """Notes a member's config and program; removes what is left of a run that begins `anew`, or had come to its end."""
    folder = member_folder(workdir, member)
    if anew or (folder / END).exists():
        (folder / END).unlink(missing_ok=True)  # first: a kill in between must not leave one that looks finished
        for name in (PICTURE, SCORES, *([DIVERGED] if anew else [])):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    write_atomically(folder / PROGRAM, json.dumps(program).encode())
    workdirs.write_config(folder, nested(_as_begun(workdir, member)))


def end_of(workdir: Path, member: Member) -> dict | None:
    """How a member ended; None before its end."""
    return read_json(member_folder(workdir, member) / END)


def unfinished(workdir: Path, members: list[Member]) -> list[Member]:
    """The members of a program that are to be trained together.

    All of them where they have begun so, since a program goes on whole; else those that have not come to their end.
    """
    waiting = [member for member in members if end_of(workdir, member) is None]
    return members if waiting and _begun_together(workdir, members) else waiting


def discard_stale(workdir: Path, members: list[Member]) -> None:
    """Removes what there is of a program whose members have since been trained by another one."""
    if not _begun_together(workdir, members):
        shutil.rmtree(program_folder(workdir, members), ignore_errors=True)


def _begun_together(workdir: Path, members: list[Member]) -> bool:
    name = program_folder(workdir, members).name
    return all(read_json(member_folder(workdir, member) / PROGRAM) == name for member in members)
