"""DCGAN (arXiv:1511.06434): on handwritten digits, 8x8, or with a variant on images of your own choice.

python -m gan_jax.main --config=configs/dcgan.py
python -m gan_jax.main --config=configs/dcgan.py:mnist          # 28x28; cifar10: 32x32x3, celeba64: 64x64x3
python -m gan_jax.main --config=configs/dcgan.py:mnist --config.conditional=True
python -m gan_jax.main --config=configs/dcgan.py:folder --config.data.dir=PATH  # any images, cut to 64x64x3

Seen on 2 CPU cores: 84 s beside other work, varied digits (docs/pictures/dcgan.png); sliced Wasserstein 0.029, where
two draws of real digits are 0.024 apart (`--mode=evaluate`). Conditional MNIST: 9 min beside other work, ten rows of
ten digits (docs/pictures/mnist.png). The others want an accelerator, and were not run to their end. docs/data.md says
where their data comes from; on an accelerator add --config.steps_per_call=100: only on a CPU is 1 the right number.
"""

from gan_jax.config import default_config

VARIANTS = ("digits", "mnist", "cifar10", "celeba64", "folder")


def get_config(variant="digits"):
    """The non-saturating GAN of convolutional networks with batch normalisation, on the images `variant`."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; valid variants: {', '.join(VARIANTS)}")
    config = default_config()
    config.data.name = variant
    config.num_steps = 4_000
    config.batch_size = 64
    config.steps_per_call = 1
    config.latent.dim = 64
    for player in (config.generator, config.discriminator):
        player.update(network="dcgan", width=64, depth=2, normalization="batch")
        player.optimizer.update(learning_rate=5e-4, decay_to=0.1)
    config.evaluation.extractor = "digits" if variant == "digits" else "none"
    if variant == "mnist":
        config.data.name = "tfds:mnist"
        config.evaluation.update(extractor="mnist", num_samples=10_000)
    elif variant != "digits":
        _in_colour(config, variant)
    return config


def _in_colour(config, variant):
    """The rates and the length of the paper; down to 4x4 at the innermost."""
    config.num_steps = 50_000
    config.data.flip = True
    config.generator.depth = config.discriminator.depth = 3 if variant == "cifar10" else 4
    for player in (config.generator, config.discriminator):
        player.optimizer.update(learning_rate=2e-4, decay_to=1.0)
    if variant == "cifar10":
        config.data.name = "tfds:cifar10"
        config.evaluation.update(extractor="cifar10", num_samples=10_000)
    else:
        config.data.update(name="tfds:celeb_a" if variant == "celeba64" else "folder", image_size=64)
