"""`python -m gan_jax.sweep --config=CONFIG --sweep=FILE --workdir=DIR`: trains what a sweep file asks for."""

import json
import re
import shlex
import sys
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from gan_jax.cli import command_line
from gan_jax.data import make_source
from gan_jax.evaluation.metrics.comparison import better, scores_of
from gan_jax.parallel.exit_status import exit_status
from gan_jax.runs import workdirs
from gan_jax.sweep.folders import PROGRAMS, end_of, require_same
from gan_jax.sweep.plan import Member, describe, members, programs, read_sweep
from gan_jax.sweep.population import MAP, VMAP, WIDE
from gan_jax.sweep.report import REPORT, SUMMARY, write_report, write_summary
from gan_jax.sweep.results import TABLE, result_of, write_table
from gan_jax.sweep.run import AUTO, build, run_program
from gan_jax.training.loop import stop_signals
from gan_jax.utils import runtime
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import read_json, write_atomically

PROCESSES, PLAN = "processes", "plan.json"  # of the sweep's folder: what they lock, and what they agree on
_CONFIG = config_flags.DEFINE_config_file("config", None, "The base of every member: configs/NAME.py[:VARIANT].")
_SWEEP = flags.DEFINE_string("sweep", None, "A Python file whose sweep() yields a dict of config keys a member.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The sweep's folder; an interrupted sweep goes on in it.")
_LIST = flags.DEFINE_bool("list", False, "Print the plan and stop.")
_ONLY = flags.DEFINE_list("only", [], "Of these members alone, by their numbers in the plan: --only=0,3.")
_HOW = flags.DEFINE_enum(
    "how",
    AUTO,
    [AUTO, VMAP, MAP],
    "How the members on one device take a step: together (vmap) or one after another (map). auto: MLPs together, on a "
    f"CPU those of width {WIDE} or more one after another; convolutional networks always one after another.",
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes share the sweep.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)
_PER_MEMBER = flags.DEFINE_integer("devices_per_member", 1, "Devices that share a member's batch.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Plans and trains; a user's mistake ends in one line and exit status 2."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)
    if status := exit_status(partial(_sweep, argv)):
        sys.exit(status)


def _sweep(argv: list[str]) -> None:
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    for name in ("config", "sweep", *([] if _LIST.value else ["workdir"])):
        if flags.FLAGS[name].value is None:
            raise InputError(f"--{name} is missing")
    planned = members(_CONFIG.value, read_sweep(Path(_SWEEP.value)))
    for text in _ONLY.value:
        if not text.isdecimal() or int(text) >= len(planned):
            raise InputError(f"--only has {text!r}; the members are 0 to {len(planned) - 1}")
    chosen = set(map(int, _ONLY.value)) or range(len(planned))
    groups = programs([member for member in planned if member.number in chosen])
    print(describe(groups), flush=True)
    if _LIST.value:
        return
    print(f"runtime: {runtime.share_cpu()}; {runtime.fast()}", flush=True)
    if jax.local_device_count() % _PER_MEMBER.value:
        devices = f"the {jax.local_device_count()} devices"
        raise InputError(f"--devices_per_member={_PER_MEMBER.value} does not divide {devices}")
    index, count = _place()
    workdir = Path(_WORKDIR.value)
    with _locked(workdir, index, count), stop_signals() as stop_requested:
        require_same(workdir, planned)
        shares = [group[index::count] for group in groups if group[index::count]]
        # All are built first: a mistake in the last is known before the first trains.
        setups = [build(share, _PER_MEMBER.value, _HOW.value) for share in shares]
        if not (workdir / PROGRAMS).exists():  # later on those may be gone from which they start
            for name in filter(None, (share[0].config.init.run for share in shares)):
                workdirs.start_of(name)
        for share, of_share in zip(shares, setups, strict=True):
            if not run_program(share, of_share, workdir, _HOW.value, _PER_MEMBER.value, stop_requested):
                print("stopped by a signal; the same command goes on from there")
                return
        with workdirs.locked(workdir / PROCESSES, wait=True):  # two that end at once see each other's members
            missing = sum(end_of(workdir, member) is None for group in groups for member in group)
            if missing:
                print(f"{missing} members are left to other processes; the one that ends last writes the report")
            else:
                _report(planned, workdir)


def _place() -> tuple[int, int]:
    """(which process this is, of how many): each trains its share of the members of every program."""
    count, index = _PROCESSES.value, _PROCESS.value
    if (count is None) != (index is None):
        raise InputError("--num_processes and --process_id go together; give both or neither")
    if count is not None and index >= count:
        raise InputError(f"--process_id is {index}; of {count} processes, 0 is the first")
    return index or 0, count or 1


@contextmanager
def _locked(workdir: Path, index: int, count: int):
    """Nobody else trains in the folder, but for the other processes of this sweep."""
    plan, path = {"processes": count, "only": sorted(_ONLY.value)}, workdir / PROCESSES / PLAN
    with ExitStack() as stack:
        with workdirs.locked(path.parent, wait=True):  # for the moment in which one looks who is there
            with suppress(InputError), workdirs.locked(workdir):
                write_atomically(path, json.dumps(plan).encode())
            stack.enter_context(workdirs.locked(workdir, shared=count > 1))
            others = read_json(path)
            if others != plan:
                raise InputError(
                    f"others train in workdir {workdir} with --num_processes={others['processes']} and "
                    f"--only={','.join(others['only'])}; give this process the same"
                )
        stack.enter_context(workdirs.locked(path.parent / str(index)))
        yield


def _report(planned: list[Member], workdir: Path) -> None:
    results, config = [result_of(member, workdir) for member in planned], planned[0].config
    source = make_source(config.data.to_dict())
    of_scores = better(config.evaluation.extractor, source, scores_of(config.evaluation))
    write_table(results, of_scores, workdir / TABLE)
    title = f"{Path(_SWEEP.value).stem}, {command_line.config_name(sys.argv)}"
    command = shlex.join(["python", "-m", "gan_jax.sweep", *sys.argv[1:]])
    write_summary(results, workdir, title, re.sub(r" --?(process_id|num_processes|only)[= ]\S+", "", command))
    write_report(results, workdir, title)
    print(f"wrote {workdir / TABLE}, {workdir / SUMMARY} and {workdir / REPORT}")


if __name__ == "__main__":
    app.run(main, flags_parser=command_line.parse)
