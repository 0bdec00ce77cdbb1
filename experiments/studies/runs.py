"""Whole runs of shipped configs, each in a folder of its own: what a table of scores is made of.

A run that is finished is not trained again, and one that was interrupted goes on from its newest checkpoint.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from absl import logging
from ml_collections import ConfigDict

from gan_jax import recipe
from gan_jax.config.build import Setup
from gan_jax.parallel.exit_status import exit_status as status_of
from gan_jax.runs import workdirs
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.step.state import TrainState
from gan_jax.training.loop import train_claimed
from gan_jax.utils import runtime
from gan_jax.utils.files import read_json, write_atomically

FOLDER = Path("runs")
SECONDS = "seconds.json"  # of a run's folder: of all its starts


class Run(NamedTuple):
    """A run that has come to its end."""

    setup: Setup
    state: TrainState  # after the last step
    workdir: Path
    seconds: float  # of training, on this machine as it was then; without what a kill lost


@contextmanager
def finished(config: ConfigDict, workdir: Path) -> Iterator[Run]:
    """The run of this config in `workdir`, trained where it is not yet; within it the folder is this process's own.

    Raises SystemExit where a signal ends it early, DivergedError, and InputError where the folder is another config's
    or in use.
    """
    setup = recipe.build(ConfigDict(config.to_dict()).lock())
    with workdirs.claimed(workdir, setup.config):
        state = _last_state(setup, workdir)
        if state is None:
            _train(setup, workdir)
            state = _last_state(setup, workdir)
        yield Run(setup, state, workdir, read_json(workdir / SECONDS, 0.0))


def _train(setup: Setup, workdir: Path) -> None:
    start = time.perf_counter()
    complete = train_claimed(setup, workdir)
    seconds = read_json(workdir / SECONDS, 0.0) + time.perf_counter() - start
    write_atomically(workdir / SECONDS, json.dumps(seconds).encode())
    if not complete:
        raise SystemExit("stopped; the same command goes on from there")


def _last_state(setup: Setup, workdir: Path) -> TrainState | None:
    """The state after the last step; None where that is not there, or its checkpoint is corrupt."""
    with closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        state = checkpoints.restore(recipe.abstract_state(setup))
    return state if state is not None and int(state.step) == setup.config.num_steps else None


def exit_status(main: Callable[[], None]) -> int:
    """Runs a study as `gan_jax.main` runs a verb: JAX started as there, a mistake in one line and status 2."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file that it opens
    runtime.fast()
    return status_of(main, lambda line: line.replace("choose another --workdir", "remove that folder"))
