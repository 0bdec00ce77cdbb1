"""What the training loop adds to the bare compiled step: logging, pictures, checkpoints, the progress bar.

    pip install -e ".[bench]" && python experiments/benchmarks/loop.py --config=configs/dcgan.py --seconds=20

Both sides run the same compiled `train_steps` of the config, in turns. The bare side calls it in a Python loop and
waits once at the end. The loop's side is `gan_jax.train.train` as shipped, timed from a short and a long run whose
difference leaves out start-up; a first turn fills the compilation cache and is not reported. Prints steps per second of
each turn, the share of the CPU that other processes took meanwhile, and the median of the ratios.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import jax
import quiet
from ml_collections import ConfigDict

from gan_jax import command_line, recipe, step
from gan_jax.train import train


def main() -> None:
    """Runs the turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/dcgan.py")
    parser.add_argument("--seconds", type=float, default=30, help="of the bare side in each turn")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    config = command_line.load_config(arguments.config)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        per_call = config.steps_per_call
        calls = max(1, round(arguments.seconds * bare_rate(config, 10) / per_call))
        # A whole number of cadences, so that the long run does all that a real one does, in proportion.
        whole = max(config.log_every, config.sample_every, config.checkpoint_every)
        steps = max(1, round(calls * per_call / whole)) * whole
        print(f"{arguments.config}, {steps} steps a turn")
        print(f"{'bare, steps/s':>14} {'loop, steps/s':>14} {'loop / bare':>12} {'others':>8}")
        loop_rate(config, steps)
        ratios = []
        for _ in range(arguments.turns):
            before = quiet.usage()
            bare, loop = bare_rate(config, steps // per_call), loop_rate(config, steps)
            others = quiet.others(before, quiet.usage())
            ratios.append(loop / bare)
            print(f"{bare:14.1f} {loop:14.1f} {loop / bare:12.3f} {others:8.1%}", flush=True)
    print(f"median of the ratios: {median(ratios):.3f}")


def bare_rate(config: ConfigDict, calls: int) -> float:
    """Steps per second of `calls` compiled calls in a Python loop."""
    setup = recipe.build(config)
    state, data = recipe.initial_state(setup), setup.devices.place(setup.source.data)
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source.draw, config.steps_per_call)
    compiled = setup.devices.compile(function, state, data)
    state, metrics = jax.block_until_ready(compiled(state, data))
    start = time.perf_counter()
    for _ in range(calls):
        state, metrics = compiled(state, data)
    jax.block_until_ready((state, metrics))
    return calls * config.steps_per_call / (time.perf_counter() - start)


def loop_rate(config: ConfigDict, steps: int) -> float:
    """Steps per second of the shipped loop: one cadence against one cadence and `steps` more."""
    once = max(config.log_every, config.sample_every, config.checkpoint_every)
    short = train_seconds(config, once)
    return steps / (train_seconds(config, once + steps) - short)


def train_seconds(config: ConfigDict, num_steps: int) -> float:
    """Seconds that `train` takes in a fresh workdir."""
    config = ConfigDict(config.to_dict() | {"num_steps": num_steps})
    with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        train(recipe.build(config), Path(workdir))
        return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
