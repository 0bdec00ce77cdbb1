"""Trains the members of one program together, and leaves in each member's folder what a run by itself would."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from gan_jax.config import build as recipe
from gan_jax.config.build import Setup
from gan_jax.parallel.population_layout import Layout, population
from gan_jax.runs import workdirs
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.runs.sampler import Generate
from gan_jax.runs.warm_start import other_state
from gan_jax.step.state import TrainState
from gan_jax.sweep import folders
from gan_jax.sweep.folders import CHECKPOINTS, DIVERGED, END, METRICS, PICTURE, POINTS, member_folder
from gan_jax.sweep.plan import Member
from gan_jax.sweep.population import UNROLL, Population, PopulationState, devices_of_a_member, only_own, rule
from gan_jax.sweep.results import FINISHED
from gan_jax.training.evaluator import Scoring, evaluate_run
from gan_jax.training.health.measures import Vitals
from gan_jax.training.loop import advance_to_end, is_due
from gan_jax.training.writers import MetricsFile, metrics_line
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError, NotFiniteError
from gan_jax.utils.files import read_json, write_atomically

SHOWN = 500  # points of a member at one step
AUTO = "auto"  # members take their steps as `population.rule` says
HOW = "how.json"  # of a program's folder: how its members were spread when it began
AT_ONCE = "at_once.json"  # of the folder of all members of a program that are too many to be trained at once
SECONDS = "seconds.json"  # of a program's folder: of all its starts


def build(members: list[Member], per_member: int, how: str = AUTO) -> list[Setup]:
    """The setups of the members of a program, which share their data.

    Args:
      per_member: devices that share a member's batch.
      how: AUTO, or `vmap` or `map`.

    Raises InputError, naming the member, where a config makes no sense or is not for a sweep.
    """
    setups, devices, source = [], devices_of_a_member(per_member), None
    for member in members:
        try:
            if member.config.evaluation.best:
                raise InputError("evaluation.best is for runs by themselves; leave it empty in a sweep")
            if member.config.stop.undecided_band or member.config.stop.patience:
                raise InputError("stop.* is for runs by themselves; leave undecided_band and patience 0 in a sweep")
            setups.append(recipe.build_on(source, member.config, devices, others=setups))
            source = setups[0].source
            if source.streamed:
                raise InputError(
                    "the data of a sweep lies on its devices; choose a set that fits there, data.placement=device, "
                    "and no iterable"
                )
        except InputError as error:
            raise InputError(f"member {member.number} {member.overrides}: {error}") from error
    if how != AUTO and rule(setups[0]) == UNROLL:
        raise InputError(f"--how={how} is not for networks that convolve on a CPU, where their steps are written out")
    return [setup._replace(reference=setups[0].reference) for setup in setups]


def run_program(
    members: list[Member], setups: list[Setup], workdir: Path, how: str, per_member: int, stop_requested: Callable
) -> bool:
    """Trains the members of a program that have not come to their end; False where a signal ended it early."""
    setup_of = {member.number: setup for member, setup in zip(members, setups, strict=True)}
    size, waiting = len(members), folders.unfinished(workdir, members)
    if waiting and rule(setups[0]) == UNROLL:  # a device takes one member at a time, which is compiled once for all
        size = jax.local_device_count() // per_member
        folders.settle(folders.program_folder(workdir, members) / AT_ONCE, {"members at once": size})
    for start in range(0, len(members), size):
        part = folders.unfinished(workdir, members[start : start + size])
        if not part:
            continue
        folders.discard_stale(workdir, part)
        of_part = [setup_of[member.number] for member in part]
        layout = layout_for(of_part, how, per_member, folders.program_folder(workdir, part))
        if stop_requested() or not _Training(part, of_part, layout, workdir, stop_requested).run():
            return False
    return True


def layout_for(setups: list[Setup], how: str, per_member: int, folder: Path) -> Layout:
    """How these members are spread over this process's devices, of which no more are taken than they need.

    It is kept in `folder`, so that a program that goes on takes the same steps. Raises InputError where it cannot.
    """
    groups = min(jax.local_device_count() // per_member, len(setups))
    devices = jax.local_devices()[: groups * per_member]
    if how == AUTO:
        how = read_json(folder / HOW, {"how": rule(setups[0])})["how"]
    folders.settle(folder / HOW, {"devices": len(devices), "devices_per_member": per_member, "how": how})
    return population(how, per_member, devices)


class _Training:
    """Members in training."""

    def __init__(
        self, members: list[Member], setups: list[Setup], layout: Layout, workdir: Path, stop_requested: Callable
    ):
        self._members, self._setups, self._workdir = members, setups, workdir
        self._stop_requested = stop_requested
        self._population = Population(setups, layout)
        self._config = setups[0].config  # whose cadences are those of all
        self._folder = folders.program_folder(workdir, members)
        self._generate = Generate(setups[0])
        self._vitals = []
        for setup in setups if self._config.health_every else ():
            self._vitals.append(Vitals(setup, *self._vitals[:1]))  # which shares what it has compiled
        Scoring(setups[0], self._generate)  # what is missing for it is known before anything trains
        self._data = layout.within.place(setups[0].source.data)
        self._compiled = {}  # by the steps of a call
        self._unseen = []  # (first step, metrics) of the calls whose numbers nobody has looked at
        self._diverged: dict[int, str] = {}  # place -> why
        self._clock, self._seconds = time.perf_counter(), read_json(self._folder / SECONDS, 0.0)

    def run(self) -> bool:
        with ExitStack() as stack:
            self._checkpoints = stack.enter_context(closing(Checkpoints(self._folder / CHECKPOINTS, kept=2)))
            if self._checkpoints.latest_step() is None:
                workdirs.settle_start(self._folder, self._config.init.run)
                state = self._population.initial(other_state(self._setups[0], self._folder))
            else:
                state = self._checkpoints.restore(self._population.abstract())
                self._checkpoints.discard_after(int(state.step))
            now, bar = int(state.step), {"desc": f"{len(self._members)} members", "unit": "step", "dynamic_ncols": True}
            self._begin(now)
            self._bar = stack.enter_context(tqdm(total=self._config.num_steps, initial=now, **bar))
            state, now = advance_to_end(self._config, state, self._stop_requested, self._advance, self._at_boundary)
            self._save(state)
            self._checkpoints.wait()
            return now == self._config.num_steps and self._finish(state)

    def _begin(self, now: int) -> None:
        for i, (member, setup) in enumerate(zip(self._members, self._setups, strict=True)):
            folders.begin(self._workdir, member, self._folder.name, anew=now == 0)
            workdirs.settle_data(self._path(i), setup.source)
            MetricsFile(self._path(i, METRICS), now).close()
            lost = read_json(self._path(i, DIVERGED))
            if lost is not None and lost["step"] <= now:
                self._diverged[i] = lost["why"]

    def _advance(self, state: PopulationState, now: int, after: int) -> PopulationState:
        if after - now not in self._compiled:
            self._compiled[after - now] = self._population.compiled(after - now, state)
        state, metrics = self._compiled[after - now](state, self._data)
        self._unseen.append((now, metrics))
        return state

    def _at_boundary(self, state: PopulationState, now: int) -> None:
        config, newest = self._config, self._newest_metrics()
        if is_due(config, "log_every", now):
            self._log(now, newest)
            self._bar.update(now - self._bar.n)
        if is_due(config, "sample_every", now) and self._setups[0].source.shape == (2,):
            for i, member in self._living(state):
                points = self._generate.examples(member.ema, self._setups[i].keys.pictures, SHOWN)
                self._path(i, POINTS).mkdir(exist_ok=True)
                np.save(self._path(i, POINTS, f"{now:08d}.npy"), points)
        if is_due(config, "evaluate_every", now):
            for i, member in self._living(state):
                scoring = Scoring(self._setups[i], self._generate.of(self._setups[i]))
                with self._losing(i, now):
                    samples = scoring.samples(member.ema, config.evaluation.num_samples)
                    self._log(now, {i: scoring.values(samples)})
        if is_due(config, "health_every", now):
            self._log(now, {i: self._vitals[i].measure(member) for i, member in self._living(state)})
        if is_due(config, "checkpoint_every", now):
            self._save(state)

    def _newest_metrics(self) -> dict[int, dict[str, float]]:
        """Those of each living member, once it is known which ones have left the finite numbers."""
        newest = {}
        for first, metrics in jax.device_get(self._unseen):
            finite = {name: np.isfinite(values) for name, values in metrics.items()}  # [members, steps]
            all_finite = np.all(list(finite.values()), axis=0)
            for i in self._alive():
                if all_finite[i].all():
                    newest[i] = {name: float(values[i, -1]) for name, values in metrics.items()}
                else:
                    newest.pop(i, None)
                    step = int(np.argmin(all_finite[i]))
                    bad = ", ".join(name for name, is_finite in finite.items() if not is_finite[i, step])
                    self._lose(i, first + step + 1, f"{bad} not finite")
        self._unseen.clear()
        return newest

    def _lose(self, i: int, step: int, why: str) -> None:
        self._diverged[i] = f"step {step:,}: {why}"
        write_atomically(self._path(i, DIVERGED), json.dumps({"step": step, "why": self._diverged[i]}).encode())
        number = self._members[i].number
        self._bar.write(f"member {number} diverged, {self._diverged[i]}; the others go on", file=sys.stderr)

    def _log(self, now: int, metrics: dict[int, dict[str, float]]) -> None:
        for i, values in metrics.items():
            with self._path(i, METRICS).open("a", encoding="utf-8") as file:
                file.write(metrics_line(now, values))

    @contextmanager
    def _losing(self, i: int, step: int):
        """Within it a member diverges where its samples are not finite, though its metrics were."""
        try:
            yield
        except NotFiniteError as error:
            self._lose(i, step, str(error))

    def _save(self, state: PopulationState) -> None:
        if self._checkpoints.latest_step() != int(state.step):
            self._checkpoints.save(state)
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now
        write_atomically(self._folder / SECONDS, json.dumps(self._seconds).encode())

    def _finish(self, state: PopulationState) -> bool:
        """Scores and pictures of the living members, and then how each one ended; False: stopped before."""
        for i, member in self._living(state):
            if self._stop_requested():
                return False
            generate = self._generate.of(self._setups[i])
            with self._losing(i, self._config.num_steps):
                evaluate_run(self._setups[i], member, self._path(i), 0, generate)
                plots.write_png(self._path(i, PICTURE), generate.picture(member))
        count = len(self._members)
        for i in range(count):
            self._save_member(i, state)
            status = f"diverged, {self._diverged[i]}" if i in self._diverged else FINISHED
            end = {"status": status, "seconds": self._seconds / count, "together": count}
            write_atomically(self._path(i, END), (json.dumps(end) + "\n").encode())
        return True

    def _save_member(self, i: int, state: PopulationState) -> None:
        """Its last good state as a checkpoint of a run by itself, for the verbs that read those."""
        states = state.members.state
        key = jax.random.wrap_key_data(np.asarray(jax.random.key_data(states.key))[i])
        member = jax.tree.map(lambda x: np.asarray(x)[i], states.replace(key=None)).replace(key=key)
        member = only_own(member, self._setups[i].hyperparameters)  # its program may have more
        with closing(Checkpoints(self._path(i, CHECKPOINTS), kept=1)) as checkpoints:
            checkpoints.save(self._setups[i].devices.place(member))

    def _living(self, state: PopulationState) -> list[tuple[int, TrainState]]:
        """The members that have not diverged, each with its state on the host, without its key."""
        states = jax.device_get(state.members.state.replace(key=None))
        return [(i, jax.tree.map(lambda x, i=i: x[i], states)) for i in self._alive()]

    def _alive(self) -> list[int]:
        return [i for i in range(len(self._members)) if i not in self._diverged]

    def _path(self, i: int, *names: str) -> Path:
        return member_folder(self._workdir, self._members[i]).joinpath(*names)
