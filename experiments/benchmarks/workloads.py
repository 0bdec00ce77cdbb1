"""What is measured, by name: configs, data shapes, FLOPs. Imports neither framework: the parent process stays small.

A name is one of `BASES`, then optionally `-wWIDTH` and `-BATCH`: `dcgan64-w256-512` is `dcgan64` 256 wide at batch 512.
"""

import importlib
import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


class Base(NamedTuple):
    """A shipped config, what is changed in it, and the shape of one example."""

    config: str
    shape: tuple[int, ...]
    batch_size: int
    width: int
    depths: tuple[int, int]  # of G and of D
    changes: dict = {}  # noqa: RUF012  by dotted key


class Workload(NamedTuple):
    """A named piece of work."""

    name: str
    config: Any  # a ConfigDict; its data set is not used
    shape: tuple[int, ...]


# The objective and the single update of D that an unconditional SNGAN may have too; with five penalised updates, as the
# config has them, a step is 2.2 TFLOP.
ONE_UPDATE = {
    "objective.name": "non_saturating",
    "penalty.name": "none",
    "penalty.weight": 0.0,
    "discriminator.steps": 1,
}

BASES = {
    "dcgan32": Base("dcgan", (32, 32, 1), 64, 64, (3, 3)),
    "dcgan64": Base("dcgan", (64, 64, 3), 64, 64, (4, 4)),
    "wgan_gp32": Base("wgan_gp", (32, 32, 1), 64, 64, (3, 3)),
    "resnet32": Base("resnet", (32, 32, 3), 64, 128, (3, 2), ONE_UPDATE),
    "resnet32_gp": Base("resnet", (32, 32, 3), 64, 128, (3, 2)),
    "mlp": Base("base", (2,), 256, 128, (3, 3)),
    "mlp-small": Base("base", (2,), 64, 32, (3, 3)),
}
DEFAULT = "dcgan32,dcgan32-128,dcgan64,dcgan64-128,wgan_gp32,resnet32,mlp,mlp-small"
_NAME = re.compile(rf"({'|'.join(sorted(BASES, key=len, reverse=True))})(?:-w(\d+))?(?:-(\d+))?")


def make(name: str, precision: str = "float32", batch_size: int | None = None) -> Workload:
    """The workload `name`, computed in `precision`. Raises ValueError where there is none of that name."""
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f"unknown workload {name!r}; valid: {', '.join(BASES)}, each with -wWIDTH and -BATCH")
    base = BASES[match[1]]
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # configs/ belongs to the repository, not to the installed package
    config = importlib.import_module(f"configs.{base.config}").get_config()
    config.precision = precision
    config.batch_size = batch_size or int(match[3] or base.batch_size)
    config.update_from_flattened_dict(base.changes)
    for player, depth in zip((config.generator, config.discriminator), base.depths, strict=True):
        player.update(width=int(match[2] or base.width), depth=depth)
        player.optimizer.decay_to = 1.0  # the schedule costs nothing on either side; without it they compare exactly
    return Workload(name, config, base.shape)


def batch(workload: Workload) -> np.ndarray:
    """One fixed array of minibatches [k, n, *shape], the same for every side: data loading is not measured."""
    shape = (workload.config.discriminator.steps, workload.config.batch_size, *workload.shape)
    return np.tanh(np.random.default_rng(0).standard_normal(shape, np.float32))


def describe(workload: Workload) -> str:
    """The workload in words."""
    config = workload.config
    player, steps = config.discriminator, config.discriminator.steps
    depths = list(dict.fromkeys((config.generator.depth, player.depth)))
    depth = " in G and ".join(map(str, depths)) + (" in D" if len(depths) > 1 else "")
    size = "x".join(map(str, workload.shape)) if len(workload.shape) > 1 else f"points of dimension {workload.shape[0]}"
    return (
        f"{size}, {player.network} of width {player.width} and depth {depth}, batch {config.batch_size}, "
        f"{steps} + 1 updates, normalisation {config.generator.normalization} in G and {player.normalization} in D, "
        f"objective {config.objective.name}, penalty {config.penalty.name}"
    )


def step_flops(workload: Workload) -> float:
    """FLOPs of a train step: 2 for each multiply-add of its dense layers and direct convolutions, nothing else.

    A layer's forward pass, input gradient and kernel gradient each cost its forward pass; taps on the padding count.
    What no gradient needs is left out: the input gradients of first layers where only parameters are trained, D's
    kernel gradients in G's update. The penalty is a forward pass, its input gradient, and the gradient of that in the
    parameters (ReLUs, leaky or not, have no curvature): for each layer one more pass forward and one kernel gradient.
    """
    config = workload.config
    generator = generator_flops(config.generator, config.latent.dim, workload.shape)
    discriminator = discriminator_flops(config.discriminator, workload.shape)
    g, d = sum(generator), sum(discriminator)
    critic_update = g + 2 * (3 * d - discriminator[0])
    if config.penalty.name == "wgan_gp":
        critic_update += 4 * d
    elif config.penalty.name != "none":
        raise ValueError(f"the FLOPs of penalty {config.penalty.name} are not counted here")
    generator_update = 3 * g - generator[0] + 2 * d
    return config.batch_size * (config.discriminator.steps * critic_update + generator_update)


def generator_flops(player, latent_dim: int, shape: tuple[int, ...]) -> list[float]:
    """FLOPs of each layer's forward pass for one example, the layer at the latents first."""
    if player.network == "mlp":
        return _dense([latent_dim] + [player.width] * player.depth + [math.prod(shape)])
    if player.network == "resnet":
        return _residual_generator(player, latent_dim, shape)
    height, width, _ = shape
    top = player.width << (player.depth - 1)
    first = 2.0 * latent_dim * (height >> player.depth) * (width >> player.depth) * top
    return [first, *reversed(_strided(player, shape))]


def discriminator_flops(player, shape: tuple[int, ...]) -> list[float]:
    """FLOPs of each layer's forward pass for one example, the layers that see the image first and as one."""
    if player.network == "mlp":
        return _dense([math.prod(shape)] + [player.width] * player.depth + [1])
    if player.network == "resnet":
        return _residual_discriminator(player, shape)
    last = math.prod(shape[:2]) / 4**player.depth * (player.width << (player.depth - 1))
    return [*_strided(player, shape), 2.0 * last]


def _dense(sizes: list[int]) -> list[float]:
    return [2.0 * rows * columns for rows, columns in itertools.pairwise(sizes)]


def _strided(player, shape: tuple[int, int, int]) -> list[float]:
    """The 4x4 convolutions of stride 2, from the image inwards; their adjoints cost the same."""
    channels = [shape[2]] + [player.width << layer for layer in range(player.depth)]
    pixels = [shape[0] * shape[1] / 4 ** (layer + 1) for layer in range(player.depth)]
    return [32.0 * n * channels[i] * channels[i + 1] for i, n in enumerate(pixels)]


def _residual_generator(player, latent_dim: int, shape: tuple[int, int, int]) -> list[float]:
    """A dense layer, the blocks that double the image, a convolution to it."""
    width, pixels = player.width, (shape[0] * shape[1]) >> (2 * player.depth)
    flops = [2.0 * latent_dim * pixels * width]
    for _ in range(player.depth):
        flops += [_conv(1, width, width, pixels)] + 2 * [_conv(3, width, width, 4 * pixels)]
        pixels *= 4
    return [*flops, _conv(3, width, shape[2], pixels)]


def _residual_discriminator(player, shape: tuple[int, int, int]) -> list[float]:
    """The blocks that halve the image, both layers that see a block's input as one; two plain blocks, a dense layer."""
    width, pixels, channels, flops = player.width, shape[0] * shape[1], shape[2], []
    for _ in range(player.depth):
        flops += [_conv(3, channels, width, pixels) + _conv(1, channels, width, pixels // 4)]
        flops += [_conv(3, width, width, pixels)]
        pixels, channels = pixels // 4, width
    return [*flops, *4 * [_conv(3, width, width, pixels)], 2.0 * width]


def _conv(size: int, channels: int, features: int, pixels: int) -> float:
    """A size x size convolution of stride 1."""
    return 2.0 * size**2 * channels * features * pixels
