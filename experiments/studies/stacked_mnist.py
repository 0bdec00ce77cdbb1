"""Stacked MNIST by PacGAN's protocol (arXiv:1712.04086, section 4.2): how many of 1,000 modes, and how evenly.

    python -m experiments.studies.stacked_mnist DIR          # DIR: where TFDS keeps MNIST
    python -m experiments.studies.stacked_mnist DIR --seeds 2    # this seed alone, to share the seeds among processes

Each run is `configs/stacked_mnist.py` as shipped, with a seed of its own, in `runs/stacked_mnist/`. 26,000 samples of
the averaged generator are classified channel by channel by the extractor `mnist`, at each checkpoint of a run.
"""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

from configs import stacked_mnist
from experiments.studies import report, runs
from gan_jax import recipe
from gan_jax.evaluation.features.extractors import extract, make_extractor
from gan_jax.evaluation.metrics.classes import class_labels, label_scores
from gan_jax.parallel.devices import mesh
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.runs.sampler import COLUMNS, Generate
from gan_jax.utils.files import read_json, write_atomically
from gan_jax.utils.plots import grid

SEEDS = range(3)
SAMPLES = 26_000
PICTURED = 0  # the seed whose samples are shown
CURVE = "modes.json"  # of a run's folder: what `curve` found
# From the papers' tables: modes, reverse KL in nats; not run here.
PUBLISHED = [
    ["DCGAN", "99", "3.4", "arXiv:1705.07761"],
    ["ALI", "16", "5.4", "arXiv:1705.07761"],
    ["Unrolled GAN", "48.7", "4.32", "arXiv:1705.07761"],
    ["VEEGAN", "150", "2.95", "arXiv:1705.07761"],
    ["PacDCGAN2", "1,000", "0.06", "arXiv:1712.04086"],
    ["R3GAN", "1,000", "0.029", "arXiv:2501.05441"],
]


def run_of(seed: int, directory: str):
    """The finished run of this seed, as `runs.finished` gives it."""
    config = stacked_mnist.get_config()
    config.seed, config.data.dir = seed, directory
    config.checkpoints_kept = config.num_steps // config.checkpoint_every  # all of them, for the curve
    return runs.finished(config, runs.FOLDER / "stacked_mnist" / f"{seed}")


def curve(run: runs.Run) -> list[dict]:
    """The scores of every checkpoint, each with its `step`, oldest first; those that are known are read."""
    path = run.workdir / CURVE
    found = read_json(path, [])
    generate = Generate(run.setup)
    with closing(Checkpoints(run.workdir / "checkpoints")) as checkpoints:
        for step in sorted(set(checkpoints.steps()) - {each["step"] for each in found}):
            state = checkpoints.restore(recipe.abstract_state(run.setup), [step])
            samples = generate.for_scores(state.ema, run.setup.keys.evaluation, SAMPLES)
            found.append({"step": step} | modes(samples))
            write_atomically(path, json.dumps(found).encode())
    return sorted(found, key=lambda each: each["step"])


def modes(samples: np.ndarray) -> dict[str, float]:
    """`label_scores` of stacks [n, h, w, 3], each channel a digit."""
    return label_scores(*class_labels(extract(make_extractor("mnist", ""), mesh(), samples).logits))


def plot(curves: list[list[dict]], axes) -> None:
    """Modes and KL of every seed against the step."""
    for name, ax in zip(("modes", "reverse_kl"), axes, strict=True):
        for seed, points in zip(SEEDS, curves, strict=True):
            ax.plot([each["step"] for each in points], [each[name] for each in points], label=f"seed {seed}")
        ax.set_xlabel("step")
    axes[0].set_ylabel("modes of 1,000")
    axes[1].set(ylabel="reverse KL, nats", yscale="log")
    axes[1].axhline(curves[0][-1]["reverse_kl_floor"], color="black", linestyle=":", label="perfect samples")
    axes[1].legend()


def pictured(run: runs.Run) -> np.ndarray:
    """A grid of samples."""
    return grid(Generate(run.setup).examples(run.state.ema, run.setup.keys.pictures, COLUMNS**2), COLUMNS)


def draw(curves: list[list[dict]], picture: np.ndarray):
    """The figure: the curves, and a grid of samples."""
    drawn, axes = report.figure(1, 3, 12, 4)
    plot(curves, axes[0][:2])
    axes[0][2].imshow(picture)
    axes[0][2].set_axis_off()
    axes[0][2].set_title(f"seed {PICTURED}, the first {COLUMNS**2} samples")
    return drawn


def main() -> None:
    """Trains what is not trained yet; with all seeds, writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", help="where TFDS keeps MNIST, as data.dir of a config")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="these alone, without the report")
    arguments = parser.parse_args()
    directory = str(Path(arguments.directory).resolve())
    curves, seconds, picture = [], [], None
    for seed in arguments.seeds:
        with run_of(seed, directory) as run:
            curves.append(curve(run))
            seconds.append(run.seconds)
            picture = pictured(run) if seed == PICTURED else picture
    if arguments.seeds == list(SEEDS):
        write(curves, seconds, picture)


def write(curves: list[list[dict]], seconds: list[float], picture: np.ndarray) -> None:
    """The report."""
    last = [points[-1] for points in curves]
    rows = [
        [f"{seed}", f"{each['modes']:,} of {each['modes_total']:,}", f"{each['reverse_kl']:.4f}", f"{took:,.0f}"]
        for seed, each, took in zip(SEEDS, last, seconds, strict=True)
    ]
    divergence = [each["reverse_kl"] for each in last]
    about = (
        f"configs/stacked_mnist.py, {SAMPLES:,} samples of the averaged generator: reverse KL "
        f"{np.mean(divergence):.4f} ± {np.std(divergence, ddof=1):.4f} nats over {len(SEEDS)} seeds; perfect samples "
        f"would have {last[0]['reverse_kl_floor']:.4f}, classified without a mistake."
    )
    parts = [
        about,
        report.table(["seed", "modes", "reverse KL, nats", "s of training"], rows),
        "Selected rows of the papers, with other networks. They are quoted from memory: check them against the papers "
        "before you rely on them.",
        report.table(["method", "modes", "reverse KL", "source"], PUBLISHED),
    ]
    report.write("stacked_mnist", "Stacked MNIST", parts, draw(curves, picture))


if __name__ == "__main__":
    sys.exit(runs.exit_status(main))
