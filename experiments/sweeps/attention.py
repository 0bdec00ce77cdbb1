"""A DCGAN on the digits with spectral normalisation, without and with self-attention in both players: three seeds each.

python -m gan_jax.sweep --config=configs/dcgan.py --sweep=experiments/sweeps/attention.py --workdir=DIR

The images inside that attend are 4x4, the middle of three sizes. SAGAN's losses and normalisations: hinge, spectral in
both players, batch in G.

What came of it, in 2 minutes on two CPU cores beside other work:
experiments/results/sweeps/attention_digits/summary.md.
"""

SHARED = {
    "num_steps": 2_000,
    "generator.width": 32,
    "discriminator.width": 32,
    "objective.name": "hinge",
    "discriminator.normalization": "none",
    "discriminator.spectral_norm": True,
    "generator.spectral_norm": True,
}


def sweep():
    """The members."""
    for size in (0, 4):
        for seed in range(3):
            yield SHARED | {"generator.attention": size, "discriminator.attention": size, "seed": seed}
