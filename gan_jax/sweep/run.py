"""Trains the members of one program together, and leaves in each member's folder what a run by itself would."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from gan_jax import images, recipe, workdirs
from gan_jax.checkpoints import Checkpoints
from gan_jax.data import Source
from gan_jax.errors import InputError, NotFiniteError
from gan_jax.evaluate import evaluate_run
from gan_jax.files import read_json, write_atomically
from gan_jax.generate import Generate
from gan_jax.population import Crew, Population, only_own
from gan_jax.population_layout import Layout
from gan_jax.recipe import Setup
from gan_jax.scoring import Scoring
from gan_jax.state import TrainState
from gan_jax.sweep import folders
from gan_jax.sweep.folders import ABOUT, CHECKPOINTS, DIVERGED, METRICS, PICTURE, POINTS, member_folder
from gan_jax.sweep.layout import Choice, at_once, devices_of_a_member, layout_for
from gan_jax.sweep.plan import Member
from gan_jax.train import advance_to_end, is_due
from gan_jax.vitals import Vitals
from gan_jax.writers import MetricsFile, metrics_line

SHOWN = 500  # points of each
SECONDS = "seconds.json"  # of a program's folder: of all its starts


def build(members: list[Member], per_member: int) -> list[Setup]:
    """The setups of the members of a program, which share their data.

    Raises InputError, naming the member, where a config makes no sense or is not for a sweep.
    """
    setups, source, devices = [], None, devices_of_a_member(per_member)
    for member in members:
        try:
            setups.append(_setup(member, devices, source))
        except InputError as error:
            raise InputError(f"member {member.number} {member.overrides}: {error}") from error
        source = setups[0].source
    return [setup._replace(reference=setups[0].reference) for setup in setups]


def _setup(member: Member, devices, source: Source | None) -> Setup:
    if member.config.evaluation.best:
        raise InputError("evaluation.best is for runs by themselves; leave it empty in a sweep")
    setup = recipe.build(member.config, devices, source)
    if setup.source.streamed:
        raise InputError("the data of a sweep lies on its devices; choose a set that fits there, data.placement=device")
    return setup


def run_program(
    members: list[Member], setups: list[Setup], workdir: Path, choice: Choice, stop_requested: Callable
) -> bool:
    """Trains those members of a program that have not come to their end; False where a signal ended it early."""
    setup_of = {member.number: setup for member, setup in zip(members, setups, strict=True)}
    size = at_once(setups[0], len(members), choice, folders.program_folder(workdir, members))
    for start in range(0, len(members), size):
        part = folders.waiting(workdir, members[start : start + size])
        if not part:
            continue
        folders.discard_stale(workdir, part)
        of_part = [setup_of[member.number] for member in part]
        layout = layout_for(of_part, choice, folders.program_folder(workdir, part))
        if stop_requested() or not _Together(part, of_part, layout, workdir, stop_requested).run():
            return False
    return True


class _Together:
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
        self._vitals = self._vitals_of(setups)
        Scoring(setups[0], self._generate)  # what is missing for it is known before anything trains
        self._data = layout.within.place(setups[0].source.data)
        self._compiled = {}
        self._unseen = []  # (first step, metrics) of the calls whose numbers nobody has looked at
        self._diverged: dict[int, str] = {}  # place -> why
        self._clock, self._seconds = time.perf_counter(), read_json(self._folder / SECONDS, 0.0)

    def run(self) -> bool:
        with ExitStack() as stack:
            self._checkpoints = stack.enter_context(closing(Checkpoints(self._folder / CHECKPOINTS, kept=2)))
            crew = self._first_crew()
            now = int(crew.step)
            self._begin(now)
            description = f"{len(self._members)} members"
            self._bar = stack.enter_context(
                tqdm(desc=description, total=self._config.num_steps, initial=now, unit="step", dynamic_ncols=True)
            )
            crew, now = advance_to_end(self._config, crew, self._stop_requested, self._advance, self._at_boundary)
            self._save(crew)
            self._checkpoints.wait()
            return now == self._config.num_steps and self._finish(crew)

    def _begin(self, now: int) -> None:
        for i, (member, setup) in enumerate(zip(self._members, self._setups, strict=True)):
            folders.begin(self._workdir, member, self._folder.name, anew=now == 0)
            workdirs.settle_data(member_folder(self._workdir, member), setup.source)
            MetricsFile(self._in_folder(i, METRICS), now).close()
            lost = read_json(self._in_folder(i, DIVERGED))
            if lost is not None and lost["step"] <= now:
                self._diverged[i] = lost["why"]

    def _first_crew(self) -> Crew:
        if self._checkpoints.latest_step() is None:
            return self._population.initial()
        crew = self._checkpoints.restore(self._population.abstract())
        self._checkpoints.discard_after(int(crew.step))
        return crew

    def _advance(self, crew: Crew, now: int, after: int) -> Crew:
        if after - now not in self._compiled:
            self._compiled[after - now] = self._population.compiled(after - now, crew)
        crew, metrics = self._compiled[after - now](crew, self._data)
        self._unseen.append((now, metrics))
        return crew

    def _at_boundary(self, crew: Crew, now: int) -> None:
        config, newest = self._config, self._look()
        if is_due(config, "log_every", now):
            self._log(now, newest)
            self._bar.update(now - self._bar.n)
        if is_due(config, "sample_every", now) and self._in_the_plane:
            for i, state in self._living(crew):
                points = self._generate.examples(state.ema, self._setups[i].keys.pictures, SHOWN)
                self._in_folder(i, POINTS).mkdir(exist_ok=True)
                np.save(self._in_folder(i, POINTS, f"{now:08d}.npy"), points)
        if is_due(config, "evaluate_every", now):
            for i, state in self._living(crew):
                self._score(i, state, now)
        if is_due(config, "health_every", now):
            self._log(now, {i: self._vitals[i].signs(state) for i, state in self._living(crew)})
        if is_due(config, "checkpoint_every", now):
            self._save(crew)

    def _vitals_of(self, setups: list[Setup]) -> list[Vitals]:
        if not self._config.health_every:
            return []
        first = Vitals(setups[0])
        return [first, *(Vitals(setup, first) for setup in setups[1:])]

    def _look(self) -> dict[int, dict[str, float]]:
        """The newest metrics of each living member, once it is known which ones have left the finite numbers."""
        newest = {}
        for first, metrics in jax.device_get(self._unseen):
            names, values = list(metrics), np.stack(list(metrics.values()))  # [names, members, steps]
            finite = np.isfinite(values).all(axis=0)
            for i in range(len(self._members)):
                if i in self._diverged:
                    continue
                if finite[i].all():
                    newest[i] = dict(zip(names, values[:, i, -1].tolist(), strict=True))
                else:
                    self._freeze(i, first, names, values[:, i], finite[i])
        self._unseen.clear()
        return {i: values for i, values in newest.items() if i not in self._diverged}

    def _freeze(self, i: int, first: int, names: list[str], values: np.ndarray, finite: np.ndarray) -> None:
        index = int(np.argmin(finite))
        bad = ", ".join(name for name, value in zip(names, values[:, index], strict=True) if not np.isfinite(value))
        self._lose(i, first + index + 1, f"{bad} not finite")

    def _lose(self, i: int, step: int, why: str) -> None:
        self._diverged[i] = f"step {step:,}: {why}"
        write_atomically(self._in_folder(i, DIVERGED), json.dumps({"step": step, "why": self._diverged[i]}).encode())
        line = f"member {self._members[i].number} diverged, {self._diverged[i]}; the others go on"
        self._bar.write(line, file=sys.stderr)

    def _log(self, now: int, values: dict[int, dict[str, float]]) -> None:
        for i, each in values.items():
            with self._in_folder(i, METRICS).open("a", encoding="utf-8") as file:
                file.write(metrics_line(now, each))

    def _score(self, i: int, state: TrainState, now: int) -> None:
        scoring = Scoring(self._setups[i], self._generate.of(self._setups[i]))
        try:
            samples = scoring.samples(state.ema, self._config.evaluation.num_samples)
            scores = scoring.values(samples)
        except NotFiniteError as error:  # though its metrics were
            self._lose(i, now, str(error))
        else:
            self._log(now, {i: scores})

    def _save(self, crew: Crew) -> None:
        if self._checkpoints.latest_step() != int(crew.step):
            self._checkpoints.save(crew)
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now
        write_atomically(self._folder / SECONDS, json.dumps(self._seconds).encode())

    def _finish(self, crew: Crew) -> bool:
        """Scores and pictures of those that live, and at last a word on how each one ended; False: stopped before."""
        for i, state in self._living(crew):
            if self._stop_requested():
                return False
            setup, folder = self._setups[i], member_folder(self._workdir, self._members[i])
            generate = self._generate.of(setup)
            try:
                evaluate_run(setup, state, folder, 0, generate)
                images.write_png(folder / PICTURE, generate.picture(state))
            except NotFiniteError as error:
                self._lose(i, self._config.num_steps, str(error))
        for i in range(len(self._members)):
            self._save_member(i, crew)
        for i in range(len(self._members)):
            status = f"diverged, {self._diverged[i]}" if i in self._diverged else "finished"
            share = self._seconds / len(self._members)
            told = {"status": status, "seconds": share, "together": len(self._members)}
            write_atomically(self._in_folder(i, ABOUT), (json.dumps(told) + "\n").encode())
        return True

    def _save_member(self, i: int, crew: Crew) -> None:
        """Its last good state as a checkpoint of a run by itself, for the verbs that read those."""
        states = crew.members.state
        key = jax.random.wrap_key_data(np.asarray(jax.random.key_data(states.key))[i])
        state = jax.tree.map(lambda x: np.asarray(x)[i], states.replace(key=None)).replace(key=key)
        # What it would have by itself: in the program it may have more.
        state = only_own(state, self._setups[i].hyperparameters)
        with closing(Checkpoints(self._in_folder(i, CHECKPOINTS), kept=1)) as checkpoints:
            checkpoints.save(self._setups[i].devices.place(state))

    def _living(self, crew: Crew) -> list[tuple[int, TrainState]]:
        """The members that have not diverged, each with its state on the host, without its key."""
        states = jax.device_get(crew.members.state.replace(key=None))
        alive = [i for i in range(len(self._members)) if i not in self._diverged]
        return [(i, jax.tree.map(lambda x, i=i: x[i], states)) for i in alive]

    @property
    def _in_the_plane(self) -> bool:
        return self._setups[0].source.shape == (2,)

    def _in_folder(self, i: int, *names: str) -> Path:
        return member_folder(self._workdir, self._members[i]).joinpath(*names)
