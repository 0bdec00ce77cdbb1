"""Few images: runs that start from another run (`init.run`), with D's first layers frozen or not, and from scratch.

    python -m experiments.studies.transfer

One run of `configs/dcgan.py` with CHANGES learns every digit of scikit-learn but the eights. Runs of ten eights and of
forty, three seeds of each of VARIANTS, are scored against the 134 eights that no run has seen. All are in
`runs/transfer/`. Fourteen minutes on two CPU cores beside other work.
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

DIGIT, SIZES = 8, {"ten": 10, "forty": 40}  # images to learn from, by the functions of this module that give them
CHANGES = {"generator.width": 32, "discriminator.width": 32, "health_every": 0, "sample_every": 0}
FOLDER, STEPS = runs.FOLDER / "transfer", (60, 120, 240, 480)
START = {"init.run": str(FOLDER / "others")}
VARIANTS = {
    "from scratch": {},
    "G of the other run": START | {"init.players": "generator"},
    "D of it": START | {"init.players": "discriminator"},
    "both of it": START,
    "both, freeze=1": START | {"discriminator.freeze": 1},
    "both, freeze=2": START | {"discriminator.freeze": 2},
}
PICTURED = ("from scratch", "both of it", "both, freeze=1")
SEEDS = range(3)
HALVINGS = 50  # of the images held out: one half is compared with samples, or with the other half


def others() -> Source:
    """All digits but the one."""
    return _some(lambda is_digit: np.flatnonzero(~is_digit))


def ten() -> Source:
    """The first ten images of it."""
    return _some(lambda is_digit: np.flatnonzero(is_digit)[:10])


def forty() -> Source:
    """The first forty."""
    return _some(lambda is_digit: np.flatnonzero(is_digit)[:40])


def held_out() -> Source:
    """All after these."""
    return _some(lambda is_digit: np.flatnonzero(is_digit)[40:])


def _some(choose) -> Source:
    whole = digits("all")
    data = {name: array[choose(whole.data["label"] == DIGIT)] for name, array in whole.data.items()}
    return whole._replace(data=data, size=len(data["label"]), std=stored_std(data["image"], TOP))


def images(source: Source) -> np.ndarray:
    """All of them, [n, 8, 8, 1] in [-1, 1]."""
    return np.float32(source.data["image"]) / (TOP / 2) - 1


def config_of(data: str, **changes):
    """The config of a run on `data`, a function of this module."""
    config = dcgan.get_config()
    config.update_from_flattened_dict(CHANGES | {"data.name": f"experiments.studies.transfer:{data}"} | changes)
    return config


def workdir_of(data: str, variant: str, seed: int):
    """The folder of a run."""
    return FOLDER / f"{data}-{list(VARIANTS).index(variant)}-{seed}"


def scored(data: str, variant: str, seed: int, score) -> list[tuple[float, float]]:
    """At each of STEPS the scores of a run, which is trained where it is not yet."""
    kept = {"seed": seed, "num_steps": STEPS[-1], "checkpoint_every": STEPS[0], "checkpoints_kept": STEPS[-1]}
    workdir = workdir_of(data, variant, seed)
    with runs.finished(config_of(data, **kept, **VARIANTS[variant]), workdir):
        return [score(gan_jax.load(workdir, step)) for step in STEPS]


def scores(features, held: np.ndarray, halves: list[np.ndarray], run) -> tuple[float, float]:
    """(FID of as many samples as half of the images held out are to such a half, the share that look like the digit).

    Both are means over HALVINGS; what a sample looks like the extractor's classifier says.
    """
    size = len(held) // 2
    made = features(run.sample(size * len(halves)))
    pairs = [(made.values[i * size :][:size], held[order[:size]]) for i, order in enumerate(halves)]
    return mean_distance(pairs), float(np.mean(np.argmax(made.logits.reshape(len(made.values), -1), axis=1) == DIGIT))


def mean_distance(pairs) -> float:
    """The mean FID of pairs of features."""
    return float(np.mean([frechet_distance(gaussian(a), gaussian(b)) for a, b in pairs]))


def main() -> None:
    """Trains what is not trained yet, and writes the tables and the picture."""
    with runs.finished(config_of("others"), FOLDER / "others"):
        before = gan_jax.load(FOLDER / "others")
    features = partial(extract, make_extractor("digits"), mesh())
    held = features(images(held_out())).values
    rng, size = np.random.default_rng(0), len(held) // 2
    halves = [rng.permutation(len(held)) for _ in range(HALVINGS)]
    floor = mean_distance([(held[order[size : 2 * size]], held[order[:size]]) for order in halves])
    score = partial(scores, features, held, halves)
    results = {  # [seeds, steps, 2]
        data: {variant: np.array([scored(data, variant, seed, score) for seed in SEEDS]) for variant in VARIANTS}
        for data in SIZES
    }
    about = (
        f"`configs/dcgan.py` of width {CHANGES['generator.width']} on a few images of the digit {DIGIT}; the other run "
        f"is of all other digits. FID by the extractor `digits`, of {size} samples of the averaged generator to {size} "
        f"images of the digit that no run has seen: the mean over {HALVINGS} ways to halve those {2 * size}, then the "
        f"mean ± standard deviation over {len(SEEDS)} seeds. With so few images much of a small FID is bias: one half "
        f"of the real images is {floor:.2f} from the other, and the other run {score(before)[0]:.1f} from them. "
        "The last column is the share that the classifier takes for the digit, at the last step."
    )
    tables = [table(SIZES[data], of_data) for data, of_data in results.items()]
    report.write("transfer", "Few images, from another run", [about, *tables], draw(results, floor))


def table(count: int, of_data: dict[str, np.ndarray]) -> str:
    """The FIDs of all variants on so many images."""
    rows = [
        [
            variant,
            *[f"{fid.mean():.2f} ± {fid.std(ddof=1):.2f}" for fid in values[:, :, 0].T],
            f"{values[:, -1, 1].mean():.0%}",
        ]
        for variant, values in of_data.items()
    ]
    return report.table([f"{count} images", *[f"FID, step {step}" for step in STEPS], f"taken for {DIGIT}"], rows)


def draw(results: dict, floor: float):
    """For each number of images: FID by step, the images, and samples of the first seed at the first step."""
    drawn, axes = report.figure(len(SIZES), 2 + len(PICTURED), 14, 6)
    for (data, of_data), (curves, real, *made) in zip(results.items(), axes, strict=True):
        for marker, (variant, values) in zip("osv^Dx", of_data.items(), strict=True):
            curves.plot(STEPS, values[:, :, 0].mean(axis=0), marker=marker, label=variant)
        curves.axhline(floor, color="black", linestyle=":", label="real images")
        curves.set(xscale="log", yscale="log", xlabel="step", title=f"FID from {SIZES[data]} images")
        curves.set_xticks(STEPS, map(str, STEPS), minor=False)
        curves.minorticks_off()
        show(real, f"the {SIZES[data]} images", images({"ten": ten, "forty": forty}[data]()))
        for ax, variant in zip(made, PICTURED, strict=True):
            samples = gan_jax.load(workdir_of(data, variant, SEEDS[0]), STEPS[0]).sample(40)
            show(ax, f"{variant}, step {STEPS[0]}", samples)
    axes[0, 0].legend(fontsize=7)
    return drawn


def show(ax, title: str, pictures: np.ndarray) -> None:
    """A grid of pictures."""
    ax.imshow(grid(pictures, 5)[..., 0], cmap="gray")
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()


if __name__ == "__main__":
    sys.exit(runs.exit_status(main))
