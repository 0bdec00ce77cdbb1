"""Every config key with its default; the other files in this folder change what they need and nothing else.

The keys are those of the parts that own them: `python -m gan_jax.config` prints them all. A value can be changed on the
command line: `--config=configs/mixture.py:ring8 --config.objective.name=wgan`.
"""

from gan_jax.config.schema import default_config


def get_config():
    """The defaults: a non-saturating GAN of two MLPs on eight Gaussians."""
    return default_config()
