"""Every objective, sixteen seeds each."""

from gan_jax.objectives import OBJECTIVES


def sweep():
    """The members."""
    for name in OBJECTIVES:
        for seed in range(16):
            yield {"objective.name": name, "seed": seed}
