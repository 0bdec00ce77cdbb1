"""Checkpoints in the form that states had before hyperparameters were a dict by config key: read, never written."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gan_jax.step.state import TrainState

# In the order of the old state's fields, which its fingerprint depends on.
_KEYS = {
    "generator_learning_rate": "generator.optimizer.learning_rate",
    "generator_b1": "generator.optimizer.b1",
    "generator_b2": "generator.optimizer.b2",
    "discriminator_learning_rate": "discriminator.optimizer.learning_rate",
    "discriminator_b1": "discriminator.optimizer.b1",
    "discriminator_b2": "discriminator.optimizer.b2",
    "penalty_weight": "penalty.weight",
    "label_smoothing": "objective.label_smoothing",
    "ema_decay": "generator.ema_decay",
    "feature_matching": "objective.feature_matching",
    "instance_noise": "augment.instance_noise",
    "penalty_weight_to": "penalty.weight_to",
    "generator_b2_to": "generator.optimizer.b2_to",
    "discriminator_b2_to": "discriminator.optimizer.b2_to",
    "ema_half_life": "generator.ema_half_life",
    "augment_probability": "augment.probability",
    "ada_target": "augment.ada_target",
    "lecam": "discriminator.lecam",
    "consistency": "discriminator.consistency",
    "fake_consistency": "discriminator.fake_consistency",
    "objective": "objective.name",
}
_ALWAYS = list(_KEYS)[:9]  # numbers that it had for every run


def is_old(names: Iterable[str]) -> bool:
    """Whether these are the dotted names of arrays of a state in the old form."""
    return "hyperparameters.generator_learning_rate" in names


def by_key(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters, in the old form or today's, by config key: those that are on."""
    return {_KEYS.get(name, name): number for name, number in numbers.items() if number is not None}


def old_template(template: TrainState) -> dict:
    """The old form of a state's shapes, dtypes and shardings."""
    off = jax.ShapeDtypeStruct((), jnp.float32, sharding=template.step.sharding)
    numbers = template.hyperparameters
    old = {name: numbers.get(key, off if name in _ALWAYS else None) for name, key in _KEYS.items()}
    fields = {name: getattr(template, name) for name in ("step", "key", "generator", "discriminator", "ema")}
    return fields | {"hyperparameters": old, "memory": template.regularizers}


def new_state(template: TrainState, old: dict) -> tuple[TrainState, list]:
    """(the state of an old one, its arrays in the order in which they were fingerprinted)."""
    names = [name for name, number in old["hyperparameters"].items() if number is not None]
    in_order = [old["hyperparameters"][name] for name in _KEYS if name in names]
    numbers = {key: old["hyperparameters"][name] for name, key in _KEYS.items() if key in template.hyperparameters}
    players = old["generator"], old["discriminator"], old["ema"]
    state = TrainState(old["step"], old["key"], numbers, *players, old["memory"])
    return state, [old["step"], old["key"], in_order, *players, old["memory"]]
