"""Whether the two sides are the same GAN: one whole train step of each, from the same parameters, data and noise.

    python experiments/benchmarks/agreement.py dcgan32 [where]

Prints the numbers of parameters, the FLOPs as counted by `workloads.step_flops` and by torch, the losses of both
sides, and how far apart the updated parameters are in units of how far they moved. Exit status 1 where they differ.
Runs on the CPU in float32 at a small batch, torch in the layout channels_last (the order of jax's dense layers), with
both frameworks in one process: nothing is timed here.
"""

import os
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}

import jax
import numpy as np
import sides
import torch
import torch_reference
import workloads
from torch.utils.flop_counter import FlopCounterMode

from gan_jax import recipe, step
from gan_jax.parallel import devices

BATCH = 8
# Adam's first step moves a parameter by the rate times the sign of its gradient. Where that is rounding noise the two
# sides may part, as some 2 % of dcgan64's generator do; a leaky ReLU of slope 0.22 for 0.2 parts them by 13 %.
APART = 0.05
KINDS = {  # torch's layers and the Flax names of the same
    torch.nn.Linear: ("Dense",),
    torch.nn.Conv2d: ("StridedConv", "Conv"),
    torch.nn.ConvTranspose2d: ("StridedConvTranspose",),
    torch.nn.BatchNorm2d: ("Normalize",),
}


class Counted(torch_reference.Reference):
    """The reference in a form that torch's counter can follow: a leaf must not enter a module directly."""

    def logits(self, x):
        """D's output."""
        return super().logits(x.view_as(x))


class Replay:
    """The noise that `gan_jax.step` is about to draw, in its order, as torch tensors."""

    def __init__(self, setup, state):
        keys = step.step_keys(state)
        self.queue, n = [], setup.recipe.batch_size
        for key in jax.random.split(keys.discriminator, setup.recipe.discriminator_steps):
            latent_key, penalty_key = jax.random.split(key)
            self.queue.append(setup.recipe.prior(devices.example_keys(setup.devices, latent_key, n)))
            if setup.config.penalty.name == "wgan_gp":
                slots = devices.example_keys(setup.devices, penalty_key, n)
                self.queue.append(jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1)))(slots))
        self.queue.append(setup.recipe.prior(devices.example_keys(setup.devices, keys.generator, n)))

    def latents(self):
        """The next array."""
        return torch.from_numpy(np.array(self.queue.pop(0)))

    weights = latents


def layers(params: dict, kinds: tuple[str, ...]) -> list[dict]:
    """The parameters of the layers of these Flax names, in order; those in submodules first."""
    inner = [layers(params[name], kinds) for name in numbered(params, ("Hidden", "Block"))]
    own = [params[name].get("BatchNorm_0", params[name]) for name in numbered(params, kinds)]
    return [layer for group in inner for layer in group] + own


def numbered(params: dict, kinds: tuple[str, ...]) -> list[str]:
    """The names `KIND_0`, `KIND_1`, ... in the order of their numbers."""
    return sorted(
        (name for name in params if name.rpartition("_")[0] in kinds), key=lambda name: int(name.rpartition("_")[2])
    )


def paired(network, params: dict) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Each torch parameter with the Flax one of the same meaning, in torch's shape."""
    rest, pairs = {kind: layers(params, kind) for kind in KINDS.values()}, []
    for module in network.modules():
        if type(module) not in KINDS:
            continue
        layer = {name: np.array(x) for name, x in rest[KINDS[type(module)]].pop(0).items()}
        kernel = layer.get("kernel", layer.get("scale"))
        # Flax keeps Dense kernels [in, out], convolutions [k, k, in, out], their transposes [k, k, out, in].
        pairs.append((module.weight, kernel.T if kernel.ndim <= 2 else kernel.transpose(3, 2, 0, 1)))
        if module.bias is not None:
            pairs.append((module.bias, layer["bias"]))
    return pairs


def load(network, params: dict) -> None:
    """Copies Flax parameters into the torch network."""
    with torch.no_grad():
        for parameter, value in paired(network, params):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


def distance(network, old: dict, new: dict) -> float:
    """Mean |torch - jax| of the updated parameters, relative to the mean |new - old|."""
    apart = [np.abs(torch_value.detach().numpy() - value).sum() for torch_value, value in paired(network, new)]
    moved = [np.abs(late - early).sum() for late, early in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)]
    return float(sum(apart) / sum(moved))


def compare(name: str) -> tuple[dict, dict, list[float]]:
    """One step of both sides: (jax's metrics, torch's, the distances of G and D after it)."""
    workload = workloads.make(name, batch_size=BATCH)
    setup = sides.jax_setup(workload, devices.mesh(jax.devices()[:1]))
    state, batch = recipe.initial_state(setup), workloads.batch(workload)
    old = jax.tree.map(np.array, (state.generator.params, state.discriminator.params))
    reference = Counted(workload, "cpu", ["channels_last", *sys.argv[2:]])
    networks = (reference.generator, reference.discriminator)
    for network, params in zip(networks, old, strict=True):
        load(network, params)
    replay = Replay(setup, state)
    with FlopCounterMode(display=False) as counter:
        ours = reference.train_step(reference.place(batch), replay)
    state, theirs = jax.jit(step.train_step, static_argnums=(0, 1))(
        setup.recipe, setup.devices, state, {"image": batch}
    )
    new = (state.generator.params, state.discriminator.params)
    counts = [[sum(x.size for x in jax.tree.leaves(params)) for params in new]]
    counts.append([sum(x.numel() for x in network.parameters()) for network in networks])
    print(f"{name}: parameters of G and D: jax {counts[0]}, torch {counts[1]}")
    flops = workloads.step_flops(workload)
    print(
        f"  FLOPs of a step at batch {BATCH}: {flops:.4g}; by torch's counter {counter.get_total_flops() / flops:.3f} x"
    )
    distances = [distance(*each) for each in zip(networks, old, new, strict=True)]
    assert counts[0] == counts[1], "the networks have different sizes"
    return {key: float(theirs[key]) for key in ours}, {key: float(ours[key]) for key in ours}, distances


def main() -> int:
    """Compares the named workload."""
    theirs, ours, distances = compare(sys.argv[1])
    for key in ours:
        print(f"  {key}: jax {theirs[key]:.6f}, torch {ours[key]:.6f}")
    print(f"  updated parameters, apart / moved: G {distances[0]:.1e}, D {distances[1]:.1e}")
    same = all(np.isclose(theirs[key], ours[key], rtol=1e-3, atol=1e-5) for key in ours) and max(distances) < APART
    print("  the same GAN" if same else "  NOT THE SAME GAN")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
