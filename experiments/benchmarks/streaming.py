"""What streaming a set costs: an example read by itself, and how long a training step waits for its minibatch.

    pip install -e ".[bench,tfds]"
    python experiments/benchmarks/streaming.py --config=configs/dcgan.py:mnist --dir=DIR

The same config is trained with `data.placement` stream and device, in one process and in turns, by the shipped feed
and compiled call. `waiting` is the share of the time for which the loop stood still for data; `slower by` is the ratio
of the medians, less 1, which also has what decoding takes from the CPUs on which the step runs. A block counts where
other processes used less than 6 % of the CPUs meanwhile.
"""

import argparse
import os
import sys
import tempfile
import time
import unittest.mock
from functools import partial
from statistics import median
from typing import NamedTuple

import jax
import numpy as np
import quiet

from gan_jax import recipe
from gan_jax.cli import command_line
from gan_jax.data import make_source
from gan_jax.training.loop import compiled_call, next_boundary, open_loader
from gan_jax.utils import runtime

FEWEST = 3  # quiet blocks of each side
PATIENCE = 4  # times --seconds, for each side
EXAMPLES = 2_000  # read one by one


class Block(NamedTuple):
    """A timed stretch of steps."""

    seconds: float  # per step
    waited: float  # share
    others: float  # share of the CPUs that other processes used


class Side:
    """A run of the config with one placement, which goes on in turns."""

    def __init__(self, config, placement: str):
        with config.unlocked():
            config = config.copy_and_resolve_references()
        config.data.placement, self.placement, self.blocks = placement, placement, []
        self._config, self._now = config, 0
        self.setup = recipe.build(config)
        self._state = recipe.initial_state(self.setup)
        self.loader = open_loader(self.setup, self._state, partial(next_boundary, config))
        self._program = None

    def run(self, seconds: float) -> None:
        """Steps for so long, kept as a block."""
        before, waited, start = quiet.usage(), self.loader.waited, self._now
        while time.perf_counter() - before.clock < seconds:
            self._advance()
        jax.block_until_ready(self._state)
        after = quiet.usage()
        duration = after.clock - before.clock
        share = (self.loader.waited - waited) / duration
        self.blocks.append(Block(duration / (self._now - start), share, quiet.others(before, after)))

    def _advance(self) -> None:
        after = self._now + self._config.steps_per_call
        data = self.loader.call(self._now, after)
        self._program = self._program or compiled_call(self.setup, after - self._now, self._state, data)
        self._state, _ = self._program(self._state, data)
        self._now = after


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/dcgan.py:mnist")
    parser.add_argument("--dir", default="", help="data.dir")
    parser.add_argument("--seconds", type=float, default=30, help="of quiet work for each side (%(default)s)")
    arguments = parser.parse_args()
    print(f"runtime: {runtime.RUNTIMES['fast']()}\n")
    config = command_line.load_config(arguments.config)
    config.data.dir = arguments.dir
    # Nothing but the steps: no boundary of the loop may cut a call short.
    config.update(log_every=10**9, sample_every=0, health_every=0, checkpoint_every=10**9, num_steps=10**9)
    print("the resident set: decoded in {:.1f} s, read back from the cache in {:.2f} s".format(*loads(config)))
    sides = [Side(config, placement) for placement in ("stream", "device")]
    print(f"reading and decoding an example by itself: {read_alone(sides[0].setup.source):.0f} us\n")
    end = time.perf_counter() + 2 * PATIENCE * arguments.seconds
    for side in sides:
        side.run(1)  # compiles
        side.blocks.clear()
    while time.perf_counter() < end and not all(len(kept(side)) * 3 >= arguments.seconds for side in sides):
        for side in sides:
            side.run(3)
    print("| data.placement | ms a step | waiting | slower by | quiet blocks |\n" + "|---" * 5 + "|")
    medians = [median(block.seconds for block in kept(side) or side.blocks) for side in sides]
    for side, seconds in zip(sides, medians, strict=True):
        waiting = median(block.waited for block in kept(side) or side.blocks)
        counts = f"{len(kept(side))} of {len(side.blocks)}" + ("" if len(kept(side)) >= FEWEST else " NOISY")
        slower = seconds / medians[1] - 1
        print(f"| {side.placement} | {seconds * 1e3:.4g} | {waiting:.2%} | {slower:+.1%} | {counts} |")
        side.loader.close()


def loads(config) -> list[float]:
    """Seconds to have the resident set, with an empty cache (a temporary one; the user's is not touched) and a full."""
    durations = []
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        for _ in range(2):
            start = time.perf_counter()
            make_source(config.data.to_dict() | {"placement": "device"})
            durations.append(time.perf_counter() - start)
    return durations


def kept(side: Side) -> list[Block]:
    """The blocks that nobody disturbed."""
    return [block for block in side.blocks if block.others < quiet.THRESHOLD]


def read_alone(source) -> float:
    """Microseconds an example, in one thread and in any order."""
    indices = np.random.default_rng(0).integers(0, source.size, EXAMPLES)
    source.rows(indices[:10])
    start = time.perf_counter()
    for chunk in indices.reshape(-1, 50):
        source.rows(chunk)
    return (time.perf_counter() - start) / EXAMPLES * 1e6


if __name__ == "__main__":
    sys.exit(main())
