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

    def restore(
        self, template: TrainState, steps: Sequence[int] | None = None, numbers: Hyperparameters | None = None
    ) -> TrainState | None:
        """The newest checkpoint that is whole, of all or of these steps; None without any.

        One that cannot be read, or whose content is not what was saved, is passed over and named on stderr. So is one
        of other arrays than the template's beside an older one that fits, since all those of a run are alike.

        Args:
          template: of its shapes, dtypes and shardings: a state, or one of jax.ShapeDtypeStruct.
          numbers: the hyperparameters of the config, which must be those that the checkpoint has.

        Raises InputError where there are checkpoints, and none is whole or the newest is of another config.
        """
        reasons, misfits = {}, {}
        for step in sorted(self.steps() if steps is None else steps, reverse=True):
            form, new_state, differs = self._form_of(step, template)
            if differs:
                misfits[step] = differs
                continue
            try:
                # One that alone cannot read it does not wait for ever for those who could: they wait in Orbax for it.
                state = agreement.all_or_none(partial(self._read, step, form, new_state), within=READ_WITHIN)
            except InputError as error:
                reasons[step] = str(error)
                continue
            for bad in sorted([*reasons, *misfits], reverse=True) if agreement.is_first() else ():
                why = f"is corrupt ({reasons[bad]})" if bad in reasons else "has other arrays than those of this run"
                print(f"checkpoint {bad} {why}; going back to {step}", file=sys.stderr)
            if numbers is not None:
                self._require_numbers(step, state.hyperparameters, numbers)
            return state
        if misfits:
            self._refuse(max(misfits), misfits[max(misfits)], template, numbers)
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
            whole = saved_steps(self._directory)
            left = f"the newest that is there is of step {max(whole):,}" if whole else "there is none before it"
            raise UnsavedError(
                f"cannot save a checkpoint in {self._directory} ({_summary(error)}); {left}; make room or put the "
                "folder back, and the same command goes on from there"
            ) from error

    def _form_of(self, step: int, template) -> tuple[Any, Callable, dict[str, list]]:
        """A checkpoint's form, today's or an older one: (its template, the `form` for `_read`, what does not fit).

        The last one is {dotted name of an array: [its shape there, its shape here]}, None for one that is missing; of
        a checkpoint whose description is torn it is empty.
        """
        there = agreement.from_first(self._saved_shapes(step))
        new_state = _unchanged
        if isinstance(template, TrainState) and legacy.is_old(there):  # and not the state of a sweep
            template, new_state = legacy.old_template(template), partial(legacy.new_state, template)
        here = _shapes(template)
        names = [name for name in there | here if there.get(name) != here.get(name)] if there else []
        return template, new_state, {name: [there.get(name), here.get(name)] for name in names}

    def _saved_shapes(self, step: int) -> dict[str, list[int]]:
        """The shapes of a checkpoint's arrays by dotted name; none of one that is torn."""
        with suppress(Exception):
            saved = _orbax().StandardCheckpointer().metadata(self._directory / str(step) / "payload")
            return _shapes(saved.item_metadata.tree["state"])
        return {}

    def _refuse(self, step: int, differs: dict[str, list], template, numbers: Hyperparameters | None) -> None:
        """Raises InputError on a checkpoint of another config: by the numbers in which it differs, or by its arrays."""
        start = "hyperparameters."
        if numbers is not None and any(name.startswith(start) for name in differs):
            there = agreement.all_or_none(partial(self._saved_numbers, step, jax.tree.leaves(template)[0].sharding))
            self._require_numbers(step, legacy.by_key(there), numbers)
        words = [
            "{} is {} there, {} here".format(
                name, *("missing" if shape is None else tuple(shape) or "a number" for shape in pair)
            )
            for name, pair in differs.items()
        ]
        raise AgreedError(
            f"checkpoint {step} in {self._directory} is of another config ({_some(words)}); put back the config that "
            "it was trained with, or choose another workdir"
        )

    def _saved_numbers(self, step: int, sharding) -> dict[str, Any]:
        """The hyperparameters of a checkpoint, without the rest of it. Raises InputError where they cannot be read."""
        ocp, path = _orbax(), self._directory / str(step) / "payload"
        number = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding)
        try:
            with ocp.PyTreeCheckpointer() as checkpointer:
                names = checkpointer.metadata(path).item_metadata.tree["state"]["hyperparameters"]
                item = {"state": {"hyperparameters": dict.fromkeys(names, number)}}
                how = ocp.checkpoint_utils.construct_restore_args(item)
                args = ocp.args.PyTreeRestore(item, restore_args=how, partial_restore=True)
                return checkpointer.restore(path, args=args)["state"]["hyperparameters"]
        except Exception as error:
            raise InputError(f"checkpoint {step} in {self._directory} cannot be read ({_summary(error)})") from error

    def _require_numbers(self, step: int, there: Hyperparameters, here: Hyperparameters) -> None:
        """Raises InputError where the numbers of a config are not those of a checkpoint; one that is off is 0."""
        there, here = jax.device_get(there), jax.device_get(here)
        changed = [name for name in there | here if there.get(name, 0) != here.get(name, 0)]
        if changed:
            words = [
                "{} is {} there, {} here".format(
                    name, *(f"{side[name]:.7g}" if name in side else "off" for side in (there, here))
                )
                for name in changed
            ]
            raise AgreedError(
                f"checkpoint {step} in {self._directory} was trained with other numbers than the config has "
                f"({_some(words)}); put them back, or train anew in another workdir"
            )

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


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order, without a look into them; none where it does not exist."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


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


def _shapes(tree) -> dict[str, list[int]]:
    """The shapes of a tree's arrays, or of what tells of arrays, by dotted name; of keys those of their words."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        if hasattr(leaf, "shape"):
            shapes[jax.tree_util.keystr(path, simple=True, separator=".")] = list(leaf.shape)
    return shapes


@cache
def _orbax():
    """Orbax, without what it and TensorStore say on stderr: what matters of it a checkpoint's own errors say."""
    logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    import orbax.checkpoint as ocp

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


def _unchanged(state) -> tuple:
    """A state of today's form, and its arrays as they were hashed."""
    return state, state


def _some(words: list[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


def _move_away(directory: Path, steps: list[int]) -> None:
    """STEP becomes corrupt-STEP, or the first of corrupt-STEP-1, corrupt-STEP-2, ... that does not exist."""
    for step in steps:
        paths = (directory / f"corrupt-{step}{suffix}" for suffix in ("", *(f"-{i}" for i in range(1, 1000))))
        (directory / str(step)).rename(next(path for path in paths if not path.exists()))
