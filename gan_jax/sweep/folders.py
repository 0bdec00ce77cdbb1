"""Where the files of a sweep are, and what they tell of its members."""

import hashlib
import json
import shutil
from pathlib import Path

from gan_jax import workdirs
from gan_jax.errors import InputError
from gan_jax.files import read_json, write_atomically
from gan_jax.schema import flatten
from gan_jax.sweep.plan import Member

ABOUT = "member.json"  # of a member's folder, once it has come to its end: {"status": ..., "seconds": ...}
PROGRAM = "program.json"  # of a member's folder: the name of the program that trains it
DIVERGED = "diverged.json"  # of one that was lost: {"step": ..., "why": ...}
PICTURE, POINTS = "samples.png", "points"  # the last samples; of data in the plane, samples of every sample_every
CHECKPOINTS = "checkpoints"  # of a program, and, of its last state, of a member
SCORES, METRICS = "evaluation.json", "metrics.jsonl"


def member_folder(workdir: Path, member: Member) -> Path:
    """Where a member's files are."""
    return workdir / "members" / f"{member.number:04d}"


def program_folder(workdir: Path, members: list[Member]) -> Path:
    """Of these runs together: another set of them begins anew."""
    fixed = [
        {key: value for key, value in flatten(member.config.to_dict()).items() if key not in workdirs.MAY_DIFFER}
        for member in members
    ]
    told = json.dumps(fixed, sort_keys=True)
    return workdir / "programs" / hashlib.sha256(told.encode()).hexdigest()[:12]


def require_same(workdir: Path, members: list[Member]) -> None:
    """Raises InputError where the folder holds a run, or another sweep: members of these numbers and other configs."""
    if (workdir / workdirs.CONFIG).exists():
        raise InputError(f"workdir {workdir} holds a run; choose another --workdir")
    for member in members:
        folder = member_folder(workdir, member)
        if (folder / workdirs.CONFIG).exists():
            workdirs.require_same(folder, workdirs.read_config(folder), member.config, rescored=False)


def begin(workdir: Path, member: Member, program: str, anew: bool) -> None:
    """Notes a member's config and program.

    Removes what an earlier run of it left, where it begins anew or had come to its end.
    """
    folder = member_folder(workdir, member)
    if anew or (folder / ABOUT).exists():
        (folder / ABOUT).unlink(missing_ok=True)  # first: a kill in between must not leave one that looks finished
        for name in (PICTURE, SCORES, *([DIVERGED] if anew else [])):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    write_atomically(folder / PROGRAM, json.dumps(program).encode())
    write_atomically(folder / workdirs.CONFIG, (json.dumps(member.config.to_dict(), indent=2) + "\n").encode())


def about(workdir: Path, member: Member) -> dict | None:
    """What is known of a member that has come to its end; None before."""
    return read_json(member_folder(workdir, member) / ABOUT)


def waiting(workdir: Path, members: list[Member]) -> list[Member]:
    """Those of a program that are to be trained, together.

    All of them where they have begun so, since a program goes on whole; else those that have not come to their end.
    """
    if all(about(workdir, member) for member in members):
        return []
    if _begun_together(workdir, members):
        return members
    return [member for member in members if about(workdir, member) is None]


def discard_stale(workdir: Path, members: list[Member]) -> None:
    """Removes what there is of a program whose members have since been trained by another one."""
    if not _begun_together(workdir, members):
        shutil.rmtree(program_folder(workdir, members), ignore_errors=True)


def _begun_together(workdir: Path, members: list[Member]) -> bool:
    name = program_folder(workdir, members).name
    return all(read_json(member_folder(workdir, member) / PROGRAM) == name for member in members)
