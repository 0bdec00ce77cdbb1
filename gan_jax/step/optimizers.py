"""Optimisers by name, and what a player's has beside: clipped gradients, the course of its rate, clipped weights.

An entry of OPTIMIZERS is a function of its parameters, which are config keys (see `gan_jax.utils.keys`) and may be
traced arrays: it returns the direction of descent as an optax transformation, or as several that follow one another.
One that takes `learning_rate`, a number or a schedule, returns the whole of an optimiser.

Every optimiser of optax is one by its name (`lion`), and so is any function of the same kind by its import path: its
numeric arguments are config keys with its defaults, but for those that all optimisers here have in common: SHARED.
An optimiser of one's own may be a transformation instead: it is the whole course of a player, its rate included.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax.utils.errors import InputError, users_code
from gan_jax.utils.keys import (
    COMMON,
    COUNT,
    FLAG,
    FRACTION,
    NON_NEGATIVE,
    POSITIVE,
    SCHEDULED,
    SHARE,
    TRACED,
    Registry,
    Rule,
    bind,
    function,
    is_path,
    keys_of,
    parameters_of,
)

Momentum = Annotated[float, FRACTION, "momentum: decay of the averaged gradients", TRACED, COMMON]
SquareDecay = Annotated[float, FRACTION, "decay of the averaged squared gradients; sgd has none", SCHEDULED, COMMON]

WeightDecay = Annotated[float, NON_NEGATIVE, "share of a parameter that an update of rate 1 takes; adam has none"]
Epsilon = Annotated[float, NON_NEGATIVE, "added to the root of the averaged squares; 0: optax's, of adam 1e-8"]


def adam(b1: Momentum = 0.5, b2: SquareDecay = 0.999, eps: Epsilon = 0.0):
    """Adam (arXiv:1412.6980): b1 and b2 are the decay rates of the first and second moments."""
    return optax.scale_by_adam(b1, b2, eps or 1e-8)


def adamw(b1: Momentum = 0.5, b2: SquareDecay = 0.999, weight_decay: WeightDecay = 0.0, eps: Epsilon = 0.0):
    """Adam with decoupled weight decay of every parameter (arXiv:1711.05101) as optax has it: the rate scales both."""
    return (adam(b1, b2, eps), optax.add_decayed_weights(weight_decay)) if weight_decay else adam(b1, b2, eps)


SHARED = parameters_of(adamw)


def rmsprop(b1: Momentum = 0.5, b2: SquareDecay = 0.999, eps: Epsilon = 0.0):
    """RMSProp with momentum b1; b2 is the decay rate of the squared gradients."""
    return optax.chain(optax.scale_by_rms(decay=b2, eps=eps or 1e-8), optax.trace(decay=b1))


def sgd(b1: Momentum = 0.5):
    """Gradient descent with heavy-ball momentum b1."""
    return optax.trace(decay=b1)


def optimistic_adam(b1: Momentum = 0.5, b2: SquareDecay = 0.999, eps: Epsilon = 0.0):
    """Adam whose step is twice its direction, less the one before (algorithm 1 of arXiv:1711.00141).

    The first step is a single direction, where the paper's is double: there is none before it to take off.
    """
    return optax.chain(adam(b1, b2, eps), optax.scale_by_optimistic_gradient())


def optimistic_sgd(b1: Momentum = 0.5):
    """Optimistic gradient descent (arXiv:1711.00141) with heavy-ball momentum b1."""
    return optax.chain(sgd(b1), optax.scale_by_optimistic_gradient())


NUMBER = Rule(float, math.isfinite, "a number")
INTEGER = Rule(int, lambda value: abs(value) < 2**31, "an integer")
RULES = {bool: FLAG, int: INTEGER, float: NUMBER}  # of arguments, by the type of their defaults


def path_of(name: Any) -> str | None:
    """The import path of what a config calls so, of one's own or of optax; None where it is neither."""
    if is_path(name):
        return name
    make = getattr(optax, name, None) if isinstance(name, str) else None
    whole = inspect.isfunction(getattr(make, "func", make)) and not name.startswith("scale_by_")
    parameters = parameters_of(make) if whole else ()
    # What has a seed (noisy_sgd) would draw the same noise in runs of any seed.
    return f"optax:{name}" if "learning_rate" in parameters and "seed" not in parameters else None


def of_optax() -> dict[str, Callable]:
    """Those of optax by name, but the names that OPTIMIZERS has, and what needs more than gradients."""
    entries = {}
    for name in sorted(filter(path_of, vars(optax).keys() - OPTIMIZERS.keys())):
        with suppress(InputError):
            entries[name] = OPTIMIZERS[name]
    return entries


def _entry(part: Any) -> Callable:
    """What is imported as an optimiser; one whose arguments say nothing of config keys has them by its signature."""
    if is_whole(part) or "learning_rate" not in parameters_of(function(part)):
        return part
    try:
        return part if keys_of(part) else _keyed(part)
    except NameError:  # optax has annotations that only a type checker can read
        return _keyed(part)


@cache
def _keyed(make: Callable) -> Callable:
    """An optimiser of optax's kind, (learning_rate, ...) -> transformation, whose numbers are config keys."""

    name, parameters = getattr(make, "__name__", "optimiser"), parameters_of(make)

    def optimizer(learning_rate, **values):
        course = " with a rate that changes, by decay_to or warmup," if callable(learning_rate) else ""
        with users_code(f"{name}{course}"):
            return make(learning_rate=learning_rate, **{k: v for k, v in values.items() if k != "eps" or v})

    with users_code(name):
        traced = [TRACED] if _takes_arrays(make) else []
    shown = [inspect.Parameter("learning_rate", inspect.Parameter.KEYWORD_ONLY)]
    for key, parameter in parameters.items():
        rule = RULES.get(type(parameter.default))
        if rule is not None:
            of_make = Annotated[rule.type, rule, f"of {name}", *(traced if rule is NUMBER else [])]
            shared = SHARED.get(key, parameter.replace(annotation=of_make))
            shown.append(shared.replace(kind=parameter.KEYWORD_ONLY))
    optimizer.__signature__ = inspect.Signature(shown)
    optimizer.__annotations__ = {parameter.name: parameter.annotation for parameter in shown[1:]}
    optimizer.__doc__, optimizer.__module__, optimizer.__qualname__ = make.__doc__, make.__module__, name
    optimizer.published = {key: parameters[key].default for key in SHARED if key in parameters}
    return optimizer


def _takes_arrays(make: Callable) -> bool:
    """Whether the numbers that an optimiser alone has may be arrays; no where it decides by one. Tries an update."""
    defaults = {key: parameter.default for key, parameter in parameters_of(make).items() if key not in SHARED}
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    try:
        jax.eval_shape(partial(_update, make), {key: scalar for key, value in defaults.items() if type(value) is float})
    except jax.errors.ConcretizationTypeError:
        return False
    return True


def _update(make: Callable, numbers: Mapping):
    tx, params = make(learning_rate=1e-3, **numbers), jnp.zeros((3, 2))
    return tx.update(params, tx.init(params), params)


def note(prefix: str, values: Mapping[str, Any]) -> str | None:
    """A line on what an optimiser of optax has of this project, not of optax: the keys that all have in common."""
    published = getattr(OPTIMIZERS[values["name"]], "published", {})
    own = {key: SHARED[key].default for key in published if key != "eps"}
    kept = [f"{key} {own[key]:g} ({published[key]:g})" for key in own if values[key] == own[key] != published[key]]
    return f"{prefix}: {values['name']} has this project's {', '.join(kept)}; in brackets optax's" if kept else None


def is_whole(optimizer: Any) -> bool:
    """Whether an entry is a transformation with a rate of its own."""
    return isinstance(optimizer, optax.GradientTransformation)


OPTIMIZERS = Registry(
    {
        "adam": adam,
        "adamw": adamw,
        "optimistic_adam": optimistic_adam,
        "optimistic_sgd": optimistic_sgd,
        "rmsprop": rmsprop,
        "sgd": sgd,
    },
    _entry,
    path_of,
)


class OptimizerKeys(NamedTuple):
    """The config keys of every optimiser, beside its own."""

    learning_rate: Annotated[float, POSITIVE, "size of a step", TRACED] = 2e-4
    decay_to: Annotated[float, SHARE, "share of the rate after the burn-in, by half a cosine; 1: constant"] = 1.0
    warmup: Annotated[int, COUNT, "steps over which the rate first rises linearly; 0: none"] = 0
    clip_norm: Annotated[float, NON_NEGATIVE, "norm to which a player's whole gradient is cut down; 0: never"] = 0.0


def make_optimizer(
    prefix: str, values: Mapping[str, Any], steps: int, updates_per_step: int, *last: optax.GradientTransformation
) -> Callable[[Mapping[str, Any]], optax.GradientTransformation]:
    """A player's optimiser, as a function of the traced numbers of a step, {config key: number}.

    Args:
      prefix: of its config keys, dotted; values: of these, by name.
      steps: train steps of the burn-in, over which the rate decays.
      updates_per_step: of this player.
      last: what follows the rate.
    """
    part = OPTIMIZERS[values["name"]]
    if is_whole(part):
        return lambda numbers: optax.chain(part, *last)
    of_values, takes_rate = bind(prefix, part, values), "learning_rate" in parameters_of(part)
    updates, warmup = steps * updates_per_step, values["warmup"] * updates_per_step
    decay_to, clip_norm = values["decay_to"], values["clip_norm"]

    def of_numbers(numbers):
        rate, make = numbers[f"{prefix}.learning_rate"], of_values(numbers)
        course = decayed(rate, updates, decay_to, warmup)
        if takes_rate:  # some of optax take a number only
            optimizer = [make(learning_rate=rate if decay_to == 1 and not warmup else course)]
        else:
            optimizer = [*_chained(make()), optax.scale_by_learning_rate(course)]
        clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
        return optax.chain(*clip, *optimizer, *last)

    return of_numbers


def _chained(direction) -> Sequence[optax.GradientTransformation]:
    return [direction] if isinstance(direction, optax.GradientTransformation) else direction


def decayed(learning_rate, updates: int, decay_to: float, warmup: int = 0) -> Callable:
    """The rate that falls by half a cosine from `learning_rate` to `decay_to` of it after `updates` updates.

    With decay_to = 1 the rate is constant. The first `warmup` updates have 1 / warmup, 2 / warmup, ... of that rate.

    Returns: a function of the number of updates so far.
    """
    factor = optax.cosine_decay_schedule(1.0, updates, alpha=decay_to)
    if not warmup:
        return lambda count: learning_rate * factor(count)
    return lambda count: learning_rate * factor(count) * jnp.minimum((count + 1) / warmup, 1)


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
