"""The benchmark of VEEGAN and PacGAN (arXiv:1705.07761, arXiv:1712.04086) on ring8 and grid25, ten seeds each.

    python -m experiments.studies.mode_coverage

Each run is `configs/mixture.py` as shipped, with a seed of its own, in `runs/mode_coverage/`. Scored are 2,500 samples
of the averaged generator, beside what perfect samples would score. Forty minutes on one CPU core beside other work.
"""

import sys

import numpy as np

from configs import mixture
from experiments.studies import report, runs
from gan_jax.runs.sampler import SHOWN, Generate
from gan_jax.training.evaluator import evaluate_run

VARIANTS = ("ring8", "grid25")
SEEDS = range(10)
PICTURED = 0  # the seed whose samples are shown
# By memory from the papers' tables, not run here; the columns are those of the report.
PUBLISHED = [
    ["ring8", "GAN", "1", "99.3 %", "", "arXiv:1705.07761"],
    ["ring8", "Unrolled GAN", "7.6", "35.6 %", "", "arXiv:1705.07761"],
    ["ring8", "VEEGAN", "8", "52.9 %", "", "arXiv:1705.07761"],
    ["ring8", "GAN", "6.3", "98.2 %", "0.45", "arXiv:1712.04086"],
    ["ring8", "PacGAN2", "7.9", "95.6 %", "0.07", "arXiv:1712.04086"],
    ["grid25", "GAN", "3.3", "0.5 %", "", "arXiv:1705.07761"],
    ["grid25", "Unrolled GAN", "23.6", "16 %", "", "arXiv:1705.07761"],
    ["grid25", "VEEGAN", "24.6", "40 %", "", "arXiv:1705.07761"],
    ["grid25", "GAN", "17.3", "94.8 %", "0.70", "arXiv:1712.04086"],
    ["grid25", "PacGAN2", "23.8", "91.3 %", "0.13", "arXiv:1712.04086"],
    ["grid25", "PacGAN4", "24.8", "93.6 %", "0.04", "arXiv:1712.04086"],
]


def scored(variant: str, seed: int) -> dict:
    """The scores of a run, with the seconds of its training as `seconds`."""
    with _run(variant, seed) as run:
        return evaluate_run(run.setup, run.state, run.workdir, 0) | {"seconds": run.seconds}


def pictured(variant: str) -> np.ndarray:
    """Samples for the picture, [n, 2]."""
    with _run(variant, PICTURED) as run:
        return Generate(run.setup).examples(run.state.ema, run.setup.keys.pictures, SHOWN["plane"])


def _run(variant: str, seed: int):
    config = mixture.get_config(variant)
    config.seed = seed
    return runs.finished(config, runs.FOLDER / "mode_coverage" / f"{variant}-{seed}")


def row(variant: str, scores: list[dict]) -> list[str]:
    """A line of the table."""
    first = scores[0]
    quality, divergence = ([each[name] for each in scores] for name in ("high_quality", "reverse_kl"))
    complete = sum(each["modes"] == each["modes_total"] for each in scores)
    return [
        variant,
        f"all {first['modes_total']} for {complete} of {len(scores)} seeds",
        f"{np.mean(quality):.2%} ± {np.std(quality, ddof=1):.2%} (least {min(quality):.2%})",
        f"{first['high_quality_ceiling']:.2%}",
        f"{np.mean(divergence):.4f} ± {np.std(divergence, ddof=1):.4f} (most {max(divergence):.4f})",
        f"{first['reverse_kl_floor']:.4f}",
        f"{np.median([each['seconds'] for each in scores]):.0f}",
    ]


def main() -> None:
    """Trains what is not trained yet, and writes the tables and the picture."""
    drawn, axes = report.figure(1, len(VARIANTS), 8, 4)
    rows, seeds = [], []
    for variant, ax in zip(VARIANTS, axes[0], strict=True):
        scores = [scored(variant, seed) for seed in SEEDS]
        rows.append(row(variant, scores))
        for seed, each in zip(SEEDS, scores, strict=True):
            numbers = f"{each['modes']}", f"{each['high_quality']:.2%}", f"{each['reverse_kl']:.4f}"
            seeds.append([variant, f"{seed}", *numbers])
        samples = pictured(variant)
        ax.scatter(*samples.T, s=2, alpha=0.5, linewidths=0)
        ax.set_title(f"{variant}, seed {PICTURED}: {len(samples):,} samples")
        ax.set_aspect("equal")
    parts = [
        f"configs/mixture.py, seeds {SEEDS[0]} to {SEEDS[-1]}: mean ± standard deviation over them.",
        "High quality: within 3 sigma of a center. The "
        "ceiling is that of the mixture itself, the floor the expected KL of a perfect generator at 2,500 samples. "
        "The seconds are of a run on one CPU core, beside other work.",
        report.table(["data", "modes", "high quality", "ceiling", "reverse KL, nats", "floor", "s a run"], rows),
        "Selected rows of the papers, with other networks, and not tuned for each set as here. They are quoted from "
        "memory: check them against the papers before you rely on them.",
        report.table(["data", "method", "modes", "high quality", "reverse KL", "source"], PUBLISHED),
        report.table(["data", "seed", "modes", "high quality", "reverse KL"], seeds),
    ]
    report.write("mode_coverage", "Modes of ring8 and grid25", parts, drawn)


if __name__ == "__main__":
    sys.exit(runs.exit_status(main))
