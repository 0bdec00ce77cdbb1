"""What each remedy against mode collapse does to a minimax GAN without a penalty: three seeds of each, and of none.

python -m gan_jax.sweep --config=configs/mixture.py:grid25 --sweep=experiments/sweeps/collapse.py --workdir=DIR
"""

PLAIN = {
    "objective.name": "minimax",
    "penalty.name": "none",
    "penalty.weight": 0.0,
    "num_steps": 8_000,
    "generator.width": 64,
    "discriminator.width": 64,
}
REMEDIES = (
    {},
    {"objective.label_smoothing": 0.1},
    {"augment.instance_noise": 1.0},  # half of the distance between neighbouring modes
    {"objective.feature_matching": 1.0},
    {"objective.name": "feature_matching", "objective.feature_matching": 1.0},
    {"discriminator.packing": 2},
    {"discriminator.packing": 4},
    {"discriminator.minibatch_stddev": 4},
    {"discriminator.minibatch_discrimination": 16},
)


def sweep():
    """The members."""
    for remedy in REMEDIES:
        for seed in range(3):
            yield PLAIN | remedy | {"seed": seed}
