"""What code of one's own may do while a run trains: `gan_jax.train(setup, workdir, callbacks=[...])`."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gan_jax.utils.errors import InputError


class Report(NamedTuple):
    """What a callback may give back; nothing of it by default."""

    metrics: Mapping[str, float] = MappingProxyType({})  # for metrics.jsonl and TensorBoard, at this step
    pictures: Mapping[str, Any] = MappingProxyType({})  # uint8 [h, w, 1 or 3], for samples/NAME-STEP.png
    stop: str = ""  # why the run ends here; empty: it goes on


class Callback(NamedTuple):
    """A function that is called at a cadence.

    function: (step, state, metrics) -> Report or None. `state` is a `TrainState`, given to the next step afterwards:
      copy what is to be kept (`jax.device_get`). `metrics` {name: number} are all that is known of this step. For the
      run to be a function of its config, what it gives back must depend on these three alone.
    every: the config key of the cadence: log_every, sample_every, evaluate_every, health_every or checkpoint_every.

    Of several processes each calls it, and the first one writes what it reports and decides whether to stop.
    """

    function: Callable
    every: str = "log_every"


def as_callbacks(callbacks, cadences: Mapping[str, int]) -> list[Callback]:
    """Each, or the only one, as a Callback: a bare function is called at log_every.

    `cadences`: of the config, by key; 0: never.

    Raises InputError where one is none, or would never be called.
    """
    several = [callbacks] if callable(callbacks) or isinstance(callbacks, Callback) else callbacks
    made = [one if isinstance(one, Callback) else Callback(one) for one in several]
    for function, every in made:
        if not callable(function):
            raise InputError(f"callbacks has {function!r}; give functions of (step, state, metrics), or Callbacks")
        if not cadences.get(every):
            known = ", ".join(name for name, steps in cadences.items() if steps)
            raise InputError(
                f"{name_of(function)} is to be called {every}, and that is never; it may be one of {known}"
            )
    return made


def checked(report: Report | None, function: Callable) -> Report:
    """What a callback gave back. Raises InputError, one line, where it is not what it should be."""
    name = name_of(function)
    if report is None:
        return Report()
    if not isinstance(report, Report):
        raise InputError(f"the callback {name} gave a {type(report).__name__}; it must give None or a gan_jax.Report")
    try:
        metrics = {key: float(value) for key, value in report.metrics.items()}
        pictures = {key: np.asarray(value) for key, value in report.pictures.items()}
    except (AttributeError, TypeError, ValueError) as error:
        right = "metrics are {name: number} and pictures {name: array}"
        raise InputError(f"the callback {name} gave a wrong Report: {error}; {right}") from error
    for key, picture in pictures.items():
        is_image = picture.dtype == np.uint8 and picture.shape[2:] in ((1,), (3,)) and picture.size
        if not is_image or not re.fullmatch(r"\w[\w-]*", str(key)):
            form = f"{picture.dtype} {list(picture.shape)}"
            raise InputError(f"the callback {name} gave a picture {key!r}, {form}; it must be uint8 [h, w, 1 or 3]")
    return Report(metrics, pictures, report.stop)


def name_of(function: Callable) -> str:
    """What messages call it."""
    return getattr(function, "__qualname__", type(function).__qualname__)
