"""Numbers that move during a run, as functions of the step alone: R3GAN's burn-in (arXiv:2501.05441), and others.

The learning rate has its course in `optimizers`, by the updates that an optimiser has counted.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.utils.keys import FRACTION, NON_NEGATIVE, TRACED


class AverageKeys(NamedTuple):
    """The config keys of the generator's moving average, from which samples are made."""

    ema_decay: Annotated[float, FRACTION, "of the moving average that samples are made from; 0: none", TRACED] = 0.999
    ema_half_life: Annotated[
        float, NON_NEGATIVE, "or images in which it forgets half, growing from 0 over the burn-in; 0: off", TRACED
    ] = 0.0


# Keys that say over how many steps others run, 0 for num_steps: whether a config key is one of these others.
LENGTHS = {
    "burn_in": lambda key: key.endswith("_to") or key == "generator.ema_half_life",
    "augment.instance_noise_steps": lambda key: key == "augment.instance_noise",
}


def half_cosine(start, end, step, steps: int):
    """From `start` at step 0 to `end` at step `steps` by half a cosine, and `end` from there on, both exactly."""
    share = (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1))) / 2
    return share * start + (1 - share) * end


def annealed(start, step, steps: int):
    """`start` falling linearly over so many steps, from all of it at step 0 to 0 at their end, and 0 from there on."""
    return start * jnp.maximum(0.0, 1 - step / steps)


def at_step(burn_in: int, noise_steps: int, batch_size: int, numbers: Mapping[str, jax.Array], step) -> dict:
    """The traced numbers {config key: number} as they are in step number `step`.

    A number with an end, KEY_to, is on its way there over the burn-in. Instance noise falls to 0 over `noise_steps`.
    `generator.ema_decay` becomes that of the step. Where the average has a half-life of H images, it is
    0.5^(batch_size / H), with H growing from 0 to the final one: at first the average is the generator. Elsewhere it is
    capped: the average forgets its random start, since its memory is at most a ninth of the run so far, and a step.
    """
    now = dict(numbers)
    for key, end in numbers.items():
        if key.endswith("_to"):
            start = numbers.get(key.removesuffix("_to"), jnp.float32(0))
            # 0, in a program of which other runs have an end, is no way to go.
            now[key.removesuffix("_to")] = jnp.where(end > 0, half_cosine(start, end, step, burn_in), start)
    if "augment.instance_noise" in numbers:
        now["augment.instance_noise"] = annealed(numbers["augment.instance_noise"], step, noise_steps)
    decay = jnp.minimum(numbers["generator.ema_decay"], (1 + step) / (10 + step))
    if "generator.ema_half_life" in numbers:
        final = numbers["generator.ema_half_life"]
        growing = 0.5 ** (batch_size / jnp.maximum(half_cosine(0.0, final, step, burn_in), 1e-8))
        decay = jnp.where(final > 0, growing, decay)
    return now | {"generator.ema_decay": decay}
