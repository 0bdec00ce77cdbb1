"""What a step works on: the recipe, which is static, and the state of a run, all that a step changes, as pytrees."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from flax import struct

# What may vary between the runs of one program: {config key: float32 scalar}. A key whose default is 0, off, is there
# only if some run of the program sets it. "objective.name" is an int32, in a program of several objectives.
Hyperparameters = dict[str, jax.Array]


class Player(struct.PyTreeNode):
    """One network in training."""

    params: Any
    stats: Any  # running batch statistics, vectors of spectral normalisation
    opt_state: Any


class Average(struct.PyTreeNode):
    """The exponential moving average of a generator: what samples and scores are made from."""

    params: Any
    stats: Any


class Adaptive(struct.PyTreeNode):
    """ADA's augmentation probability, and what D's updates since it last moved have shown: float32 scalars."""

    probability: jax.Array
    signs: jax.Array  # the sum of r_t over these updates of D
    updates: jax.Array  # how many they are


class LogitAverages(struct.PyTreeNode):
    """LeCam's exponential moving averages of D's mean logits: float32 scalars that started at 0."""

    real: jax.Array
    fake: jax.Array
    weight: jax.Array  # the average of 1: the others over this are without the bias of their start


class RegularizerState(struct.PyTreeNode):
    """What updates of D leave for the next ones; a field is None if no run of the program needs it."""

    adaptive: Adaptive | None
    averages: LogitAverages | None


class Own(NamedTuple):
    """What a part of one's own keeps from step to step, in `TrainState.own`."""

    initial: Callable  # () -> a pytree of arrays
    # (its state, metrics of the update of its player: means over the batch) -> its state; None: the part moves it
    update: Callable | None = None
    every: int = 1  # steps from one in which it moves to the next


class TrainState(struct.PyTreeNode):
    """A run between two steps. The same state, recipe and data give the same next state, bit for bit."""

    step: jax.Array  # int32: generator updates done
    key: jax.Array  # a typed PRNG key, constant over the run: a step folds its number into it
    hyperparameters: Hyperparameters
    generator: Player
    discriminator: Player
    ema: Average
    regularizers: RegularizerState | None = None
    own: dict[str, Any] | None = None  # by the groups of the parts that keep something: see `Own`


class Move(NamedTuple):
    """A rule by which both players take a step, and its facts."""

    take: Callable  # (recipe, devices, numbers, keys, state, batch, parameters by name) -> (state, metrics)
    updates_per_step: int = 1  # that an optimiser counts for one update of its player
    gradients_per_update: int = 1  # of each loss, in the compiled program
    initial: Callable | None = None  # () -> a pytree of arrays that it keeps in state.own["moves"], and moves itself


class Recipe(NamedTuple):
    """What is being trained: static, made of functions; `numbers` are the hyperparameters as they are in a step."""

    generator: Any  # a Network: .init(key, z) and .apply(params, stats, z, train); labels follow where conditional
    discriminator: Any  # a Network, x -> logits
    objective: Callable  # numbers -> Objective
    move: Move
    schedule: Callable  # (hyperparameters, step) -> numbers
    generator_tx: Callable  # numbers -> optax.GradientTransformation
    discriminator_tx: Callable  # numbers -> optax.GradientTransformation
    prior: Callable  # keys [n] -> latents [n, d]
    batch_size: int  # examples of a minibatch, over all devices
    penalty: Callable | None = None  # numbers -> (critic, keys [n], real, fake) -> [n]; None: there is none
    penalty_every: int = 1  # steps from one in which D pays the penalty, so many times over, to the next
    generator_penalty: Callable | None = None  # numbers -> (generate, keys [n], latents, fake) -> [n]
    generator_penalty_every: int = 1
    own: Mapping[str, Own] = MappingProxyType({})  # by group: "penalty", "generator.penalty", "moves"
    augment: Callable | None = None  # (keys [n], x [n, ...], probability or None, noise or None) -> what D sees of x
    transform: Callable | None = None  # (keys [n], x [n, ...]) -> x transformed: D is to be consistent under it
    update_regularizers: Callable | None = None  # (numbers, RegularizerState, metrics of an update of D) -> the next
    accumulate: int = 1  # micro-batches of a minibatch: their gradients are taken one after another, and averaged
    discriminator_steps: int = 1  # k
    packing: int = 1  # examples that are one input of D
    group_size: int = 1  # neighbours in the batch that D needs together: a pack, or all packs that it compares
    one_pass: bool = False  # whether D sees real and fake as one batch (and normalises over both)
    conditional: bool = False  # whether both players see the labels
    label_size: int = 0  # numbers of a label that is a vector; 0: it is the number of a class
    frozen: Callable | None = None  # (tree, held), of D -> `tree` with the arrays that are frozen from `held`
    unroll: bool = False  # whether loops are written out: XLA runs a convolution inside a loop slowly on a CPU
