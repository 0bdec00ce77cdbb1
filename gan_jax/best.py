"""The best checkpoint of a run, by one of its scores, beside the newest ones."""

import json
import math
from functools import partial
from pathlib import Path

from gan_jax import agreement
from gan_jax.checkpoints import Checkpoints
from gan_jax.errors import InputError
from gan_jax.files import write_atomically
from gan_jax.state import TrainState

FOLDER, ABOUT = "best", "best.json"


class Best:
    """`WORKDIR/best/STEP/`, and what it scored in `WORKDIR/best.json`: {"step": ..., NAME: ..., "protocol": ...}."""

    def __init__(self, workdir: Path, name: str, sign: int, protocol: dict):
        """`name` of the score, of which larger values are better where `sign` is 1, smaller ones where it is -1.

        What was best by another score or protocol is forgotten.
        """
        self._path, self._name, self._sign, self._protocol = workdir / ABOUT, name, sign, protocol
        self._checkpoints = Checkpoints(workdir / FOLDER, kept=1)
        self._value = agreement.by_first(partial(_read, self._path, name, protocol))

    def see(self, state: TrainState, value: float) -> None:
        """Keeps the state, if it is better than all before it; of equals the earliest; none that is not finite."""
        if not math.isfinite(value) or (self._value is not None and self._sign * value <= self._sign * self._value):
            return
        step = int(state.step)
        if (self._checkpoints.latest_step() or -1) > step:  # of a run that went back
            self._checkpoints.discard_after(step)
        if self._checkpoints.latest_step() != step:  # where a process was killed between the two writes
            self._checkpoints.save(state)
            self._checkpoints.wait()
        about = {"step": step, self._name: value, "protocol": self._protocol}
        if agreement.is_first():
            write_atomically(self._path, (json.dumps(about) + "\n").encode())
        self._value = value

    def close(self) -> None:
        """Releases the background threads."""
        self._checkpoints.close()


def _read(path: Path, name: str, protocol: dict) -> float | None:
    """What the best one scored; None where there is none any more, or one by another score or protocol."""
    try:
        about = json.loads(path.read_text())
        there = (path.with_name(FOLDER) / str(about["step"])).is_dir()
        return float(about[name]) if there and about["protocol"] == protocol else None
    except (FileNotFoundError, KeyError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {path}: {error}; remove it and its folder {FOLDER} to begin it anew") from error
