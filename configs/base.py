"""The defaults: a non-saturating GAN of two MLPs on eight Gaussians.

The keys stand at the parts that own them: `gan_jax/config/schema.py` gathers them, `python -m gan_jax list keys` prints
them. The command line can change a value: `--config=configs/mixture.py:ring8 --config.objective.name=wgan`.
"""

from gan_jax.config import default_config


def get_config():
    """The defaults."""
    return default_config()
