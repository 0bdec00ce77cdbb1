"""What the training loop adds to the bare compiled step: logging, pictures, checkpoints, the progress bar.

    pip install -e ".[bench]" && python experiments/benchmarks/loop.py --config=configs/dcgan.py --seconds=20

The loop is `gan_jax.train.train` as shipped, in one run that is never restarted: it is handed devices whose compiled
call looks at the clock first (under a microsecond). Where whole cadences of the loop are over, the bare side gets its
turn inside that call: the same compiled program as many times, from a copy of the loop's state, waiting for the metrics
every log_every steps as the loop does. So both sides have one process, one runtime, one program and data of the same
kind, and start-up is in neither. The cut is in the middle of a cadence, when what a checkpoint writes in the background
is on disk, unless a cadence is a single call.

Blocks of the two sides alternate; one counts where other processes used less than 6 % of the CPUs meanwhile. Where a
side has fewer than three such blocks when patience ends, the line says NOISY and shows the fastest of all blocks: that
is no measurement. The rows are a run each, with the config's cadences and without some of them.
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

from gan_jax import command_line, recipe, runtime
from gan_jax.devices import LAYOUTS
from gan_jax.train import next_boundary, train

NEVER = 10**9  # steps
FEWEST = 3  # quiet blocks of each side
PATIENCE = 4  # times --seconds, for each side
CADENCES = ("log_every", "sample_every", "checkpoint_every", "evaluate_every")
ROWS = {  # the cadences that stay; without metrics there would be nothing to wait for
    "logging": ("log_every",),
    "logging, pictures": ("log_every", "sample_every"),
    "logging, checkpoints": ("log_every", "checkpoint_every"),
    "all of the config": CADENCES,
}


class Enough(Exception):
    """No error: both sides have their blocks, and the run may end."""


class Block(NamedTuple):
    """A timed stretch of steps."""

    seconds: float  # per step
    duration: float
    others: float  # share of the CPUs that other processes used


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
    print("| the loop with | ms a step | spread | bare, ms | spread | adds | quiet blocks |\n" + "|---" * 7 + "|")
    for name in arguments.rows.split(";"):
        changes = {cadence: NEVER for cadence in CADENCES if cadence not in ROWS[name]}
        clock = measure(ConfigDict(config.to_dict() | changes), arguments.seconds)
        print(row(name, clock.loop, clock.bare), flush=True)


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
        self.loop, self.bare = [], []
        self._config, self._compile, self._seconds = config, compile_, seconds
        self._programs = {}  # by the steps of a call
        self._now = 0
        self._whole = math.lcm(*(config[name] for name in CADENCES if 0 < config[name] < NEVER))
        self._cut = 0
        while self._cut < self._whole // 2:
            self._cut = next_boundary(config, self._cut)
        self._start = None  # (step, usage) at which the loop's block began
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
        return self._programs[steps](state, data)

    def _cadence_is_over(self, state, data) -> None:
        jax.block_until_ready(state)
        after = quiet.usage()
        if self._start is None:
            self._end = time.perf_counter() + 2 * PATIENCE * self._seconds
        else:
            first, before = self._start
            if after.clock - before.clock < max(0.3, self._seconds / 10):
                return
            self.loop.append(block(self._now - first, before, after))
            self._take_bare_turn(self._now - first, state, data)
            self._stop_when_done()
        self._start = self._now, quiet.usage()

    def _take_bare_turn(self, wanted: int, state, data) -> None:
        steps = max(self._programs)
        program = self._programs[steps]
        state = jax.block_until_ready(jax.tree.map(jnp.copy, state))  # the program takes its buffers
        done = unseen = 0
        before = quiet.usage()
        while done < wanted:
            state, metrics = program(state, data)
            done, unseen = done + steps, unseen + steps
            if unseen >= self._config.log_every:
                jax.block_until_ready(metrics)
                unseen = 0
        jax.block_until_ready(state)
        self.bare.append(block(done, before, quiet.usage()))

    def _stop_when_done(self) -> None:
        kept = [quiet_blocks(blocks) for blocks in (self.loop, self.bare)]
        print(f"quiet blocks: loop {len(kept[0])}, bare {len(kept[1])}", file=sys.__stderr__, flush=True)
        done = all(len(each) >= FEWEST and sum(b.duration for b in each) >= 0.9 * self._seconds for each in kept)
        if done or time.perf_counter() > self._end:
            raise Enough


def block(steps: int, before: quiet.Usage, after: quiet.Usage) -> Block:
    """What lies between two looks at the counters."""
    duration = after.clock - before.clock
    return Block(duration / steps, duration, quiet.others(before, after))


def quiet_blocks(blocks: list[Block]) -> list[Block]:
    """Those that nobody disturbed."""
    return [each for each in blocks if each.others < quiet.THRESHOLD]


def row(name: str, loop: list[Block], bare: list[Block]) -> str:
    """A line of the table: medians of the quiet blocks, or NOISY and the fastest of all."""
    kept = [quiet_blocks(blocks) for blocks in (loop, bare)]
    noisy = any(len(each) < FEWEST for each in kept)
    cells = []
    for blocks in (loop, bare) if noisy else kept:
        seconds = [each.seconds for each in blocks]
        low, middle, high = quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        cells.append((min(seconds) if noisy else median(seconds), (high - low) / middle))
    shown = " | ".join(f"{seconds * 1e3:.4g} | {spread:.1%}" for seconds, spread in cells)
    counts = ", ".join(f"{len(q)} of {len(blocks)}" for q, blocks in zip(kept, (loop, bare), strict=True))
    return f"| {name} | {shown} | {cells[0][0] / cells[1][0] - 1:+.1%}{' NOISY' if noisy else ''} | {counts} |"


if __name__ == "__main__":
    sys.exit(main())
