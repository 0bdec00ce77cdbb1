"""Stacked MNIST (arXiv:1611.02163): three random digits as red, green and blue, 1,000 modes to find.

python -m gan_jax.main --config=configs/stacked_mnist.py --config.data.dir=DIR
python -m gan_jax.main --mode=evaluate --workdir=WORKDIR    # modes and reverse KL by PacGAN's protocol

Seen on one CPU core, three seeds (experiments/results/stacked_mnist.md): 15 to 28 min, all 1,000 modes, reverse KL
0.074 to 0.090 nats of 26,000 samples (a perfect generator: 0.019). More steps are no remedy: with
--config.num_steps=30000 seed 0 ended at 0.116. docs/data.md says where the data comes from; on an accelerator add
--config.steps_per_call=100: only on a CPU is 1 the right number.
"""

from gan_jax.configs import dcgan


def get_config():
    """A relativistic GAN with R1 (arXiv:1807.00734, arXiv:1801.04406) of DCGAN's networks, D without normalisation."""
    config = dcgan.get_config()
    config.data.name = "stacked_mnist"
    config.evaluation.update(extractor="mnist", num_samples=26_000)  # as PacGAN has it (arXiv:1712.04086)
    config.objective.name = "rpgan"
    config.penalty.update(name="r1", weight=0.3)
    config.num_steps = 12_000
    config.generator.width = 48
    config.discriminator.update(width=32, normalization="none")
    for player in (config.generator, config.discriminator):
        player.optimizer.update(learning_rate=4e-3, b1=0.0, b2=0.99, decay_to=0.02)
    return config
