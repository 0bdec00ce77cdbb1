"""The benchmark of VEEGAN and PacGAN (arXiv:1705.07761, arXiv:1712.04086) on ring8 and grid25, ten seeds each.

    python -m experiments.studies.mode_coverage

Each run is `configs/mixture.py` as shipped, with a seed of its own, in `runs/mode_coverage/`; a run that is finished is
not trained again, and one that was interrupted goes on. Scored are 2,500 samples of the averaged generator, beside what
perfect samples would score. About 20 minutes on 2 CPU cores.
"""

import time
from pathlib import Path

import numpy as np

from configs import mixture
from experiments.studies import report
from gan_jax import recipe, workdirs
from gan_jax.checkpoints import Checkpoints
from gan_jax.evaluate import evaluate_run
from gan_jax.generate import SHOWN, Generate
from gan_jax.train import train

VARIANTS = ("ring8", "grid25")
SEEDS = range(10)
WORKDIRS = Path("runs/mode_coverage")
PICTURED = 0  # the seed whose samples are shown


def run(variant: str, seed: int) -> tuple[dict, np.ndarray]:
    """The scores of a run, with the seconds of its training as `seconds` where it was trained now; and samples."""
    config = mixture.get_config(variant)
    config.seed = seed
    setup, workdir = recipe.build(config.lock()), WORKDIRS / f"{variant}-{seed}"
    start = time.perf_counter()
    with workdirs.claimed(workdir, config):
        if not train(setup, workdir):
            raise SystemExit("stopped; the same command goes on from here")
    seconds = time.perf_counter() - start
    state = Checkpoints(workdir / "checkpoints").restore(recipe.abstract_state(setup))
    samples = Generate(setup).examples(state.ema, setup.keys.pictures, SHOWN["plane"])
    return evaluate_run(setup, state, workdir, 0) | {"seconds": seconds}, samples


def row(variant: str, scores: list[dict]) -> list[str]:
    """A line of the table."""
    first = scores[0]
    quality, divergence = ([each[name] for each in scores] for name in ("high_quality", "reverse_kl"))
    complete = sum(each["modes"] == each["modes_total"] for each in scores)
    return [
        variant,
        f"{complete} of {len(scores)} seeds all {first['modes_total']}",
        f"{np.mean(quality):.2%} ± {np.std(quality, ddof=1):.2%} (least {min(quality):.2%})",
        f"{first['high_quality_ceiling']:.2%}",
        f"{np.mean(divergence):.4f} ± {np.std(divergence, ddof=1):.4f} (most {max(divergence):.4f})",
        f"{first['reverse_kl_floor']:.4f}",
        f"{np.median([each['seconds'] for each in scores]):.0f}",
    ]


def main() -> None:
    """Trains what is not trained yet, and writes the table and the picture."""
    drawn, axes = report.figure(1, len(VARIANTS), 8, 4)
    rows, seeds = [], []
    for variant, ax in zip(VARIANTS, axes[0], strict=True):
        found = [run(variant, seed) for seed in SEEDS]
        scores = [each for each, _ in found]
        rows.append(row(variant, scores))
        for seed, each in zip(SEEDS, scores, strict=True):
            numbers = f"{each['modes']}", f"{each['high_quality']:.2%}", f"{each['reverse_kl']:.4f}"
            seeds.append([variant, f"{seed}", *numbers])
        ax.scatter(*found[PICTURED][1].T, s=2, alpha=0.5, linewidths=0)
        ax.set_title(f"{variant}, seed {PICTURED}: {len(found[PICTURED][1]):,} samples")
        ax.set_aspect("equal")
    header = ["data", "modes", "high quality", "ceiling", "reverse KL, nats", "floor", "s a run"]
    parts = [
        "Mean ± standard deviation over the seeds. High quality: within 3 sigma of a center. The ceiling is that of "
        "the mixture itself, the floor the expected KL of a perfect generator at 2,500 samples.",
        report.table(header, rows),
        report.table(["data", "seed", "modes", "high quality", "reverse KL"], seeds),
    ]
    report.write("mode_coverage", "Modes of ring8 and grid25", parts, drawn)


if __name__ == "__main__":
    main()
