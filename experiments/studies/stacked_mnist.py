"""Stacked MNIST by PacGAN's protocol (arXiv:1712.04086, section 4.2): how many of 1,000 modes, and how evenly.

    python -m experiments.studies.stacked_mnist DIR          # DIR: where TFDS keeps MNIST
    python -m experiments.studies.stacked_mnist DIR --seeds 2    # this seed alone, to share the seeds among processes

Each run is `configs/stacked_mnist.py` as shipped, with a seed of its own, in `runs/stacked_mnist/`. 26,000 samples of
the averaged generator are classified channel by channel by the extractor `mnist`, at each checkpoint of a run.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from configs import stacked_mnist
from experiments.studies import report, runs
from gan_jax import recipe
from gan_jax.devices import mesh
from gan_jax.evaluation.comparison import class_labels
from gan_jax.evaluation.extractors import extract, make_extractor
from gan_jax.evaluation.modes import label_scores
from gan_jax.files import write_atomically
from gan_jax.generate import COLUMNS, Generate
from gan_jax.images import grid

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


def run_of(seed: int, directory: str) -> runs.Run:
    """The finished run of this seed."""
    config = stacked_mnist.get_config()
    config.seed, config.data.dir = seed, directory
    config.checkpoints_kept = config.num_steps // config.checkpoint_every  # all of them, for the curve
    return runs.finished(config, runs.FOLDER / "stacked_mnist" / f"{seed}")


def curve(run: runs.Run) -> list[dict]:
    """The scores of every checkpoint, each with its `step`, oldest first; those that are known are read."""
    path = run.workdir / CURVE
    found = json.loads(path.read_text()) if path.exists() else []
    checkpoints, generate = runs.checkpoints(run.workdir), Generate(run.setup)
    for step in checkpoints.steps():
        if step not in [each["step"] for each in found]:
            state = checkpoints.restore(recipe.abstract_state(run.setup), step)
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


def draw(curves: list[list[dict]], run: runs.Run):
    """The figure: the curves, and samples of a run."""
    drawn, axes = report.figure(1, 3, 12, 4)
    plot(curves, axes[0][:2])
    state = runs.checkpoints(run.workdir).restore(recipe.abstract_state(run.setup))
    samples = Generate(run.setup).examples(state.ema, run.setup.keys.pictures, COLUMNS**2)
    axes[0][2].imshow(grid(samples, COLUMNS))
    axes[0][2].set_axis_off()
    axes[0][2].set_title(f"seed {PICTURED}, the first {COLUMNS**2} samples")
    return drawn


def main() -> None:
    """Trains what is not trained yet; with all seeds, writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", help="where TFDS keeps MNIST, as data.dir of a config")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of these seeds alone; no report")
    arguments = parser.parse_args()
    runs.prepare()
    directory = str(Path(arguments.directory).resolve())
    found = [run_of(seed, directory) for seed in arguments.seeds]
    curves = [curve(run) for run in found]
    if arguments.seeds != list(SEEDS):
        return
    last = [points[-1] for points in curves]
    rows = [
        [f"{seed}", f"{each['modes']:,} of {each['modes_total']:,}", f"{each['reverse_kl']:.4f}", f"{run.seconds:,.0f}"]
        for seed, run, each in zip(SEEDS, found, last, strict=True)
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
        "What the papers report, not run here, and not the same networks; to be checked against the papers before it "
        "is quoted.",
        report.table(["method", "modes", "reverse KL", "source"], PUBLISHED),
    ]
    report.write("stacked_mnist", "Stacked MNIST", parts, draw(curves, found[PICTURED]))


if __name__ == "__main__":
    main()
