"""The training loop: the only one."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gan_jax import agreement, step, workdirs
from gan_jax.best import Best
from gan_jax.checkpoints import Checkpoints
from gan_jax.data.source import content
from gan_jax.devices import Program
from gan_jax.errors import AgreedError, DivergedError, InputError, UnsavedError
from gan_jax.evaluation.comparison import better
from gan_jax.generate import Generate
from gan_jax.health import Watch
from gan_jax.loader import Loader
from gan_jax.recipe import Setup, abstract_state, initial_state
from gan_jax.remedies import DIVERGING, advice
from gan_jax.schema import flatten
from gan_jax.scoring import Scoring
from gan_jax.state import TrainState
from gan_jax.vitals import Vitals
from gan_jax.writers import METRICS, Silent, Writers, read_metrics


def train(setup: Setup, workdir: Path) -> bool:
    """Trains to config.num_steps in `workdir`, from the newest checkpoint there; False if a signal ended it early.

    The state, the metrics and the pictures at each step are functions of the config alone, however often the run was
    interrupted. Raises DivergedError when a metric is not finite, once the last good state is saved.

    Of several processes all call it with the same setup. They step and save together; the first one does the rest.
    """
    _settle_data(setup, workdir)
    generate = Generate(setup)
    scoring = agreement.all_or_none(partial(_scoring, setup, generate))
    with (
        stop_signals() as stop_requested,
        closing(Checkpoints(workdir / "checkpoints", setup.config.checkpoints_kept)) as checkpoints,
    ):
        if checkpoints.latest_step() is None:
            state = initial_state(setup)
        else:
            state = checkpoints.restore(abstract_state(setup))
            checkpoints.discard_after(int(state.step))
            if agreement.is_first():
                print(f"going on from step {int(state.step):,}", file=sys.stderr)
        with (
            closing(agreement.all_or_none(partial(_writers, setup, workdir, int(state.step)))) as writers,
            closing(open_loader(setup, state, partial(next_boundary, setup.config))) as data,
            _best(setup, scoring, workdir) as best,
        ):
            health = agreement.all_or_none(partial(_health, setup, workdir))
            loop = _Loop(setup, workdir, checkpoints, writers, data, generate, scoring, best, health)
            return loop.run(state, agreement.in_any_process(stop_requested))


def _settle_data(setup: Setup, workdir: Path) -> None:
    agreement.by_first(partial(workdirs.settle_data, workdir, setup.source))
    if agreement.several():
        agreement.require_equal("the data's", agreement.all_or_none(partial(content, setup.source)))


def _scoring(setup: Setup, generate: Generate) -> Scoring | None:
    return Scoring(setup, generate) if setup.config.evaluate_every and agreement.is_first() else None


def _writers(setup: Setup, workdir: Path, step: int) -> Writers | Silent:
    return Writers(workdir, step, setup.config.num_steps) if agreement.is_first() else Silent()


class Health(NamedTuple):
    """How the run's health is followed."""

    vitals: Vitals
    watch: Watch


def _health(setup: Setup, workdir: Path) -> Health | None:
    """Of the first process alone. It knows what the run's metrics so far were."""
    if not setup.config.health_every or not agreement.is_first():
        return None
    config, past = flatten(setup.config.to_dict()), read_metrics(workdir / METRICS)
    return Health(Vitals(setup), Watch(config, past, setup.devices.count))


def _best(setup: Setup, scoring: Scoring | None, workdir: Path):
    wanted = setup.config.evaluation
    if not wanted.best:
        return nullcontext()
    protocol = agreement.by_first(lambda: {"num_samples": wanted.num_samples} | scoring.protocol)
    return closing(Best(workdir, wanted.best, better(wanted.extractor, setup.source)[wanted.best], protocol))


def open_loader(setup: Setup, state: TrainState, following: Callable[[int], int] | None) -> Loader:
    """What gives the compiled calls of a run from `state` on their data; see `Loader` for `following`."""
    return Loader(
        setup.source,
        setup.devices,
        np.asarray(step.order_words(state.key)) if setup.source.streamed else None,
        batch_size=setup.config.batch_size,
        discriminator_steps=setup.config.discriminator.steps,
        num_steps=setup.config.num_steps,
        workers=setup.config.data.workers,
        following=following,
    )


class Metrics(struct.PyTreeNode):
    """A call's metrics as one array: fetching it costs the host a tenth of what thirteen small ones do."""

    names: tuple[str, ...] = struct.field(pytree_node=False)
    values: jax.Array  # [names, steps] float32


def compiled_call(setup: Setup, steps: int, state: TrainState, data) -> Program:
    """The compiled call that takes `steps` steps at once: (state, data) -> (state, Metrics); state is donated."""
    return setup.devices.compile(partial(_train_steps, setup, steps), state, data)


def _train_steps(setup: Setup, steps: int, state: TrainState, data):
    state, metrics = step.train_steps(setup.recipe, setup.devices, setup.source, steps, state, data)
    return state, Metrics(tuple(metrics), jnp.stack(list(metrics.values())))


class _Loop:
    """What the loop needs at every boundary, so that the loop itself reads as what it does."""

    def __init__(
        self,
        setup: Setup,
        workdir: Path,
        checkpoints: Checkpoints,
        writers: Writers | Silent,
        data: Loader,
        generate: Generate,
        scoring: Scoring | None,
        best: Best | None,
        health: Health | None,
    ):
        self._setup, self._config = setup, setup.config
        self._workdir, self._checkpoints, self._writers, self._data = workdir, checkpoints, writers, data
        self._generate, self._scoring, self._best, self._health = generate, scoring, best, health
        self._compiled = {}  # by the steps of a call
        self._unseen = []  # (first step, Metrics) of the calls whose numbers nobody has looked at

    def run(self, state: TrainState, stop_requested: Callable) -> bool:
        state, now = advance_to_end(self._config, state, stop_requested, self._take, self._at_boundary)
        if now < self._config.num_steps:
            self._stop(state, now)
            return False
        self._checkpoints.wait()
        return True

    def _take(self, state: TrainState, now: int, after: int) -> TrainState:
        with self._saved_before_a_mistake(state, now):  # a streamed set may have an example that cannot be read
            return self._advance(state, now, after)

    def _at_boundary(self, state: TrainState, now: int) -> None:
        with self._saved_before_a_mistake(state, now):  # samples may be such that they cannot be scored
            self._do_what_is_due(state, now)

    @contextmanager
    def _saved_before_a_mistake(self, state: TrainState, now: int):
        try:
            yield
        except UnsavedError:
            raise
        except InputError as error:
            if not agreement.several() or isinstance(error, AgreedError):  # saving waits for all
                self._save(state, now)
            raise

    def _advance(self, state: TrainState, now: int, after: int) -> TrainState:
        data = self._read(now, after)
        if after - now not in self._compiled:
            self._compiled[after - now] = compiled_call(self._setup, after - now, state, data)
        state, metrics = self._compiled[after - now](state, data)
        self._unseen.append((now, metrics))
        return state

    def _read(self, now: int, after: int):
        read = partial(self._data.call, now, after)
        # Each process reads rows of its own, and what one cannot read the others must not wait for.
        return agreement.all_or_none(read, often=True) if self._setup.source.streamed else read()

    def _do_what_is_due(self, state: TrainState, now: int) -> None:
        if is_due(self._config, "log_every", now):
            self._report(now, self._look())
            self._writers.progress(now, self._data.waited)
        if is_due(self._config, "sample_every", now):
            self._look()
            self._writers.picture(now, self._generate.drawing(state))
        if is_due(self._config, "evaluate_every", now):
            self._look()
            scores = self._evaluate(state)
            self._writers.metrics(now, scores)
            if self._best is not None:
                self._best.see(state, scores[self._config.evaluation.best])
        if is_due(self._config, "health_every", now):
            self._look()
            if self._health is not None:  # of several processes, the first one's
                self._report(now, self._health.vitals.measure(state))
        if is_due(self._config, "checkpoint_every", now):
            self._look()
            self._writers.flush()
            self._checkpoints.save(state)

    def _report(self, now: int, values: dict[str, float]) -> None:
        self._writers.metrics(now, values)
        for line in self._health.watch.see(now, values) if self._health is not None else ():
            self._writers.say(line)

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        count, key = self._config.evaluation.num_samples, self._setup.keys.evaluation
        samples = self._generate.for_scores(state.ema, key, count)
        return agreement.by_first(lambda: self._scoring.values(samples))

    def _look(self) -> dict[str, float]:
        """The newest step's metrics, once all the unseen ones are known to be finite; waits for the device."""
        newest = {}
        for first, metrics in jax.device_get(self._unseen):
            finite = np.isfinite(metrics.values).all(axis=0)
            if not finite.all():
                index = int(np.argmin(finite))
                self._diverged(first, index, dict(zip(metrics.names, metrics.values[:, index], strict=True)))
            newest = dict(zip(metrics.names, metrics.values[:, -1].tolist(), strict=True))
        self._unseen.clear()
        return newest

    def _diverged(self, first: int, index: int, metrics: dict[str, np.ndarray]) -> None:
        """Saves the state before the call that left the finite numbers at its step `index`, and raises."""
        bad = [name for name, value in metrics.items() if not np.isfinite(value)]
        self._checkpoints.wait()
        if self._checkpoints.latest_step() != first:
            self._checkpoints.save(self._state_at(first))
        self._checkpoints.wait()
        raise DivergedError(
            f"step {first + index + 1:,}: {', '.join(bad)} not finite; the largest |logit| was "
            f"{metrics['max_logit']:.4g}; the state of step {first:,} is saved"
            + advice(DIVERGING, flatten(self._config.to_dict()), self._setup.devices.count)
        )

    def _state_at(self, wanted: int) -> TrainState:
        """The state of a step that was donated away: computed again, since a run is a function of its config."""
        state = self._checkpoints.restore(abstract_state(self._setup)) or initial_state(self._setup)
        now = int(state.step)
        while now < wanted:
            after = next_boundary(self._config, now)
            state, now = self._advance(state, now, after), after
        return state

    def _save(self, state: TrainState, now: int) -> None:
        """Saves a state that no cadence asks for, before the run ends."""
        self._look()
        if self._checkpoints.latest_step() != now:
            self._checkpoints.save(state)
        self._checkpoints.wait()

    def _stop(self, state: TrainState, now: int) -> None:
        self._save(state, now)
        self._writers.say(f"stopped by a signal at step {now:,}, which is saved; the same command goes on from there")


def advance_to_end(config, state, stop_requested: Callable, advance: Callable, at_boundary: Callable):
    """The loop itself: (state, step) at config.num_steps, or where a signal asked it to stop.

    Args:
      state: of a run, or of a population: what has a `step`.
      advance: (state, now, after) -> the state of step `after`.
      at_boundary: (state, now) -> None: does what is due there.
    """
    now = int(state.step)
    while now < config.num_steps and not stop_requested():
        after = next_boundary(config, now)
        state, now = advance(state, now, after), after
        at_boundary(state, now)
    return state, now


def is_due(config, cadence: str, now: int) -> bool:
    """Whether `cadence`, such as log_every, is due at this step: at its multiples, and at the end unless it is 0."""
    return config[cadence] > 0 and (now % config[cadence] == 0 or now == config.num_steps)


def next_boundary(config, now: int) -> int:
    """Where the call that starts at step `now` ends: at the next step at which anything is due.

    A function of `now` alone, so that a resumed run makes the same calls as an uninterrupted one.
    """
    cadences = ("steps_per_call", "log_every", "sample_every", "evaluate_every", "health_every", "checkpoint_every")
    following = [now - now % config[name] + config[name] for name in cadences if config[name]]
    return min(*following, config.num_steps)


@contextmanager
def stop_signals():
    """Within it SIGTERM and SIGINT only set a flag, which the yielded function reads; a second Ctrl-C acts as usual."""
    received = []
    previous = {}

    def note(number, frame):
        received.append(number)
        os.write(2, b"\nstopping after this call\n")  # not print: the signal may have come in the middle of one
        if number == signal.SIGINT:
            signal.signal(number, previous[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
