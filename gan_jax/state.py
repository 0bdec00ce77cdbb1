"""What a step works on: the recipe, which is static, and the state of a run, all that a step changes, as pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


class Recipe(NamedTuple):
    """What is being trained: static, made of functions. What depends on hyperparameters is a function of them."""

    generator: Any  # a Network: .init(key, z) and .apply(params, stats, z, train); labels follow where conditional
    discriminator: Any  # a Network, x -> logits
    objective: Callable  # Hyperparameters -> Objective
    penalty: Callable  # (critic, keys [n], real, fake) -> [n]
    schedule: Callable  # (Hyperparameters, step) -> Hyperparameters as they are in this step
    penalty_every: int  # steps from one in which D pays the penalty, so many times over, to the next
    generator_tx: Callable  # Hyperparameters -> optax.GradientTransformation
    discriminator_tx: Callable  # Hyperparameters -> optax.GradientTransformation
    prior: Callable  # keys [n] -> latents [n, d]
    augment: Callable  # (TrainState, keys [n], x [n, ...]) -> what D sees of x
    transform: Callable  # (keys [n], x [n, ...]) -> what D should see as it sees x: of consistency
    remember: Callable  # (Hyperparameters, Memory, metrics of an update of D) -> the Memory after it
    batch_size: int  # examples of a minibatch, over all devices
    accumulate: int  # micro-batches of a minibatch: their gradients are taken one after another, and averaged
    discriminator_steps: int  # k
    packing: int  # examples that are one input of D
    together: int  # examples that D needs at once, neighbours in the batch: a pack, or all packs that it compares
    move: Callable  # (recipe, devices, state, batch) -> (state, metrics): how both players take a step
    one_pass: bool  # whether D sees real and fake as one batch (and normalises over both)
    conditional: bool  # whether both players see the labels
    unroll: bool  # whether loops are written out: XLA runs a convolution inside a loop slowly on a CPU


def numbers_now(recipe: Recipe, state: TrainState) -> Hyperparameters:
    """The hyperparameters as the recipe's schedule has them in this step."""
    return recipe.schedule(state.hyperparameters, state.step)
