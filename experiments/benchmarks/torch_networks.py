"""The same networks in PyTorch, as its own best users would write them: activations in place wherever nothing else
reads what they overwrite, every layer in the memory format that was asked for.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": partial(nn.LeakyReLU, 0.2)}


class Where(nn.Module):
    """A ReLU, leaky or not, whose second derivative autograd knows to be none.

    That of torch's own is an array of zeros, which a gradient penalty then sends back through the whole critic.
    """

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, x):
        return torch.where(x > 0, x, self.slope * x if self.slope else 0.0)


class LinearPool(torch.autograd.Function):
    """The 2x2 average pooling as autograd should know it, linear: torch's own has such a second derivative too."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)  # nothing must not become zeros here either
        return F.avg_pool2d(x, 2)

    @staticmethod
    def backward(ctx, gradient):
        return None if gradient is None else F.interpolate(gradient, scale_factor=2, mode="nearest") / 4


class Pool(nn.Module):
    """`LinearPool` as a layer."""

    def forward(self, x):
        return LinearPool.apply(x)


def normalization(kind: str, features: int, dims: int) -> nn.Module:
    """Batch normalisation as in `gan_jax.networks.layers`; torch's momentum is 1 - flax's."""
    if kind == "none":
        return nn.Identity()
    layer = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
    return layer(features, eps=1e-5, momentum=0.1)


def activated(player, kind: str, features: int, dims: int = 2, inplace: bool = True) -> list[nn.Module]:
    """A normalisation and the activation after it."""
    return [normalization(kind, features, dims), ACTIVATIONS[player.activation](inplace=inplace)]


class ConvGenerator(nn.Module):
    """`gan_jax.networks.dcgan.Generator`; images leave it in the memory format of its layers."""

    def __init__(self, latent_dim: int, shape, player, channels_last: bool):
        super().__init__()
        self.channels_last, biased = channels_last, player.normalization == "none"
        self.top = player.width << (player.depth - 1)
        self.size = shape[0] >> player.depth, shape[1] >> player.depth
        self.dense = nn.Linear(latent_dim, self.size[0] * self.size[1] * self.top, bias=biased)
        layers = activated(player, player.normalization, self.top)
        channels = self.top
        for layer in reversed(range(player.depth - 1)):
            wide = player.width << layer
            layers.append(nn.ConvTranspose2d(channels, wide, 4, 2, 1, bias=biased))
            layers += activated(player, player.normalization, wide)
            channels = wide
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels, shape[2], 4, 2, 1), nn.Tanh())
        small_weights(self)

    def forward(self, z):
        x = self.dense(z)
        if self.channels_last:  # a view that already has the layout; the other order would cost a copy
            return self.layers(x.view(-1, *self.size, self.top).permute(0, 3, 1, 2))
        return self.layers(x.view(-1, self.top, *self.size))


class ConvDiscriminator(nn.Module):
    """`gan_jax.networks.dcgan.Discriminator`."""

    def __init__(self, shape, player, channels_last: bool):
        super().__init__()
        self.channels_last, layers, channels = channels_last, [], shape[2]
        for layer in range(player.depth):
            kind, wide = (player.normalization if layer else "none"), player.width << layer
            layers.append(nn.Conv2d(channels, wide, 4, 2, 1, bias=kind == "none"))
            layers += activated(player, kind, wide)
            channels = wide
        self.layers = nn.Sequential(*layers)
        self.dense = nn.Linear(channels * (shape[0] >> player.depth) * (shape[1] >> player.depth), 1)
        small_weights(self)

    def forward(self, x):
        x = self.layers(x)
        x = x.permute(0, 2, 3, 1) if self.channels_last else x
        return self.dense(x.flatten(1))[:, 0]


def mlp(inputs: int, outputs: int, player) -> nn.Sequential:
    """Either player of `gan_jax.networks.mlp` on points."""
    layers = []
    for _ in range(player.depth):
        layers += [nn.Linear(inputs, player.width), *activated(player, player.normalization, player.width, dims=1)]
        inputs = player.width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class ResidualBlock(nn.Module):
    """`gan_jax.networks.resnet.Block`, its 1x1 convolution on the smaller of the two images as there."""

    def __init__(self, channels: int, player, resample: str, biased: bool, sees_image: bool = False):
        super().__init__()
        kind, wide, self.resample = ("none" if sees_image else player.normalization), player.width, resample
        # Without a normalisation in between, the shortcut reads what the first activation would overwrite.
        first = [] if sees_image else activated(player, kind, channels, inplace=kind != "none")
        if resample == "up":
            first.append(nn.Upsample(scale_factor=2, mode="nearest"))
        last = [nn.AvgPool2d(2)] if resample == "down" else []
        self.pool = nn.AvgPool2d(2) if resample == "down" else nn.Identity()
        self.branch = nn.Sequential(
            *first,
            nn.Conv2d(channels, wide, 3, padding=1, bias=kind == "none"),
            *activated(player, kind, wide),
            nn.Conv2d(wide, wide, 3, padding=1, bias=biased),
            *last,
        )
        self.pixels = nn.Identity() if resample == "keep" else nn.Conv2d(channels, wide, 1, bias=False)

    def forward(self, x):
        y = self.branch(x)
        x = self.pixels(self.pool(x))
        return y.add_(F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x)


class ResidualGenerator(nn.Module):
    """`gan_jax.networks.resnet.Generator`; images leave it in the memory format of its layers."""

    def __init__(self, latent_dim: int, shape, player, channels_last: bool):
        super().__init__()
        self.channels_last, self.width = channels_last, player.width
        self.size = shape[0] >> player.depth, shape[1] >> player.depth
        self.dense = nn.Linear(latent_dim, self.size[0] * self.size[1] * self.width)
        biased = player.normalization == "none"
        self.blocks = nn.Sequential(*[ResidualBlock(self.width, player, "up", biased) for _ in range(player.depth)])
        last = nn.Conv2d(self.width, shape[2], 3, padding=1)
        self.layers = nn.Sequential(*activated(player, player.normalization, self.width), last, nn.Tanh())
        xavier_weights(self)

    def forward(self, z):
        x = self.dense(z)
        if self.channels_last:
            return self.layers(self.blocks(x.view(-1, *self.size, self.width).permute(0, 3, 1, 2)))
        return self.layers(self.blocks(x.view(-1, self.width, *self.size)))


class ResidualDiscriminator(nn.Module):
    """`gan_jax.networks.resnet.Discriminator`."""

    def __init__(self, shape, player, channels_last: bool):
        super().__init__()
        blocks = [ResidualBlock(shape[2], player, "down", biased=True, sees_image=True)]
        for resample in ["down"] * (player.depth - 1) + ["keep"] * 2:
            blocks.append(ResidualBlock(player.width, player, resample, biased=True))
        self.layers = nn.Sequential(*blocks, ACTIVATIONS[player.activation](inplace=True))
        self.dense = nn.Linear(player.width, 1)
        xavier_weights(self)

    def forward(self, x):
        return self.dense(self.layers(x).mean((2, 3)))[:, 0]


def small_weights(network: nn.Module) -> None:
    """DCGAN's initial weights."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)


def xavier_weights(network: nn.Module) -> None:
    """The residual networks' initial weights, with twice the variance in the branches."""
    branches = [layer for block in network.modules() if isinstance(block, ResidualBlock) for layer in block.branch]
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            gain = 2**0.5 if any(module is layer for layer in branches) else 1.0
            nn.init.xavier_uniform_(module.weight, gain)


CONVOLVING = {
    "dcgan": (ConvGenerator, ConvDiscriminator),
    "resnet": (ResidualGenerator, ResidualDiscriminator),
}


def make_networks(workload, channels_last: bool) -> tuple[nn.Module, nn.Module]:
    """G and D of a workload, with the initial weights of their family where they convolve."""
    config, shape = workload.config, workload.shape
    if len(shape) == 1:
        return mlp(config.latent.dim, shape[0], config.generator), mlp(shape[0], 1, config.discriminator)
    generator, discriminator = CONVOLVING[config.generator.network]
    return (
        generator(config.latent.dim, shape, config.generator, channels_last),
        discriminator(shape, config.discriminator, channels_last),
    )


def use_where(network: nn.Module) -> None:
    """Exchanges the ReLUs of a network, leaky or not, and its pooling."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, (nn.ReLU, nn.LeakyReLU)):
                setattr(module, name, Where(getattr(child, "negative_slope", 0.0)))
            elif isinstance(child, nn.AvgPool2d):
                setattr(module, name, Pool())
