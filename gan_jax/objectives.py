"""The losses of the two players, elementwise in the discriminator's logits.

Throughout, `a = D(x)` is the *logit* of a real example and `b = D(G(z))` that of a fake one, `sigma` is the logistic
function, and every loss is minimised. The functions keep the dtype of the logits, take any shape, are pure, and go
through `jit`, `grad` and `vmap`. Means over the minibatch are taken once, in the step.

Where a loss is an exponential of the logit (`overflows`) its true value leaves float32 and bfloat16 beyond a logit of
about 88.7: these return the infinity that the value rounds to, never a NaN, and the training loop stops and names the
logit. All the others are finite at every logit that it can meet.

An objective of one's own is one entry of OBJECTIVES. If it has parameters, it is a function of them that returns an
`Objective`, and `parametrised` makes the entry: the annotated parameters are config keys (see `gan_jax.utils.keys`).
"""

import inspect
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.utils.keys import FRACTION, TRACED, Registry, bind, function

softplus = jax.nn.softplus  # log(1 + exp(a)); -log sigma(a) is softplus(-a), -log(1 - sigma(a)) is softplus(a)
LOG_2 = 0.6931471805599453


class Objective(NamedTuple):
    """The losses of both players and what they estimate; each function maps logits [n], [n] to [n].

    A loss may report metrics: it then returns ([n], {name: [n]}), and their means are among those of the step.
    """

    discriminator: Callable  # (real_logits, fake_logits) -> the discriminator's loss
    generator: Callable  # (fake_logits, real_logits) -> the generator's loss
    divergence: Callable  # (real_logits, fake_logits) -> terms whose mean estimates a divergence of p_data and p_g
    undecided: float = 0.0  # the optimal logit where p_data = p_g, for D's accuracy
    logistic: bool = False  # D classifies real against fake, so that its target can be smoothed
    centred: bool = True  # the sign of a logit says something; False: logits are free up to a constant
    overflows: bool = False  # a loss is an exponential of a logit
    make: Callable | None = None  # (parameters, by name) -> the objective with these; None: it has no parameters
    text: str = ""  # what it is, in a line


def parametrised(make: Callable[..., Objective]) -> Objective:
    """The objective that `make` returns for the defaults of its parameters, which are config keys.

    Its text is the first line of `make`'s docstring, where it has none.
    """
    plain = make()
    return plain._replace(make=make, text=plain.text or (inspect.getdoc(make) or "").partition("\n")[0])


def separable(real: Callable, fake: Callable, generator: Callable, divergence: Callable, **facts) -> Objective:
    """An objective whose terms see one logit: E[real(a)] + E[fake(b)] for D, E[generator(b)] for G.

    `divergence` maps the discriminator's loss (elementwise) to what it estimates; `facts` are fields of `Objective`.
    """

    def discriminator(real_logits, fake_logits):
        return real(real_logits) + fake(fake_logits)

    return Objective(
        discriminator=discriminator,
        generator=lambda fake_logits, real_logits: generator(fake_logits),
        divergence=lambda real_logits, fake_logits: divergence(discriminator(real_logits, fake_logits)),
        **facts,
    )


def logistic(generator: Callable, **facts) -> Objective:
    """The discriminator of Goodfellow et al. (arXiv:1406.2661) with a choice of generator loss.

    D minimises the binary cross-entropy softplus(-a) + softplus(b), which is -V, the negative of the value function.
    For any D, (V + log 4) / 2 <= JS(p_data, p_g) in nats, with equality at the optimal D: that is the divergence.
    """
    plain = separable(
        lambda a: softplus(-a), softplus, generator, lambda loss: LOG_2 - loss / 2, logistic=True, **facts
    )

    def make(
        label_smoothing: Annotated[
            float, FRACTION, "one-sided: D's target on real examples is 1 minus this", TRACED
        ] = 0.0,
    ) -> Objective:
        return smooth_labels(plain, label_smoothing)

    return plain._replace(make=make)


def variational(activation: Callable, conjugate: Callable, **facts) -> Objective:
    """f-GAN (arXiv:1606.00709, equation 4): D ascends the bound E[g(a)] - E[f*(g(b))] <= D_f(p_data || p_g).

    Args:
      activation: g, which maps a logit into the domain of f* (table 2 of the paper).
      conjugate: f*(g(b)), the Fenchel conjugate already composed with the activation, so that it can be stable.
      facts: fields of `Objective`; `undecided` is g^-1(f'(1)), the optimal logit where p_data = p_g.
    The generator descends the same bound (algorithm 1 of the paper), and the divergence is the bound itself.
    """
    return separable(lambda a: -activation(a), conjugate, lambda b: -conjugate(b), lambda loss: -loss, **facts)


def _relativistic_discriminator(real_logits, fake_logits):
    return softplus(fake_logits - real_logits)


# Relativistic pairing (arXiv:1807.00734, used by R3GAN, arXiv:2501.05441): each real example is compared with one fake.
# The divergence is a lower bound on sup_D E[log 2 + log sigma(a - b)], the relativistic divergence of arXiv:1901.02474:
# the Jensen-Shannon divergence of the pairs (real, fake) and (fake, real), reached at a = log p_data - log p_g.
RPGAN = Objective(
    discriminator=_relativistic_discriminator,
    generator=lambda fake_logits, real_logits: softplus(real_logits - fake_logits),
    divergence=lambda real_logits, fake_logits: LOG_2 - _relativistic_discriminator(real_logits, fake_logits),
    centred=False,
    text="relativistic pairing: D tells a real example from a fake one beside it (arXiv:1807.00734, R3GAN)",
)

# 1 - loss / 2 is a lower bound on the total variation distance, in [0, 1].
HINGE = separable(
    lambda a: jax.nn.relu(1 - a),
    lambda b: jax.nn.relu(1 + b),
    lambda b: -b,
    lambda loss: 1 - loss / 2,
    text="hinge: D's margin is 1 on either side, G descends -D (arXiv:1705.02894)",
)

# With the labels 0, 1, 1. 2 - 8 loss is a lower bound on the triangular discrimination, the integral of
# (p_data - p_g)^2 / (p_data + p_g), in [0, 2].
LSGAN = separable(
    lambda a: jnp.square(a - 1) / 2,
    lambda b: jnp.square(b) / 2,
    lambda b: jnp.square(b - 1) / 2,
    lambda loss: 2 - 8 * loss,
    undecided=0.5,
    text="least squares, with the labels 0, 1, 1 (arXiv:1611.04076)",
)

# E[a] - E[b] is a lower bound on W1 where D is 1-Lipschitz, in units of the data.
WGAN = separable(
    lambda a: -a,
    lambda b: b,
    lambda b: -b,
    lambda loss: -loss,
    centred=False,
    text="Wasserstein: the difference of a critic's means, which must be 1-Lipschitz (arXiv:1701.07875)",
)


def _entry(part: Any) -> Objective:
    """What is imported as an objective: an `Objective`, or a function of parameters that returns one."""
    if isinstance(part, Objective):
        return part
    if not isinstance(made := function(part)(), Objective):
        raise TypeError(f"a function that returns a {type(made).__name__}, not an Objective")
    return parametrised(part)


OBJECTIVES = Registry(
    {
        # log(1 - sigma(b)) = -softplus(b)
        "minimax": logistic(
            lambda b: -softplus(b),
            text="G descends the value function itself, which saturates where D rejects fakes (arXiv:1406.2661)",
        ),
        "non_saturating": logistic(
            lambda b: softplus(-b),
            text="G ascends log sigma(D): minimax's fixed point, strong gradients (arXiv:1406.2661, section 3)",
        ),
        # f = -exp(b) = -D/(1 - D)
        "mle": logistic(
            lambda b: -jnp.exp(b),
            overflows=True,
            text="G's gradient is that of maximum likelihood where D is optimal (arXiv:1412.6515)",
        ),
        "wgan": WGAN,
        "hinge": HINGE,
        "lsgan": LSGAN,
        "rpgan": RPGAN,
        # g and f*(g) from table 2 and table 6 of arXiv:1606.00709; the optimal logit is g^-1(f'(p_data / p_g)).
        "fgan_kl": variational(
            lambda a: a,
            lambda b: jnp.exp(b - 1),
            undecided=1.0,
            overflows=True,
            text="f-GAN, a bound on KL(p_data, p_g) (arXiv:1606.00709)",
        ),
        "fgan_reverse_kl": variational(
            lambda a: -jnp.exp(-a),
            lambda b: b - 1,
            overflows=True,
            text="f-GAN, a bound on KL(p_g, p_data)",
        ),
        "fgan_pearson": variational(
            lambda a: a, lambda b: jnp.square(b) / 4 + b, text="f-GAN, a bound on Pearson's chi^2"
        ),
        # exp and not expm1: jax differentiates expm1 as its value + 1, which rounds small slopes to 0.
        "fgan_hellinger": variational(
            lambda a: 1 - jnp.exp(-a),
            lambda b: jnp.exp(b) - 1,
            overflows=True,
            text="f-GAN, a bound on the squared Hellinger distance",
        ),
        # The paper's Jensen-Shannon is twice the usual one.
        "fgan_jensen_shannon": variational(
            lambda a: LOG_2 - softplus(-a),
            lambda b: softplus(b) - LOG_2,
            text="f-GAN, a bound on twice the Jensen-Shannon divergence",
        ),
    },
    _entry,
)

# What a config may name: these, and one whose generator descends only what is added to its loss, feature matching.
_FEATURES = "G matches D's mean features alone, with the weight objective.feature_matching (arXiv:1606.03498)"
NAMED = ChainMap({"feature_matching": logistic(jnp.zeros_like, text=_FEATURES)}, OBJECTIVES)


def smooth_labels(objective: Objective, epsilon) -> Objective:
    """One-sided label smoothing (arXiv:1606.03498, section 3.4) of a logistic objective.

    The target of D on real examples becomes 1 - epsilon; (1 - epsilon) softplus(-a) + epsilon softplus(a) is
    softplus(-a) + epsilon a. The generator's loss and the divergence (which needs the plain loss) stay as they are.
    """

    def discriminator(real_logits, fake_logits):
        return objective.discriminator(real_logits, fake_logits) + jnp.asarray(epsilon, real_logits.dtype) * real_logits

    return objective._replace(discriminator=discriminator)


def of_names(names: Sequence[str], values: Mapping[str, Any]) -> Callable[[Mapping[str, jax.Array]], Objective]:
    """The objective of a run as a function of the traced numbers of a step, {config key: number}.

    Of several names, which the runs of one program have, it is that of the run's own number, "objective.name".
    `values` are the config values of the group `objective`, by name.
    """
    entries = [NAMED[name] for name in names]
    makers = [bind("objective", entry.make, values) if entry.make else None for entry in entries]

    def of_numbers(numbers):
        # An entry none of whose parameters is on is itself the objective: nothing is computed for them.
        bound = [make(numbers) if make else None for make in makers]
        objectives = [make() if make and make.keywords else entry for make, entry in zip(bound, entries, strict=True)]
        return objectives[0] if len(objectives) == 1 else choose(objectives, numbers["objective.name"])

    return of_numbers


def choose(objectives: Sequence[Objective], index) -> Objective:
    """The objective with that number, int32, which may be traced: the runs of one program then differ by data alone.

    Each function is a `lax.switch`, of which a batch of different indices computes every branch and takes its own from
    the results, also of the derivative: an infinity of one objective never reaches a run of another.
    """

    def switch(field: str):
        return partial(_switched, index, [getattr(objective, field) for objective in objectives])

    return Objective(
        discriminator=switch("discriminator"),
        generator=switch("generator"),
        divergence=switch("divergence"),
        undecided=jnp.array([objective.undecided for objective in objectives], jnp.float32)[index],
    )


def _switched(index, functions: Sequence[Callable], *logits):
    names = {name for function in functions for name in with_metrics(jax.eval_shape(function, *logits))[1]}
    if not names:
        return jax.lax.switch(index, functions, *logits)

    def with_all(function, *logits):  # what an objective does not report is 0 in its runs
        values, metrics = with_metrics(function(*logits))
        return values, {name: jnp.broadcast_to(metrics.get(name, 0.0), values.shape) for name in names}

    return jax.lax.switch(index, [partial(with_all, function) for function in functions], *logits)


def with_metrics(loss) -> tuple[Any, dict]:
    """What a loss or a penalty returns, as (values [n], {name: metric [n]})."""
    return loss if isinstance(loss, tuple) else (loss, {})
