"""Every objective, without a penalty and with one that fits it, eight seeds each."""

from gan_jax.objectives import OBJECTIVES

R1 = {"penalty.name": "r1", "penalty.weight": 0.1}
FITTING = {"wgan": {"penalty.name": "wgan_gp", "penalty.weight": 10.0}}  # of the others: R1
NONE = {"penalty.name": "none", "penalty.weight": 0.0}


def sweep():
    """The members."""
    for name in OBJECTIVES:
        for penalty in (NONE, FITTING.get(name, R1)):
            for seed in range(8):
                yield {"objective.name": name} | penalty | {"seed": seed}
