"""The gradient of MLE-GAN on samples: a Gaussian generator on the line, by reparameterisation, against closed forms.

p_data = N(0, 1) and G(z) = mean + exp(log_scale) z. With the critic fixed at a* = log p_data - log p_g, the gradient of
E_z[-exp(a*(G(z)))] in the generator's parameters is that of KL(p_data || p_g), which is also that of the
maximum-likelihood loss E_{x ~ p_data}[-log p_g(x)] (arXiv:1412.6515).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from gan_jax.objectives import OBJECTIVES
from gan_jax.theory import gaussian_kl

SAMPLES = 400_000
# Wider than p_data: the variance of exp(a*) = p_data / p_g is finite only where 2 scale^2 > 1.
PARAMETERS = (0.5, 0.25)  # mean, log scale


class Row(NamedTuple):
    """One component of a gradient."""

    estimate: float
    standard_error: float
    exact: float


def mle_gan(parameters, z):
    """The shipped `mle` generator loss at the optimal critic of these parameters, held fixed, at one latent z."""
    fixed = jax.lax.stop_gradient(parameters)
    x = parameters[0] + jnp.exp(parameters[1]) * z
    logit = norm.logpdf(x) - norm.logpdf(x, fixed[0], jnp.exp(fixed[1]))
    return OBJECTIVES["mle"].generator(logit, jnp.zeros_like(logit))


def maximum_likelihood(parameters, x):
    """-log p_g(x) at one x drawn from p_data = N(0, 1)."""
    return -norm.logpdf(x, parameters[0], jnp.exp(parameters[1]))


ESTIMATES = {"MLE-GAN at a*": mle_gan, "maximum likelihood": maximum_likelihood}


def compare(loss: Callable, key) -> list[Row]:
    """The mean over SAMPLES standard normal draws of the gradient of `loss`, beside that of KL(p_data || p_g)."""
    parameters = jnp.array(PARAMETERS)
    draws = jax.random.normal(key, (SAMPLES,))
    gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(parameters, draws)  # [SAMPLES, 2]
    exact = jax.grad(lambda theta: gaussian_kl(0.0, 1.0, theta[0], jnp.exp(theta[1])))(parameters)
    errors = jnp.std(gradients, axis=0) / jnp.sqrt(SAMPLES)
    means = jnp.mean(gradients, axis=0)
    return [Row(float(m), float(s), float(e)) for m, s, e in zip(means, errors, exact, strict=True)]
