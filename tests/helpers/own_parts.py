"""Parts of one's own that tests name by import path: networks with noise, penalties that keep a state and report."""

from typing import Annotated

import jax
import jax.numpy as jnp
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


def _counting(recipe, devices, numbers, keys, state, batch):
    state, metrics = step.simultaneous(recipe, devices, numbers, keys, state, batch)
    return state.replace(own=state.own | {"moves": state.own["moves"] + 1}), metrics


counting = Move(_counting, initial=lambda: jnp.int32(0))
