"""Every config key with its default; the other files in this folder change what they need and nothing else.

`gan_jax/schema.py` says which values each key may have. A value here can be changed on the command line:
`--config=configs/mixture.py:ring8 --config.objective.name=wgan`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: a non-saturating GAN of two MLPs on eight Gaussians."""
    return ConfigDict(
        {
            "seed": 0,
            "num_steps": 10_000,  # generator updates
            "burn_in": 0,  # steps over which rates, weight_to, b2_to and ema_half_life run their course; 0: num_steps
            "batch_size": 256,  # examples of a minibatch, over all devices
            "moves": "alternating",  # k updates of D, then one of G; or simultaneous, extragradient, consensus
            "consensus": {"weight": 0.0},  # of half the squared norm of both gradients, which consensus descends
            "accumulate": 1,  # micro-batches of a minibatch, one after another: memory for batch_size / accumulate
            "steps_per_call": 100,  # train steps in one compiled call; few where networks convolve on a CPU
            "parallel": "jit",  # jit: a mesh over all devices; pmap: the same step, mapped
            "precision": "float32",  # what networks compute in; parameters, logits and losses are float32
            "matmul_precision": "default",  # of float32 products on a GPU or TPU: default (JAX's), high, highest
            "convolution": "auto",  # how convolutions are written: plain, cpu; auto: by backend
            "conditional": False,  # whether both players see the labels
            "data": {
                "name": "ring8",  # a set that comes with gan_jax, folder, arrays, stacked_mnist, or tfds:NAME
                "split": "train",
                "dir": "",  # of TFDS sets (empty: where TFDS keeps them), of a folder; the file of arrays
                "image_size": 0,  # the largest centre square, resized to so many pixels; 0: images as they are
                "channels": 0,  # 1: grey, 3: RGB; 0: as they are, of a folder RGB
                "flip": False,  # mirrors each image left to right with probability 1/2
                "corrupt": "stop",  # at an image that cannot be read: stop, or skip it and count
                "placement": "auto",  # device: all of it there, as uint8; stream: read as one trains; auto: by size
                "workers": 2,  # threads that decode
            },
            "latent": {"dim": 2, "prior": "normal"},
            "objective": {
                "name": "non_saturating",
                "label_smoothing": 0.0,  # one-sided: D's target on real examples is 1 minus this
                "feature_matching": 0.0,  # weight in G's loss of the distance of D's mean features, real from fake
            },
            "penalty": {
                "name": "none",
                "weight": 0.0,
                "weight_to": 0.0,  # where the weight ends, by half a cosine over the burn-in; 0: constant
                "every": 1,  # lazy: the penalty is paid in every n-th step only, n times over; 1: in each
            },
            "augment": {
                "instance_noise": 0.0,  # on what D sees: its standard deviation, falling linearly to 0 over the run
                "policy": "none",  # transforms of images, such as color,translation,cutout: gan_jax/transforms.py
                "probability": 1.0,  # with which each is applied to what D sees; where ADA moves it, at the start
                "ada_target": 0.0,  # of E[sign(D(real))], towards which ADA moves the probability; 0: it stays
                "ada_interval": 4,  # updates of D from one of its moves to the next
                "ada_images": 500_000,  # real images in which it can go from 0 to 1
            },
            "generator": {
                "network": "mlp",
                "width": 128,  # units of a hidden layer; channels: for dcgan of the layer next to the image
                "depth": 3,  # hidden layers (0: an affine map); elsewhere, how often the image is halved
                "blocks": 0,  # of r3gan: residual blocks at each size of its image
                "groups": 0,  # of r3gan: of the 2 * width channels within a block
                "activation": "relu",
                "normalization": "none",  # none, batch, layer, group
                "spectral_norm": False,  # every weight over its largest singular value
                "attention": 0,  # height of the images inside that self-attention follows; 0: none
                "ema_decay": 0.999,  # of the moving average that samples are made from; 0: no averaging
                "ema_half_life": 0.0,  # or images in which it forgets half, growing from 0 over the burn-in; 0: off
                "optimizer": _adam(),
            },
            "discriminator": {
                "network": "mlp",
                "width": 128,
                "depth": 3,
                "blocks": 0,
                "groups": 0,
                "activation": "leaky_relu",
                "normalization": "none",  # none, batch, layer, group
                "spectral_norm": False,
                "attention": 0,
                "steps": 1,  # k: updates of D for each of G, each on a fresh minibatch
                "clip": 0.0,  # every weight of D is kept within this bound; 0: no clipping
                "one_pass": False,  # D sees real and fake as one batch instead of one after the other
                "packing": 1,  # examples that D sees as one, joined along the channels
                "lecam": 0.0,  # weight of LeCam's regulariser in D's loss
                "lecam_decay": 0.99,  # of the averages of D's logits that it needs
                "consistency": 0.0,  # weight of (D(x) - D(T(x)))^2 at real x, T being augment.policy
                "fake_consistency": 0.0,  # the same at fake x
                "minibatch_stddev": 0,  # examples of a group whose spread D is told; 0: it is not
                "minibatch_discrimination": 0,  # learned kernels by which D compares examples; 0: without
                "minibatch_group": 32,  # examples that these compare
                "optimizer": _adam(),
            },
            "evaluation": {
                "extractor": "none",  # of the features of images: none, pixels, digits, mnist, cifar10, inception
                "weights": "",  # a file of its weights; empty: those of the package
                "num_samples": 2_500,  # examples that are made and scored
                "num_real": 10_000,  # real images whose features they are compared with; 0: all of the split
                "split": "train",  # in which these are
                "resamples": 200,  # of the bootstrap behind each interval
                "best": "",  # the score whose best checkpoint is kept beside the newest; empty: none is
            },
            # How often, in steps; 0 is never.
            "log_every": 100,
            "sample_every": 1_000,
            "health_every": 500,  # how diverse samples are, logits' ranges, singular values; and what looks wrong
            "checkpoint_every": 1_000,
            "checkpoints_kept": 3,
            "evaluate_every": 0,
        }
    )


def _adam() -> dict:
    return {
        "name": "adam",
        "learning_rate": 2e-4,
        "b1": 0.5,  # momentum; with rmsprop and sgd too
        "b2": 0.999,  # decay of the squared gradients; sgd has none
        "b2_to": 0.0,  # where b2 ends, by half a cosine over the burn-in; 0: constant
        "decay_to": 1.0,  # the learning rate ends, by half a cosine, at this share of itself; 1: constant
        "warmup": 0,  # steps over which it first rises linearly; 0: none
        "weight_decay": 0.0,  # of adamw
        "clip_norm": 0.0,  # gradients are scaled down to this norm, of all parameters of a player; 0: never
    }
