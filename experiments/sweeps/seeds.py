"""Four objectives, sixteen seeds each."""


def sweep():
    """The members."""
    for name in ("non_saturating", "mle", "hinge", "rpgan"):
        for seed in range(16):
            yield {"objective.name": name, "seed": seed}
