"""MLE-GAN: the generator's loss is -exp(a), whose gradient is that of maximum likelihood (arXiv:1412.6515).

python -m gan_jax.main --config=configs/mle_gan.py
"""

from configs import dcgan


def get_config():
    """DCGAN's networks with the MLE-GAN objective on scikit-learn's digits."""
    config = dcgan.get_config()
    config.objective.name = "mle"
    return config
