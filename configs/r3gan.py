"""R3GAN (arXiv:2501.05441): its loss, networks and schedules, on handwritten digits or, with a variant, larger images.

python -m gan_jax.main --config=configs/r3gan.py
python -m gan_jax.main --config=configs/r3gan.py:stacked_mnist --config.data.dir=DIR
python -m gan_jax.main --config=configs/r3gan.py:cifar10                            # for an accelerator

Seen on 2 CPU cores: digits, 3 min, all ten classes, sliced Wasserstein 0.039 (two draws of real digits: 0.024).
The others were not run to their end. What falls and grows does so by half a cosine over `burn_in` steps, as in the
paper's published code: the learning rate to a quarter, b2 from 0.9 to 0.99, the penalty's weight to a tenth, the
half-life of G's average from 0 (docs/moves.md). cifar10 has the numbers of that code (the weight is half of its gamma),
in networks a third as wide, batches half as large and without its augmentations; the whole is
--config.batch_size=512 --config.burn_in=39063 --config.generator.width=768 --config.generator.groups=96 and the same
width and groups of D. digits and stacked_mnist have rates of their own, for short runs of small networks. On an
accelerator add --config.steps_per_call=100: only on a CPU is 1 the right number.
"""

from gan_jax.config import default_config

VARIANTS = ("digits", "stacked_mnist", "cifar10")


def get_config(variant="digits"):
    """The relativistic loss with R1 and R2, whose weight falls over the burn-in as b2 and the average's memory grow."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; valid variants: {', '.join(VARIANTS)}")
    config = default_config()
    config.data.name = "digits"
    config.objective.name = "rpgan"
    config.penalty.update(name="r1_r2", weight=0.5, weight_to=0.05)
    config.num_steps = 3_000
    config.burn_in = 2_000
    config.batch_size = 64
    config.steps_per_call = 1
    config.latent.dim = 64
    config.generator.update(ema_decay=0.0, ema_half_life=6_400.0)
    for player in (config.generator, config.discriminator):
        player.update(network="r3gan", width=32, depth=1, blocks=1, groups=4, activation="leaky_relu")
        player.optimizer.update(learning_rate=2e-3, decay_to=0.25, b1=0.0, b2=0.9, b2_to=0.99)
    config.evaluation.extractor = "digits"
    if variant == "stacked_mnist":
        _stacked_mnist(config)
    elif variant == "cifar10":
        _cifar10(config)
    return config


def _stacked_mnist(config):
    """28x28, 7x7 innermost: small enough for a few CPU cores."""
    config.data.name = "stacked_mnist"
    config.num_steps = 12_000
    config.burn_in = 8_000
    config.generator.ema_half_life = 64_000.0
    for player in (config.generator, config.discriminator):
        player.update(width=16, depth=2, groups=2)
    config.evaluation.update(extractor="mnist", num_samples=26_000)  # as PacGAN has it (arXiv:1712.04086)


def _cifar10(config):
    """The numbers of the published code for CIFAR-10, in networks a third as wide and batches half as large."""
    config.data.update(name="tfds:cifar10", flip=True)
    config.num_steps = 100_000
    config.batch_size = 256
    config.burn_in = 78_125  # 20 million images
    config.penalty.update(weight=0.025, weight_to=0.0025)
    config.generator.ema_half_life = 5e6
    for player in (config.generator, config.discriminator):
        player.update(width=256, depth=3, blocks=2, groups=32)
        player.optimizer.learning_rate = 2e-4
    config.evaluation.update(extractor="cifar10", num_samples=10_000)
