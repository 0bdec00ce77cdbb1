"""The training loop: the only one."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from gan_jax import step
from gan_jax.config.build import Setup, abstract_state, initial_state
from gan_jax.config.schema import flatten
from gan_jax.data import loader
from gan_jax.data.loader import Loader
from gan_jax.data.source import content
from gan_jax.evaluation.metrics.comparison import better, scores_of
from gan_jax.evaluation.stopping import StopKeys, Stopping
from gan_jax.parallel import agreement
from gan_jax.parallel.devices import Program
from gan_jax.runs import workdirs
from gan_jax.runs.checkpoints import Best, Checkpoints
from gan_jax.runs.sampler import Generate
from gan_jax.runs.warm_start import other_state
from gan_jax.step.state import TrainState
from gan_jax.training.callbacks import Callback, as_callbacks, checked
from gan_jax.training.evaluator import Scoring
from gan_jax.training.health.advice import DIVERGING, advice
from gan_jax.training.health.detectors import Watch
from gan_jax.training.health.measures import Vitals
from gan_jax.training.writers import METRICS, Silent, Writers, read_metrics
from gan_jax.utils.errors import AgreedError, DivergedError, InputError, UnsavedError

CADENCES = ("log_every", "sample_every", "evaluate_every", "health_every", "checkpoint_every")


def train(setup: Setup, workdir: str | Path, callbacks: Sequence[Callback | Callable] = ()) -> bool:
    """Trains to config.num_steps in `workdir`, from the newest checkpoint there; False where it ended before.

    What ends it early: a signal, a rule of `config.stop`, a callback. The state is then saved.

    The state, the metrics and the pictures at each step are functions of the config alone, however often the run was
    interrupted. Raises InputError where the folder holds another run or is in use, and DivergedError when a metric is
    not finite, once the state before that call is saved.

    Args:
      setup: from `gan_jax.build`.
      workdir: the folder of the run, made where there is none: the command line can go on with it, sample and score.
      callbacks: functions (step, state, metrics) -> Report or None, called at log_every, or `Callback`s.

    Of several processes all call it with the same setup. They step and save together; the first one does the rest.
    """
    with workdirs.claimed(Path(workdir), setup.config):
        return train_claimed(setup, Path(workdir), callbacks)


def train_claimed(setup: Setup, workdir: Path, callbacks: Sequence[Callback | Callable] = ()) -> bool:
    """`train` in a folder that the caller has claimed."""
    callbacks = as_callbacks(callbacks, {name: setup.config[name] for name in CADENCES})
    agreement.by_first(partial(workdirs.settle_data, workdir, setup.source))
    if agreement.several():
        agreement.require_equal("the data's", agreement.all_or_none(partial(content, setup.source)))
    with ExitStack() as stack:
        loop = _Loop(setup, workdir, callbacks, stack)
        agreement.by_first(partial(workdirs.settle_config, workdir, setup.config, int(loop.start.step)))
        return loop.run()


def _on_first(function: Callable):
    """What the function returns in the first process; None in the others. What fails there fails in all."""
    return agreement.all_or_none(lambda: function() if agreement.is_first() else None)


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


def call_shapes(setup: Setup, steps: int):
    """The shapes, dtypes and placement of the data that a compiled call of so many steps takes, without its arrays."""
    config = setup.config
    return loader.call_shapes(setup.source, setup.devices, steps, config.discriminator.steps, config.batch_size)


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
    def __init__(self, setup: Setup, workdir: Path, callbacks: list[Callback], stack: ExitStack):
        """Opens everything onto the stack. A field is None where the config or this process has none of it."""
        config, evaluation = setup.config, setup.config.evaluation
        self.setup, self.config, self.generate, self.best = setup, config, Generate(setup), None
        self.callbacks, self.known = callbacks, {}  # all metrics of the newest boundary
        self.scoring = _on_first(lambda: Scoring(setup, self.generate) if config.evaluate_every else None)
        self.stop_requested = agreement.in_any_process(stack.enter_context(stop_signals()))
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoints_kept)
        self.checkpoints = stack.enter_context(closing(checkpoints))
        self.start = self._newest_state(workdir)
        writers = _on_first(lambda: Writers(workdir, int(self.start.step), config.num_steps)) or Silent()
        self.writers = stack.enter_context(closing(writers))
        self.data = stack.enter_context(closing(open_loader(setup, self.start, partial(next_boundary, config))))
        signs = better(evaluation.extractor, setup.source, scores_of(evaluation))
        if evaluation.best:
            protocol = agreement.by_first(lambda: {"num_samples": evaluation.num_samples} | self.scoring.protocol)
            self.best = stack.enter_context(closing(Best(workdir, evaluation.best, signs[evaluation.best], protocol)))
        of_run = flatten(config.to_dict()), read_metrics(workdir / METRICS), setup.devices.count
        self.vitals = _on_first(lambda: Vitals(setup) if config.health_every else None)
        self.watch = _on_first(lambda: Watch(*of_run) if config.health_every else None)
        stop = StopKeys(**config.stop)._replace(score=config.stop.score or evaluation.best)
        past = _on_first(lambda: read_metrics(workdir / METRICS)) or ()
        self.stopping = Stopping(stop, signs.get(stop.score, 0), (values for _, values in past)) if stop.on else None
        self.why = ""  # why the run ends before its last step; empty: it goes on
        self._agree_to_stop()
        self.compiled: dict[int, Program] = {}  # by the steps of a call
        self.unseen: list[tuple[int, Metrics]] = []  # first step and metrics of calls not looked at yet

    def _newest_state(self, workdir: Path) -> TrainState:
        if self.checkpoints.latest_step() is None:
            other = other_state(self.setup, workdir)
            state = initial_state(self.setup, other)
            if other is not None:  # from here on the run goes on without the other one
                self.checkpoints.save(state)
                self.checkpoints.wait()
            return state
        state = self.checkpoints.restore(abstract_state(self.setup), numbers=self.setup.hyperparameters)
        self.checkpoints.discard_after(int(state.step))
        if agreement.is_first():
            print(f"going on from step {int(state.step):,}", file=sys.stderr)
        return state

    def run(self) -> bool:
        # A streamed set may have an example that cannot be read; samples may be such that they cannot be scored.
        functions = map(self._saved_before_a_mistake, (self._advance, self._do_what_is_due))
        state, now = advance_to_end(self.config, self.start, lambda: self.why or self.stop_requested(), *functions)
        if now < self.config.num_steps:
            self._save(state, now)
            by_signal = f"stopped by a signal at step {now:,}, which is saved; the same command goes on from there"
            self.writers.say(f"stopped at step {now:,}, which is saved: {self.why}" if self.why else by_signal)
        self.checkpoints.wait()
        return now == self.config.num_steps

    def _saved_before_a_mistake(self, function: Callable) -> Callable:
        """The function of (state, now, ...), such that an InputError in it saves that state before it ends the run."""

        def call(state: TrainState, now: int, *more):
            try:
                return function(state, now, *more)
            except UnsavedError:
                raise
            except InputError as error:
                if not agreement.several() or isinstance(error, AgreedError):  # saving waits for all
                    self._save(state, now)
                raise

        return call

    def _advance(self, state: TrainState, now: int, after: int) -> TrainState:
        read = partial(self.data.call, now, after)
        # Each process reads rows of its own, and what one cannot read the others must not wait for.
        data = agreement.all_or_none(read, often=True) if self.setup.source.streamed else read()
        if after - now not in self.compiled:
            self.compiled[after - now] = compiled_call(self.setup, after - now, state, data)
        state, metrics = self.compiled[after - now](state, data)
        self.unseen.append((now, metrics))
        return state

    def _do_what_is_due(self, state: TrainState, now: int) -> None:
        due = [cadence for cadence in CADENCES if is_due(self.config, cadence, now)]
        newest = self._newest_metrics() if due else {}
        self.known = {} if "log_every" in due else dict(newest)
        if "log_every" in due:
            self._report(now, newest)
            self.writers.progress(now, self.data.waited)
        if "sample_every" in due:
            self.writers.picture(now, self.generate.drawing(state))
        if "evaluate_every" in due:
            count = self.config.evaluation.num_samples
            samples = self.generate.for_scores(state.ema, self.setup.keys.evaluation, count)
            scores = agreement.by_first(lambda: self.scoring.values(samples))
            self._report(now, scores)
            if self.best is not None:
                self.best.see(state, scores[self.config.evaluation.best])
        if "health_every" in due:
            self._report(now, agreement.by_first(lambda: self.vitals.measure(state)))
        for callback in self.callbacks:
            if callback.every in due:
                self._call(callback, state, now)
        if due:
            self._agree_to_stop()
        if "checkpoint_every" in due:
            self.writers.flush()
            self.checkpoints.save(state)

    def _call(self, callback: Callback, state: TrainState, now: int) -> None:
        """Calls it, and takes what it reports to the first process. If it raises, the state is saved before that."""
        try:
            report = agreement.all_or_none(
                lambda: checked(callback.function(now, state, dict(self.known)), callback.function)
            )
        except InputError:
            raise  # which saves it
        except Exception:
            if not agreement.several():
                self._save(state, now)
            raise
        if metrics := agreement.from_first(dict(report.metrics)):
            self._report(now, metrics)
        for name, picture in report.pictures.items():
            self.writers.picture(now, lambda picture=picture: picture, name)
        self.why = self.why or report.stop

    def _agree_to_stop(self) -> None:
        """Sets `why` to what the first process says: a callback's word, or that of a rule."""
        if self.callbacks or self.stopping is not None:
            self.why = agreement.from_first(self.why or (self.stopping.why if self.stopping else ""))

    def _report(self, now: int, values: dict[str, float]) -> None:
        """Writes metrics of this step. Raises InputError where one has the name of another."""
        if twice := values.keys() & {"step", *self.known}:
            raise InputError(f"step {now:,} has a metric {min(twice)} already; give yours another name")
        self.known |= values
        self.writers.metrics(now, values)
        if self.stopping is not None:
            self.stopping.see(values)
        for line in self.watch.see(now, values) if self.watch else ():
            self.writers.say(line)

    def _newest_metrics(self) -> dict[str, float]:
        """The newest step's metrics, once all the unseen ones are known to be finite; waits for the device."""
        newest = {}
        for first, metrics in jax.device_get(self.unseen):
            finite = np.isfinite(metrics.values).all(axis=0)
            if not finite.all():
                index = int(np.argmin(finite))
                self._diverged(first, index, dict(zip(metrics.names, metrics.values[:, index], strict=True)))
            newest = dict(zip(metrics.names, metrics.values[:, -1].tolist(), strict=True))
        self.unseen.clear()
        return newest

    def _diverged(self, first: int, index: int, metrics: dict[str, np.ndarray]) -> None:
        """Saves the state before the call that left the finite numbers at its step `index`, and raises."""
        bad = [name for name, value in metrics.items() if not np.isfinite(value)]
        self.checkpoints.wait()
        if self.checkpoints.latest_step() != first:
            # The state was donated away. It is computed again, since a run is a function of its config.
            state = self.checkpoints.restore(abstract_state(self.setup)) or initial_state(self.setup)
            nothing_due = (lambda: False), self._advance, (lambda *_: None)
            self.checkpoints.save(advance_to_end(self.config, state, *nothing_due, first)[0])
        self.checkpoints.wait()
        raise DivergedError(
            f"step {first + index + 1:,}: {', '.join(bad)} not finite; the largest |logit| was "
            f"{metrics['max_logit']:.4g}; the state of step {first:,} is saved"
            + advice(DIVERGING, flatten(self.config.to_dict()), self.setup.devices.count)
        )

    def _save(self, state: TrainState, now: int) -> None:
        """Saves a state that no cadence asks for, before the run ends."""
        self._newest_metrics()
        if self.checkpoints.latest_step() != now:
            self.checkpoints.save(state)
        self.checkpoints.wait()


def advance_to_end(
    config, state, stop_requested: Callable, advance: Callable, at_boundary: Callable, end: int | None = None
):
    """The loop itself: (state, step) at `end`, config.num_steps by default, or where a signal asked it to stop.

    Args:
      state: of a run, or of a population: what has a `step`.
      advance: (state, now, after) -> the state of step `after`.
      at_boundary: (state, now) -> None: does what is due there.
    """
    now, end = int(state.step), config.num_steps if end is None else end
    while now < end and not stop_requested():
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
    cadences = [config[name] for name in ("steps_per_call", *CADENCES) if config[name]]
    return min(*(now - now % cadence + cadence for cadence in cadences), config.num_steps)


@contextmanager
def stop_signals():
    """Within it SIGTERM and SIGINT only set a flag, which the yielded function reads; a second Ctrl-C acts as usual."""
    received = []

    def note(number, frame):
        received.append(number)
        os.write(2, b"\nstopping after this call\n")  # not print: the signal may have come in the middle of one
        if number == signal.SIGINT:
            signal.signal(number, previous[number])

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
