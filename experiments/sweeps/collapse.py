"""What each remedy against mode collapse does to a minimax GAN without a penalty: three seeds of each, and of none.

python -m gan_jax.sweep --config=configs/mixture.py:grid25 --sweep=experiments/sweeps/collapse.py --workdir=DIR

At these rates, which do not fall, and with two updates of D a step, the plain GAN (one seed) had 10 of 25 modes after
4,000 steps and none after 8,000. At the rates of the config, a batch of 256 and one update of D it has all of them.
"""

PLAIN = {
    "objective.name": "minimax",
    "penalty.name": "none",
    "penalty.weight": 0.0,
    "num_steps": 6_000,
    "evaluate_every": 2_000,
    "batch_size": 64,
    "generator.width": 64,
    "discriminator.width": 64,
    "discriminator.steps": 2,
} | {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"learning_rate": 4e-3, "b1": 0.5, "b2": 0.999, "decay_to": 1.0}.items()
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
