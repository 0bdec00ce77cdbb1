"""Against a discriminator that learns few examples by heart: ADA's controller, LeCam's regulariser, consistency.

What they remember from one update of D to the next is `state.Memory`, float32 scalars, moved by means over the whole
batch that every device has alike. Pure functions of arrays.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gan_jax.state import Adaptive, Hyperparameters, LogitAverages, Memory, TrainState

EQUAL = 1e-5  # what lies nearer to the target is at it


def initial(hyperparameters: Hyperparameters) -> Memory | None:
    """What is remembered before the first update of D; None where there is nothing to remember."""
    adaptive = averages = None
    if hyperparameters.ada_target is not None:
        start = hyperparameters.augment_probability
        # A copy: the whole state is donated, and a buffer can be donated only once.
        start = jnp.float32(0) if start is None else jnp.copy(start)
        adaptive = Adaptive(start, jnp.float32(0), jnp.float32(0))
    if hyperparameters.lecam is not None:
        averages = LogitAverages(jnp.float32(0), jnp.float32(0), jnp.float32(0))
    return None if adaptive is None and averages is None else Memory(adaptive, averages)


def probability(state: TrainState):
    """With which each transform is applied now; None where none is, in any run of the program."""
    if state.memory is None or state.memory.adaptive is None:
        return state.hyperparameters.augment_probability
    return state.memory.adaptive.probability


def remembered(
    decay: float, images: int, interval: int, span: int, hyperparameters: Hyperparameters, memory: Memory, metrics
) -> Memory:
    """The memory after an update of D with these metrics, which are means over the whole batch.

    Args:
      decay: of LeCam's averages.
      images, interval, span: see `adapted`.
    """
    adaptive, averages = memory.adaptive, memory.averages
    if adaptive is not None:
        overfitting = 2 * metrics["d_accuracy_real"] - 1
        adaptive = adapted(adaptive, hyperparameters.ada_target, overfitting, images * interval / span, interval)
    if averages is not None:
        averages = averaged(averages, decay, metrics["d_real"], metrics["d_fake"])
    return Memory(adaptive, averages)


def adapted(adaptive: Adaptive, target, overfitting, stride: float, interval: int) -> Adaptive:
    """ADA's controller (arXiv:2006.06676, section 3.1) after one more update of D.

    Every `interval` updates p moves by `stride`, up where the mean of r_t over these is above its target and down where
    it is below, and stays in [0, 1]. The published code moves by batch_size * interval / span, with span = 500,000
    images in which p can go from 0 to 1; it has no upper bound, where a probability has one.

    Args:
      target: of r_t; where it is 0, p stays.
      overfitting: r_t = E[sign(D(x))] over the real examples of the update, 2 * accuracy - 1.
    """
    signs, updates = adaptive.signs + overfitting, adaptive.updates + 1
    due, distance = updates >= interval, signs / updates - target
    # Means are over a few signs, and may be the target: on which side of it rounding puts them depends on the layout.
    direction = jnp.where((jnp.abs(distance) < EQUAL) | (target == 0), 0, jnp.sign(distance))
    moved = jnp.clip(adaptive.probability + direction * stride, 0, 1)
    return Adaptive(jnp.where(due, moved, adaptive.probability), jnp.where(due, 0, signs), jnp.where(due, 0, updates))


def averaged(averages: LogitAverages, decay: float, real, fake) -> LogitAverages:
    """LeCam's averages after an update of D whose mean logits were `real` and `fake`."""
    new = LogitAverages(real, fake, jnp.ones_like(averages.weight))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, averages, new)


def lecam(real_logits, fake_logits, averages: LogitAverages):
    """E[relu(a - alpha_F)^2] + E[relu(alpha_R - b)^2] (arXiv:2104.03310; the relu is of the code, google/lecam-gan).

    a and b are D's logits, alpha_R and alpha_F the averages of the updates before this one, without the bias of their
    start; before the first update there are none, and this is 0. The published code counts the update at hand too:
    without it the parts of a batch need not agree on its mean before they have a loss.
    """
    started = averages.weight > 0
    weight = jnp.where(started, averages.weight, 1)
    real, fake = averages.real / weight, averages.fake / weight
    above = jnp.mean(jnp.square(jax.nn.relu(real_logits - fake)))
    below = jnp.mean(jnp.square(jax.nn.relu(real - fake_logits)))
    return jnp.where(started, above + below, 0)


def consistency(logits, others):
    """E[(D(x) - D(T(x)))^2] (arXiv:1910.12027, equation 3) of both logits [n]."""
    return jnp.mean(jnp.square(logits - others))


def regularisers(state: TrainState, real_logits, fake_logits, on_real: Callable, on_fake: Callable) -> dict:
    """What D pays beside its loss and its penalty: {name: (weight, value)}, for what a run of the program has.

    Args:
      real_logits, fake_logits: [n], of what D saw.
      on_real, on_fake: () -> D's logits [n] of the same examples, transformed.
    """
    numbers, terms = state.hyperparameters, {}
    if numbers.lecam is not None:
        terms["lecam"] = numbers.lecam, lecam(real_logits, fake_logits, state.memory.averages)
    if numbers.consistency is not None:
        terms["consistency"] = numbers.consistency, consistency(real_logits, on_real())
    if numbers.fake_consistency is not None:
        terms["fake_consistency"] = numbers.fake_consistency, consistency(fake_logits, on_fake())
    return terms
