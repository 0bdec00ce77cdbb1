"""Numbers that move during a run: R3GAN's burn-in (arXiv:2501.05441), as functions of the step alone.

The learning rate has its course in `optimizers`, by the updates that an optimiser has counted.
"""

import jax
import jax.numpy as jnp

from gan_jax.state import Hyperparameters


def half_cosine(start, end, step, steps: int):
    """From `start` at step 0 to `end` at step `steps` by half a cosine, and `end` from there on, both exactly."""
    share = (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1))) / 2
    return share * start + (1 - share) * end


def at_step(steps: int, batch_size: int, hyperparameters: Hyperparameters, step) -> Hyperparameters:
    """The hyperparameters as they are in step number `step`, with a burn-in of `steps` steps.

    The weight of the penalty and b2 go to their final values. `ema_decay` becomes that of the step. Where the average
    has a half-life of H images, it is 0.5^(batch_size / H), with H growing from 0 to the final one: at first the
    average is the generator. Elsewhere it is capped: the average forgets its random start, since its memory is at most
    a ninth of the run so far, and a step.
    """
    given = hyperparameters
    weight, generator_b2, discriminator_b2 = (
        _moved(getattr(given, name), getattr(given, f"{name}_to"), step, steps)
        for name in ("penalty_weight", "generator_b2", "discriminator_b2")
    )
    decay = jnp.minimum(given.ema_decay, (1 + step) / (10 + step))
    if given.ema_half_life is not None:
        half_life = half_cosine(0.0, given.ema_half_life, step, steps)
        growing = 0.5 ** (batch_size / jnp.maximum(half_life, 1e-8))
        decay = jnp.where(given.ema_half_life > 0, growing, decay)
    return given.replace(
        penalty_weight=weight, generator_b2=generator_b2, discriminator_b2=discriminator_b2, ema_decay=decay
    )


def _moved(start, end: jax.Array | None, step, steps: int):
    """On the way from `start` to `end`; None, or 0 in a program of which other runs have an end, is no way to go."""
    return start if end is None else jnp.where(end > 0, half_cosine(start, end, step, steps), start)
