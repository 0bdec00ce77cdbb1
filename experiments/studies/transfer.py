"""Few images: a run that starts from another one (`init.run`) against one that starts anew, with D's layers frozen too.

    python -m experiments.studies.transfer

One run of `configs/dcgan.py` with CHANGES learns every digit of scikit-learn but the eight. Runs of 40 eights, three
seeds of each of VARIANTS, are scored against the 134 eights that no run has seen. All are in `runs/transfer/`.
"""

import sys
from functools import partial

import numpy as np

import gan_jax
from configs import dcgan
from experiments.studies import report, runs
from gan_jax.data import Source
from gan_jax.data.digits import TOP, digits
from gan_jax.data.source import stored_std
from gan_jax.evaluation.features.extractors import extract, make_extractor
from gan_jax.evaluation.metrics.distances import frechet_distance, gaussian
from gan_jax.parallel.devices import mesh
from gan_jax.utils.plots import grid

DIGIT, FEW = 8, 40
CHANGES = {"generator.width": 32, "discriminator.width": 32, "health_every": 0, "sample_every": 0}
PRETRAINED, STEPS = runs.FOLDER / "transfer" / "others", (125, 250, 500, 1000)
START = {"init.run": str(PRETRAINED)}
VARIANTS = {
    "from scratch": {},
    "G alone": START | {"init.players": "generator"},
    "D alone": START | {"init.players": "discriminator"},
    "both players": START,
    "both, freeze=1": START | {"discriminator.freeze": 1},
    "both, freeze=2": START | {"discriminator.freeze": 2},
}
SEEDS = range(3)
HALVINGS = 50  # of the images held out: one half is compared with samples, or with the other half
COLUMNS = 10  # of the pictures


def others() -> Source:
    """All digits but the one."""
    return _some(lambda is_digit: np.flatnonzero(~is_digit))


def few() -> Source:
    """The first FEW images of the one."""
    return _some(lambda is_digit: np.flatnonzero(is_digit)[:FEW])


def held_out() -> Source:
    """All other images of it."""
    return _some(lambda is_digit: np.flatnonzero(is_digit)[FEW:])


def _some(choose) -> Source:
    whole = digits("all")
    data = {name: array[choose(whole.data["label"] == DIGIT)] for name, array in whole.data.items()}
    return whole._replace(data=data, size=len(data["label"]), std=stored_std(data["image"], TOP))


def images(source: Source) -> np.ndarray:
    """All of them, [n, 8, 8, 1] in [-1, 1]."""
    return np.float32(source.data["image"]) / (TOP / 2) - 1


def config_of(name: str, **changes):
    """The config of a run on the data `name`, a function of this module."""
    config = dcgan.get_config()
    config.update_from_flattened_dict(CHANGES | {"data.name": f"experiments.studies.transfer:{name}"} | changes)
    return config


def scored(variant: str, seed: int, score) -> dict[int, tuple[float, float]]:
    """{step: (FID, share of samples that the classifier takes for the digit)} of a run, trained where it is not yet."""
    short = {"seed": seed, "num_steps": STEPS[-1], "checkpoint_every": STEPS[0], "checkpoints_kept": STEPS[-1]}
    workdir = runs.FOLDER / "transfer" / f"{list(VARIANTS).index(variant)}-{seed}"
    with runs.finished(config_of("few", **short, **VARIANTS[variant]), workdir):
        return {step: score(gan_jax.load(workdir, step)) for step in STEPS}


def scores(features, held: np.ndarray, halves: list[np.ndarray], run) -> tuple[float, float]:
    """FID of as many samples as a half of the images held out has, to the other half: the mean over HALVINGS."""
    size = len(held) // 2
    made = features(run.sample(size * len(halves), seed=0))
    pairs = [(made.values[i * size :][:size], held[order[:size]]) for i, order in enumerate(halves)]
    share = np.mean(np.argmax(made.logits, axis=-1).reshape(-1) == DIGIT)
    return mean_distance(pairs), float(share)


def mean_distance(pairs) -> float:
    """The mean FID of pairs of features."""
    return float(np.mean([frechet_distance(gaussian(a), gaussian(b)) for a, b in pairs]))


def main() -> None:
    """Trains what is not trained yet, and writes the table and the picture."""
    with runs.finished(config_of("others"), PRETRAINED) as run:
        pretrained, seconds = gan_jax.load(PRETRAINED), run.seconds
    features = partial(extract, make_extractor("digits"), mesh())
    held = features(images(held_out())).values
    rng, size = np.random.default_rng(0), len(held) // 2
    halves = [rng.permutation(len(held)) for _ in range(HALVINGS)]
    floor = mean_distance([(held[order[size : 2 * size]], held[order[:size]]) for order in halves])
    score = partial(scores, features, held, halves)
    found = {variant: [scored(variant, seed, score) for seed in SEEDS] for variant in VARIANTS}
    write(found, floor, score(pretrained), size, seconds)


def write(found: dict, floor: float, before: tuple[float, float], size: int, seconds: float) -> None:
    """The report."""
    rows = [["the other run itself", f"{before[0]:.1f}", *[""] * (len(STEPS) - 1), f"{before[1]:.0%}"]]
    for variant, of_seeds in found.items():
        fids = [[scores[step][0] for scores in of_seeds] for step in STEPS]
        share = np.mean([scores[STEPS[-1]][1] for scores in of_seeds])
        rows.append([variant, *[f"{np.mean(fid):.1f} ± {np.std(fid, ddof=1):.1f}" for fid in fids], f"{share:.0%}"])
    rows.append(["real images", f"{floor:.1f}", *[""] * (len(STEPS) - 1), ""])
    about = (
        f"`configs/dcgan.py` of width {CHANGES['generator.width']}; {FEW} images of the digit {DIGIT}, after a run on "
        f"all other digits. FID by the extractor `digits`, of {size} samples of the averaged generator to {size} "
        f"images of the digit that no run has seen: the mean over {HALVINGS} ways to halve those {2 * size}; beside it "
        f"the standard deviation over {len(SEEDS)} seeds. *Real images*: one half to the other. With so few images most "
        f"of a small FID is bias, the same in each row. The last column is of what the classifier takes for the digit, "
        f"at the last step."
    )
    header = ["start", *[f"FID, step {step:,}" for step in STEPS], f"taken for {DIGIT}"]
    report.write("transfer", "Few images, from another run", [about, report.table(header, rows)], draw(found, floor))


def draw(found: dict, floor: float):
    """FID by step, and samples of the first seed at the first and the last step."""
    drawn, axes = report.figure(2, 1 + len(VARIANTS) // 2, 12, 6)
    axes = list(axes.flat)
    for variant, of_seeds in found.items():
        curve = np.mean([[scores[step][0] for step in STEPS] for scores in of_seeds], axis=0)
        axes[0].plot(STEPS, curve, marker="o", label=variant)
    axes[0].axhline(floor, color="black", linestyle=":", label="real images")
    axes[0].set(xscale="log", yscale="log", xlabel="step", title="FID, mean of three seeds")
    axes[0].legend(fontsize=7)
    shown = {f"{FEW} images to learn from": images(few())}
    for number, variant in enumerate(VARIANTS):
        run = gan_jax.load(runs.FOLDER / "transfer" / f"{number}-{SEEDS[0]}", STEPS[0])
        shown[f"{variant}, step {STEPS[0]}"] = run.sample(FEW)
    for ax, (title, pictures) in zip(axes[1:], shown.items(), strict=True):
        ax.imshow(grid(pictures, COLUMNS)[..., 0], cmap="gray")
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    return drawn


if __name__ == "__main__":
    sys.exit(runs.exit_status(main))
