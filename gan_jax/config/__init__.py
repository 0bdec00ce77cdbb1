"""From a config to functions: the keys, their checks, and the recipe that they make."""

from gan_jax.config.schema import default_config

__all__ = ["default_config"]
