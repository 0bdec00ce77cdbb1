"""`--mode=profile`: the training loop's compiled call, as a trace for TensorBoard and Perfetto and a page."""

import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from ml_collections import ConfigDict

from gan_jax import step
from gan_jax.analysis.profiling import flops, hlo, page
from gan_jax.analysis.profiling.device_time import busy_seconds
from gan_jax.analysis.profiling.page import quantity
from gan_jax.config import build
from gan_jax.config.build import Setup
from gan_jax.networks import products
from gan_jax.parallel.devices import Devices, mesh
from gan_jax.training.loop import call_shapes, compiled_call, next_boundary, open_loader
from gan_jax.utils.files import write_atomically

FEWEST_CALLS, SHORTEST = 5, 1.0  # seconds: what is timed without the tracer
PASSES = 5  # of which the fastest counts as the ceiling
# By whether the device is a CPU: rows and columns of a matrix, bytes of an array that no cache holds.
SIZES = {True: (2048, 1 << 28), False: (8192, 1 << 32)}


class Ceilings(NamedTuple):
    """What all devices together can do at most, each doing the same work of its own at the same time."""

    flops: float  # a second, of a large matrix product
    bytes: float  # a second, of a pass over memory
    product: int  # rows and columns of the matrices


def profile(setup: Setup, workdir: Path, steps: int, name: str, runs_with: str) -> str:
    """Profiles the call that the training loop makes, from the initial state; returns the page that it writes.

    Writes `profile/`, the trace of `steps` train steps rounded up to whole calls, and `profile.md`, each in
    the place of an earlier one, and nothing else: a run in `workdir` stays as it is. FLOPs are counted in the jaxpr;
    traffic and memory are XLA's own analysis; busy times come from the trace.
    """
    a_call = next_boundary(setup.config, 0)
    calls = -(-steps // a_call)
    state = build.initial_state(setup)
    with closing(open_loader(setup, state, None)) as first:
        data = first.call(0, a_call)  # what is profiled is the call: all of them get the first one's data
    with _no_compilation_cache():
        start = time.perf_counter()
        advance = compiled_call(setup, a_call, state, data)
        compile_seconds = time.perf_counter() - start
    state, durations = _time(advance, state, data, max(calls, FEWEST_CALLS))
    peak = _peak()  # before what takes more memory than training does
    traced_seconds = _trace(advance, state, data, calls, workdir) / (calls * a_call)
    has_loops = not setup.recipe.unroll and a_call * setup.recipe.discriminator_steps * setup.recipe.accumulate > 1
    device_traffic = step_traffic(setup) if has_loops else bytes_accessed(advance.compiled) / a_call
    # Of a step, over all devices: FLOPs, bytes, and the seconds that both would take at the ceilings.
    work, traffic = step_flops(setup), setup.devices.count * device_traffic
    limits = ceilings(setup.devices, setup.config.precision, setup.config.matmul_precision)
    low, seconds, high = np.quantile(durations / a_call, (0.25, 0.5, 0.75))
    examples = setup.config.batch_size * setup.config.discriminator.steps / seconds
    counted, memory = advance.compiled.cost_analysis() or {}, advance.compiled.memory_analysis()
    sizes = (getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "temp", "output", "alias"))
    rows = {
        **page.setting(setup, a_call, runs_with),
        "time": f"**{seconds * 1e3:.4g} ms a step** (median of {len(durations)} calls, quartiles "
        f"{(high - low) / seconds:.0%} apart), {examples:,.0f} real examples/s",
        "compilation": f"{compile_seconds:.1f} s, without a cache",
        "work": f"{quantity(work, 'FLOP')} a step in matrix products and convolutions",
        "traffic": f"{quantity(traffic, 'B')} a step, were nothing kept in caches",
        "XLA's own count": f"{quantity(counted.get('flops'), 'FLOP')}, {quantity(counted.get('bytes accessed'), 'B')} "
        "a call on one device, with the body of each loop once",
        "memory": "arguments {}, temporaries {}, output {} (of it {} in the arguments' place); peak of {}".format(
            *(quantity(size, "B") for size in sizes), peak
        ),
        **_reached(work, traffic, seconds, limits),
    }
    costliest = _costliest(workdir / "profile", advance.compiled, calls * a_call, traced_seconds)
    text = (
        f"# Profile of {name}\n\n{page.table(rows)}\n\n{costliest}\n\n"
        f"The trace of {calls * a_call:,} steps: `tensorboard --logdir={workdir / 'profile'}`, or "
        "`perfetto_trace.json.gz` in there at https://ui.perfetto.dev.\n"
    )
    write_atomically(workdir / "profile.md", text.encode())
    return text


def _reached(work: float, traffic: float, seconds: float, limits: Ceilings) -> dict[str, str]:
    """Rows on how near to the ceilings a step comes: its FLOPs, bytes and seconds, over all devices."""
    work_seconds, traffic_seconds = work / limits.flops, traffic / limits.bytes
    binding = "the matrix product" if work_seconds >= traffic_seconds else "memory"
    return {
        "ceilings here": f"matrix product of {limits.product}: {quantity(limits.flops, 'FLOP/s')}; pass over "
        f"memory: {quantity(limits.bytes, 'B/s')}",
        "reached": f"**{quantity(work / seconds, 'FLOP/s')}, {work_seconds / seconds:.1%}** of the matrix "
        f"product's; {quantity(traffic / seconds, 'B/s')}, {traffic_seconds / seconds:.1%} of memory's",
        "roofline": f"{work / traffic:.3g} FLOP a byte; the ceilings meet at {limits.flops / limits.bytes:.3g}: "
        f"{binding} binds, at {max(work_seconds, traffic_seconds) * 1e3:.3g} ms a step",
    }


def _costliest(trace: Path, compiled, steps: int, seconds: float) -> str:
    """What the page says of the operations that take most of a step's `seconds`, by the trace of so many steps."""
    try:
        busy = busy_seconds(trace)
    except (RuntimeError, ValueError) as error:  # what the profiler writes differs between devices and versions
        return f"The costliest operations are not known: {(str(error).splitlines() or ['unreadable'])[0]}."
    return page.costliest(hlo.parse(compiled.as_text()), busy, steps, seconds)


@contextmanager
def _no_compilation_cache():
    """Within it everything is compiled: a cached program hides how long that takes, and may have older names in it."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # jax asks only once whether there is one
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        reset_cache()


def _time(advance: Callable, state, data, calls: int):
    """The state, and the seconds of each of so many calls or more: float64 [calls].

    Where dispatch is asynchronous, as on an accelerator, none waits for the one before.
    """
    ends, previous = [], None
    while len(ends) <= calls or ends[-1] - ends[0] < SHORTEST:
        state, metrics = advance(state, data)
        if previous is not None:
            jax.block_until_ready(previous)
            ends.append(time.perf_counter())
        previous = metrics
    return jax.block_until_ready(state), np.diff(ends)


def ceilings(devices: Devices, precision: str, matmul_precision: str) -> Ceilings:
    """The ceilings of the devices, with matrices of the dtype `precision` and products as precise as the networks'."""
    n, size = SIZES[jax.default_backend() == "cpu"]
    # Of this scale a product's entries are about as large as its factors', however often one multiplies.
    factor = jax.random.normal(jax.random.key(0), (n, n), precision) / jnp.sqrt(n).astype(precision)
    with products(matmul_precision):
        product = _seconds(devices, lambda x, y: (x @ y, ()), jnp.ones_like(factor), factor)
    one_pass = _seconds(devices, lambda x, _: (x + 1, ()), jnp.zeros(size // 4, jnp.float32), ())
    return Ceilings(devices.count * 2.0 * n**3 / product, devices.count * 2.0 * size / one_pass, n)


def _seconds(devices: Devices, function: Callable, *arguments) -> float:
    """Of the fastest call, after one that warms up."""
    x, data = devices.place(arguments)
    function, durations = devices.compile(function, x, data), []
    for _ in range(1 + PASSES):
        start = time.perf_counter()
        x = jax.block_until_ready(function(x, data)[0])
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def step_flops(setup: Setup) -> int:
    """FLOPs of one train step by formula: on one device, its convolutions direct, however they are computed here."""
    config = ConfigDict(setup.config.to_dict() | {"convolution": "plain"})
    alone = build.build_on(setup.source, config, mesh(jax.devices()[:1]), runs=False)
    one_step = partial(step.train_steps, alone.recipe, alone.devices, alone.source, 1)
    return flops.count(one_step, build.abstract_state(alone), call_shapes(alone, 1))


def compiled_step(setup: Setup, **changes):
    """JAX's `Compiled` of a single train step on the setup's devices, with `changes` of its Recipe."""
    setup = setup._replace(recipe=setup.recipe._replace(**changes))
    one_step = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    return setup.devices.compile(one_step, build.abstract_state(setup), call_shapes(setup, 1)).compiled


def bytes_accessed(compiled) -> float:
    """What one device reads and writes in a call, were nothing kept in caches, by XLA's count; NaN if it has none."""
    return (compiled.cost_analysis() or {}).get("bytes accessed", float("nan"))


def step_traffic(setup: Setup) -> float:
    """Bytes that one device reads and writes in a step, by XLA's count.

    XLA takes the body of a loop once, so loops are written out. Of micro-batches, which may be too many for that, two
    are: each further one costs what the second adds to the first.
    """
    count, size = setup.recipe.accumulate, setup.recipe.batch_size // setup.recipe.accumulate

    def traffic(j):
        return bytes_accessed(compiled_step(setup, unroll=True, accumulate=j, batch_size=j * size))

    one = traffic(1)
    return one if count == 1 else one + (count - 1) * (traffic(2) - one)


def _peak() -> str:
    """The most memory that there was in use."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return f"the first device {quantity(statistics['peak_bytes_in_use'], 'B')}"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"the process {quantity(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'B')}"


def _trace(advance: Callable, state, data, calls: int, workdir: Path) -> float:
    """Traces so many calls into `profile/` in `workdir`; the seconds that they took."""
    folder, new = workdir / "profile", workdir / "profile.partial"
    shutil.rmtree(new, ignore_errors=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own calls would be most of the trace
    with jax.profiler.trace(new, create_perfetto_trace=True, profiler_options=options):
        start = time.perf_counter()
        for _ in range(calls):
            state, _ = advance(state, data)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return seconds
