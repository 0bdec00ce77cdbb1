"""Populations against the same GANs one after another, in this project and in PyTorch, in turns on this machine.

    pip install -e ".[bench]" torch
    python experiments/benchmarks/population.py --workloads=mlp-small,mlp --seconds=20

The unit is a GAN-step: k updates of D and one of G, of one GAN. Prints progress to stderr and Markdown to stdout.
"""

import argparse
import platform
import sys
import tempfile

import psutil
import workloads
from step import Side, SideError, cpu_model, rotate, say, start, summarise

MEMBERS = (1, 16, 64, 256)


def main() -> int:
    """Measures and prints."""
    arguments = parse()
    print(f"Command: `{' '.join(['python', 'experiments/benchmarks/population.py', *sys.argv[1:]])}`")
    print(f"\nMachine: {cpu_model()}, {psutil.cpu_count()} CPUs, Python {platform.python_version()}.\n")
    for name in arguments.workloads.split(","):
        measure(name, arguments)
    return 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="mlp-small,mlp", help="by comma; see workloads.py (%(default)s)")
    parser.add_argument("--members", type=int, nargs="+", default=list(MEMBERS), help="of the populations")
    parser.add_argument("--how", nargs="+", default=["vmap", "map"], help="each way in which members take a step")
    parser.add_argument("--seconds", type=float, default=20, help="of quiet work for each side (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="adds torch.compile, which takes minutes to start")
    parser.add_argument("--runtime", choices=("fast", "plain"), default="fast", help="of jax, as in gan_jax.main")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--verbose", action="store_true", help="shows what the sides print")
    return parser.parse_args()


def measure(name: str, arguments) -> None:
    """One workload: its sides in turns, and its table."""
    kinds = ["jax-scan", "torch-eager", "torch-two", *(["torch-eager-compile"] if arguments.compile else [])]
    kinds += [f"population-{members}-{how}" for members in arguments.members for how in arguments.how]
    sides: list[Side] = []
    print(f"### {name}\n\n{workloads.describe(workloads.make(name))}.\n", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        try:
            for kind in kinds:
                start(kind, name, arguments, sides, cache)
            rotate(sides, arguments.seconds)
            rows, all_quiet = summarise(sides)
        except SideError as error:
            print(f"not measured: {error}\n", flush=True)
            return
        finally:
            for side in sides:
                side.stop()
    report(rows, all_quiet)


def report(rows, all_quiet: bool) -> None:
    """Prints the table."""
    if not all_quiet:
        print("**NOISY: too few quiet blocks. These are the fastest of all blocks, and no measurement.**\n")
    rates = {row.kind: 1 / row.seconds for row in rows}
    references = [kind for kind in ("jax-scan", "torch-eager", "torch-two") if kind in rates]
    print("; ".join(dict.fromkeys(f"{row.facts['versions']} on {row.facts['device']}" for row in rows)) + ".\n")
    print("| side | GAN-steps/s | spread |" + "".join(f" times {kind} |" for kind in references), end="")
    print(" first call, s | quiet blocks |\n" + "|---" * (5 + len(references)) + "|")
    for row in rows:
        times = [f"{rates[row.kind] / rates[kind]:.2f} x" for kind in references]
        cells = [row.kind, f"{rates[row.kind]:,.0f}", f"{row.spread:.1%}", *times, f"{row.first:.1f}"]
        print(f"| {' | '.join([*cells, f'{row.kept} of {row.blocks}'])} |")
    print(flush=True)
    say("done")


if __name__ == "__main__":
    sys.exit(main())
