"""What keeps D from learning few images by heart: each remedy, all of them, and none, with three seeds each.

python -m gan_jax.sweep --config=configs/digits.py --sweep=experiments/sweeps/few_data.py --workdir=DIR

297 digits to train on, the split that other configs hold back; scores are against the 1,500 of the other split, which
no network here has seen.
"""

PLAIN = {
    "data.split": "test",
    "evaluation.split": "train",
    "evaluation.num_real": 0,
    "evaluation.num_samples": 1_500,
    "evaluation.extractor": "digits",
    "evaluation.resamples": 0,
    "num_steps": 8_000,
    "evaluate_every": 2_000,
    "sample_every": 0,
}
DIFF_AUGMENT = {"augment.policy": "color,translation,cutout"}
ADA = {
    "augment.policy": "translation,scale,color",
    "augment.probability": 0.0,
    "augment.ada_target": 0.6,
    "augment.ada_images": 100_000,
}
LECAM = {"discriminator.lecam": 0.3}
CONSISTENCY = {"augment.policy": "translation", "augment.probability": 0.0, "discriminator.consistency": 10.0}
REMEDIES = (
    {},
    DIFF_AUGMENT,
    ADA,
    LECAM,
    CONSISTENCY,
    CONSISTENCY | {"discriminator.fake_consistency": 10.0},
    ADA | LECAM,
)


def sweep():
    """The members."""
    for remedy in REMEDIES:
        for seed in range(3):
            yield PLAIN | remedy | {"seed": seed}
