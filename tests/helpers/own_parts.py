"""Parts of one's own that tests name by import path: networks with noise, penalties that keep a state and report."""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

from gan_jax.networks.layers import Width
from gan_jax.objectives import WGAN, separable
from gan_jax.penalties import keeps, r1
from gan_jax.step import step
from gan_jax.step.state import Move
from gan_jax.utils.keys import FRACTION, TRACED


class NoisyGenerator(nn.Module):
    """An MLP with dropout, normalised, and noise that it adds to its output."""

    shape: tuple[int, ...] = (2,)
    width: Width = 128
    axis_name: str | None = None
    rate: Annotated[float, FRACTION, "share of the units that a step leaves out"] = 0.5

    @nn.compact
    def __call__(self, z, train: bool):
        x = nn.BatchNorm(not train, axis_name=self.axis_name if train else None)(nn.Dense(self.width)(z))
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        x = nn.Dense(self.shape[0])(x)
        return x + 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)


class NoisyDiscriminator(nnx.Module):
    """The same in NNX, without normalisation."""

    def __init__(self, width: Width = 128, *, rngs: nnx.Rngs):
        self.hidden, self.last = nnx.Linear(2, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.hidden(x))))[:, 0]


DECAY = 0.9


def _averaged(state, metrics):
    return DECAY * state + (1 - DECAY) * metrics["slope"]


@keeps(lambda: jnp.float32(1.0), _averaged)
def centred_r1(critic, keys, real, fake, state):
    """(|grad D|^2 - its moving average)^2, which reports |grad D|^2."""
    slope = r1(critic, keys, real, fake)
    return jnp.square(slope - state), {"slope": slope}


def _spread(real_logits, fake_logits):
    return WGAN.discriminator(real_logits, fake_logits), {"gap": jnp.abs(real_logits - fake_logits)}


reporting = WGAN._replace(discriminator=_spread)
clashing = WGAN._replace(generator=lambda fake, real: (-fake, {"g_loss": fake}))


def shifted(shift: Annotated[float, FRACTION, "of every real logit", TRACED] = 0.0):
    """WGAN with the real logits less `shift`."""
    return separable(lambda a: shift - a, lambda b: b, lambda b: -b, lambda loss: -loss)


def both_report(loss):
    """WGAN, each loss of which reports a metric of the same name."""
    return lambda *logits: (loss(*logits), {"gap": logits[0]})


gaps = WGAN._replace(discriminator=both_report(WGAN.discriminator), generator=both_report(WGAN.generator))


def pays_for_d(generate, keys, latents, fake):
    """Of G; it reports what is D's."""
    return jnp.zeros(len(fake)), {"d_loss": jnp.zeros(len(fake))}


def moved(generate, keys, latents, fake):
    """Of G: how far its images are from those of the same latents."""
    return jnp.sum(jnp.abs(generate(latents) - fake), axis=1)


def annotated(learning_rate, decay: "Annotated[float, FRACTION, 'of the average', TRACED]" = 0.5):
    """An optimiser whose annotations are texts, as `from __future__ import annotations` makes them."""
    return optax.sgd(learning_rate, decay)


def deciding(learning_rate, decay=0.5):
    """An optimiser that decides by a number."""
    return optax.sgd(learning_rate, decay if decay > 0 else None)


def _counting(recipe, devices, numbers, keys, state, batch):
    state, metrics = step.simultaneous(recipe, devices, numbers, keys, state, batch)
    return state.replace(own=state.own | {"moves": state.own["moves"] + 1}), metrics


counting = Move(_counting, initial=lambda: jnp.int32(0))


drift = (lambda key, x: jnp.ones(2), lambda params, x: params * x)
