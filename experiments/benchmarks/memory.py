"""What a train step needs in memory, by how many micro-batches its minibatch is taken in.

    pip install -e ".[bench]"
    python experiments/benchmarks/memory.py --workloads=dcgan32,dcgan64 --accumulate 1 2 4 8

Arguments and temporaries are those of the compiled program (`Compiled.memory_analysis()`), of one step on one device,
whose data is one fixed minibatch: arguments are the state and that minibatch, and of the state the new one takes the
place. The peak is that of a fresh process, libraries included, which finds the program in the compilation cache, as all
starts but the first do, and takes two steps; loading a large program may need the most. On a GPU the peak is what JAX
allocated there. Nothing is timed, so that the machine need not be quiet.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import workloads

STEPS = 2  # after the first all memory of a step was in use once


def main() -> None:
    """Prints the table, or in a process started for one row that row's numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="dcgan32,dcgan64", help="as for step.py (%(default)s)")
    parser.add_argument("--accumulate", type=int, nargs="+", default=[1, 2, 4, 8], help="micro-batches (%(default)s)")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measured(arguments.workloads, arguments.accumulate[0])))
        return
    for name in arguments.workloads.split(","):
        print(f"{name}: {workloads.describe(workloads.make(name))}, float32\n")
        print("| accumulate | arguments, MB | of them donated, MB | temporaries, MB | peak, MB |\n" + "|---" * 5 + "|")
        for accumulate in arguments.accumulate:
            print(row(accumulate, in_a_process(name, accumulate)), flush=True)
        print()


def row(accumulate: int, numbers: dict[str, float]) -> str:
    """A line of the table."""
    sizes = (f"{numbers[key] / 1e6:.4g}" for key in ("arguments", "donated", "temporaries"))
    return f"| {accumulate} | {' | '.join(sizes)} | {numbers['peak']:.0f} |"


def in_a_process(name: str, accumulate: int) -> dict[str, float]:
    """What `measured` says in a fresh process, with the compilation cache that one like it filled."""
    # The caller's own settings of the cache would take the place of the temporary one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION_", "JAX_PERSISTENT_"))}
    flags = [f"--workloads={name}", f"--accumulate={accumulate}", "--alone"]
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, __file__, *flags],
                env=environment | {"XDG_CACHE_HOME": cache},
                stdout=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, accumulate: int) -> dict[str, float]:
    """Bytes of the compiled step, and the peak of this process after STEPS of it, in MB."""
    import sides

    sides.apply_runtime("fast")
    import jax
    import worker

    from gan_jax import recipe
    from gan_jax.parallel.devices import mesh
    from gan_jax.training.loop import compiled_call

    workload = workloads.make(name)
    workload.config.accumulate = accumulate
    batch = workloads.batch(workload)[0]
    setup = sides.jax_setup(workload, mesh(jax.devices()[:1]), batch)
    state, data = recipe.initial_state(setup), setup.devices.place(batch)
    program = compiled_call(setup, 1, state, data)
    for _ in range(STEPS):
        state, metrics = program(state, data)
    jax.block_until_ready((state, metrics))
    analysis = program.compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "donated": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "peak": worker.peak(sides.jax_peak(jax)),
    }


if __name__ == "__main__":
    sys.exit(main())
