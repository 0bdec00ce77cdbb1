"""What is done to examples before the discriminator sees them, real and fake alike, in the passes of both players.

Functions of (keys [n], x [n, ...], ...), one key an example, so that the shards of a batch draw what the whole batch
would. What the generator makes, and what samples and scores are made from, they never touch.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.step import transforms
from gan_jax.utils.keys import COUNT, NON_NEGATIVE, SHARE, TRACED, Needs, Rule

_POLICY = Rule(
    str,
    transforms.is_policy,
    f"{transforms.NONE}, or some of {', '.join(transforms.NAMES)} with commas between, none twice",
)


class AugmentKeys(NamedTuple):
    """The config keys of what is done to examples."""

    instance_noise: Annotated[
        float, NON_NEGATIVE, "standard deviation of noise on what D sees, falling linearly to 0 over the run", TRACED
    ] = 0.0
    instance_noise_steps: Annotated[
        int, COUNT, "or over so many steps; 0: num_steps", Needs("augment.instance_noise")
    ] = 0
    policy: Annotated[str, _POLICY, "transforms of what D sees, such as color,translation,cutout"] = transforms.NONE
    probability: Annotated[
        float, SHARE, "with which a transform is applied; where ADA moves it, at the start", TRACED
    ] = 1.0


def augmented(policy: Sequence[Callable], keys, x, probability, noise):
    """What D sees of x [n, ...]: transformed with this probability, then with noise of this size; None: without."""
    if probability is not None:
        x = transformed(keys, x, policy, probability)
    return x if noise is None else instance_noise(keys, x, noise)


def instance_noise(keys, x, sigma):
    """x + sigma e with e ~ N(0, 1) in each component (arXiv:1610.04490): both densities are blurred alike.

    Args:
      keys: [n]; x: [n, ...] float; sigma: of the noise, in units of the data.
    """
    return x + sigma * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def transformed(keys, x, policy: Sequence[Callable], probability):
    """Images with each transform of `policy` in turn, each applied with this probability, to each image by itself.

    At 1 with those of arXiv:2006.10738 this is DiffAugment; with a probability that ADA moves it is the pipeline of
    arXiv:2006.06676. Differentiable in x: a generator learns through it.

    Args:
      keys: [n]; x: [n, h, w, c] float; policy: see `gan_jax.step.transforms`.
    """

    def of_one(key, image):
        # Instance noise is drawn at smaller numbers of the same keys.
        own = jax.random.split(jax.random.fold_in(key, 2**32 - 1), (len(policy), 2))
        for transform, (choice, draw) in zip(policy, own, strict=True):
            chosen = jax.random.uniform(choice) < probability
            image = jnp.where(chosen, transform(draw, image), image)
        return image

    return jax.vmap(of_one)(keys, x)
