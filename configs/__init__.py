"""Configs: each file states its differences from the defaults. `gan_jax/configs` is a link to this folder."""
