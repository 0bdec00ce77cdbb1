"""Four orders of the loss with four seeds each, in one program.

python -m gan_jax.sweep --config=config.py --sweep=sweep.py --workdir=DIR
"""


def sweep():
    """Sixteen members; a sweep keeps no best checkpoint."""
    for alpha in (0.7, 1.0, 2.0, 5.0):
        for seed in range(4):
            yield {"objective.alpha": alpha, "seed": seed, "evaluation.best": ""}
