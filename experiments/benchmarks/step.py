"""The shipped `train_step` against the same GAN in PyTorch, on this machine, in turns.

    pip install -e ".[bench]" torch
    python experiments/benchmarks/step.py --workloads=dcgan32,wgan_gp32 --seconds=30

Each side is a process of its own that waits while another works; blocks of steps go round among them, and a block
counts only where other processes used less than 6 % of the CPUs meanwhile. README.md beside this file says what is
measured and how it is kept fair. Prints progress to stderr and a Markdown report to stdout.

A variant of torch is a layout (nchw, channels_last) and modifiers joined by dashes: compile (torch.compile), malloc
(glibc's allocator keeps freed memory, as --runtime=fast sets it for jax), where (ReLUs and pooling whose second
derivative costs nothing, for gradient penalties). Example: --variants=nchw,channels_last,channels_last-malloc
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

import psutil
import quiet
import workloads

HERE = Path(__file__).resolve().parent
FEWEST = 3  # quiet blocks of each side, or all blocks count
PATIENCE = 4  # times --seconds, for each side
KEEP_FREED_MEMORY = {  # gan_jax.utils.runtime's mallopt, as the environment variables of glibc
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_MMAP_MAX_": "0",
}

CACHE_ALL = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


class SideError(Exception):
    """A side could not do its work; the message says why, in one line."""


class Block(NamedTuple):
    """A timed run of steps."""

    seconds: float  # per step
    duration: float
    others: float  # share of the CPUs that other processes used


class Side:
    """A process that works when told."""

    def __init__(self, kind: str, arguments, workload: str, cache: str):
        self.kind, self.blocks = kind, []
        options = {"kind": kind, "workload_name": workload}
        options |= {"precision": arguments.precision, "runtime": arguments.runtime}
        environment = os.environ | CACHE_ALL | {"JAX_COMPILATION_CACHE_DIR": cache}
        environment |= KEEP_FREED_MEMORY if "malloc" in kind.split("-") else {}
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(options)]
        log = None if arguments.verbose else subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        )
        self.steps = self.per_call = self._answer()["per_call"]

    def ask(self, **request) -> dict:
        """The answer to one request."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def prepare(self, block_seconds: float) -> None:
        """Compiles, warms up, and sets how many steps make a block."""
        self.first = self.ask(steps=self.per_call)["seconds"]
        self.ask(steps=self.per_call)
        seconds = self.ask(steps=self.steps)["seconds"]
        while seconds < block_seconds / 4:
            self.steps *= 2
            seconds = self.ask(steps=self.steps)["seconds"]
        calls = self.steps / self.per_call * block_seconds / seconds
        self.steps = max(1, round(calls)) * self.per_call

    def block(self) -> None:
        """Works for one block and remembers it."""
        answer = self.ask(steps=self.steps)
        self.blocks.append(Block(answer["seconds"] / self.steps, answer["seconds"], answer["others"]))

    def quiet(self) -> list[Block]:
        """The blocks that nobody disturbed."""
        return [block for block in self.blocks if block.others < quiet.THRESHOLD]

    def stop(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended ({self.process.wait()})"}
        if "error" in answer:
            raise SideError(answer["error"])
        return answer


class Row(NamedTuple):
    """One side of a workload, measured."""

    kind: str
    seconds: float  # per step: the median of the quiet blocks, or the fastest of all
    spread: float  # between the quartiles, as a share of the median
    first: float  # seconds of the first step, compilation included
    kept: int
    blocks: int
    facts: dict


def main() -> int:
    """Measures and prints."""
    arguments = parse()
    status = 0
    print(f"Command: `{' '.join(['python', 'experiments/benchmarks/step.py', *sys.argv[1:]])}`")
    print(f"\nMachine: {cpu_model()}, {psutil.cpu_count()} CPUs, Python {platform.python_version()}.\n")
    for name in arguments.workloads.split(","):
        try:
            say(f"{name}: starting")
            measure_workload(name, arguments)
        except (SideError, ValueError) as error:
            print(f"### {name}\n\nnot measured: {error}\n", flush=True)
            status = 1
    return status


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=workloads.DEFAULT, help="by comma; see workloads.py (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="of quiet work for each side (%(default)s)")
    parser.add_argument("--variants", default="nchw,channels_last", help="of torch, by comma (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="adds each variant under torch.compile: minutes each")
    parser.add_argument("--runtime", choices=("fast", "plain"), default="fast", help="of jax, as in gan_jax.main")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--no-agreement", action="store_true", help="skips the comparison of one step by agreement.py")
    parser.add_argument("--verbose", action="store_true", help="shows what the sides print")
    return parser.parse_args()


def measure_workload(name: str, arguments) -> None:
    """Starts the sides of a workload, times them in turns, prints its part of the report."""
    workload = workloads.make(name)
    print(f"### {name}\n", flush=True)
    if not arguments.no_agreement:
        print_agreement(name)
    sides, cache = [], tempfile.TemporaryDirectory()
    try:
        for kind in kinds(workload, arguments):
            start(kind, name, arguments, sides, cache.name)
        if not any(side.kind == "jax" for side in sides):
            raise SideError("without jax there is nothing to compare")
        rotate(sides, arguments.seconds)
        rows, all_quiet = summarise(sides)
    finally:
        for side in sides:
            side.stop()
        cache.cleanup()
    report(workload, rows, all_quiet)


def kinds(workload, arguments) -> list[str]:
    """The sides of a workload, the ceilings last."""
    variants = arguments.variants.split(",")
    if arguments.compile:
        variants += [f"{variant}-compile" for variant in variants]
    if len(workload.shape) == 1:
        variants = list(dict.fromkeys(re.sub("nchw|channels_last", "eager", variant) for variant in variants))
    scan = ["jax-scan"] if workload.config.steps_per_call > 1 else []
    return ["jax", "jax-cached", *scan, *(f"torch-{variant}" for variant in variants), "gemm", "copy"]


def start(kind: str, name: str, arguments, sides: list[Side], cache: str) -> None:
    """Starts and warms up one side; one that cannot is reported and left out."""
    side = None
    try:
        side = Side(kind, arguments, name, cache)
        side.prepare(block_seconds=max(0.3, arguments.seconds / 10))
    except SideError as error:
        print(f"{kind} left out: {error}\n", flush=True)
        if side:
            side.stop()
        return
    sides.append(side)
    say(f"{name}: {kind} is ready, {side.steps} steps a block, the first took {side.first:.1f} s")


def rotate(sides: list[Side], seconds: float) -> None:
    """Gives each side a block in turn, until all have `seconds` of quiet ones or patience ends."""
    end, turn = time.perf_counter() + PATIENCE * seconds * len(sides), 0
    while True:
        for i in range(len(sides)):
            sides[(turn + i) % len(sides)].block()  # nobody always works behind the same neighbour
        turn += 1
        quiet_blocks = [side.quiet() for side in sides]
        done = [len(each) >= FEWEST and sum(b.duration for b in each) >= 0.9 * seconds for each in quiet_blocks]
        say(f"turn {turn}: " + ", ".join(f"{s.kind} {len(q)}" for s, q in zip(sides, quiet_blocks, strict=True)))
        if all(done) or time.perf_counter() > end:
            return


def summarise(sides: list[Side]) -> tuple[list[Row], bool]:
    """The rows, and whether they are medians of quiet blocks.

    Otherwise they are the fastest of all blocks: disturbance only ever adds time, and it adds more to torch, whose
    OpenMP threads spin at barriers for one that another process keeps from running. All sides are judged alike.
    """
    all_quiet = all(len(side.quiet()) >= FEWEST for side in sides)
    rows = []
    for side in sides:
        seconds = [block.seconds for block in (side.quiet() if all_quiet else side.blocks)]
        low, middle, high = quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        shown = middle if all_quiet else min(seconds)
        facts, counts = side.ask(describe=True), (len(side.quiet()), len(side.blocks))
        rows.append(Row(side.kind, shown, (high - low) / middle, side.first, *counts, facts))
    return rows, all_quiet


def report(workload, rows: list[Row], all_quiet: bool) -> None:
    """Prints the table of a workload, ready to paste."""
    flops, by_kind = workloads.step_flops(workload), {row.kind: row for row in rows}
    jax = by_kind["jax"]
    gemm, copy = by_kind.get("gemm"), by_kind.get("copy")
    ceiling = gemm.facts["work"] / gemm.seconds if gemm else float("nan")
    bandwidth = copy.facts["work"] / copy.seconds if copy else float("nan")
    precision = jax.facts["precision"]
    print(f"{workloads.describe(workload)}, {precision}; {flops / 1e9:.4g} GFLOP a step.")
    print(f"Ceilings: product of matrices {ceiling / 1e9:.4g} GFLOP/s, memory {bandwidth / 1e9:.3g} GB/s.")
    shown = [row for row in rows if row.kind not in ("gemm", "copy")]
    print("; ".join(dict.fromkeys(f"{r.facts['versions']} on {r.facts['device']}" for r in shown)), end="")
    print(f"; runtime of jax: {jax.facts['runtime']}.")
    if not all_quiet:
        print("\n**NOISY: too few quiet blocks. These are the fastest of all blocks, and no measurement.**")
    print("\n| side | ms a step | spread | images/s | jax is faster by | share of the GEMM ceiling ", end="")
    print("| first step, s | peak memory, MB | jax needs | quiet blocks |\n" + "|---" * 10 + "|")
    images = workload.config.discriminator.steps * workload.config.batch_size
    for row in shown:
        print(table_row(row, jax, images, flops / ceiling))
    print(flush=True)


def table_row(row: Row, jax: Row, images: int, fewest_seconds: float) -> str:
    """One side as a line of the table; a side on another device or in another precision is not compared."""
    comparable = all(row.facts[key] == jax.facts[key] for key in ("device", "precision"))
    cells = [
        row.kind,
        f"{row.seconds * 1e3:.4g}",
        f"{row.spread:.1%}",
        f"{images / row.seconds:.4g}",
        f"{row.seconds / jax.seconds:.3f} x" if comparable else f"({row.facts['device']}, {row.facts['precision']})",
        f"{fewest_seconds / row.seconds:.1%}",
        f"{row.first:.1f}",
        f"{row.facts['peak']:.0f}",
        f"{jax.facts['peak'] / row.facts['peak']:.2f} x" if comparable else "",
        f"{row.kept} of {row.blocks}",
    ]
    return f"| {' | '.join(cells)} |"


def print_agreement(name: str) -> None:
    """Runs agreement.py and quotes it; a disagreement ends the workload."""
    command = [sys.executable, str(HERE / "agreement.py"), name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.stdout:
        raise SideError(f"agreement.py: {result.stderr.strip().splitlines()[-1]}")
    print(f"```\n{result.stdout}```\n", flush=True)
    if result.returncode:
        raise SideError("the two sides are not the same GAN")


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
