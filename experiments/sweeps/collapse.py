"""What each remedy against mode collapse does to a minimax GAN without a penalty: three seeds of each, and of none.

python -m gan_jax.sweep --config=configs/mixture.py:grid25 --sweep=experiments/sweeps/collapse.py --workdir=DIR

experiments/results/sweeps/collapse_grid25/summary.md has what came of it, in 10 minutes on two CPU cores
beside other work. The setting is one in which the plain GAN fails: of eight that were tried with a seed each, the one
that lost the most modes, by rates that do not fall and two updates of D a step. At the rates of the config, a batch of
256 and one update of D it has all 25 modes.
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
    # What D is told, or made to be.
    {"discriminator.packing": 2},
    {"discriminator.packing": 4},
    {"discriminator.minibatch_stddev": 4},
    {"discriminator.minibatch_discrimination": 16},
    {"discriminator.spectral_norm": True},
    {"discriminator.normalization": "layer"},
    {"penalty.name": "r1", "penalty.weight": 0.1},
    {"penalty.name": "r1", "penalty.weight": 0.1, "penalty.every": 8},
    {"penalty.name": "r1_r2", "penalty.weight": 0.1},
    {"penalty.name": "wgan_gp", "penalty.weight": 1.0},
    {"discriminator.optimizer.clip_norm": 0.1, "generator.optimizer.clip_norm": 0.1},
    # What both see, and what G descends.
    {"augment.instance_noise": 1.0},  # half of the distance between neighbouring modes
    {"objective.label_smoothing": 0.1},
    {"discriminator.lecam": 0.1},
    {"objective.feature_matching": 1.0},
    {"objective.name": "feature_matching", "objective.feature_matching": 1.0},
    {"objective.name": "non_saturating"},
    {"objective.name": "rpgan"},
    {"objective.name": "rpgan", "penalty.name": "r1_r2", "penalty.weight": 0.1},
    # How they move: all but the last with one update of D a step, so that the first of these is what they add to.
    {"discriminator.steps": 1},
    {"moves": "simultaneous", "discriminator.steps": 1},
    {"moves": "extragradient", "discriminator.steps": 1},
    {"moves": "consensus", "consensus.weight": 1.0, "discriminator.steps": 1},
    {"generator.optimizer.name": "optimistic_adam", "discriminator.optimizer.name": "optimistic_adam"},
)


def sweep():
    """The members."""
    for remedy in REMEDIES:
        for seed in range(3):
            yield PLAIN | remedy | {"seed": seed}
