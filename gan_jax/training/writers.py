"""What a run writes about itself: metrics.jsonl, samples/, TensorBoard, the progress bar."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from gan_jax.utils import plots
from gan_jax.utils.files import write_atomically

METRICS = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with its `step`.

    Nothing that depends on time or machine goes in, so that a resumed run's file equals an uninterrupted one's.
    """

    def __init__(self, path: Path, step: int):
        """Opens the file to go on after `step`: later lines, one cut off by a kill and other garbage are dropped."""
        past = ((line, _values(line)) for line in _lines(path))
        write_atomically(path, b"".join(line for line, values in past if values and values["step"] <= step))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a line; it is out of this process when this returns."""
        self._file.write(metrics_line(step, values))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def metrics_line(step: int, values: dict[str, float]) -> str:
    """The line of metrics.jsonl for these values at a step, a JSON object with its newline."""
    return json.dumps({"step": step} | values) + "\n"


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """The lines of such a file: (step, values), but for one cut off by a kill and other garbage."""
    for values in filter(None, map(_values, _lines(path))):
        yield values.pop("step"), values


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _values(line: bytes) -> dict[str, float] | None:
    """What a line holds, its step included; None where it is not whole."""
    try:
        values = json.loads(line)
        numbers = all(isinstance(value, int | float) for value in values.values())
        return values if line.endswith(b"\n") and numbers and "step" in values else None
    except (ValueError, AttributeError):
        return None


class Silent:
    """Has the methods of `Writers` and writes nothing: for a process beside the one that writes."""

    def __getattr__(self, name: str) -> Callable:
        return lambda *_: None


class Writers:
    """All of a run's writers behind one call."""

    def __init__(self, workdir: Path, step: int, num_steps: int):
        self._samples = workdir / "samples"
        self._metrics = MetricsFile(workdir / METRICS, step)
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._clock, self._waited = time.monotonic(), 0.0
        self._bar = tqdm(total=num_steps, initial=step, unit="step", dynamic_ncols=True, mininterval=0.5)

    def progress(self, step: int, waited: float) -> None:
        """Moves the bar to `step`; `waited`: seconds for which the run has waited for data, whose share is logged."""
        self._bar.update(step - self._bar.n)
        seconds, self._clock = time.monotonic() - self._clock, time.monotonic()
        if waited:
            self._tensorboard.add_scalar("share_waiting_for_data", (waited - self._waited) / seconds, step)
        self._waited = waited

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """One set of numbers, to the file and to TensorBoard; the losses also beside the bar."""
        self._metrics.write(step, values)
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        if "d_loss" in values:
            self._bar.set_postfix({name: f"{values[name]:.3f}" for name in ("d_loss", "g_loss")}, refresh=False)
            if rate := self._bar.format_dict["rate"]:
                self._tensorboard.add_scalar("steps_per_second", rate, step)

    def picture(self, step: int, drawing: Callable[[], np.ndarray], name: str = "") -> None:
        """What is drawn, uint8 [h, w, c], to `samples/STEP.png` or `samples/NAME-STEP.png`, and to TensorBoard."""
        picture = drawing()
        plots.write_png(self._samples / f"{name}{'-' if name else ''}{step:08d}.png", picture)
        self._tensorboard.add_image(name or "samples", picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Everything so far is out of this process when this returns."""
        self._tensorboard.flush()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text)

    def close(self) -> None:
        self._bar.close()
        self._metrics.close()
        self._tensorboard.close()
