"""The same losses, optimiser and algorithm in PyTorch, as its own best users would write them.

Fused Adam, gradients set to None, D frozen while G learns, no gradients through G while D learns, no host transfer
inside the step; the networks are in `torch_networks.py`. In one place it does a little more than `gan_jax.step`: the
running batch statistics of the player who does not learn move too, as they do in every PyTorch GAN (training does not
read them). And in two a little less: it computes no metrics, and its random numbers are drawn for the batch as a whole
instead of one key an example.
"""

import torch
import torch_networks
from torch import nn
from torch.nn import functional as F


class Noise:
    """Fresh random numbers, drawn where they are used."""

    def __init__(self, n: int, latent_dim: int, device):
        self.n, self.latent_dim, self.device = n, latent_dim, device

    def latents(self):
        """Standard normal, [n, latent_dim]."""
        return torch.randn(self.n, self.latent_dim, device=self.device)

    def weights(self):
        """The penalty's interpolation weights, uniform, [n, 1, 1, 1]."""
        return torch.rand(self.n, 1, 1, 1, device=self.device)


class Reference:
    """Both players and one train step of the workload: k updates of D, one of G, the moving average of G."""

    def __init__(self, workload, device: str, modifiers=()):
        channels_last, compiled = "channels_last" in modifiers, "compile" in modifiers
        config = self.config = workload.config
        self.device, self.autocast = device, config.precision == "bfloat16"
        # The parameters' own layout decides which kernels run, so the modules are converted too.
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        networks = torch_networks.make_networks(workload, channels_last)
        if "where" in modifiers:
            torch_networks.use_where(networks[1])
        self.generator, self.discriminator = (
            network.to(device=device, memory_format=self.format) for network in networks
        )
        self.generator_optimizer = adam(self.generator, config.generator.optimizer)
        self.discriminator_optimizer = adam(self.discriminator, config.discriminator.optimizer)
        self.live = averaged(self.generator)
        self.ema, self.steps = [x.clone() for x in self.live], 0
        compiling = torch.compile if compiled else lambda function, **_: function
        self.make_fake = compiling(self.fake, dynamic=False)
        self.d_loss = compiling(self.discriminator_loss, dynamic=False)
        self.g_loss = compiling(self.generator_loss, dynamic=False)

    def place(self, batch) -> list[torch.Tensor]:
        """The minibatches of a numpy batch [k, n, h, w, c] or [k, n, d], on the device, in the networks' layout."""
        batch = torch.from_numpy(batch).to(self.device)
        if batch.ndim < 5:
            return list(batch)
        # Not `contiguous`, which leaves the strides of a one-channel image as they are, and they decide the kernels.
        reals = [real.permute(0, 3, 1, 2) for real in batch]
        return [torch.empty(x.shape, device=self.device, memory_format=self.format).copy_(x) for x in reals]

    def computing(self):
        """The context of the forward passes."""
        return torch.autocast("cuda", torch.bfloat16, enabled=self.autocast)

    def fake(self, z):
        """G's output."""
        with self.computing():
            return self.generator(z).float()

    def logits(self, x):
        """D's output in float32."""
        with self.computing():
            return self.discriminator(x).float()

    def discriminator_loss(self, real, fake):
        """The objective of D, without the penalty."""
        a, b = self.logits(real), self.logits(fake)
        if self.config.objective.name == "wgan":
            return b.mean() - a.mean()
        return F.softplus(-a).mean() + F.softplus(b).mean()

    def generator_loss(self, z):
        """The objective of G."""
        b = self.logits(self.fake(z))
        return -b.mean() if self.config.objective.name == "wgan" else F.softplus(-b).mean()

    def penalty(self, real, fake, weights):
        """The gradient penalty of arXiv:1704.00028."""
        x = torch.lerp(fake, real, weights).requires_grad_()
        (gradient,) = torch.autograd.grad(self.logits(x).sum(), x, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def discriminator_step(self, real, noise) -> dict[str, torch.Tensor]:
        """One update of D."""
        with torch.no_grad():
            fake = self.make_fake(noise.latents())
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        loss = total = self.d_loss(real, fake)
        terms = {}
        if self.config.penalty.name == "wgan_gp":
            terms = {"penalty": self.penalty(real, fake, noise.weights())}
            total = loss + self.config.penalty.weight * terms["penalty"]
        total.backward()
        self.discriminator_optimizer.step()
        return {"d_loss": loss.detach()} | {name: term.detach() for name, term in terms.items()}

    def generator_step(self, noise) -> dict[str, torch.Tensor]:
        """One update of G, with D's parameters frozen, and of its moving average."""
        self.discriminator.requires_grad_(False)
        self.generator_optimizer.zero_grad(set_to_none=True)
        loss = self.g_loss(noise.latents())
        loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)
        decay = min(self.config.generator.ema_decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.ema, self.live, 1 - decay)  # as torch.optim.swa_utils does
        self.steps += 1
        return {"g_loss": loss.detach()}

    def train_step(self, reals, noise) -> dict[str, torch.Tensor]:
        """k updates of D on k minibatches, then one of G; the losses, on the device."""
        for real in reals:
            metrics = self.discriminator_step(real, noise)
        return metrics | self.generator_step(noise)


def averaged(generator: nn.Module) -> list[torch.Tensor]:
    """What the moving average is over: G's parameters and running statistics, as views of them."""
    buffers = (x for x in generator.buffers() if x.is_floating_point())
    return [x.detach() for x in (*generator.parameters(), *buffers)]


def adam(network: nn.Module, optimizer) -> torch.optim.Adam:
    """Adam in its fastest form here."""
    rates = {"lr": optimizer.learning_rate, "betas": (optimizer.b1, optimizer.b2)}
    try:
        return torch.optim.Adam(network.parameters(), **rates, fused=True)
    except RuntimeError:
        return torch.optim.Adam(network.parameters(), **rates, foreach=True)
