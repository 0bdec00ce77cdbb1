"""The sides that are timed, each alone in a process: `make(...)` gives one, `run(steps)` returns when they are done.

Only the framework of the side is imported, so that thread pools, allocators and memory are its own.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import workloads

GIB = 1 << 30


def make(kind: str, workload_name: str, precision: str, runtime: str):
    """The side `kind`: jax, jax-cached, jax-scan, population-MEMBERS-HOW, gemm, copy, torch-two, torch-LAYOUT[-...]."""
    if kind in ("gemm", "copy"):
        apply_runtime(runtime)
        return {"gemm": Gemm, "copy": Copy}[kind](precision)
    if kind.startswith("population-"):
        _, members, how = kind.split("-")
        return Crowd(workload_name, precision, runtime, int(members), how)
    if kind == "torch-two":
        return Two(workload_name, precision)
    if kind.startswith("jax"):
        return Jax(workload_name, precision, apply_runtime(runtime), scan=kind == "jax-scan")
    return Torch(workload_name, precision, kind.split("-")[1:])


def apply_runtime(choice: str) -> str:
    """What `gan_jax.main` does before the backend starts, in words; `plain` leaves everything as it is."""
    # The allocator of a GPU is shared with the other sides, and none of them may hold most of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from gan_jax.utils import runtime

    return runtime.RUNTIMES[choice]()


def _jax_precision(precision: str) -> str:
    """`auto` is bfloat16 on an accelerator, float32 on a CPU."""
    import jax

    if precision != "auto":
        return precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


class Jax:
    """The shipped `train_step`, compiled as the loop compiles it, on one fixed batch and one device.

    `scan`: the shipped `train_steps`, with as many steps in a call as the config says, each on that same batch.
    """

    def __init__(self, workload_name: str, precision: str, runtime: str, scan: bool):
        import jax

        from gan_jax import recipe, step
        from gan_jax.parallel import devices

        self.jax, self.runtime = jax, runtime
        self.precision = _jax_precision(precision)
        workload = workloads.make(workload_name, self.precision)
        setup = jax_setup(workload, devices.mesh(jax.devices()[:1]))
        self.state = recipe.initial_state(setup)
        self.batch = setup.devices.place({"image": workloads.batch(workload)})
        self.per_call = workload.config.steps_per_call if scan else 1
        function = partial(step.train_step, setup.recipe, setup.devices)
        if scan:
            self.batch = setup.devices.place(self.batch["image"][0])
            function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, self.per_call)
        self.compile = partial(setup.devices.compile, function)
        self.compiled = None
        self.metrics = {}

    def run(self, steps: int) -> None:
        """Takes `steps` steps, a multiple of `per_call`; compiles first if this is the first time."""
        self.compiled = self.compiled or self.compile(self.state, self.batch)
        for _ in range(steps // self.per_call):
            self.state, self.metrics = self.compiled(self.state, self.batch)
        self.jax.block_until_ready((self.state, self.metrics))

    def describe(self) -> dict:
        """What this side is and where its losses stand."""
        losses = {name: float(self.jax.numpy.ravel(self.metrics[name])[-1]) for name in ("d_loss", "g_loss")}
        return _jax_facts(self.jax, self.precision) | {"runtime": self.runtime, "losses": losses}

    def peak_bytes(self) -> int | None:
        """The most device memory ever used; None where that is the process's own."""
        return jax_peak(self.jax)


class Crowd:
    """The shipped population of `members` runs that differ in their seeds; a step here is one step of one of them."""

    def __init__(self, workload_name: str, precision: str, runtime: str, members: int, how: str):
        from gan_jax.utils import runtime as runtimes

        shared = runtimes.share_cpu()
        self.runtime = f"{shared}; {apply_runtime(runtime)}"
        import jax

        from gan_jax import recipe
        from gan_jax.parallel import devices, population_layout
        from gan_jax.sweep.population import Population

        self.jax, self.precision = jax, _jax_precision(precision)
        workload = workloads.make(workload_name, self.precision)
        needed = jax.devices()[: min(members, jax.device_count())]
        layout, one = population_layout.population(how, devices=needed), devices.mesh(needed[:1])
        setup = jax_setup(workload, one, workloads.batch(workload)[0])
        setups = [setup._replace(keys=recipe.run_keys(seed)) for seed in range(members)]
        steps = workload.config.steps_per_call
        self.crew = (population := Population(setups, layout)).initial()
        self.data = layout.within.place(setup.source.data)
        self.compile = partial(population.compiled, steps)
        self.compiled, self.metrics = None, {}
        self.per_call = steps * members

    def run(self, steps: int) -> None:
        """Takes `steps` steps of a member each, a multiple of `per_call`."""
        self.compiled = self.compiled or self.compile(self.crew)
        for _ in range(steps // self.per_call):
            self.crew, self.metrics = self.compiled(self.crew, self.data)
        self.jax.block_until_ready((self.crew, self.metrics))

    def describe(self) -> dict:
        """What this side is and where its losses stand, the worst member's."""
        losses = {name: float(self.jax.numpy.max(self.metrics[name][:, -1])) for name in ("d_loss", "g_loss")}
        return _jax_facts(self.jax, self.precision) | {"runtime": self.runtime, "losses": losses}

    def peak_bytes(self) -> int | None:
        """The most device memory ever used; None where that is the process's own."""
        return jax_peak(self.jax)


class Two:
    """Two processes of PyTorch with one thread each, side by side; a step here is one step of either."""

    per_call = 2

    def __init__(self, workload_name: str, precision: str):
        options = {"kind": "torch-eager", "workload_name": workload_name, "precision": precision, "runtime": "plain"}
        command = [sys.executable, str(Path(__file__).parent / "worker.py"), json.dumps(options)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
        for process in self.processes:
            json.loads(process.stdout.readline())

    def run(self, steps: int) -> None:
        """Takes half of the steps in each process."""
        self._ask({"steps": steps // 2})

    def describe(self) -> dict:
        """What one of them is."""
        first, _ = self._ask({"describe": True})
        return first | {"versions": f"{first['versions']}, two processes"}

    def peak_bytes(self) -> int | None:
        """Of no interest."""
        return None

    def _ask(self, request: dict) -> list[dict]:
        for process in self.processes:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self.processes]


def jax_setup(workload, layout, batch=()):
    """`recipe.build` of the workload's config, on data of its shape: each minibatch is that `batch`."""
    from gan_jax import recipe
    from gan_jax.data import Source

    return recipe.build(workload.config, layout, Source(shape=workload.shape, draw=_same_batch, std=1.0, data=batch))


def _same_batch(batch, indices, keys):
    return {"image": batch}


def _jax_facts(jax, precision: str) -> dict:
    device = jax.devices()[0]
    kind = "cpu" if device.platform == "cpu" else device.device_kind
    return {"versions": f"jax {jax.__version__}", "device": kind, "precision": precision}


def jax_peak(jax) -> int | None:
    """The most memory of the device that JAX ever used; None where that is the process's own."""
    device = jax.devices()[0]
    return None if device.platform == "cpu" else device.memory_stats()["peak_bytes_in_use"]


class Torch:
    """`torch_reference.Reference` on the same batch; the modifiers are those of `step.py`.

    `malloc` needs nothing here: the parent started this process with the settings in its environment.
    """

    per_call = 1

    def __init__(self, workload_name: str, precision: str, modifiers: list[str]):
        import torch
        import torch_reference

        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        auto = "float32" if self.device == "cpu" else "bfloat16"
        self.precision = auto if precision == "auto" else precision
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # on a GPU TF32, which is jax's default too; on a CPU float32
        torch.manual_seed(0)
        workload = workloads.make(workload_name, self.precision)
        self.reference = torch_reference.Reference(workload, self.device, modifiers)
        self.reals = self.reference.place(workloads.batch(workload))
        self.noise = torch_reference.Noise(workload.config.batch_size, workload.config.latent.dim, self.device)
        self.metrics = {}

    def run(self, steps: int) -> None:
        """Takes `steps` steps."""
        for _ in range(steps):
            self.metrics = self.reference.train_step(self.reals, self.noise)
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def describe(self) -> dict:
        """What this side is and where its losses stand."""
        cuda = self.device == "cuda"
        return {
            "versions": f"torch {self.torch.__version__}, {self.torch.get_num_threads()} threads",
            "device": self.torch.cuda.get_device_name() if cuda else "cpu",
            "precision": self.precision,
            "losses": {name: float(value) for name, value in self.metrics.items()},
        }

    def peak_bytes(self) -> int | None:
        """The most device memory ever used; None where that is the process's own."""
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else None


class Gemm:
    """The ceiling: one large square matrix product a step, in the precision of the workloads."""

    per_call = 1

    def __init__(self, precision: str):
        import jax

        self.jax, self.precision = jax, _jax_precision(precision)
        self.n = 2048 if jax.default_backend() == "cpu" else 8192
        keys = jax.random.split(jax.random.key(0))
        self.factors = [jax.random.normal(key, (self.n, self.n), self.precision) for key in keys]
        self.product = jax.jit(jax.numpy.matmul)

    def run(self, steps: int) -> None:
        """Takes `steps` products."""
        for _ in range(steps):
            product = self.product(*self.factors)
        product.block_until_ready()

    def describe(self) -> dict:
        """FLOPs of a step."""
        return _jax_facts(self.jax, self.precision) | {"work": 2.0 * self.n**3}

    def peak_bytes(self) -> int | None:
        """Of no interest."""
        return None


class Copy:
    """The memory's bandwidth: one pass over an array that fits into no cache, read and written in place."""

    per_call = 1

    def __init__(self, precision: str):
        import jax

        self.jax = jax
        self.bytes = GIB // 4 if jax.default_backend() == "cpu" else 4 * GIB
        self.array = jax.numpy.zeros(self.bytes // 4, "float32")
        self.touch = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run(self, steps: int) -> None:
        """Takes `steps` passes."""
        for _ in range(steps):
            self.array = self.touch(self.array)
        self.array.block_until_ready()

    def describe(self) -> dict:
        """Bytes read and written in a step."""
        return _jax_facts(self.jax, "float32") | {"work": 2.0 * self.bytes}

    def peak_bytes(self) -> int | None:
        """Of no interest."""
        return None
