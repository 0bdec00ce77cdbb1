"""The state of a run, as pytrees of arrays: everything that a step changes, and nothing else."""

from typing import Any

import jax
from flax import struct


class Player(struct.PyTreeNode):
    """One network in training."""

    params: Any
    stats: Any  # running batch statistics, vectors of spectral normalisation
    opt_state: Any


class Average(struct.PyTreeNode):
    """The exponential moving average of a generator: what samples and scores are made from."""

    params: Any
    stats: Any


class Hyperparameters(struct.PyTreeNode):
    """What may vary between runs of one compiled program: float32 scalars, and the number of an objective."""

    generator_learning_rate: jax.Array
    generator_b1: jax.Array
    generator_b2: jax.Array
    discriminator_learning_rate: jax.Array
    discriminator_b1: jax.Array
    discriminator_b2: jax.Array
    penalty_weight: jax.Array
    label_smoothing: jax.Array
    ema_decay: jax.Array
    # None where no run of the program has any: the step is then compiled without.
    feature_matching: jax.Array | None = None
    instance_noise: jax.Array | None = None
    penalty_weight_to: jax.Array | None = None
    generator_b2_to: jax.Array | None = None
    discriminator_b2_to: jax.Array | None = None
    ema_half_life: jax.Array | None = None
    augment_probability: jax.Array | None = None
    ada_target: jax.Array | None = None
    lecam: jax.Array | None = None
    consistency: jax.Array | None = None
    fake_consistency: jax.Array | None = None
    objective: jax.Array | None = None  # int32, among those of the program; None where it has one alone


class Adaptive(struct.PyTreeNode):
    """ADA's augmentation probability, and what has been seen since it last moved: float32 scalars."""

    probability: jax.Array
    signs: jax.Array  # the sum of r_t over these updates of D
    updates: jax.Array  # how many they are


class LogitAverages(struct.PyTreeNode):
    """LeCam's exponential moving averages of D's mean logits: float32 scalars that started at 0."""

    real: jax.Array
    fake: jax.Array
    weight: jax.Array  # the average of 1: the others over this are without the bias of their start


class Memory(struct.PyTreeNode):
    """What updates of D leave for the next ones; None is what no run of the program has."""

    adaptive: Adaptive | None
    averages: LogitAverages | None


class TrainState(struct.PyTreeNode):
    """A run between two steps. The same state, recipe and data give the same next state, bit for bit."""

    step: jax.Array  # int32: generator updates done
    key: jax.Array  # a typed PRNG key, constant over the run: a step folds its number into it
    hyperparameters: Hyperparameters
    generator: Player
    discriminator: Player
    ema: Average
    memory: Memory | None = None
