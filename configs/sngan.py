"""SNGAN with residual networks (arXiv:1802.05957) on handwritten digits, 8x8, or on CIFAR-10, 32x32x3.

python -m gan_jax.main --config=configs/sngan.py
python -m gan_jax.main --config=configs/sngan.py:cifar10                            # for an accelerator
python -m gan_jax.main --config=configs/sngan.py:cifar10 --config.conditional=True  # arXiv:1802.05637

Seen on 2 CPU cores: digits, 5 min beside other work, all ten classes, sliced Wasserstein 0.081 (two draws of real
digits: 0.024). The CIFAR-10 variant has the networks, rates and length of the paper's published code, but for what
gan_jax/networks/resnet.py says and for the decay, which is half a cosine here and a line in that code; with labels
G has a scale and a shift for each class in its normalisations and D a projection. That one was not run to its end.
"""

from gan_jax.config import default_config

VARIANTS = ("digits", "cifar10")


def get_config(variant="digits"):
    """The hinge loss, spectral normalisation in D and batch normalisation in G, five updates of D for each of G."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; valid variants: {', '.join(VARIANTS)}")
    config = default_config()
    config.data.name = "digits"
    config.objective.name = "hinge"
    config.num_steps = 1_500
    config.batch_size = 64
    config.steps_per_call = 1
    config.latent.dim = 128
    config.generator.normalization = "batch"
    config.discriminator.update(spectral_norm=True, steps=5)
    for player in (config.generator, config.discriminator):
        player.update(network="resnet", width=32, depth=1, activation="relu")
        player.optimizer.update(learning_rate=5e-4, b1=0.0, b2=0.9, decay_to=0.1)
    config.evaluation.extractor = "digits"
    if variant == "cifar10":
        _as_published(config)
    return config


def _as_published(config):
    """At 32x32: 4x4 innermost in G, 8x8 in D."""
    config.data.name = "tfds:cifar10"
    config.num_steps = 50_000
    config.generator.update(width=256, depth=3)
    config.discriminator.update(width=128, depth=2)
    for player in (config.generator, config.discriminator):
        player.optimizer.update(learning_rate=2e-4, decay_to=0.0)
    config.evaluation.update(extractor="cifar10", num_samples=10_000)
