"""Spectral normalisation of D, without and with, under two objectives; no penalty, three seeds each."""


def sweep():
    """The members."""
    for name in ("non_saturating", "hinge"):
        for spectral_norm in (False, True):
            for seed in range(3):
                yield {
                    "objective.name": name,
                    "penalty.name": "none",
                    "penalty.weight": 0.0,
                    "discriminator.spectral_norm": spectral_norm,
                    "seed": seed,
                }
