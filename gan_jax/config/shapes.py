"""Parts of one's own, held to the shapes that a step takes them to have, before anything is computed."""

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

import gan_jax
from gan_jax import step
from gan_jax.data import Source
from gan_jax.data.loader import call_shapes
from gan_jax.networks.network import first_call
from gan_jax.objectives import with_metrics
from gan_jax.parallel.devices import Devices
from gan_jax.step.losses import OF_G
from gan_jax.step.state import Hyperparameters, Recipe
from gan_jax.step.step import network_inputs
from gan_jax.utils.errors import InputError, one_line

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
    generate, judge = (partial(first_call, network) for network in (recipe.generator, recipe.discriminator))
    fake = shape_of("generator.network", (2, *source.shape), generate, key, *of_generator)
    n, numbers_now = of_discriminator[0].shape[0], recipe.schedule(numbers, jnp.int32(0))
    logits = shape_of("discriminator.network", (n,), judge, key, *of_discriminator)
    for loss in ("discriminator", "generator", "divergence"):
        function = getattr(recipe.objective(numbers_now), loss)
        shape_of("objective.name", (n,), partial(_values, function), logits, logits)
    if recipe.discriminator.features is None and "objective.feature_matching" in numbers:
        right = "give a Linen module that sows them, or a Network that has `features`"
        raise InputError(f"objective.feature_matching needs features of discriminator.network, which has none; {right}")
    (latents, *_), (real, *_) = of_generator, of_discriminator
    for name, make, network, points, (_, *labels) in (
        ("penalty", recipe.penalty, judge, (real, real), of_discriminator),
        (OF_G, recipe.generator_penalty, generate, (latents, fake), of_generator),
    ):
        if make is not None:
            kept = {"state": recipe.own[name].initial()} if name in recipe.own else {}
            penalty = partial(_penalty, make(numbers_now), network, kept)
            shape_of(f"{name}.name", points[0].shape[:1], penalty, key, *points, *labels)
    state = _state_after_a_step(values, recipe, devices, source, numbers)
    # What training does not call: a network that fails only here would end the run at its first picture.
    examples = jax.ShapeDtypeStruct((2 * recipe.group_size, *source.shape), real.dtype), *of_discriminator[1:]
    shape_of("generator.network", (2, *source.shape), partial(step.sample, recipe), state.ema, *of_generator)
    shape_of("discriminator.network", (n,), partial(step.judge, recipe), state.discriminator, *examples)


def _state_after_a_step(values: Mapping, recipe: Recipe, devices: Devices, source: Source, numbers: Hyperparameters):
    try:
        state = jax.eval_shape(partial(step.init_state, recipe, shape=source.shape), numbers, jax.random.key(0))
        data = call_shapes(source, devices, 1, recipe.discriminator_steps, recipe.batch_size)
        state, metrics = jax.eval_shape(partial(step.train_steps, recipe, devices, source, 1), state, data)
    except InputError:
        raise
    except Exception as error:  # whatever a part of the user's raises
        raise InputError(f"a step of this config fails: {_reason(error)}") from error
    if missing := METRICS - metrics.keys():
        raise InputError(f"moves is {values['moves']}: its metrics lack {', '.join(sorted(missing))}")
    return state


def _penalty(penalty: Callable, network: Callable, kept: dict, key, x, y, *labels):
    return _values(penalty, lambda x: network(key, x, *labels), jax.random.split(key, len(x)), x, y, **kept)


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
    text = f"{type(error).__name__}: {one_line(error)}"
    package, others = Path(gan_jax.__file__).parent, ("site-packages", "<frozen")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_relative_to(package) and not any(other in frame.filename for other in others):
            return f"{text} ({path.name}, line {frame.lineno})"
    return text
