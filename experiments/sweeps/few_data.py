"""What keeps D from learning few images by heart: each remedy, some together, and none, three seeds each.

python -m gan_jax.sweep --config=configs/digits.py --sweep=experiments/sweeps/few_data.py --workdir=DIR

297 digits to train on, the split that other configs hold back, and scores against the 1,500 of the other one, which
no player sees. The network whose features are compared was trained on those. The setting is the one that was tried
first; of LeCam's weight 0.01, 0.03, 0.1 and 0.3 were, with two seeds each. What came of it, in 5 minutes on two CPU
cores beside other work, is in experiments/results/sweeps/few_data_digits/summary.md.
"""

from gan_jax.step import transforms

PLAIN = {
    "data.split": "test",
    "evaluation.split": "train",
    "evaluation.num_real": 0,
    "evaluation.num_samples": 1_500,
    "evaluation.extractor": "digits",
    "evaluation.resamples": 0,
    "num_steps": 8_000,
    "evaluate_every": 4_000,
    "sample_every": 0,
}
DIFF_AUGMENT = {"augment.policy": transforms.DIFF_AUGMENT}
ADA = {
    "augment.policy": "translation,scale,color",
    "augment.probability": 0.0,
    "augment.ada_target": 0.6,
    "augment.ada_images": 100_000,  # of the 512,000 that a run sees
}
LECAM = {"discriminator.lecam": 0.03}
CONSISTENCY = {"discriminator.consistency": 10.0}
BALANCED = CONSISTENCY | {"discriminator.fake_consistency": 10.0}
OF_CONSISTENCY_ALONE = {"augment.policy": "translation", "augment.probability": 0.0}
REMEDIES = (
    {},
    LECAM,
    DIFF_AUGMENT,
    DIFF_AUGMENT | LECAM | BALANCED,
    ADA,
    ADA | LECAM,
    OF_CONSISTENCY_ALONE | CONSISTENCY,
    OF_CONSISTENCY_ALONE | BALANCED,
)


def sweep():
    """The members."""
    for remedy in REMEDIES:
        for seed in range(3):
            yield PLAIN | remedy | {"seed": seed}
