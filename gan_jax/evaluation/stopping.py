"""When a run may stop before its last step: rules over its metrics, so that each start of it stops at the same step."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from gan_jax.utils.keys import COUNT, POSITIVE_INT, TEXT, Needs, Rule

ACCURACIES = ("d_accuracy_real", "d_accuracy_fake")
_HALF = Rule(float, lambda value: 0 <= value < 0.5, "a number from 0 to 0.5, 0.5 excluded")


class StopKeys(NamedTuple):
    """The config keys of the rules."""

    undecided_band: Annotated[
        float, _HALF, "the run stops when both accuracies of D have been within this of 1/2; 0: it goes on"
    ] = 0.0
    undecided_for: Annotated[
        int, POSITIVE_INT, "for so many logged steps, one after another", Needs("stop.undecided_band")
    ] = 10
    patience: Annotated[int, COUNT, "it stops after so many evaluations without a better score; 0: it goes on"] = 0
    score: Annotated[str, TEXT, "this score; empty: evaluation.best", Needs("stop.patience")] = ""

    @property
    def on(self) -> bool:
        """Whether there is a rule."""
        return bool(self.undecided_band or self.patience)


class Stopping:
    """Follows a run's metrics and says whether a rule ends it."""

    def __init__(self, keys: StopKeys, sign: int = 0, past: Iterable[Mapping[str, float]] = ()):
        """Goes on after the lines `past` of metrics.jsonl. `sign` 1: larger scores are better; -1: smaller.

        `keys` have their score by name.
        """
        self._keys, self._sign = keys, sign
        self._undecided = 0  # logged steps on end, up to now, in which both accuracies were within the band
        self._best, self._since = -math.inf, 0  # the best score, larger is better; evaluations after it
        for values in past:
            self.see(values)

    def see(self, values: Mapping[str, float]) -> None:
        """Adds a line of the metrics. The lines come in the order of metrics.jsonl."""
        if values.keys() >= set(ACCURACIES):
            is_near = all(abs(values[name] - 0.5) <= self._keys.undecided_band for name in ACCURACIES)
            self._undecided = self._undecided + 1 if is_near else 0
        if self._keys.score in values:
            score = self._sign * values[self._keys.score]
            self._since = 0 if score > self._best else self._since + 1  # NaN is no better
            self._best = max(self._best, score)

    @property
    def why(self) -> str:
        """Why the run stops here; empty: it goes on."""
        band, count, patience, score = self._keys
        if band and self._undecided >= count:
            return f"both accuracies of D have been within {band:g} of 1/2 for {count} logged steps"
        if patience and self._since >= patience:
            return f"{score} has not been better than {self._sign * self._best:.4g} for {patience} evaluations"
        return ""
