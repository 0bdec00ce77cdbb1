"""What the training loop adds to the bare compiled step: logging, pictures, checkpoints, the progress bar.

    pip install -e ".[bench]" && python experiments/benchmarks/loop.py --config=configs/dcgan.py --seconds=20

The loop is `gan_jax.training.loop.train` as shipped, in one run that is never restarted: it is handed devices whose
compiled call looks at the clock first (under a microsecond). Where whole cadences of the loop are over, the bare side
gets its
turn inside that call: the same compiled program as many times, from a copy of the loop's state, waiting for the metrics
every log_every steps as the loop does. So both sides have one process, one runtime, one program and data of the same
kind, and start-up is in neither. The cut is in the middle of a cadence, when what a checkpoint writes in the background
is on disk, unless a cadence is a single call.

Blocks of the two sides alternate, and each of the loop is compared with the bare one after it: `adds` is the median of
these ratios, less 1, with their quartiles, so that a machine which slowly changes its speed does no harm. A pair counts
where other processes used less than 6 % of the CPUs in both blocks. Where there are fewer than three such pairs when
patience ends, the line says NOISY and is of all pairs: that is no measurement. `between calls` is the same for the time
that Python spends between two compiled calls, and far less noisy: all that is added where a call returns when it is
done, as on a CPU under `--runtime=fast`, but for what background threads take from the step. The rows are a run each,
with the config's cadences and without some of them.
"""

import argparse
import contextlib
import io
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import jax
import jax.numpy as jnp
import quiet
from ml_collections import ConfigDict

from gan_jax import recipe
from gan_jax.cli import command_line
from gan_jax.parallel.devices import LAYOUTS
from gan_jax.training.loop import next_boundary, train
from gan_jax.utils import runtime

NEVER = 10**9  # steps
FEWEST = 3  # quiet pairs of blocks
PATIENCE = 4  # times --seconds, for each side
CADENCES = ("log_every", "sample_every", "checkpoint_every", "evaluate_every", "health_every")
ROWS = {  # the cadences that stay; without metrics there would be nothing to wait for
    "logging": ("log_every",),
    "logging, pictures": ("log_every", "sample_every"),
    "logging, checkpoints": ("log_every", "checkpoint_every"),
    "logging, health": ("log_every", "health_every"),
    "all of the config": CADENCES,
}


class Enough(Exception):
    """No error: both sides have their blocks, and the run may end."""


class Block(NamedTuple):
    """A timed stretch of steps."""

    seconds: float  # per step
    duration: float
    others: float  # share of the CPUs that other processes used
    between: float  # seconds per step that are not spent in compiled calls


class Pair(NamedTuple):
    """A block of the loop, and the bare one right after it."""

    loop: Block
    bare: Block


def main() -> None:
    """Measures the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/dcgan.py")
    parser.add_argument("--seconds", type=float, default=30, help="of quiet work for each side of a row (%(default)s)")
    parser.add_argument("--rows", default=";".join(ROWS), help="by semicolon (%(default)s)")
    parser.add_argument("--runtime", choices=list(runtime.RUNTIMES), default="fast", help="as in gan_jax.main")
    arguments = parser.parse_args()
    unknown = set(arguments.rows.split(";")) - ROWS.keys()
    if unknown:
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; valid: {', '.join(ROWS)}")
    jax.config.update("jax_enable_compilation_cache", False)  # start-up is not timed: the user's cache stays as it is
    print(f"runtime: {runtime.RUNTIMES[arguments.runtime]()}")
    config = command_line.load_config(arguments.config)
    print(f"{arguments.config}; log, pictures, checkpoints, scores every {[config[name] for name in CADENCES]} steps\n")
    print("| the loop with | ms a step | bare, ms | adds | quartiles | between calls | quiet pairs |")
    print("|---" * 7 + "|")
    for name in arguments.rows.split(";"):
        changes = {cadence: NEVER for cadence in CADENCES if cadence not in ROWS[name]}
        clock = measure(ConfigDict(config.to_dict() | changes), arguments.seconds)
        print(row(name, clock.pairs), flush=True)


def measure(config: ConfigDict, seconds: float) -> "Clock":
    """A run of the shipped loop in a fresh workdir, until it and the bare side have their blocks."""
    config.num_steps = NEVER  # the clock ends it
    devices = LAYOUTS[config.parallel]()
    clock = Clock(config, devices.compile, seconds)
    setup = recipe.build(config, devices=devices._replace(compile=clock.compile))
    with (
        tempfile.TemporaryDirectory() as workdir,
        contextlib.redirect_stderr(io.StringIO()),  # the progress bar works, and is not seen
        contextlib.suppress(Enough),
    ):
        train(setup, Path(workdir))
        sys.exit("ended by a signal before it was measured")
    return clock


class Clock:
    """What the loop calls instead of its compiled programs: it times the loop, and gives the bare side its turns."""

    def __init__(self, config: ConfigDict, compile_: Callable, seconds: float):
        self.pairs: list[Pair] = []
        self._config, self._compile, self._seconds = config, compile_, seconds
        self._programs = {}  # by the steps of a call
        self._now = 0
        self._whole = math.lcm(*(config[name] for name in CADENCES if 0 < config[name] < NEVER))
        self._cut = 0
        while self._cut < self._whole // 2:
            self._cut = next_boundary(config, self._cut)
        self._start = None  # (step, usage) at which the loop's block began
        self._inside = 0.0  # seconds in compiled calls since then
        self._end = None  # of patience

    def compile(self, function: Callable, state, data) -> Callable:
        """In the place of Devices.compile."""
        steps = next_boundary(self._config, self._now) - self._now
        self._programs[steps] = self._compile(function, state, data)
        return lambda state, data: self._call(steps, state, data)

    def _call(self, steps: int, state, data):
        # The first cadence, in which everything is compiled, is not timed.
        if self._now > self._whole and self._now % self._whole == self._cut % self._whole:
            self._cadence_is_over(state, data)
        self._now += steps
        return self._timed(self._programs[steps], state, data)

    def _timed(self, program: Callable, state, data):
        start = time.perf_counter()
        result = program(state, data)
        self._inside += time.perf_counter() - start
        return result

    def _cadence_is_over(self, state, data) -> None:
        jax.block_until_ready(state)
        after = quiet.usage()
        if self._start is None:
            self._end = time.perf_counter() + 2 * PATIENCE * self._seconds
        else:
            first, before = self._start
            if after.clock - before.clock < max(0.3, self._seconds / 10):
                return
            loop = block(self._now - first, before, after, self._inside)
            self.pairs.append(Pair(loop, self._bare_turn(self._now - first, state, data)))
            self._stop_when_done()
        self._inside = 0.0
        self._start = self._now, quiet.usage()

    def _bare_turn(self, wanted: int, state, data) -> Block:
        steps = max(self._programs)
        program = self._programs[steps]
        state = jax.block_until_ready(jax.tree.map(jnp.copy, state))  # the program takes its buffers
        done = unseen = 0
        self._inside, before = 0.0, quiet.usage()
        while done < wanted:
            state, metrics = self._timed(program, state, data)
            done, unseen = done + steps, unseen + steps
            if unseen >= self._config.log_every:
                jax.block_until_ready(metrics)
                unseen = 0
        jax.block_until_ready(state)
        return block(done, before, quiet.usage(), self._inside)

    def _stop_when_done(self) -> None:
        kept = quiet_pairs(self.pairs)
        print(f"quiet pairs: {len(kept)} of {len(self.pairs)}", file=sys.__stderr__, flush=True)
        done = len(kept) >= FEWEST and sum(pair.loop.duration for pair in kept) >= 0.9 * self._seconds
        if done or time.perf_counter() > self._end:
            raise Enough


def block(steps: int, before: quiet.Usage, after: quiet.Usage, inside: float) -> Block:
    """What lies between two looks at the counters."""
    duration = after.clock - before.clock
    return Block(duration / steps, duration, quiet.others(before, after), (duration - inside) / steps)


def quiet_pairs(pairs: list[Pair]) -> list[Pair]:
    """Those that nobody disturbed."""
    return [pair for pair in pairs if max(pair.loop.others, pair.bare.others) < quiet.THRESHOLD]


def row(name: str, pairs: list[Pair]) -> str:
    """A line of the table, of the quiet pairs; NOISY and of all where they are too few."""
    kept = quiet_pairs(pairs)
    noisy = len(kept) < FEWEST
    counts = f"{len(kept)} of {len(pairs)}"
    kept = pairs if noisy else kept
    loop, bare = (median(getattr(pair, side).seconds for pair in kept) * 1e3 for side in Pair._fields)
    ratios = [pair.loop.seconds / pair.bare.seconds - 1 for pair in kept]
    low, middle, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    between = median((pair.loop.between - pair.bare.between) / pair.bare.seconds for pair in kept)
    adds = f"{middle:+.1%}{' NOISY' if noisy else ''} | {low:+.1%} to {high:+.1%}"
    return f"| {name} | {loop:.4g} | {bare:.4g} | {adds} | {between:+.1%} | {counts} |"


if __name__ == "__main__":
    sys.exit(main())
