"""How much of the package one reads to follow a run: functions, files, lines and changes of file of what it executes.

python experiments/benchmarks/walk.py --config=configs/dcgan.py          # one training step
python experiments/benchmarks/walk.py --config=configs/dcgan.py --main   # `python -m gan_jax.main` of one step

Called from the root of the checkout. The step is `step.train_steps` of one step, traced on shapes alone, minibatches
drawn on the device. The run has --runtime=plain and health_every=0. What the main thread executes counts, but imports:
- functions: distinct ones that are entered, lambdas too; a comprehension belongs to the function around it.
- files: those of these functions.
- changes of file: how often two functions entered one after the other lie in different files.
- lines: distinct source lines of these functions, docstrings and comments in them included.
At commit 9afd216 a step of configs/dcgan.py has 138 functions, 22 files, 232 changes of file and 767 lines; the run
has 311 functions, 41 files, 426 changes of file and 2,153 lines.
"""

import argparse
import inspect
import runpy
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

PACKAGE = str(Path("gan_jax").resolve()) + "/"


class Walk:
    """Calls a function without arguments, and counts what that executes of the package."""

    def __init__(self, function: Callable):
        self._functions, self._files, self._imports = {}, [], 0
        sys.setprofile(self._on_event)
        try:
            function()
        finally:
            sys.setprofile(None)

    def _on_event(self, frame, event, _) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(PACKAGE):
            return
        if code.co_name == "<module>":
            self._imports += (frame.f_globals["__name__"] != "__main__") * (1 if event == "call" else -1)
        elif event == "call" and not self._imports and (code.co_name[0] != "<" or code.co_name == "<lambda>"):
            self._functions[code.co_filename, code.co_firstlineno] = code
            self._files.append(code.co_filename)

    def __str__(self) -> str:
        sources = ((path, *inspect.getsourcelines(code)) for (path, _), code in self._functions.items())
        lines = {(path, first + i) for path, source, first in sources for i in range(len(source))}
        changes = sum(before != after for before, after in zip(self._files, self._files[1:], strict=False))
        counts = f"{len(self._functions):,} functions, {len(set(self._files)):,} files"
        return f"{counts}, {changes:,} changes of file, {len(lines):,} lines"


def trace_step(config: str) -> Callable:
    """A function that traces one training step of the config `configs/NAME.py[:VARIANT]`."""
    from gan_jax import recipe, step

    path, *variant = config.split(":")
    setup = recipe.build(runpy.run_path(path)["get_config"](*variant).lock())
    take_step = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    data = setup.devices.placed_shapes(setup.source.data)
    return partial(jax.eval_shape, take_step, recipe.abstract_state(setup), data)


def run_main(config: str, workdir: str) -> None:
    """One step of training as the command line takes it."""
    flags = [f"--config={config}", f"--workdir={workdir}", "--runtime=plain"]
    sys.argv = ["gan_jax.main", *flags, "--config.num_steps=1", "--config.health_every=0"]
    try:
        runpy.run_module("gan_jax.main", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise


if __name__ == "__main__":
    sys.path.insert(0, "")
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/dcgan.py")
    parser.add_argument("--main", action="store_true", help="count in a run of the command line")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = partial(run_main, arguments.config, f"{folder}/run")
        print(Walk(run if arguments.main else trace_step(arguments.config)))
