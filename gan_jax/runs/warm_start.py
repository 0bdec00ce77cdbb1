"""The run that another one starts from: its networks, and what of them is taken, as a table."""

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import jax

from gan_jax.config import build
from gan_jax.config.build import Setup
from gan_jax.parallel import agreement
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.runs.trained import setup_of
from gan_jax.runs.workdirs import INIT
from gan_jax.step.state import TrainState
from gan_jax.step.transfer import Row, by_module, compared
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import read_json, write_atomically

_RIGHT = "put it back, or start again in another workdir"


def other_state(setup: Setup, folder: Path) -> TrainState | None:
    """The state whose networks `build.initial_state` takes, on the setup's devices; None where config.init names none.

    `folder` has INIT, which says where it is, and is given the table of what is taken. The first process prints it.
    Raises InputError where the checkpoint is no longer there, where nothing of it fits, where an array does not and
    `init.strict` is set, and where a frozen layer would not be taken whole.
    """
    if not setup.config.init.run:
        return None
    start = agreement.by_first(partial(read_json, folder / INIT))
    other = _restored(setup, Path(start["folder"]), start["checkpoints"], start["step"])
    rows = compared(setup.config.init.players, build.abstract_state(setup), other)
    agreement.all_or_none(partial(_check, setup, rows))
    agreement.by_first(partial(_report, folder / INIT, start, rows))
    return other


def _restored(setup: Setup, folder: Path, checkpoints: str, step: int) -> TrainState:
    other = agreement.all_or_none(partial(_setup, folder))
    template = setup.devices.placed_shapes(build.abstract_state(other))
    with closing(Checkpoints(folder / checkpoints)) as saved:
        if step not in saved.steps():
            raise InputError(f"init.run: the checkpoint {folder / checkpoints / str(step)} is gone; {_RIGHT}")
        return saved.restore(template, [step], other.hyperparameters)


def _setup(folder: Path) -> Setup:
    if not folder.is_dir():
        raise InputError(f"init.run: the run {folder} is gone; {_RIGHT}")
    return setup_of(folder)


def _check(setup: Setup, rows: dict[str, list[Row]]) -> None:
    init = setup.config.init
    left = [f"{player} {row}" for player, of_player in rows.items() for row in of_player if not row.taken]
    if not any(row.taken for of_player in rows.values() for row in of_player):
        raise InputError(f"init.run: nothing of {init.run} fits ({left[0]}); leave init.run empty, or name another run")
    if init.strict and left:
        more = f", and {len(left) - 3} more" if len(left) > 3 else ""
        right = "set init.strict to False to initialise such arrays anew"
        raise InputError(f"init.strict: {init.run} does not fit: {'; '.join(left[:3])}{more}; {right}")
    for row in _new_in_frozen(setup, rows.get("discriminator", [])):
        right = "set discriminator.freeze to the number of layers before it"
        raise InputError(f"discriminator.freeze: a layer would be kept that is not of {init.run}: {row}; {right}")


def _new_in_frozen(setup: Setup, rows: list[Row]) -> list[Row]:
    """D's rows of arrays that would stay as they were drawn."""
    if setup.recipe.frozen is None:
        return []
    player = build.abstract_state(setup).discriminator
    arrays = {"params": player.params, "stats": player.stats}
    all_false, all_true = (jax.tree.map(lambda _, value=value: value, arrays) for value in (False, True))
    is_frozen = jax.tree.leaves(setup.recipe.frozen(all_false, all_true))
    return [row for row, frozen in zip(rows, is_frozen, strict=False) if frozen and not row.taken]


def _report(path: Path, start: dict, rows: dict[str, list[Row]]) -> None:
    table = [{"player": player} | module for player, of_player in rows.items() for module in by_module(of_player)]
    write_atomically(path, (json.dumps(start | {"taken": table}, indent=2) + "\n").encode())
    lines = [f"starting from {start['folder']}, step {start['step']:,}; of its networks are taken"]
    for row in table:
        numbers = f"{row['taken']:,} of {row['of']:,}"
        lines.append(f"  {row['player']:13s} {row['module']:24s} {numbers:>24s}  {row['why']}".rstrip())
    print("\n".join(lines), file=sys.stderr)
