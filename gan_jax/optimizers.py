"""Optimisers by name, made from decay rates that may be traced arrays; the learning rate's course; weight clipping."""

import jax
import jax.numpy as jnp
import optax


def adam(b1, b2) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980): b1 and b2 are the decay rates of the first and second moments."""
    return optax.scale_by_adam(b1, b2)


def rmsprop(b1, b2) -> optax.GradientTransformation:
    """RMSProp with momentum b1; b2 is the decay rate of the squared gradients."""
    return optax.chain(optax.scale_by_rms(decay=b2), optax.trace(decay=b1))


def sgd(b1, b2) -> optax.GradientTransformation:
    """Gradient descent with heavy-ball momentum b1; b2 has no meaning here."""
    return optax.trace(decay=b1)


def optimistic_adam(b1, b2) -> optax.GradientTransformation:
    """Adam whose step is twice its direction, less the one before (algorithm 1 of arXiv:1711.00141).

    The first step is a single direction, where the paper's is double: there is none before it to take off.
    """
    return optax.chain(adam(b1, b2), optax.scale_by_optimistic_gradient())


def optimistic_sgd(b1, b2) -> optax.GradientTransformation:
    """Optimistic gradient descent (arXiv:1711.00141) with heavy-ball momentum b1; b2 has no meaning here."""
    return optax.chain(sgd(b1, b2), optax.scale_by_optimistic_gradient())


OPTIMIZERS = {
    "adam": adam,
    "adamw": adam,  # what sets it apart is its weight decay
    "optimistic_adam": optimistic_adam,
    "optimistic_sgd": optimistic_sgd,
    "rmsprop": rmsprop,
    "sgd": sgd,
}
DECAYING = ("adamw",)  # those that have a weight decay
WITHOUT_B2 = ("sgd", "optimistic_sgd")  # those that ignore b2


def around(direction, clip_norm: float, weight_decay: float) -> list[optax.GradientTransformation]:
    """What an optimiser is before its rate: gradients clipped by their global norm, `direction`, weight decay; 0: none.

    The decay is that of AdamW (arXiv:1711.05101) as optax has it: of every parameter, and the rate multiplies it too.
    """
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return [*clip, direction, *decay]


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
