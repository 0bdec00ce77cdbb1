"""Every objective at eight learning rates of both players, four seeds each: where it is stable."""

from gan_jax.objectives import OBJECTIVES

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


def sweep():
    """The members."""
    for name in OBJECTIVES:
        for rate in RATES:
            for seed in range(4):
                rates = {f"{player}.optimizer.learning_rate": rate for player in ("generator", "discriminator")}
                yield {"objective.name": name} | rates | {"seed": seed}
