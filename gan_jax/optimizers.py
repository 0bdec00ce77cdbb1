"""Optimisers by name, made from decay rates that may be traced arrays; the learning rate's decay; weight clipping."""

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


OPTIMIZERS = {"adam": adam, "rmsprop": rmsprop, "sgd": sgd}


def scale_by_decayed_rate(learning_rate, updates: int, decay_to: float) -> optax.GradientTransformation:
    """Descent at a rate that falls by half a cosine from `learning_rate` to `decay_to` of it after `updates` updates.

    With decay_to = 1 the rate is constant.
    """
    factor = optax.cosine_decay_schedule(1.0, updates, alpha=decay_to)
    return optax.scale_by_learning_rate(lambda count: learning_rate * factor(count))


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
