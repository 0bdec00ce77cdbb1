"""Every objective on MNIST at one budget: the same networks, rates, penalty, updates; only the losses differ.

    python -m experiments.studies.mnist_objectives DIR    # DIR: where TFDS keeps MNIST
    python -m experiments.studies.mnist_objectives DIR --only wgan hinge    # these runs alone, no report

Each run is `configs/dcgan.py:mnist` with CHANGES, in `runs/mnist_objectives/`: 10,000 samples of the averaged generator
against 10,000 training images, by the features of the extractor `mnist`. Two more rows say what the common choice of
penalty costs: WGAN with its own, and DCGAN as it is shipped, without any.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from configs import dcgan
from experiments.studies import known, report, runs
from gan_jax import recipe
from gan_jax.evaluate import evaluate_run
from gan_jax.generate import COLUMNS, Generate
from gan_jax.images import grid
from gan_jax.objectives import OBJECTIVES

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
ROUNDS, STEPS = 5, 4  # in which the time of a step is measured, one run after the other; the fastest counts


def run_of(row: str, directory: str) -> runs.Run:
    """The finished run of a row."""
    config = dcgan.get_config("mnist")
    config.update_from_flattened_dict(CHANGES | ROWS[row] | {"data.dir": directory})
    folder = "".join(letter if letter.isalnum() else "_" for letter in row)
    return runs.finished(config, runs.FOLDER / "mnist_objectives" / folder)


def scored(run: runs.Run) -> tuple[dict, np.ndarray]:
    """The scores of a run, and a grid of its samples."""
    state = runs.checkpoints(run.workdir).restore(recipe.abstract_state(run.setup))
    samples = Generate(run.setup).examples(state.ema, run.setup.keys.pictures, SHOWN)
    return evaluate_run(run.setup, state, run.workdir, 0), grid(samples, COLUMNS)


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


def line(name: str, run: runs.Run, scores: dict, cost: float) -> list[str]:
    """A row of the table; `cost`: of its step, in steps of the cheapest."""
    times = [f"{run.seconds:,.0f}", f"{cost:.2f}"]
    if run.diverged:
        return [name, run.diverged.partition(";")[0], *[""] * len(SCORES), *times]
    low, high = scores["intervals"]["fid_mnist"]
    fid = f"{scores['fid_mnist']:.2f} [{low:.2f}, {high:.2f}]"
    return [name, fid, *[f"{scores[f'{score}_mnist']:.3f}" for score in SCORES], *times]


def main() -> None:
    """Trains what is not trained yet; without --only, scores all and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", help="where TFDS keeps MNIST, as data.dir of a config")
    parser.add_argument("--only", choices=ROWS, nargs="+", help="trains these, no report")
    arguments = parser.parse_args()
    runs.prepare()
    directory = str(Path(arguments.directory).resolve())
    found = {row: run_of(row, directory) for row in arguments.only or ROWS}
    if arguments.only:
        return
    scores, pictures = {}, {}
    for row, run in found.items():
        scores[row], pictures[row] = ({}, None) if run.diverged else scored(run)
    seconds = step_seconds({row: run.setup for row, run in found.items()})
    cheapest = min(seconds.values())
    # Diverged ones last.
    order = sorted(found, key=lambda row: scores[row].get("fid_mnist", np.inf))
    header = ["objective", "FID, mnist", *SCORES, "s of training", "cost of a step"]
    lines = [line(row, found[row], scores[row], seconds[row] / cheapest) for row in order]
    about = (
        f"{CHANGES['num_steps']:,} updates of either player at batch {found[order[0]].setup.config.batch_size}, DCGAN "
        f"of width {CHANGES['generator.width']}, R1 of weight {CHANGES['penalty.weight']} where the row does not say "
        f"otherwise, one seed. Brackets: 95 % intervals over samples, not over seeds. The seconds are of a machine "
        f"with other work on it; the cost is that of a step in this process, in turns, the cheapest being 1 "
        f"({cheapest * 1000:.0f} ms, {jax.default_backend()})."
    )
    report.write("mnist_objectives", "Every objective on MNIST", [about, report.table(header, lines)], draw(pictures))


def draw(pictures: dict):
    """The grids of all rows that did not diverge."""
    shown = {row: picture for row, picture in pictures.items() if picture is not None}
    drawn, axes = report.figure(-(-len(shown) // 3), 3, 12, 1.5 * -(-len(shown) // 3))
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (row, picture) in zip(axes.flat, shown.items(), strict=False):
        ax.imshow(picture[..., 0], cmap="gray")
        ax.set_title(row, fontsize=9)
    return drawn


if __name__ == "__main__":
    main()
