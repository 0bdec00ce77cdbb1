"""The identities that the objectives rest on, each computed from both sides with the objects that training uses.

On a discrete space of m points, p_g = softmax(theta), so that `jax.grad` in theta is the gradient that a generator with
full support follows. Every identity is a pure function of (p_data, theta, logits), checked under `jit`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_jax import theory
from gan_jax.objectives import LOG_2, OBJECTIVES, smooth_labels
from gan_jax.penalties import PENALTIES

POINTS = 9
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}  # of the relative error


class Identity(NamedTuple):
    """Two sides that are equal: `sides(p_data, theta, logits) -> (left, right)`, arrays of one shape."""

    name: str
    sides: Callable


class Result(NamedTuple):
    """One identity, evaluated: the entries of both sides that differ most, and that difference."""

    left: float
    right: float
    error: float  # the largest |left - right|, relative to the largest |right| where that is above 1


def check(identity: Identity, key, dtype) -> Result:
    """Evaluates an identity under jit at a random p_data, theta and discriminator drawn from `key`."""
    keys = jax.random.split(key, 3)
    p_data = jax.nn.softmax(jax.random.normal(keys[0], (POINTS,), dtype))
    theta, logits = (jax.random.normal(k, (POINTS,), dtype) for k in keys[1:])
    left, right = jax.jit(identity.sides)(p_data, theta, logits)
    left, right = jnp.ravel(left), jnp.ravel(right)
    errors = jnp.abs(left - right) / jnp.maximum(1, jnp.max(jnp.abs(right)))
    worst = jnp.argmax(jnp.where(jnp.isnan(errors), jnp.inf, errors))
    return Result(float(left[worst]), float(right[worst]), float(errors[worst]))


def value_is_concave(p_data, theta, logits):
    """The Hessian of V in the logits at a* is diagonal with -p_data p_g / (p_data + p_g), so a* is the maximum."""
    p_g = jax.nn.softmax(theta)
    hessian = jax.hessian(theory.value)(theory.optimal_logit(p_data, p_g), p_data, p_g)
    return hessian, jnp.diag(-p_data * p_g / (p_data + p_g))


def value_at_optimum(p_data, theta, logits):
    """V(D*, G) = -2 log 2 + 2 JS(p_data, p_g) (arXiv:1406.2661, theorem 1)."""
    p_g = jax.nn.softmax(theta)
    value = theory.value(theory.optimal_logit(p_data, p_g), p_data, p_g)
    return value, -2 * LOG_2 + 2 * theory.js(p_data, p_g)


def value_bounds_js(p_data, theta, logits):
    """JS - (V(D) + log 4) / 2 = E_m KL(D* || D) >= 0 for any D: the value is a lower bound on JS, and how far below.

    E_m is over m = (p_data + p_g) / 2, and the KL is that of two coins. Stated with (V + log 4) / 2 on the left.
    """
    p_g = jax.nn.softmax(theta)
    optimal = theory.optimal_discriminator(p_data, p_g)
    coins = optimal * (jnp.log(optimal) - jax.nn.log_sigmoid(logits))
    coins += (1 - optimal) * (jnp.log1p(-optimal) - jax.nn.log_sigmoid(-logits))
    gap = jnp.sum((p_data + p_g) / 2 * coins)
    return theory.divergence(OBJECTIVES["minimax"], logits, p_data, p_g), theory.js(p_data, p_g) - gap


def cross_entropy_is_minus_value(p_data, theta, logits):
    """The binary cross-entropy of D, real examples labelled 1 and fake ones 0, is -V(D, G) at any D."""
    p_g, d = jax.nn.softmax(theta), jax.nn.sigmoid(logits)
    return theory.discriminator_loss(OBJECTIVES["non_saturating"], logits, p_data, p_g), -jnp.sum(
        p_data * jnp.log(d) + p_g * jnp.log1p(-d)
    )


def generator_gradient(name, optimal_critic, target, p_data, theta, logits):
    """grad_theta E_pg[g(a*)], the critic held fixed, equals the gradient in theta of `target(p_data, p_g)`."""
    critic = jax.lax.stop_gradient(optimal_critic(p_data, jax.nn.softmax(theta)))

    def loss(theta):
        return theory.generator_loss(OBJECTIVES[name], critic, p_data, jax.nn.softmax(theta))

    return jax.grad(loss)(theta), jax.grad(lambda theta: target(p_data, jax.nn.softmax(theta)))(theta)


def bound_at_optimum(name, optimal_logit, target, p_data, theta, logits):
    """What an objective says that it estimates is, at its optimal critic, the divergence `target(p_data, p_g)`."""
    p_g = jax.nn.softmax(theta)
    return theory.divergence(OBJECTIVES[name], optimal_logit(p_data, p_g), p_data, p_g), target(p_data, p_g)


def optimum_is_stationary(name, optimal_logit, p_data, theta, logits):
    """The gradient of the discriminator's loss vanishes at the critic that `bound_at_optimum` calls optimal.

    Of minimax: grad V = 0 at a* (arXiv:1406.2661, proposition 1).
    """
    p_g = jax.nn.softmax(theta)
    loss = partial(theory.discriminator_loss, OBJECTIVES[name])
    gradient = jax.grad(loss)(optimal_logit(p_data, p_g), p_data, p_g)
    return gradient, jnp.zeros_like(gradient)


def smoothed_optimum(p_data, theta, logits):
    """With one-sided smoothing by e the optimum is D = (1 - e) p_data / (p_data + p_g) (arXiv:1606.03498, 3.4)."""
    p_g, epsilon = jax.nn.softmax(theta), 0.1
    optimum = (1 - epsilon) * theory.optimal_discriminator(p_data, p_g)
    loss = partial(theory.discriminator_loss, smooth_labels(OBJECTIVES["minimax"], epsilon))
    gradient = jax.grad(loss)(jnp.log(optimum) - jnp.log1p(-optimum), p_data, p_g)
    return gradient, jnp.zeros_like(gradient)


def js_of_disjoint_supports(p_data, theta, logits):
    """JS = log 2 where the supports do not meet, whatever the distance between them."""
    half = jnp.arange(POINTS) < POINTS // 2
    p, q = jnp.where(half, p_data, 0), jnp.where(half, 0, p_data)
    return theory.js(p / jnp.sum(p), q / jnp.sum(q)), jnp.full((), LOG_2, p_data.dtype)


def linear_critic_penalty(p_data, theta, logits):
    """The WGAN-GP penalty of the critic w.x is (|w| - 1)^2 wherever it is taken (arXiv:1704.00028)."""
    keys = jax.random.split(jax.random.key(0), 2)
    penalty = PENALTIES["wgan_gp"](lambda x: x @ logits, keys, jnp.stack([theta, p_data]), jnp.stack([p_data, logits]))
    return penalty, jnp.full(2, jnp.square(jnp.linalg.norm(logits) - 1))


def generator_slope(name, sign, p_data, theta, logits):
    """d/db g(b) = -1 / (1 + exp(sign b)) for b in [-200, 200], the range of a discriminator that rejects or accepts.

    Where it rejects the sample, the slope of log(1 - s(b)) (minimax) vanishes, and that of -log s(b) goes to -1.
    """
    b = jnp.linspace(-200, 200, 801, dtype=theta.dtype)
    slope = jax.vmap(jax.grad(lambda b: OBJECTIVES[name].generator(b, jnp.zeros_like(b))))(b)
    return slope, -1 / (1 + jnp.exp(sign * b))


def _twice(divergence):
    return lambda p, q: 2 * divergence(p, q)


def _hinge_critic(p, q):
    return jnp.sign(p - q)


SPACING = 0.5  # of the points, where their distance matters

# objective: (its optimal critic as a function of p_data and p_g, what it then estimates, that in words)
OPTIMA = {
    "minimax": (theory.optimal_logit, theory.js, "JS"),
    "wgan": (partial(theory.optimal_critic, spacing=SPACING), partial(theory.wasserstein_1, spacing=SPACING), "W1"),
    "hinge": (_hinge_critic, theory.total_variation, "total variation"),
    "lsgan": (theory.optimal_discriminator, theory.triangular_discrimination, "triangular discrimination"),
    "rpgan": (theory.optimal_logit, theory.relativistic_js, "JS(p_data x p_g, p_g x p_data)"),
    "fgan_kl": (lambda p, q: 1 + theory.optimal_logit(p, q), theory.kl, "KL(p_data || p_g)"),
    "fgan_reverse_kl": (theory.optimal_logit, lambda p, q: theory.kl(q, p), "KL(p_g || p_data)"),
    "fgan_pearson": (lambda p, q: 2 * (p / q - 1), theory.pearson, "Pearson chi^2"),
    "fgan_hellinger": (lambda p, q: theory.optimal_logit(p, q) / 2, theory.squared_hellinger, "squared Hellinger"),
    "fgan_jensen_shannon": (theory.optimal_logit, _twice(theory.js), "2 JS"),
}
# Those whose optimum is inside the set of critics and smooth: hinge has kinks at -1 and 1, wgan is constrained.
SMOOTH = tuple(name for name in OPTIMA if name not in ("hinge", "wgan"))

# objective: (its optimal critic, the divergence whose gradient its generator follows there, that in words). An f-GAN's
# generator descends the bound itself, and so does that of wgan: by the envelope theorem theirs is what they estimate.
FOLLOWED = {
    "minimax": (theory.optimal_logit, _twice(theory.js), "2 JS"),
    "non_saturating": (
        theory.optimal_logit,
        lambda p, q: theory.kl(q, p) - 2 * theory.js(p, q),
        "KL(p_g || p_data) - 2 JS",
    ),
    "mle": (theory.optimal_logit, theory.kl, "KL(p_data || p_g)"),
    "hinge": (_hinge_critic, _twice(theory.total_variation), "2 total variation"),
    "lsgan": (
        theory.optimal_discriminator,
        lambda p, q: theory.kl(p, (p + q) / 2) - theory.triangular_discrimination(p, q) / 8,
        "KL(p || (p+q)/2) - triangular / 8",
    ),
    "rpgan": (
        theory.optimal_logit,
        lambda p, q: theory.kl(q, p) - theory.relativistic_js(p, q),
        "KL(q || p) - JS(p x q, q x p)",
    ),
} | {name: OPTIMA[name] for name in OPTIMA if name == "wgan" or name.startswith("fgan")}

IDENTITIES = (
    Identity("Hessian of V at a* = -p q / (p + q) < 0", value_is_concave),
    Identity("V(D*, G) = -2 log 2 + 2 JS", value_at_optimum),
    Identity("(V(D) + log 4) / 2 = JS - E_m KL(D* || D), any D", value_bounds_js),
    Identity("cross-entropy = -V", cross_entropy_is_minus_value),
    *(
        Identity(f"{name}: grad E_pg[g(a*)] = grad [{words}]", partial(generator_gradient, name, critic, target))
        for name, (critic, target, words) in FOLLOWED.items()
    ),
    *(
        Identity(f"{name}: bound at its optimum = {words}", partial(bound_at_optimum, name, critic, target))
        for name, (critic, target, words) in OPTIMA.items()
    ),
    *(
        Identity(f"{name}: gradient at its optimum = 0", partial(optimum_is_stationary, name, OPTIMA[name][0]))
        for name in SMOOTH
    ),
    Identity("label smoothing e: optimum at (1 - e) D*", smoothed_optimum),
    Identity("JS of disjoint supports = log 2", js_of_disjoint_supports),
    Identity("wgan_gp of the critic w.x = (|w| - 1)^2", linear_critic_penalty),
    Identity("minimax: dg/db = -s(b), b in [-200, 200]", partial(generator_slope, "minimax", -1)),
    Identity("non_saturating: dg/db = s(b) - 1, b in [-200, 200]", partial(generator_slope, "non_saturating", 1)),
)
