"""Every objective on MNIST at one budget: the same networks, rates, penalty, updates; only the losses differ.

    python -m experiments.studies.mnist_objectives DIR    # DIR: where TFDS keeps MNIST
    python -m experiments.studies.mnist_objectives DIR --only wgan hinge    # these runs alone, no report

Each run is `configs/dcgan.py:mnist` with CHANGES, in `runs/mnist_objectives/`: 10,000 samples of the averaged generator
against 10,000 training images, by the features of the extractor `mnist`. Two more rows say what the common choice of
penalty costs: WGAN with its own, and DCGAN as it is shipped, without any.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from configs import dcgan
from experiments.studies import known, report, runs
from gan_jax import recipe
from gan_jax.config.build import Setup
from gan_jax.objectives import OBJECTIVES
from gan_jax.runs.sampler import COLUMNS, Generate
from gan_jax.training.evaluator import evaluate_run
from gan_jax.utils.errors import DivergedError
from gan_jax.utils.files import write_atomically
from gan_jax.utils.plots import grid

CHANGES = {
    "num_steps": 2_000,
    "generator.width": 32,
    "discriminator.width": 32,
    "discriminator.normalization": "none",
    "penalty.name": "r1",
    "penalty.weight": 0.1,
    "evaluation.resamples": 100,
}
ROWS = {name: {"objective.name": name} for name in OBJECTIVES} | {
    "wgan, wgan_gp": {"objective.name": "wgan", "penalty.name": "wgan_gp", "penalty.weight": 10.0},
    "non_saturating, no penalty": {
        "penalty.name": "none",
        "penalty.weight": 0.0,
        "discriminator.normalization": "batch",
    },
}
SCORES = ("precision", "recall", "density", "coverage")
SHOWN = 3 * COLUMNS  # samples of each run in the picture
DIVERGED = "diverged.txt"  # of a run's folder: the line that says so
ROUNDS, STEPS = 5, 4  # in which the time of a step is measured, one run after the other; the fastest counts


class Found(NamedTuple):
    """What a run came to."""

    setup: Setup
    seconds: float  # of training
    diverged: str  # the line that says so; "" where it did not
    scores: dict  # as evaluation.json; {} where it diverged
    picture: np.ndarray | None  # a grid of samples


def found(row: str, directory: str) -> Found:
    """Trains the run of a row, where it is not yet, and scores it."""
    config = dcgan.get_config("mnist")
    config.update_from_flattened_dict(CHANGES | ROWS[row] | {"data.dir": directory})
    workdir = runs.FOLDER / "mnist_objectives" / "".join(letter if letter.isalnum() else "_" for letter in row)
    path = workdir / DIVERGED
    if path.exists():
        return Found(recipe.build(config.lock()), np.nan, path.read_text(), {}, None)
    try:
        with runs.finished(config, workdir) as run:
            samples = Generate(run.setup).examples(run.state.ema, run.setup.keys.pictures, SHOWN)
            scores = evaluate_run(run.setup, run.state, workdir, 0)
            return Found(run.setup, run.seconds, "", scores, grid(samples, COLUMNS))
    except DivergedError as error:
        write_atomically(path, str(error).encode())
        return found(row, directory)


def step_seconds(setups: dict) -> dict[str, float]:
    """Of a train step of each, measured in turns in this process: the fastest of ROUNDS."""
    trainers, states = {}, {}
    for name, setup in setups.items():
        trainers[name] = known.trainer(setup, 1)
        states[name], _ = trainers[name](recipe.initial_state(setup))
    fastest = dict.fromkeys(setups, np.inf)
    for _ in range(ROUNDS):
        for name, advance in trainers.items():
            start = time.perf_counter()
            for _ in range(STEPS):
                states[name], _ = advance(states[name])
            fastest[name] = min(fastest[name], (time.perf_counter() - start) / STEPS)
    return fastest


def line(name: str, run: Found, cost: float) -> list[str]:
    """A row of the table; `cost`: of its step, in steps of the cheapest."""
    if run.diverged:
        return [name, run.diverged.partition(";")[0], *[""] * len(SCORES), "", f"{cost:.2f}"]
    low, high = run.scores["intervals"]["fid_mnist"]
    fid = f"{run.scores['fid_mnist']:.2f} [{low:.2f}, {high:.2f}]"
    shares = [f"{run.scores[f'{score}_mnist']:.3f}" for score in SCORES]
    return [name, fid, *shares, f"{run.seconds:,.0f}", f"{cost:.2f}"]


def main() -> None:
    """Trains what is not trained yet; without --only, writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", help="where TFDS keeps MNIST, as data.dir of a config")
    parser.add_argument("--only", choices=ROWS, nargs="+", help="trains these, no report")
    arguments = parser.parse_args()
    directory = str(Path(arguments.directory).resolve())
    done = {row: found(row, directory) for row in arguments.only or ROWS}
    if not arguments.only:
        write(done)


def write(done: dict[str, Found]) -> None:
    """The report, the best first and those that diverged last."""
    seconds = step_seconds({row: run.setup for row, run in done.items()})
    cheapest = min(seconds.values())
    order = sorted(done, key=lambda row: done[row].scores.get("fid_mnist", np.inf))
    header = ["objective", "FID, mnist", *SCORES, "s of training", "cost of a step"]
    about = (
        f"{CHANGES['num_steps']:,} updates of either player at batch {done[order[0]].setup.config.batch_size}, DCGAN "
        f"of width {CHANGES['generator.width']}, R1 of weight {CHANGES['penalty.weight']} where the row does not say "
        f"otherwise, one seed. Brackets: 95 % intervals over samples, not over seeds. The seconds are those that "
        f"each run took, whatever ran beside it; the cost is that of a step in one process, in turns, the cheapest "
        f"being 1 ({cheapest * 1000:.0f} ms, {jax.default_backend()})."
    )
    lines = [line(row, done[row], seconds[row] / cheapest) for row in order]
    drawn = draw({row: done[row].picture for row in order if not done[row].diverged})
    report.write("mnist_objectives", "Every objective on MNIST", [about, report.table(header, lines)], drawn)


def draw(pictures: dict[str, np.ndarray]):
    """A grid of samples for each row."""
    drawn, axes = report.figure(-(-len(pictures) // 3), 3, 12, 1.5 * -(-len(pictures) // 3))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (row, picture) in zip(axes.flat, pictures.items(), strict=False):
        ax.imshow(picture[..., 0], cmap="gray")
        ax.set_title(row, fontsize=9)
    return drawn


if __name__ == "__main__":
    sys.exit(runs.exit_status(main))
