"""Regularisers of D, against learning few examples by heart: ADA's controller, LeCam's regulariser, consistency.

What they keep from one update of D for the next ones is `state.RegularizerState`, float32 scalars, moved by means over
the whole batch that every device has alike. Pure functions of arrays.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.step.state import Adaptive, LogitAverages, RegularizerState
from gan_jax.utils.keys import FRACTION, NON_NEGATIVE, POSITIVE_INT, TRACED, Needs

EQUAL = 1e-5  # a mean of signs that is nearer to the target is at it
NEEDS_POLICY = Needs("augment.policy")


class AdaKeys(NamedTuple):
    """The config keys of ADA (arXiv:2006.06676), in the group `augment`."""

    ada_target: Annotated[
        float,
        FRACTION,
        "of E[sign(D(real))], towards which ADA moves the probability; 0: it stays",
        TRACED,
        NEEDS_POLICY,
    ] = 0.0
    ada_interval: Annotated[int, POSITIVE_INT, "updates of D from one move of ADA's to the next"] = 4
    ada_images: Annotated[int, POSITIVE_INT, "real images in which the probability can go from 0 to 1"] = 500_000


class RegularizerKeys(NamedTuple):
    """The config keys of the terms in D's loss, in the group `discriminator`."""

    lecam: Annotated[float, NON_NEGATIVE, "weight of LeCam's regulariser in D's loss", TRACED] = 0.0
    lecam_decay: Annotated[float, FRACTION, "of the averages of D's logits that LeCam's regulariser needs"] = 0.99
    consistency: Annotated[
        float, NON_NEGATIVE, "weight of (D(x) - D(T(x)))^2 at real x, T being augment.policy", TRACED, NEEDS_POLICY
    ] = 0.0
    fake_consistency: Annotated[float, NON_NEGATIVE, "the same at fake x", TRACED, NEEDS_POLICY] = 0.0


def initial(numbers: Mapping[str, jax.Array]) -> RegularizerState | None:
    """The state before the first update of D; None if these hyperparameters need none."""
    adaptive = averages = None
    if "augment.ada_target" in numbers:
        # A copy: the whole state is donated, and a buffer can be donated only once.
        start = jnp.copy(numbers.get("augment.probability", jnp.float32(0)))
        adaptive = Adaptive(start, jnp.float32(0), jnp.float32(0))
    if "discriminator.lecam" in numbers:
        averages = LogitAverages(jnp.float32(0), jnp.float32(0), jnp.float32(0))
    return None if adaptive is None and averages is None else RegularizerState(adaptive, averages)


def updated(
    decay: float, stride: float, interval: int, numbers: Mapping[str, jax.Array], state: RegularizerState, metrics
) -> RegularizerState:
    """The state after an update of D with these metrics, which are means over the whole batch.

    Args:
      decay: of LeCam's averages.
      stride, interval: see `adapted`.
    """
    adaptive, averages = state.adaptive, state.averages
    if adaptive is not None:
        overfitting = 2 * metrics["d_accuracy_real"] - 1
        adaptive = adapted(adaptive, numbers["augment.ada_target"], overfitting, stride, interval)
    if averages is not None:
        averages = averaged(averages, decay, metrics["d_real"], metrics["d_fake"])
    return RegularizerState(adaptive, averages)


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


WEIGHTS = {"discriminator.lecam", "discriminator.consistency", "discriminator.fake_consistency"}  # keys of the terms


def terms(
    numbers: Mapping[str, jax.Array],
    state: RegularizerState | None,
    real_logits,
    fake_logits,
    on_real: Callable,
    on_fake: Callable,
) -> dict:
    """What D pays beside its loss and its penalty: {name: (weight, value)}, of the terms that a run of the program has.

    Args:
      real_logits, fake_logits: [n], of what D saw.
      on_real, on_fake: () -> D's logits [n] of the same examples, transformed.
    """
    weighted = {}
    if "discriminator.lecam" in numbers:
        weighted["lecam"] = numbers["discriminator.lecam"], lecam(real_logits, fake_logits, state.averages)
    if "discriminator.consistency" in numbers:
        weighted["consistency"] = numbers["discriminator.consistency"], consistency(real_logits, on_real())
    if "discriminator.fake_consistency" in numbers:
        weighted["fake_consistency"] = numbers["discriminator.fake_consistency"], consistency(fake_logits, on_fake())
    return weighted
