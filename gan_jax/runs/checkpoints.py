"""Checkpoints: a state saved while training goes on, restored to the same bits, and held to its own fingerprint."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gan_jax.parallel import agreement
from gan_jax.runs import legacy
from gan_jax.step.state import Hyperparameters, TrainState
from gan_jax.utils.errors import AgreedError, InputError, UnsavedError
from gan_jax.utils.files import read_json, require_writable, write_atomically
from gan_jax.utils.hashing import scramble

BEST, ABOUT_BEST = "best", "best.json"
READ_WITHIN = 600  # seconds between the first and the last of several processes


class Checkpoints:
    """The checkpoints of one run, `DIR/STEP/`, the newest `kept` of them; Orbax stays inside this module."""

    def __init__(self, directory: Path, kept: int | None = None):
        """`kept` None opens the folder for reading only."""
        self._directory, self._kept = directory.resolve(), kept
        self._fingerprint = jax.jit(fingerprint)
        if kept is not None:  # a folder that cannot be written is found now, not when there is something to lose
            agreement.all_or_none(partial(require_writable, self._directory))

    @cached_property
    def _manager(self):
        # Made, and Orbax imported, when there is something to read or write: a first step need not wait for that.
        ocp, reads_only = _orbax(), self._kept is None
        options = ocp.CheckpointManagerOptions(max_to_keep=self._kept, create=not reads_only, read_only=reads_only)
        return ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        What goes wrong there, this, `wait` or `close` says when next called: UnsavedError.
        """
        ocp, payload = _orbax(), {"state": state, "fingerprint": self._fingerprint(state)}
        with self._unsaved():
            if not self._directory.is_dir():  # Orbax would make it anew, and with it a run without its past
                raise FileNotFoundError("the folder is gone")
            self._manager.save(int(state.step), args=ocp.args.Composite(payload=ocp.args.StandardSave(payload)))

    def steps(self) -> list[int]:
        """The steps of the checkpoints, good or not, in order."""
        empty = not (self._directory.is_dir() and any(self._directory.iterdir()))
        if empty and "_manager" not in vars(self) and not agreement.several():  # several make the manager together
            return []
        return agreement.from_first(sorted(self._manager.all_steps()))

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, good or not; None without any."""
        return max(self.steps(), default=None)

    def restore(self, template: TrainState, steps: Sequence[int] | None = None) -> TrainState | None:
        """The newest checkpoint that is whole, of all or of these steps; None without any.

        `template` gives its shapes, dtypes and shardings: a state, or one of jax.ShapeDtypeStruct.

        One that cannot be read, or whose content is not what was saved, is passed over and named on stderr. Raises
        InputError where there are checkpoints and none is whole, or one is of another form than the template.
        """
        reasons = {}
        for step in sorted(self.steps() if steps is None else steps, reverse=True):
            read = partial(self._read, step, *self._form_of(step, template))
            try:
                # One that alone cannot read it does not wait for ever for those who could: they wait in Orbax for it.
                state = agreement.all_or_none(read, within=READ_WITHIN)
            except InputError as error:
                reasons[step] = str(error)
                continue
            for bad in reasons if agreement.is_first() else ():
                print(f"checkpoint {bad} is corrupt ({reasons[bad]}); going back to {step}", file=sys.stderr)
            return state
        if reasons:
            raise AgreedError(
                f"no checkpoint in {self._directory} is whole (newest, {max(reasons)}: {reasons[max(reasons)]}); "
                "put a good copy there, or start again in another workdir"
            )
        return None

    def discard_after(self, step: int) -> None:
        """Moves the checkpoints after `step`, which a run passed over, out of its way: STEP becomes corrupt-STEP."""
        later = [number for number in self.steps() if number > step]
        agreement.by_first(partial(_move_away, self._directory, later))
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        if "_manager" in vars(self):
            with self._unsaved():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the background threads."""
        if "_manager" in vars(self):
            with self._unsaved():
                self._manager.close()

    @contextmanager
    def _unsaved(self):
        """Within it whatever Orbax raises is an UnsavedError, which says what is left."""
        try:
            yield
        except (MemoryError, UnsavedError):
            raise
        except Exception as error:
            if agreement.says_process_is_gone(error):
                raise
            whole = [int(path.name) for path in self._directory.glob("*") if path.name.isdecimal()]
            left = f"the newest that is there is of step {max(whole):,}" if whole else "there is none before it"
            raise UnsavedError(
                f"cannot save a checkpoint in {self._directory} ({_summary(error)}); {left}; make room or put the "
                "folder back, and the same command goes on from there"
            ) from error

    def _form_of(self, step: int, template) -> tuple[Any, Callable]:
        """The template of a checkpoint, in today's form or an older one, and the `form` of its state for `_read`.

        Raises InputError where it is of another config.
        """
        differs = self._differences(step, template)
        if not differs:
            return template, lambda state: (state, state)
        if isinstance(template, TrainState):  # and not the state of a sweep
            old = legacy.old_template(template)
            if not self._differences(step, old):
                return old, partial(legacy.new_state, template)
        shown = f"{', '.join(differs[:3])}{f' and {len(differs) - 3} more' if len(differs) > 3 else ''}"
        where, right = f"checkpoint {step} in {self._directory}", "put back the config that it was trained with"
        raise AgreedError(f"{where} is of another config ({shown}); {right}")

    def _differences(self, step: int, template) -> list[str]:
        """The arrays of a checkpoint that are not those of the template, in words; none of one that is torn."""
        there, here = {}, _shapes(template)
        with suppress(Exception):
            saved = _orbax().StandardCheckpointer().metadata(self._directory / str(step) / "payload")
            there = _shapes(saved.item_metadata.tree["state"])
        names = [name for name in there | here if there.get(name) != here.get(name)] if there else []
        words = {(): "on", None: "missing"}
        return [
            "{} is {} there, {} here".format(
                name, *(words.get(side.get(name), side.get(name)) for side in (there, here))
            )
            for name in names
        ]

    def _read(self, step: int, template, form: Callable) -> TrainState:
        """The state of a checkpoint; `form`: what has its arrays -> (the state, what has them as they were hashed).

        Raises InputError, which says why, where the checkpoint is not whole.
        """
        ocp = _orbax()
        shape = jax.ShapeDtypeStruct((), jnp.uint32, sharding=jax.tree.leaves(template)[0].sharding)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            {"state": template, "fingerprint": shape},
        )
        try:
            args = ocp.args.Composite(payload=ocp.args.StandardRestore(abstract))
            payload = self._manager.restore(step, args=args)["payload"]
            state, hashed = form(payload["state"])
            whole = int(payload["fingerprint"]) == int(self._fingerprint(hashed))
        except MemoryError:
            raise
        except Exception as error:  # Orbax and TensorStore raise whatever a torn file leads them to
            raise InputError(_summary(error)) from error
        if not whole:
            raise InputError("its content is not what was saved")
        return state


class Best(Checkpoints):
    """The best checkpoint by one score, `WORKDIR/best/STEP/`; best.json: {"step": ..., NAME: ..., "protocol": ...}.

    Not by Orbax's `best_fn`: that writes every state that is scored, and keeps the latest of equals and one whose score
    is not a number (orbax-checkpoint 0.12.8).
    """

    def __init__(self, workdir: Path, name: str, sign: int, protocol: dict):
        """`sign` 1: larger values of the score `name` are better; -1: smaller ones. That of another is forgotten."""
        super().__init__(workdir / BEST, kept=1)
        self._path, self._name, self._sign, self._protocol = workdir / ABOUT_BEST, name, sign, protocol
        self._value = agreement.by_first(self._known_value)

    def _known_value(self) -> float | None:
        about = read_json(self._path)
        same = isinstance(about, dict) and about.get("protocol") == self._protocol
        return about.get(self._name) if same and (self._directory / str(about.get("step"))).is_dir() else None

    def see(self, state: TrainState, value: float) -> None:
        """Keeps the state, if it is better than all before it; of equals the earliest; none that is not finite."""
        if not math.isfinite(value) or (self._value is not None and self._sign * value <= self._sign * self._value):
            return
        step, latest = int(state.step), self.latest_step()
        if latest is not None and latest > step:  # of a run that went back
            self.discard_after(step)
        if self.latest_step() != step:  # where a process was killed between the two writes
            self.save(state)
            self.wait()
        if agreement.is_first():
            about = {"step": step, self._name: value, "protocol": self._protocol}
            write_atomically(self._path, (json.dumps(about) + "\n").encode())
        self._value = value


def fingerprint(tree) -> jax.Array:
    """A uint32 hash of every bit of the tree's arrays and of their order: one flipped bit always changes it.

    Each 32-bit word and its position go through a one-to-one scramble before they are summed modulo 2^32. Orbax has no
    checksum of array data: without this a bad sector would go unnoticed.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype == bool:  # what an optimistic optimiser has of its first step
            leaf = leaf.astype(jnp.uint32)
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        position = jnp.arange(words.size, dtype=jnp.uint32) * jnp.uint32(2654435761)
        total = 31 * total + jnp.sum(scramble(words ^ position), dtype=jnp.uint32)
    return total


def require_numbers(state: TrainState, numbers: Hyperparameters) -> None:
    """Raises InputError where the numbers of a config are not those with which a restored state was trained."""
    trained = jax.device_get(state.hyperparameters)
    changed = [name for name, number in numbers.items() if number != trained[name]]
    if changed:
        shown = ", ".join(f"{name} is {trained[name]:g} there, {numbers[name]:g} here" for name in changed)
        raise InputError(
            f"checkpoint {int(state.step)} was trained with other numbers than the config has ({shown}); put them "
            "back, or train anew in another workdir"
        )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    """The shapes of a tree's arrays, or of what tells of arrays, by dotted name; without the key, which has two."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        if hasattr(leaf, "shape") and name != "key":
            shapes[name] = tuple(leaf.shape)
    return shapes


@cache
def _orbax():
    """Orbax, without what it and TensorStore say on stderr: what matters of it a checkpoint's own errors say."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    _silence_closed_loops()
    return ocp


def _silence_closed_loops() -> None:
    """Drops what TensorStore says into an event loop that Orbax closed when a read or a write failed."""
    previous = sys.unraisablehook

    def hook(unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            previous(unraisable)

    sys.unraisablehook = hook


def _summary(error: Exception) -> str:
    """The first sentence of an error, short enough for a line, or what the system said where TensorStore tells it."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    line = str(error).partition("\n")[0].partition(". ")[0]
    return line if len(line) <= 160 else line[:160] + "..."


def _move_away(directory: Path, steps: list[int]) -> None:
    """STEP becomes corrupt-STEP, or the first of corrupt-STEP-1, corrupt-STEP-2, ... that does not exist."""
    for step in steps:
        paths = (directory / f"corrupt-{step}{suffix}" for suffix in ("", *(f"-{i}" for i in range(1, 1000))))
        (directory / str(step)).rename(next(path for path in paths if not path.exists()))
