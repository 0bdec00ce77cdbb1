"""Whether a run is healthy, by what its metrics have been so far: collapse, a saturated discriminator, divergence.

A detector is a pure function (curves, present) -> evidence, a sentence's end, or None. Curves are those of
`metrics.jsonl`: {name: [points, 2], step and value}, up to the step in question. For a condition that is `present` the
thresholds are wider: a value between both neither begins nor ends it. Metrics that are too short are no evidence.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np

from gan_jax.training.health.advice import COLLAPSED, DIVERGING, SATURATED, advice, objective_is

SPAN = 500  # steps for which something must last
LEAST = 3  # points in them, or more steps are looked at

DIVERSITY = 0.25, 0.5  # of the data's: collapsed at or below the first, until it is above the second
CLUSTERS = 0.45, 0.6  # the same of the clusters that samples are in
FALL = 0.5, 0.7  # diversity relative to the most that there was for as long
ACCURACY = 0.99, 0.95  # of D on both sides: saturated at or above
VANISHED = 1e-3, 1e-2  # norm of G's gradient, by itself, or relative to the largest that lasted where that is above 1
LOGIT = 1e3, 3e2  # the largest |logit|: diverging at or above
GROWTH = 1e3, 1e2  # of a gradient's norm, relative to the first ones, or to LEAST_NORM where these are smaller
LEAST_NORM = 1e-2

Curves = Mapping[str, np.ndarray]
_NO_POINTS = np.empty((0, 2))


class Condition(NamedTuple):
    """Something that may be wrong with a run."""

    title: str  # in words
    over: str  # that it is no more
    detect: Callable[[Curves, bool], str | None]


def collapsed(curves: Curves, present: bool = False) -> str | None:
    """Whether samples are far less diverse than the data, by `diversity` and `clusters`, or than they were."""
    # All values must be below a threshold for something to begin, and one of them for it to stay.
    nearest = min if present else max
    diversity, clusters = (nearest(lasting(curves, name), default=np.inf) for name in ("diversity", "clusters"))
    if diversity <= DIVERSITY[present]:
        return f"their mean distance from each other has been at most {diversity:.2g} of that of the data"
    if clusters <= CLUSTERS[present]:
        return f"they have been in at most {clusters:.2g} of the clusters that the data is in"
    most = min(most_lasting(curves, "diversity"), 1)  # samples that were far apart at first have lost nothing
    if diversity <= FALL[present] * most:
        return f"their diversity has fallen from {most:.2g} to {diversity:.2g} of that of the data"
    return None


def saturated(curves: Curves, present: bool = False) -> str | None:
    """Whether D is right about nearly everything, and G's gradient has vanished, for as long as SPAN steps.

    Both are needed: a D that is always right still teaches a G whose loss does not saturate. Vanished is a gradient
    that is small by itself, or beside the largest that lasted: D may be saturated before the first one is logged.
    """
    accuracy = [lasting(curves, name) for name in ("d_accuracy_real", "d_accuracy_fake")]
    gradient = lasting(curves, "g_grad_norm")
    if not len(gradient) or not all(map(len, accuracy)):
        return None
    worst, norm = min(map(np.median, accuracy)), np.median(gradient)
    if worst < ACCURACY[present]:
        return None
    most = most_lasting(curves, "g_grad_norm")
    if norm > VANISHED[present] * max(most, 1):
        return None
    return f"its accuracy has been {worst:.2f} and the generator's gradient {norm:.1g}, of {most:.1g} at its largest"


def diverging(curves: Curves, present: bool = False) -> str | None:
    """Whether logits or gradients are far too large, or gradients far larger than at first, and still finite."""
    logit = lasting(curves, "max_logit")
    if len(logit) and np.median(logit) >= LOGIT[present]:
        return f"the largest |logit| has been {np.median(logit):.3g}"
    for player, name in (("discriminator", "d_grad_norm"), ("generator", "g_grad_norm")):
        last, first = lasting(curves, name), earliest(curves, name)
        # A gradient that had vanished and is back is no divergence.
        if len(last) and len(first) and np.median(last) >= GROWTH[present] * max(np.median(first), LEAST_NORM):
            return f"the {player}'s gradient has been {np.median(last):.1g}, and {np.median(first):.1g} at first"
    return None


CONDITIONS = {
    COLLAPSED: Condition("the samples have collapsed", "the samples are as diverse as they should be again", collapsed),
    SATURATED: Condition("the discriminator is saturated", "the discriminator is no longer saturated", saturated),
    DIVERGING: Condition("training is diverging", "training no longer looks as if it diverged", diverging),
}


def lasting(curves: Curves, name: str) -> np.ndarray:
    """The values of the last SPAN steps, or of so many more as make LEAST points: [points]; [0] where there are not."""
    steps, values = curves.get(name, _NO_POINTS).T
    if len(steps) < LEAST or steps[-1] < SPAN:
        return values[:0]
    return values[min(int(np.searchsorted(steps, steps[-1] - SPAN, side="right")), len(steps) - LEAST) :]


def earliest(curves: Curves, name: str) -> np.ndarray:
    """The values of the first SPAN steps, at least LEAST: [points]; [0] where there are not."""
    steps, values = curves.get(name, _NO_POINTS).T
    return values[: max(int(np.searchsorted(steps, SPAN, side="right")), LEAST)] if len(steps) >= LEAST else values[:0]


def most_lasting(curves: Curves, name: str) -> float:
    """The largest value that was there for LEAST points on end; 0 where there are fewer."""
    _, values = curves.get(name, _NO_POINTS).T
    windows = len(values) - LEAST + 1
    return float(reduce(np.minimum, (values[i : i + windows] for i in range(LEAST))).max()) if windows > 0 else 0.0


class Watch:
    """Follows a run's metrics: each condition is reported once when it begins and once when it is over."""

    def __init__(
        self, config: Mapping[str, Any], past: Iterable[tuple[int, Mapping[str, float]]] = (), devices: int = 1
    ):
        """Goes on after `past`, lines of the metrics [(step, values)], for which nothing is reported again.

        `config`, flat, and `devices` of the run: what would help depends on them.
        """
        self._config, self._devices, self._present = config, devices, set()
        self._points = defaultdict(partial(array, "d"))  # of each metric: step, value, step, value, ...
        # Logits without a zero make accuracy meaningless.
        self._watched = [name for name in CONDITIONS if name != SATURATED or objective_is(config, "centred")]
        for step, values in past:
            self.see(step, values)

    @property
    def present(self) -> list[str]:
        """Those of CONDITIONS that there are now."""
        return [name for name in CONDITIONS if name in self._present]

    def see(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Adds the metrics of a step; returns a line for each condition that begins or ends. The steps ascend."""
        for name, value in values.items():
            self._points[name].extend((step, value))
        curves = {name: np.frombuffer(points).reshape(-1, 2) for name, points in self._points.items()}
        lines = []
        for name in self._watched:
            condition, present = CONDITIONS[name], name in self._present
            evidence = condition.detect(curves, present)
            if (evidence is not None) == present:
                continue
            self._present ^= {name}
            if evidence:
                evidence = f"{condition.title}: {evidence}{advice(name, self._config, self._devices)} (docs/health.md)"
            lines.append(f"step {step:,}: {evidence or condition.over}")
        return lines
