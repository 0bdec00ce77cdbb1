"""Penalties, one value an example: gradient penalties on the discriminator, and the generator's.

Every penalty is called as `penalty(critic, keys, real, fake) -> [n]`, or ([n], {metric: [n]}) if it reports any:
  critic: x [n, ...] -> logits [n], each logit a function of its own example alone (so no batch normalisation and
    no minibatch layer); where D sees packs of examples, each pack is one here, with one key;
  keys: [n] typed PRNG keys, one an example, so that the shards of a batch draw what the whole batch would;
  real, fake: [n, ...] float arrays.
The step multiplies by `penalty.weight` and takes the mean. Norms are Euclidean over all axes of an example. Further
parameters that are annotated are config keys (see `gan_jax.utils.keys`); `scale` is the data's standard deviation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gan_jax.utils.keys import Registry, function


def _squared_norms(critic, x):
    """The squared norm of each example's gradient, [n]: one backward pass, since logits do not mix examples."""
    gradients = jax.grad(lambda x: jnp.sum(critic(x)))(x)
    return jnp.sum(jnp.square(gradients).reshape(len(x), -1), axis=1)


def _norms(critic, x):
    # The square root has an infinite slope at 0; below the floor the norm is constant and its gradient 0.
    return jnp.sqrt(jnp.maximum(_squared_norms(critic, x), 1e-24))


def _interpolates(keys, real, fake):
    weights = jax.vmap(lambda key: jax.random.uniform(key, (1,) * (real.ndim - 1), real.dtype))(keys)
    return weights * real + (1 - weights) * fake


def none(critic, keys, real, fake):
    """No penalty: zeros."""
    return jnp.zeros(len(real))


def wgan_gp(critic, keys, real, fake):
    """(|grad D(x)| - 1)^2 at x uniform between a real and a fake example (arXiv:1704.00028, equation 3)."""
    return jnp.square(_norms(critic, _interpolates(keys, real, fake)) - 1)


def wgan_gp_one_sided(critic, keys, real, fake):
    """max(0, |grad D(x)| - 1)^2 at the same interpolates: only slopes above 1 cost (arXiv:1709.08894, WGAN-LP)."""
    return jnp.square(jax.nn.relu(_norms(critic, _interpolates(keys, real, fake)) - 1))


def dragan(critic, keys, real, fake, scale=None):
    """(|grad D(x)| - 1)^2 around the real examples (arXiv:1705.07215), at the points of the paper's published code.

    x = real + 0.5 scale alpha u, with u uniform on [0, 1) in each component and alpha one number an example.

    Args:
      scale: the standard deviation of the data; of this batch where it is not given, as in the paper's code. A run
        gives that of the data set, which is the same on every device.
    """
    scale = jnp.std(real) if scale is None else scale
    noise = jax.vmap(lambda key: _dragan_noise(key, real.shape[1:], real.dtype))(keys)
    return jnp.square(_norms(critic, real + 0.5 * scale * noise) - 1)


def _dragan_noise(key, shape, dtype):
    alpha_key, noise_key = jax.random.split(key)
    alpha = jax.random.uniform(alpha_key, (), dtype)
    return alpha * jax.random.uniform(noise_key, shape, dtype)


def r1(critic, keys, real, fake):
    """|grad D(x)|^2 at the real examples (arXiv:1801.04406, equation 9); the paper's gamma / 2 is the weight."""
    return _squared_norms(critic, real)


def r2(critic, keys, real, fake):
    """|grad D(x)|^2 at the fake examples (arXiv:1801.04406, section 4.1); the paper's gamma / 2 is the weight."""
    return _squared_norms(critic, fake)


def r1_r2(critic, keys, real, fake):
    """R1 + R2, as in R3GAN (arXiv:2501.05441): the weight is gamma / 2 of either."""
    return r1(critic, keys, real, fake) + r2(critic, keys, real, fake)


PENALTIES = Registry(
    {
        "none": none,
        "wgan_gp": wgan_gp,
        "wgan_gp_one_sided": wgan_gp_one_sided,
        "dragan": dragan,
        "r1": r1,
        "r2": r2,
        "r1_r2": r1_r2,
    },
    function,
)


def keeps(initial: Callable, update: Callable) -> Callable[[Callable], Callable]:
    """A decorator of a penalty, of either player, that keeps a state from step to step; it takes `state=` too.

    Args:
      initial: () -> the state before the first step, a pytree of arrays.
      update: (state, metrics) -> the next one, after the update of a player that paid the penalty. `metrics` are what
        the update reports, means over the whole batch: what the penalty reports is among them.
    """

    def mark(penalty: Callable) -> Callable:
        penalty.initial, penalty.update = initial, update
        return penalty

    return mark


def mode_seeking(generate, keys, latents, fake, prior, mean):
    """|z - z'| / |G(z) - G(z')|, the same for all examples: means of absolute differences of latents and of images.

    Of arXiv:1903.05628, as in its published code: both means are over the whole batch, whose latents meet others, and
    1e-5 is added to the inverse. A ratio for each example would be without bound where two images are alike.
    """
    others = prior(keys)
    ratio = mean(jnp.abs(generate(others) - fake)) / jnp.maximum(mean(jnp.abs(others - latents)), 1e-8)
    return jnp.full(len(fake), 1 / (ratio + 1e-5))


# Of the generator, called as penalty(generate, keys [n], latents [n, d], fake [n, ...]) -> [n]: `generate` is G in
# training, latents -> examples, at the labels of the batch, and fake = generate(latents). It may ask for `prior`, keys
# -> latents, and `mean`, an array -> the mean over the whole batch, on all devices.
GENERATOR_PENALTIES = Registry({"none": none, "mode_seeking": mode_seeking}, function)
