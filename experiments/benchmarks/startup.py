"""Seconds from the start of `python -m gan_jax.main` to the end of its first call of train steps, cold and warm.

    pip install -e ".[bench]" && python experiments/benchmarks/startup.py --config=configs/dcgan.py --turns=5

Each start is a fresh process that trains as a user's would, except that it logs after its first call; it is over when
that line is in metrics.jsonl (looked for every 5 ms), and the process is killed. A cold start has an empty compilation
cache, the warm one after it the cache that the cold one filled; both lie in a temporary XDG_CACHE_HOME. The call takes
config.steps_per_call steps. Peak memory is that of the process up to there.

A start counts where other processes used less than 6 % of the CPUs meanwhile; with fewer than three such starts of a
kind the line says NOISY and shows the fastest. Then one more warm start, of the same `main` with JAX's own timings
written down, says where the time goes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import quiet

from gan_jax.cli import command_line

HERE = Path(__file__).resolve().parent
FEWEST = 3  # quiet starts of each kind
PATIENCE = 4  # times --turns
POLL = 0.005
STAGES = {  # JAX's events
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling, or loading from the cache",
}


class Start(NamedTuple):
    """One process, up to its first line of metrics."""

    seconds: float
    peak: float  # MB
    others: float  # share of the CPUs that other processes used
    begin: float  # on time.time's clock


def main() -> None:
    """Runs the turns and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/dcgan.py")
    parser.add_argument("--turns", type=int, default=5, help="quiet starts of each kind (%(default)s)")
    parser.add_argument("--runtime", choices=("fast", "plain"), default="fast", help="plain keeps no cache")
    arguments = parser.parse_args()
    steps = command_line.load_config(arguments.config).steps_per_call
    flags = [f"--config={arguments.config}", f"--config.log_every={steps}", f"--runtime={arguments.runtime}"]
    starts = {"cold": [], "warm": []}
    for _ in range(PATIENCE * arguments.turns):
        with tempfile.TemporaryDirectory() as cache:
            for kind, found in starts.items():
                found.append(start(["-m", "gan_jax.main", *flags], cache))
                print(f"{kind} {found[-1].seconds:.2f} s, others {found[-1].others:.1%}", file=sys.stderr, flush=True)
            if all(len(quiet_starts(found)) >= arguments.turns for found in starts.values()):
                break
    print("| start | s to the first call's end | fastest | peak memory, MB | quiet starts |\n" + "|---" * 5 + "|")
    for kind, found in starts.items():
        print(row(kind, found))
    print_stages(flags)


def start(arguments: list[str], cache: str) -> Start:
    """One start of Python with these arguments and a fresh workdir."""
    # The caller's own settings of the cache would take the place of the temporary one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION_", "JAX_PERSISTENT_"))}
    environment["XDG_CACHE_HOME"] = cache
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile() as output:
        metrics, before, begin = Path(workdir, "metrics.jsonl"), quiet.usage(), time.time()
        process = subprocess.Popen(
            [sys.executable, *arguments, f"--workdir={workdir}"], env=environment, stdout=output, stderr=output
        )
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break
                time.sleep(POLL)
            seconds = time.time() - begin
        finally:
            process.send_signal(signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != -signal.SIGKILL:
            output.seek(0)
            sys.exit(output.read().decode().strip() or f"the process ended ({process.returncode})")
        unit = 1 if sys.platform == "darwin" else 1024
        return Start(seconds, usage.ru_maxrss * unit / 1e6, quiet.others(before, quiet.usage()), begin)


def quiet_starts(starts: list[Start]) -> list[Start]:
    """Those that nobody disturbed."""
    return [each for each in starts if each.others < quiet.THRESHOLD]


def row(kind: str, starts: list[Start]) -> str:
    """A line of the table: medians of the quiet starts, or NOISY and the fastest of all."""
    kept = quiet_starts(starts)
    noisy = len(kept) < FEWEST
    times = [each.seconds for each in (starts if noisy else kept)]
    shown = f"{min(times):.2f} NOISY" if noisy else f"{median(times):.2f}"
    peak = max(each.peak for each in starts)
    return f"| {kind} | {shown} | {min(times):.2f} | {peak:.0f} | {len(kept)} of {len(starts)} |"


def print_stages(flags: list[str]) -> None:
    """Where a warm start spends its time."""
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        events = Path(folder, "events.jsonl")
        observed = [str(HERE / "observed_main.py"), str(events), *flags]
        start(observed, cache)
        events.unlink()
        warm = start(observed, cache)
        lines = [json.loads(line) for line in events.read_text().splitlines()]
    imported, rest = lines[0]["end"], [line for line in lines[1:] if line["event"] in STAGES]
    hits = sum(line["event"].endswith("cache_hits") for line in lines)
    end = warm.begin + warm.seconds
    print(f"\nOne warm start, {warm.seconds:.2f} s, others {warm.others:.1%}; {hits} programs from the cache\n")
    print("| stage | s |\n|---|---|")
    print(f"| Python and imports | {imported - warm.begin:.2f} |")
    known = imported - warm.begin
    for event, stage in STAGES.items():
        # A program traced within another is counted in its outer one alone.
        seconds = union([(each["end"] - each["seconds"], each["end"]) for each in rest if each["event"] == event])
        known += seconds
        largest = max((each for each in rest if each["event"] == event), key=lambda each: each["seconds"])
        print(f"| {stage} | {seconds:.2f} (of {largest['program']} {largest['seconds']:.2f}) |")
    last = max(each["end"] for each in rest)
    print(f"| the first call and its metrics | {end - last:.2f} |")
    print(f"| the rest: config, backend, data, recipe, folders | {warm.seconds - known - (end - last):.2f} |")


def union(intervals: list[tuple[float, float]]) -> float:
    """The length of what the intervals cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


if __name__ == "__main__":
    sys.exit(main())
