"""The best checkpoint of a run, by one of its scores, beside the newest ones."""

import json
from pathlib import Path

from gan_jax.checkpoints import Checkpoints
from gan_jax.errors import InputError
from gan_jax.files import write_atomically
from gan_jax.state import TrainState

FOLDER, ABOUT = "best", "best.json"


class Best:
    """`WORKDIR/best/STEP/`, and what it scored in `WORKDIR/best.json`: {"step": ..., NAME: ...}."""

    def __init__(self, workdir: Path, name: str, sign: int):
        """`name` of the score, of which larger values are better where `sign` is 1, smaller ones where it is -1."""
        self._path, self._name, self._sign = workdir / ABOUT, name, sign
        self._checkpoints = Checkpoints(workdir / FOLDER, kept=1)
        self._value = _read(self._path, name)

    def see(self, state: TrainState, value: float) -> None:
        """Keeps the state, if it is better than all before it; of equals the earliest."""
        if self._value is not None and self._sign * value <= self._sign * self._value:
            return
        step = int(state.step)
        if (self._checkpoints.latest_step() or -1) > step:  # of a run that went back
            self._checkpoints.discard_after(step)
        if self._checkpoints.latest_step() != step:  # where a process was killed between the two writes
            self._checkpoints.save(state)
            self._checkpoints.wait()
        write_atomically(self._path, (json.dumps({"step": step, self._name: value}) + "\n").encode())
        self._value = value

    def close(self) -> None:
        """Releases the background threads."""
        self._checkpoints.close()


def _read(path: Path, name: str) -> float | None:
    """What the best one scored; None where there is none, or one by another score."""
    try:
        return float(json.loads(path.read_text())[name])
    except (FileNotFoundError, KeyError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {path}: {error}; remove it and its folder {FOLDER} to begin it anew") from error
