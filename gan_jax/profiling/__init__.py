"""`--mode=profile`: the training loop's compiled call, as a trace for TensorBoard and Perfetto and a page."""

import shutil
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from ml_collections import ConfigDict

from gan_jax import recipe, step
from gan_jax.devices import mesh
from gan_jax.files import write_atomically
from gan_jax.loader import call_shapes
from gan_jax.profiling import ceilings, flops, hlo, page
from gan_jax.profiling.device_time import busy_seconds
from gan_jax.profiling.page import Measured, Memory, Traced
from gan_jax.recipe import Setup
from gan_jax.train import compiled_call, next_boundary, open_loader

FEWEST_CALLS, SHORTEST = 5, 1.0  # seconds: what is timed without the tracer


def profile(setup: Setup, workdir: Path, steps: int, name: str, runs_with: str) -> str:
    """Profiles the call that the training loop makes, from the initial state; returns the page that it writes.

    Writes `profile/`, the trace of `steps` train steps rounded up to whole calls, and `profile.md`, each in
    the place of an earlier one, and nothing else: a run in `workdir` stays as it is.
    """
    a_call = next_boundary(setup.config, 0)
    calls = -(-steps // a_call)
    state = recipe.initial_state(setup)
    with closing(open_loader(setup, state, None)) as first:
        data = first.call(0, a_call)  # what is profiled is the call: all of them get the first one's data
    advance, compile_seconds = _compile(setup, a_call, state, data)
    compiled = advance.compiled
    state, durations = _time(advance, state, data, calls)
    peak = _peak()  # before the ceilings, which take much memory
    program = hlo.parse(compiled.as_text())
    counted = compiled.cost_analysis() or {}
    measured = Measured(
        steps=a_call,
        seconds=np.array(durations) / a_call,
        compile_seconds=compile_seconds,
        flops=step_flops(setup),
        bytes=setup.devices.count * hlo.bytes_accessed(program) / a_call,
        counted_by_xla=(counted.get("flops"), counted.get("bytes accessed")),
        memory=Memory(compiled.memory_analysis(), *peak),
        traced=_traced(advance, state, data, calls, a_call, workdir, program),
        ceilings=ceilings.measure(setup.devices, setup.config.precision, setup.config.matmul_precision),
    )
    text = page.render(setup, measured, name, runs_with, workdir)
    write_atomically(workdir / "profile.md", text.encode())
    return text


def _compile(setup: Setup, steps: int, state, data):
    """The compiled call, and the seconds that tracing and compiling it takes without a cache."""
    with _no_compilation_cache():
        start = time.perf_counter()
        advance = compiled_call(setup, steps, state, data)
        return advance, time.perf_counter() - start


@contextmanager
def _no_compilation_cache():
    """Within it everything is compiled: the cache would hide how long that takes, and names what was first compiled.

    A program's names do not go into its key in the cache, so that it may come back with those of another checkout.
    """
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # jax asks only once whether there is one
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()


def _time(advance: Callable, state, data, calls: int):
    """The state, and the seconds of each of so many calls or more.

    Where dispatch is asynchronous, as on an accelerator, none waits for the one before.
    """
    calls = max(calls, FEWEST_CALLS)
    ends, previous = [], None
    while len(ends) <= calls or ends[-1] - ends[0] < SHORTEST:
        state, metrics = advance(state, data)
        if previous is not None:
            jax.block_until_ready(previous)
            ends.append(time.perf_counter())
        previous = metrics
    return jax.block_until_ready(state), np.diff(ends)


def step_flops(setup: Setup) -> int:
    """FLOPs of one train step by formula: on one device, its convolutions direct, however they are computed here."""
    config = ConfigDict(setup.config.to_dict() | {"convolution": "plain"})
    alone = recipe.build(config, mesh(jax.devices()[:1]), setup.source, runs=False)

    def one_step(state, data):
        return step.train_steps(alone.recipe, alone.devices, alone.source, 1, state, data)

    shapes = call_shapes(alone.source, alone.devices, 1, config.discriminator.steps, config.batch_size)
    return flops.count(one_step, recipe.abstract_state(alone), shapes)


def _peak() -> tuple[int, str]:
    """Bytes, and of what."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"], "the first device"
    return page.peak_of_process(), "the process"


def _traced(advance, state, data, calls: int, a_call: int, workdir: Path, program) -> Traced:
    """Traces so many calls into `profile/` in `workdir`, and reads what the trace says."""
    folder, new = workdir / "profile", workdir / "profile.partial"
    shutil.rmtree(new, ignore_errors=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would be most of the trace
    with jax.profiler.trace(new, create_perfetto_trace=True, profiler_options=options):
        start = time.perf_counter()
        for _ in range(calls):
            state, _ = advance(state, data)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - start) / (calls * a_call)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    try:
        busy = busy_seconds(folder)
    except (RuntimeError, ValueError) as error:  # what the profiler writes differs between devices and versions
        return Traced(calls * a_call, seconds, [], (str(error).splitlines() or ["unreadable"])[0])
    return Traced(calls * a_call, seconds, page.operations(program, busy, calls * a_call), None)
