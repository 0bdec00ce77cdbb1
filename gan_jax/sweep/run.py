"""Trains the members of one program together, and leaves in each member's folder what a run by itself would."""

import hashlib
import json
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from gan_jax import images, recipe
from gan_jax.checkpoints import Checkpoints
from gan_jax.devices import Layout, mesh
from gan_jax.errors import InputError
from gan_jax.evaluate import evaluate_run
from gan_jax.files import read_json, write_atomically
from gan_jax.generate import Generate
from gan_jax.population import Crew, Population
from gan_jax.recipe import Setup
from gan_jax.scoring import Scoring
from gan_jax.state import TrainState
from gan_jax.sweep.layout import Choice, layout_for
from gan_jax.sweep.plan import Member
from gan_jax.train import advance_to_end, is_due, stop_signals
from gan_jax.workdirs import CONFIG
from gan_jax.writers import MetricsFile

ABOUT = "member.json"  # of a member's folder, once it has come to its end: {"status": ..., "seconds": ...}
PICTURE, POINTS = "samples.png", "points"  # the last samples; of data in the plane, samples of every sample_every
SHOWN = 500  # points of each


def member_folder(workdir: Path, member: Member) -> Path:
    """Where a member's files are."""
    return workdir / "members" / f"{member.number:04d}"


def about(workdir: Path, member: Member) -> dict | None:
    """What is known of a member that has come to its end; None of another, or of one whose config has changed."""
    folder = member_folder(workdir, member)
    try:
        if json.loads((folder / CONFIG).read_text()) == member.config.to_dict():
            return json.loads((folder / ABOUT).read_text())
    except (FileNotFoundError, ValueError):
        pass
    return None


def build(members: list[Member]) -> list[Setup]:
    """The setups of the members of a program, which share their data. Raises InputError where that is streamed."""
    one = mesh(jax.devices()[:1])
    first = recipe.build(members[0].config, one)
    if first.source.streamed:
        raise InputError("the data of a sweep lies on its devices; choose a set that fits there, data.placement=device")
    rest = [recipe.build(member.config, one, first.source) for member in members[1:]]
    return [first, *(setup._replace(reference=first.reference) for setup in rest)]


def run_program(members: list[Member], workdir: Path, choice: Choice) -> bool:
    """Trains the members of one program; False if a signal ended it early. Those that have ended are left alone."""
    setups = build(members)
    layout, at_once = layout_for(setups, choice, _program_folder(workdir, members))
    at_once = at_once or len(members)
    for start in range(0, len(members), at_once):
        part = slice(start, start + at_once)
        if all(about(workdir, member) for member in members[part]):
            continue
        if not _Together(members[part], setups[part], layout, workdir).run():
            return False
    return True


class _Together:
    """Members in training."""

    def __init__(self, members: list[Member], setups: list[Setup], layout: Layout, workdir: Path):
        self._members, self._setups, self._workdir = members, setups, workdir
        self._population = Population(setups, layout)
        self._config = setups[0].config  # whose cadences are those of all
        self._folder = _program_folder(workdir, members)
        self._generate = Generate(setups[0])
        self._data = layout.within.place(setups[0].source.data)
        self._compiled = {}
        self._unseen = []  # (first step, metrics) of the calls whose numbers nobody has looked at
        self._diverged: dict[int, str] = {}  # place -> why
        self._clock, self._seconds = time.perf_counter(), read_json(self._folder / "seconds.json", 0.0)

    def run(self) -> bool:
        for member in self._members:
            folder = member_folder(self._workdir, member)
            write_atomically(folder / CONFIG, (json.dumps(member.config.to_dict(), indent=2) + "\n").encode())
        with ExitStack() as stack:
            stop_requested = stack.enter_context(stop_signals())
            self._checkpoints = stack.enter_context(closing(Checkpoints(self._folder / "checkpoints", kept=2)))
            crew = self._first_crew()
            now = int(crew.step)
            self._files = [
                stack.enter_context(closing(MetricsFile(self._in_folder(i, "metrics.jsonl"), now)))
                for i in range(len(self._members))
            ]
            description = f"{len(self._members)} members"
            self._bar = stack.enter_context(
                tqdm(desc=description, total=self._config.num_steps, initial=now, unit="step", dynamic_ncols=True)
            )
            crew, now = advance_to_end(self._config, crew, stop_requested, self._advance, self._at_boundary)
            self._look(crew)
            self._save(crew)
            if now < self._config.num_steps:
                return False
            self._finish(crew)
        return True

    def _first_crew(self) -> Crew:
        if self._checkpoints.latest_step() is None:
            return self._population.initial()
        crew = self._checkpoints.restore(self._population.abstract())
        self._checkpoints.discard_after(int(crew.step))
        for i in np.flatnonzero(~self._alive(crew)).tolist():
            self._diverged[i] = read_json(self._in_folder(i, "diverged.json"), "diverged")
        return crew

    def _advance(self, crew: Crew, now: int, after: int) -> Crew:
        if after - now not in self._compiled:
            self._compiled[after - now] = self._population.compiled(after - now, crew)
        crew, metrics = self._compiled[after - now](crew, self._data)
        self._unseen.append((now, metrics))
        return crew

    def _at_boundary(self, crew: Crew, now: int) -> None:
        config = self._config
        if is_due(config, "log_every", now):
            self._log(now, self._look(crew))
            self._bar.update(now - self._bar.n)
        if is_due(config, "sample_every", now) and self._in_the_plane:
            for i, state in self._living(crew):
                points = self._generate.examples(state.ema, self._setups[i].keys.pictures, SHOWN)
                self._in_folder(i, POINTS).mkdir(exist_ok=True)
                np.save(self._in_folder(i, POINTS, f"{now:08d}.npy"), points.astype(np.float16))
        if is_due(config, "evaluate_every", now):
            self._log(now, {i: self._scores(i, state) for i, state in self._living(crew)})
        if is_due(config, "checkpoint_every", now):
            self._look(crew)
            self._save(crew)

    def _look(self, crew: Crew) -> dict[int, dict[str, float]]:
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
        self._diverged[i] = f"step {first + index + 1:,}: {bad} not finite"
        write_atomically(self._in_folder(i, "diverged.json"), json.dumps(self._diverged[i]).encode())
        number, why = self._members[i].number, self._diverged[i]
        self._bar.write(f"member {number} diverged, {why}; the others go on", file=sys.stderr)

    def _log(self, now: int, values: dict[int, dict[str, float]]) -> None:
        for i, each in values.items():
            self._files[i].write(now, each)

    def _scores(self, i: int, state: TrainState) -> dict[str, float]:
        scoring = Scoring(self._setups[i], self._generate.of(self._setups[i]))
        samples = scoring.samples(state.ema, self._config.evaluation.num_samples)
        return {name: score.value for name, score in scoring.scores(samples, resamples=0).items()}

    def _save(self, crew: Crew) -> None:
        if self._checkpoints.latest_step() != int(crew.step):
            self._checkpoints.save(crew)
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now
        write_atomically(self._folder / "seconds.json", json.dumps(self._seconds).encode())

    def _finish(self, crew: Crew) -> None:
        """Scores and pictures of those that live, and a word on how each one ended."""
        self._checkpoints.wait()
        for i, state in self._living(crew):
            setup, folder = self._setups[i], member_folder(self._workdir, self._members[i])
            generate = self._generate.of(setup)
            evaluate_run(setup, state, folder, 0, generate)
            images.write_png(folder / PICTURE, generate.picture(state))
        for i in range(len(self._members)):
            self._save_member(i, crew)
            status = f"diverged, {self._diverged[i]}" if i in self._diverged else "finished"
            share = self._seconds / len(self._members)
            told = {"status": status, "seconds": share, "together": len(self._members)}
            write_atomically(self._in_folder(i, ABOUT), (json.dumps(told) + "\n").encode())

    def _save_member(self, i: int, crew: Crew) -> None:
        """Its last good state as a checkpoint of a run by itself, for the verbs that read those."""
        states = crew.members.state
        key = jax.random.wrap_key_data(np.asarray(jax.random.key_data(states.key))[i])
        state = jax.tree.map(lambda x: np.asarray(x)[i], states.replace(key=None)).replace(key=key)
        state = state.replace(hyperparameters=state.hyperparameters.replace(objective=np.int32(0)))
        with closing(Checkpoints(self._in_folder(i, "checkpoints"), kept=1)) as checkpoints:
            checkpoints.save(self._setups[i].devices.place(state))

    def _living(self, crew: Crew) -> list[tuple[int, TrainState]]:
        """The members that have not diverged, each with its state on the host, without its key."""
        states = jax.device_get(crew.members.state.replace(key=None))
        alive = np.flatnonzero(self._alive(crew)).tolist()
        return [(i, jax.tree.map(lambda x, i=i: x[i], states)) for i in alive]

    def _alive(self, crew: Crew) -> np.ndarray:
        """Of each member, without the copies of the last one that fill the devices."""
        return np.asarray(crew.members.alive)[: len(self._members)] == 1

    @property
    def _in_the_plane(self) -> bool:
        return self._setups[0].source.shape == (2,)

    def _in_folder(self, i: int, *names: str) -> Path:
        return member_folder(self._workdir, self._members[i]).joinpath(*names)


def _program_folder(workdir: Path, members: list[Member]) -> Path:
    """Of these runs together: another set of them begins anew."""
    told = json.dumps([member.config.to_dict() for member in members], sort_keys=True)
    return workdir / "programs" / hashlib.sha256(told.encode()).hexdigest()[:12]
