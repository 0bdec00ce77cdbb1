"""Optimisers by name, and what a player's has beside: clipped gradients, the course of its rate, clipped weights.

An entry of OPTIMIZERS is a function of its parameters, which are config keys (see `gan_jax.utils.keys`) and may be
traced arrays: it returns the direction of descent as an optax transformation, or as several that follow one another.
An optimiser of one's own may be a transformation instead: it is the whole course of a player, its rate included.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax.utils.keys import (
    COMMON,
    COUNT,
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    SCHEDULED,
    SHARE,
    TRACED,
    Registry,
    bind,
    function,
)

Momentum = Annotated[float, FRACTION, "momentum: decay of the averaged gradients", TRACED, COMMON]
SquareDecay = Annotated[float, FRACTION, "decay of the averaged squared gradients; sgd has none", SCHEDULED, COMMON]


def adam(b1: Momentum = 0.5, b2: SquareDecay = 0.999):
    """Adam (arXiv:1412.6980): b1 and b2 are the decay rates of the first and second moments."""
    return optax.scale_by_adam(b1, b2)


def adamw(
    b1: Momentum = 0.5,
    b2: SquareDecay = 0.999,
    weight_decay: Annotated[float, NON_NEGATIVE, "of adamw: share of a parameter that an update of rate 1 takes"] = 0.0,
):
    """Adam with decoupled weight decay of every parameter (arXiv:1711.05101) as optax has it: the rate scales both."""
    return (adam(b1, b2), optax.add_decayed_weights(weight_decay)) if weight_decay else adam(b1, b2)


def rmsprop(b1: Momentum = 0.5, b2: SquareDecay = 0.999):
    """RMSProp with momentum b1; b2 is the decay rate of the squared gradients."""
    return optax.chain(optax.scale_by_rms(decay=b2), optax.trace(decay=b1))


def sgd(b1: Momentum = 0.5):
    """Gradient descent with heavy-ball momentum b1."""
    return optax.trace(decay=b1)


def optimistic_adam(b1: Momentum = 0.5, b2: SquareDecay = 0.999):
    """Adam whose step is twice its direction, less the one before (algorithm 1 of arXiv:1711.00141).

    The first step is a single direction, where the paper's is double: there is none before it to take off.
    """
    return optax.chain(adam(b1, b2), optax.scale_by_optimistic_gradient())


def optimistic_sgd(b1: Momentum = 0.5):
    """Optimistic gradient descent (arXiv:1711.00141) with heavy-ball momentum b1."""
    return optax.chain(sgd(b1), optax.scale_by_optimistic_gradient())


def is_whole(optimizer: Any) -> bool:
    """Whether an entry is a transformation with a rate of its own."""
    return isinstance(optimizer, optax.GradientTransformation)


OPTIMIZERS = Registry(
    {
        "adam": adam,
        "adamw": adamw,
        "optimistic_adam": optimistic_adam,
        "optimistic_sgd": optimistic_sgd,
        "rmsprop": rmsprop,
        "sgd": sgd,
    },
    lambda part: part if is_whole(part) else function(part),
)


class OptimizerKeys(NamedTuple):
    """The config keys of every optimiser, beside its own."""

    learning_rate: Annotated[float, POSITIVE, "size of a step", TRACED] = 2e-4
    decay_to: Annotated[float, SHARE, "share of the rate after the burn-in, by half a cosine; 1: constant"] = 1.0
    warmup: Annotated[int, COUNT, "steps over which the rate first rises linearly; 0: none"] = 0
    clip_norm: Annotated[float, NON_NEGATIVE, "norm to which a player's whole gradient is cut down; 0: never"] = 0.0


def make_optimizer(
    prefix: str, values: Mapping[str, Any], steps: int, updates_per_step: int, *last: optax.GradientTransformation
) -> Callable[[Mapping[str, Any]], optax.GradientTransformation]:
    """A player's optimiser, as a function of the traced numbers of a step, {config key: number}.

    Args:
      prefix: of its config keys, dotted; values: of these, by name.
      steps: train steps of the burn-in, over which the rate decays.
      updates_per_step: of this player.
      last: what follows the rate.
    """
    optimizer = OPTIMIZERS[values["name"]]
    if is_whole(optimizer):
        return lambda numbers: optax.chain(optimizer, *last)
    direction = bind(prefix, optimizer, values)
    updates, warmup = steps * updates_per_step, values["warmup"] * updates_per_step

    def of_numbers(numbers):
        rate = scale_by_decayed_rate(numbers[f"{prefix}.learning_rate"], updates, values["decay_to"], warmup)
        return optax.chain(*_with_clip(direction(numbers)(), values["clip_norm"]), rate, *last)

    return of_numbers


def _with_clip(direction, clip_norm: float) -> list[optax.GradientTransformation]:
    """An entry's transformations, after gradients are clipped by their global norm; 0: not clipped."""
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return [*clip, *([direction] if isinstance(direction, optax.GradientTransformation) else direction)]


def scale_by_decayed_rate(
    learning_rate, updates: int, decay_to: float, warmup: int = 0
) -> optax.GradientTransformation:
    """Descent at a rate that falls by half a cosine from `learning_rate` to `decay_to` of it after `updates` updates.

    With decay_to = 1 the rate is constant. The first `warmup` updates have 1 / warmup, 2 / warmup, ... of that rate.
    """
    factor = optax.cosine_decay_schedule(1.0, updates, alpha=decay_to)
    if not warmup:
        return optax.scale_by_learning_rate(lambda count: learning_rate * factor(count))
    return optax.scale_by_learning_rate(
        lambda count: learning_rate * factor(count) * jnp.minimum((count + 1) / warmup, 1)
    )


def clip_weights(bound: float) -> optax.GradientTransformation:
    """Keeps every parameter within [-bound, bound] after its update (WGAN, arXiv:1701.07875, algorithm 1).

    The last transform of a chain. The bound holds exactly for the updated parameters, not only up to rounding.
    """

    def update(updates, state, params):
        return jax.tree.map(lambda param, update: _clipped(param, update, bound), params, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _clipped(param, update, bound):
    update = jnp.clip(param + update, -bound, bound) - param
    # The difference is rounded, so that the sum may end just outside the bound; the next float inwards cannot.
    moved = param + update
    update = jnp.where(moved > bound, jnp.nextafter(update, -jnp.inf), update)
    return jnp.where(moved < -bound, jnp.nextafter(update, jnp.inf), update)
