"""What R3GAN's recipe is made of (arXiv:2501.05441): its loss without a penalty, with R1, R2 or both; its schedules.

python -m gan_jax.sweep --config=configs/mixture.py:grid25 --sweep=experiments/sweeps/r3gan.py --workdir=DIR

Three seeds of each. The relativistic loss everywhere; the schedules are those of the published code over the first two
thirds of the run, from the numbers that the runs without them keep.

What came of it, in 5 minutes on two CPU cores beside other work:
experiments/results/sweeps/r3gan_grid25/summary.md.
"""

STEPS = 6_000
WEIGHT = 0.1
RATES = {"learning_rate": 4e-3, "b1": 0.0, "b2": 0.9, "decay_to": 1.0}
PLAIN = {"objective.name": "rpgan", "num_steps": STEPS, "evaluate_every": 2_000} | {
    f"{player}.optimizer.{key}": value for player in ("generator", "discriminator") for key, value in RATES.items()
}
PENALTIES = (
    {"penalty.name": "none", "penalty.weight": 0.0},
    {"penalty.name": "r1", "penalty.weight": WEIGHT},
    {"penalty.name": "r2", "penalty.weight": WEIGHT},
    {"penalty.name": "r1_r2", "penalty.weight": WEIGHT},
)
BURN_IN = {"burn_in": 2 * STEPS // 3}
RATE, B2 = (
    BURN_IN | {f"{player}.optimizer.{key}": value for player in ("generator", "discriminator")}
    for key, value in (("decay_to", 0.25), ("b2_to", 0.99))
)
GAMMA = BURN_IN | {"penalty.weight_to": WEIGHT / 10}
AVERAGE = BURN_IN | {"generator.ema_decay": 0.0, "generator.ema_half_life": 64_000.0}  # 250 steps
SCHEDULES = (RATE, B2, GAMMA, AVERAGE, RATE | B2 | GAMMA | AVERAGE)


def sweep():
    """The members."""
    for variant in (*PENALTIES, *(PENALTIES[-1] | schedule for schedule in SCHEDULES)):
        for seed in range(3):
            yield PLAIN | variant | {"seed": seed}
