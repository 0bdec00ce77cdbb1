"""WGAN with weight clipping (arXiv:1701.07875) on handwritten digits.

python -m gan_jax.main --config=configs/wgan.py
"""

from configs import dcgan


def get_config():
    """DCGAN's networks as a Wasserstein GAN: five clipped critic updates for each of the generator, RMSProp."""
    config = dcgan.get_config()
    config.objective.name = "wgan"
    config.discriminator.update(steps=5, clip=0.01)
    for player in (config.generator, config.discriminator):
        player.optimizer.update(name="rmsprop", learning_rate=5e-5, b1=0.0, b2=0.99)
    return config
