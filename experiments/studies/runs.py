"""Whole runs of shipped configs, each in a folder of its own: what the tables of scores share.

A run that is finished is not trained again, and one that was interrupted goes on from its newest checkpoint.
"""

import json
import time
from pathlib import Path
from typing import NamedTuple

from absl import logging
from ml_collections import ConfigDict

from gan_jax import recipe, runtime, workdirs
from gan_jax.checkpoints import Checkpoints
from gan_jax.errors import DivergedError
from gan_jax.files import write_atomically
from gan_jax.recipe import Setup
from gan_jax.train import train

FOLDER = Path("runs")
ABOUT = "study.json"  # of a run's folder, what it is not told by its own files: {"seconds": ..., "diverged": ...}


class Run(NamedTuple):
    """A run that has come to its end."""

    setup: Setup
    workdir: Path
    seconds: float  # of all its starts, on this machine as it was then; without what a kill lost
    diverged: str  # the line that says so; "" where it did not


def prepare() -> None:
    """Starts JAX as `gan_jax.main` does; before anything else of JAX."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file that it opens
    runtime.fast()


def finished(config: ConfigDict, workdir: Path) -> Run:
    """The run of this config in `workdir`, trained where it is not yet.

    Raises SystemExit where a signal ends it early, and InputError where the folder is of another config or in use.
    """
    setup, path = recipe.build(config.lock()), workdir / ABOUT
    with workdirs.claimed(workdir, config):
        about = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "diverged": ""}
        if about["diverged"] or checkpoints(workdir).latest_step() == config.num_steps:
            return Run(setup, workdir, **about)
        start, complete = time.perf_counter(), True
        try:
            complete = train(setup, workdir)
        except DivergedError as error:
            about["diverged"] = str(error)
        about["seconds"] += time.perf_counter() - start
        write_atomically(path, json.dumps(about).encode())
    if not complete:
        raise SystemExit("stopped; the same command goes on from there")
    return Run(setup, workdir, **about)


def checkpoints(workdir: Path) -> Checkpoints:
    """Those of a run, to be read."""
    return Checkpoints(workdir / "checkpoints")
