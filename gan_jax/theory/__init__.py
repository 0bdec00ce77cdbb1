"""The mathematics of GANs on distributions that are known: divergences, the optimal discriminator, the value function.

A distribution is either a vector of probabilities on m points (non-negative, summing to 1: densities on a grid times
the cell's volume are such a vector) or a set of samples. Divergences are in nats. Everything is pure, differentiable
where its formula is, keeps the dtype (float32, or float64 where jax has it enabled) and goes through `jit` and `vmap`.

`python -m gan_jax.theory` prints every identity that the objectives rest on, computed from both sides.
"""

import jax.numpy as jnp
from jax.scipy.special import rel_entr

from gan_jax.objectives import OBJECTIVES, Objective


def kl(p, q):
    """The Kullback-Leibler divergence KL(p || q) = sum p log(p / q), [m], [m] -> []; infinite where q lacks mass of p.

    0 log 0 is 0. KL(p_data || p_g) is, up to the entropy of p_data, the negative mean log likelihood of p_g.
    """
    return jnp.sum(rel_entr(p, q))


def js(p, q):
    """The Jensen-Shannon divergence (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2: [m], [m] -> [] in [0, log 2].

    0 where p = q, log 2 where their supports do not meet (Lin 1991).
    """
    m = (p + q) / 2
    return (kl(p, m) + kl(q, m)) / 2


def total_variation(p, q):
    """sum |p - q| / 2, the largest difference of probability of any event: [m], [m] -> [] in [0, 1]."""
    return jnp.sum(jnp.abs(p - q)) / 2


def pearson(p, q):
    """Pearson's chi-squared divergence sum (p - q)^2 / q, the f-divergence of f(u) = (u - 1)^2: [m], [m] -> []."""
    return jnp.sum(jnp.square(p - q) / q)


def squared_hellinger(p, q):
    """sum (sqrt p - sqrt q)^2, the f-divergence of f(u) = (sqrt u - 1)^2: [m], [m] -> [] in [0, 2]."""
    return jnp.sum(jnp.square(jnp.sqrt(p) - jnp.sqrt(q)))


def triangular_discrimination(p, q):
    """sum (p - q)^2 / (p + q): [m], [m] -> [] in [0, 2] (Vincze 1981, Le Cam 1986)."""
    return jnp.sum(jnp.square(p - q) / (p + q))


def relativistic_js(p, q):
    """JS(p x q, q x p), of the two orders in which a pair can be made of a draw of each: [m], [m] -> [] in [0, log 2].

    What `rpgan` estimates. Its discriminator tells real-fake pairs from fake-real ones; the optimal logit of that,
    log p(x) q(y) - log q(x) p(y), is a difference a(x) - a(y), as it must be, with a = log p - log q.
    """
    return js(jnp.outer(p, q), jnp.outer(q, p))


def optimal_logit(p_data, p_g):
    """The logit of the optimal discriminator, log p_data - log p_g.

    Pointwise, V has the integrand p_data log s(a) + p_g log s(-a), s the logistic function. Its derivative in a,
    p_data s(-a) - p_g s(a), vanishes where exp(a) = p_data / p_g, and its second derivative is negative everywhere
    (proposition 1 of arXiv:1406.2661).
    """
    return jnp.log(p_data) - jnp.log(p_g)


def optimal_discriminator(p_data, p_g):
    """D*(x) = p_data / (p_data + p_g), the logistic function of the optimal logit (arXiv:1406.2661, equation 2)."""
    return p_data / (p_data + p_g)


def value(logits, p_data, p_g):
    """V(D, G) = E_pdata[log D] + E_pg[log(1 - D)] at D = s(logits), [m] -> []: minus the binary cross-entropy.

    It is at most -2 log 2 + 2 JS(p_data, p_g), which D* reaches (theorem 1 of arXiv:1406.2661).
    """
    return -discriminator_loss(OBJECTIVES["minimax"], logits, p_data, p_g)


def discriminator_loss(objective: Objective, logits, p_data, p_g):
    """The expectation of an objective's discriminator loss: logits [m] under p_data and p_g [m] -> []."""
    return _over_pairs(objective.discriminator, logits, p_data, p_g)


def divergence(objective: Objective, logits, p_data, p_g):
    """The expectation of what an objective says that it estimates: logits [m] under p_data and p_g [m] -> []."""
    return _over_pairs(objective.divergence, logits, p_data, p_g)


def generator_loss(objective: Objective, logits, p_data, p_g):
    """The expectation of an objective's generator loss: logits [m] under p_g (and p_data, for pairs) [m] -> []."""
    return _over_pairs(lambda real, fake: objective.generator(fake, real), logits, p_data, p_g)


def _over_pairs(function, logits, p_data, p_g):
    """E of function(a(x), a(y)) over independent x ~ p_data and y ~ p_g: exact, on all m * m pairs."""
    return jnp.einsum("i,j,ij->", p_data, p_g, function(logits[:, None], logits[None, :]))


def wasserstein_1(p, q, spacing):
    """W1 of distributions on an equally spaced grid of the line: the area between their distribution functions.

    [m], [m], [] -> [] in units of the spacing (Vallender 1974).
    """
    return jnp.sum(jnp.abs(jnp.cumsum(p - q))) * spacing


def wasserstein_1_samples(x, y):
    """W1 of the empirical distributions of equally many samples on the line: the mean distance in sorted order.

    [n], [n] -> [], in units of the data: the monotone coupling is optimal for every convex cost (Villani 2003, 2.18).
    """
    return jnp.mean(jnp.abs(jnp.sort(x) - jnp.sort(y)))


def optimal_critic(p, q, spacing):
    """A 1-Lipschitz function on the grid that attains W1 = E_p f - E_q f (Kantorovich-Rubinstein): [m], [m] -> [m].

    Summation by parts turns E_p f - E_q f into -sum (P - Q) f', so f falls where P is ahead of Q and rises elsewhere.
    """
    slope = -jnp.sign(jnp.cumsum(p - q))[:-1]
    return jnp.concatenate([jnp.zeros(1, p.dtype), jnp.cumsum(slope)]) * spacing


def gaussian_kl(mean, scale, model_mean, model_scale):
    """KL of N(mean, scale^2) from N(model_mean, model_scale^2): scalars -> scalar."""
    ratio = (jnp.square(scale) + jnp.square(mean - model_mean)) / jnp.square(model_scale)
    return jnp.log(model_scale / scale) + ratio / 2 - 0.5
