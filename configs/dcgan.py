"""DCGAN (arXiv:1511.06434) on handwritten digits, 8x8.

python -m gan_jax.main --config=configs/dcgan.py

Seen on 2 CPU cores: 61 s, recognisable and varied digits (docs/pictures/dcgan.png); sliced Wasserstein 0.033, where two
draws of real digits are 0.025 apart (`--mode=evaluate`).
"""

from configs import base


def get_config():
    """The non-saturating GAN of convolutional networks with batch normalisation, on scikit-learn's digits."""
    config = base.get_config()
    config.data.name = "digits"
    config.num_steps = 4_000
    config.batch_size = 64
    config.steps_per_call = 1
    config.latent.dim = 64
    for player in (config.generator, config.discriminator):
        player.update(network="dcgan", width=64, depth=2, normalization="batch")
        player.optimizer.update(learning_rate=5e-4, decay_to=0.1)
    return config
