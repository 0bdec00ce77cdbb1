"""gan_jax: generative adversarial networks as pure functions, in JAX and Flax."""
