"""One training step, from minibatch to update: the names that a script needs."""

from gan_jax.step.inference import discriminate, judge, sample
from gan_jax.step.state import Move, Player, Recipe, RegularizerState, TrainState
from gan_jax.step.step import (
    MOVES,
    discriminator_gradient,
    discriminator_keys,
    discriminator_step,
    draw_batches,
    generator_gradient,
    generator_step,
    init_state,
    order_words,
    step_keys,
    train_step,
    train_steps,
)

__all__ = [
    "MOVES",
    "Move",
    "Player",
    "Recipe",
    "RegularizerState",
    "TrainState",
    "discriminate",
    "discriminator_gradient",
    "discriminator_keys",
    "discriminator_step",
    "draw_batches",
    "generator_gradient",
    "generator_step",
    "init_state",
    "judge",
    "order_words",
    "sample",
    "step_keys",
    "train_step",
    "train_steps",
]
