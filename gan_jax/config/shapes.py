"""Parts of one's own, held to the shapes that a step takes them to have, before anything is computed."""

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import gan_jax
from gan_jax import step
from gan_jax.data import Source
from gan_jax.data.loader import call_shapes
from gan_jax.objectives import with_metrics
from gan_jax.parallel.devices import Devices
from gan_jax.step.losses import OF_G
from gan_jax.step.state import Hyperparameters, Recipe
from gan_jax.step.step import network_inputs
from gan_jax.utils.errors import InputError

METRICS = {"d_loss", "g_loss", "max_logit"}  # that the loop needs of a step


def check(values: Mapping, recipe: Recipe, devices: Devices, source: Source, numbers: Hyperparameters) -> None:
    """Raises InputError, one line, where a part fails or gives another shape than it should.

    Args:
      values: of the config, by dotted key.
      recipe, devices: of one device; numbers: of a state.
    """
    shape_of, key = partial(_shape_of, values), jax.random.key(0)
    shape_of("latent.prior", (2, None), recipe.prior, jax.random.split(key, 2))
    of_generator, of_discriminator = jax.eval_shape(partial(network_inputs, recipe, shape=source.shape), key)
    generate, judge = (partial(_first_call, network) for network in (recipe.generator, recipe.discriminator))
    shape_of("generator.network", (2, *source.shape), generate, key, *of_generator)
    real, *labels = of_discriminator
    n, numbers_now = real.shape[0], recipe.schedule(numbers, jnp.int32(0))
    logits = shape_of("discriminator.network", (n,), judge, key, real, *labels)
    for loss in ("discriminator", "generator", "divergence"):
        function = getattr(recipe.objective(numbers_now), loss)
        shape_of("objective.name", (n,), partial(_values, function), logits, logits)
    kept = {name: {"state": own.initial()} for name, own in recipe.own.items()}

    def penalty(make, name, function, x, y, *labels):
        keys, state = jax.random.split(key, len(x)), kept.get(name, {})
        return _values(make(numbers_now), lambda x: function(key, x, *labels), keys, x, y, **state)

    if recipe.penalty is not None:
        shape_of("penalty.name", (n,), partial(penalty, recipe.penalty, "penalty", judge), real, real, *labels)
    if recipe.generator_penalty is not None:
        latents, *labels = of_generator
        of_g = partial(penalty, recipe.generator_penalty, OF_G, generate)
        shape_of(f"{OF_G}.name", (2,), lambda z, *labels: of_g(z, generate(key, z, *labels), *labels), latents, *labels)
    try:
        state = jax.eval_shape(partial(step.init_state, recipe, shape=source.shape), numbers, key)
        data = call_shapes(source, devices, 1, recipe.discriminator_steps, recipe.batch_size)
        steps = partial(step.train_steps, recipe, devices, source, 1)
        _, metrics = jax.eval_shape(steps, state, data)
    except InputError:
        raise
    except Exception as error:  # whatever a part of the user's raises
        raise InputError(f"a step of this config fails: {_reason(error)}") from error
    if missing := METRICS - metrics.keys():
        raise InputError(f"moves is {values['moves']}: its metrics lack {', '.join(sorted(missing))}")


def _first_call(network: Any, key, x, *labels):
    """What a network gives in training, before its first update."""
    noise = network.keyed(lambda: jax.random.split(key, len(x)))
    return network.apply(*network.init(key, x, *labels), x, True, *labels, **noise)[0]


def _values(loss: Callable, *arguments, **keywords):
    return with_metrics(loss(*arguments, **keywords))[0]


def _shape_of(values: Mapping, key: str, shape: tuple, function: Callable, *arguments) -> jax.ShapeDtypeStruct:
    """What the part that `key` names gives, without its numbers; None in `shape` is any length."""
    try:
        result = jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever a part of the user's raises
        raise InputError(f"{key} is {values[key]}: it fails: {_reason(error)}") from error
    sizes = getattr(result, "shape", None)
    if sizes is None or len(sizes) != len(shape) or any(n not in (None, m) for n, m in zip(shape, sizes, strict=True)):
        has = f"a {type(result).__name__}" if sizes is None else list(sizes)
        right = ", ".join("d" if size is None else str(size) for size in shape)
        raise InputError(f"{key} is {values[key]}: it gives {has}, and must give [{right}]")
    return result


def _reason(error: Exception) -> str:
    """The error in a line, with the place in the user's code that it comes from."""
    text = " ".join(str(error).split())
    package, others = Path(gan_jax.__file__).parent, ("site-packages", "<frozen")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_relative_to(package) and not any(other in frame.filename for other in others):
            return f"{type(error).__name__}: {text[:300]} ({path.name}, line {frame.lineno})"
    return f"{type(error).__name__}: {text[:300]}"
