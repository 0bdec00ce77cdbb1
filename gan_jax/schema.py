"""What each config key may be: one table that every config is held to before anything else happens.

The defaults are in `configs/base.py` alone; this says which types and values make sense, so that a mistake is one line
at start-up and not a traceback an hour later.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from gan_jax.data import SOURCES, is_name
from gan_jax.devices import LAYOUTS
from gan_jax.errors import InputError
from gan_jax.evaluation.extractors import EXTRACTORS, NONE
from gan_jax.keys import union
from gan_jax.moves import MOVES
from gan_jax.networks import FAMILIES, MATMUL_PRECISIONS
from gan_jax.networks.convolution_forms import FORMS
from gan_jax.networks.layers import ACTIVATIONS, NORMALIZATIONS
from gan_jax.objectives import NAMED
from gan_jax.optimizers import OPTIMIZERS
from gan_jax.penalties import PENALTIES
from gan_jax.priors import PRIORS
from gan_jax.transforms import NAMES as TRANSFORMS
from gan_jax.transforms import NONE as UNTRANSFORMED
from gan_jax.transforms import is_policy

PRECISIONS = ("float32", "bfloat16")


class Rule(NamedTuple):
    """One key's type, condition, and both in words."""

    type: type
    holds: Callable[[Any], bool]
    words: str


POSITIVE_INT = Rule(int, lambda value: 0 < value < 2**31, "a positive integer")
COUNT = Rule(int, lambda value: 0 <= value < 2**31, "an integer, 0 or more")
NON_NEGATIVE = Rule(float, lambda value: 0 <= value < float("inf"), "a number, 0 or more")
POSITIVE = Rule(float, lambda value: 0 < value < float("inf"), "a number greater than 0")
FRACTION = Rule(float, lambda value: 0 <= value < 1, "a number from 0 to 1, 1 excluded")
SHARE = Rule(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
FLAG = Rule(bool, lambda value: True, "True or False")
TEXT = Rule(str, lambda value: True, "a string")


def one_of(names: Iterable[str]) -> Rule:
    """The rule that a key is one of `names`."""
    names = tuple(names)
    return Rule(str, lambda value: value in names, "one of " + ", ".join(names))


_NETWORK = {
    "network": one_of(FAMILIES),
    "width": POSITIVE_INT,
    "depth": COUNT,
    "blocks": COUNT,
    "groups": COUNT,
    "activation": one_of(ACTIVATIONS),
    "normalization": one_of(NORMALIZATIONS),
    "spectral_norm": FLAG,
    "attention": COUNT,
    "optimizer.name": one_of(OPTIMIZERS),
    "optimizer.learning_rate": POSITIVE,
    "optimizer.b1": FRACTION,
    "optimizer.b2": FRACTION,
    "optimizer.b2_to": FRACTION,
    "optimizer.decay_to": SHARE,
    "optimizer.warmup": COUNT,
    "optimizer.weight_decay": NON_NEGATIVE,
    "optimizer.clip_norm": NON_NEGATIVE,
}

SCHEMA = {
    "seed": Rule(int, lambda value: 0 <= value < 2**32, "an integer from 0 to 2^32 - 1"),
    "num_steps": POSITIVE_INT,
    "burn_in": COUNT,
    "batch_size": POSITIVE_INT,
    "moves": one_of(MOVES),
    "consensus.weight": NON_NEGATIVE,
    "accumulate": POSITIVE_INT,
    "steps_per_call": POSITIVE_INT,
    "parallel": one_of(LAYOUTS),
    "precision": one_of(PRECISIONS),
    "matmul_precision": one_of(MATMUL_PRECISIONS),
    "convolution": one_of(("auto", *FORMS)),
    "conditional": FLAG,
    "data.name": Rule(str, is_name, f"one of {', '.join(SOURCES)}"),
    **{f"data.{name}": key.rule for name, key in union(SOURCES).items()},
    "latent.dim": POSITIVE_INT,
    "latent.prior": one_of(PRIORS),
    "objective.name": one_of(NAMED),
    "objective.label_smoothing": FRACTION,
    "objective.feature_matching": NON_NEGATIVE,
    "penalty.name": one_of(PENALTIES),
    "penalty.weight": NON_NEGATIVE,
    "penalty.every": POSITIVE_INT,
    "penalty.weight_to": NON_NEGATIVE,
    "augment.instance_noise": NON_NEGATIVE,
    "augment.policy": Rule(
        str, is_policy, f"{UNTRANSFORMED}, or some of {', '.join(TRANSFORMS)} with commas between, none twice"
    ),
    "augment.probability": SHARE,
    "augment.ada_target": FRACTION,
    "augment.ada_interval": POSITIVE_INT,
    "augment.ada_images": POSITIVE_INT,
    **{f"generator.{key}": rule for key, rule in _NETWORK.items()},
    "generator.ema_decay": FRACTION,
    "generator.ema_half_life": NON_NEGATIVE,
    **{f"discriminator.{key}": rule for key, rule in _NETWORK.items()},
    "discriminator.steps": POSITIVE_INT,
    "discriminator.clip": NON_NEGATIVE,
    "discriminator.one_pass": FLAG,
    "discriminator.packing": POSITIVE_INT,
    "discriminator.lecam": NON_NEGATIVE,
    "discriminator.lecam_decay": FRACTION,
    "discriminator.consistency": NON_NEGATIVE,
    "discriminator.fake_consistency": NON_NEGATIVE,
    "discriminator.minibatch_stddev": Rule(int, lambda value: value == 0 or 1 < value < 2**31, "0, or 2 or more"),
    "discriminator.minibatch_discrimination": COUNT,
    "discriminator.minibatch_group": Rule(int, lambda value: 1 < value < 2**31, "an integer, 2 or more"),
    "evaluation.extractor": one_of((NONE, *EXTRACTORS)),
    "evaluation.weights": TEXT,
    "evaluation.num_samples": POSITIVE_INT,
    "evaluation.num_real": COUNT,
    "evaluation.split": TEXT,
    "evaluation.resamples": COUNT,
    "evaluation.best": TEXT,
    "log_every": POSITIVE_INT,
    "sample_every": COUNT,
    "health_every": COUNT,
    "checkpoint_every": POSITIVE_INT,
    "checkpoints_kept": POSITIVE_INT,
    "evaluate_every": COUNT,
}


def check(config) -> None:
    """Holds a ConfigDict to the table: raises InputError at the first key that is unknown, missing or out of range."""
    values = flatten(config.to_dict())
    for key in values:
        if key not in SCHEMA:
            raise InputError(unknown_key(key))
    for key, rule in SCHEMA.items():
        if key not in values:
            raise InputError(f"config key {key} is missing; it must be {rule.words}")
        value = values[key]
        if not _has_type(value, rule.type) or not rule.holds(value):
            raise InputError(wrong_value(key, value))
        if rule.type is float and not rule.holds(computed := _in_float32(value)):
            raise InputError(
                f"config key {key} is {value!r}, which is {computed} in float32, in which a run computes; it must be "
                f"{rule.words}"
            )


def wrong_value(key: str, value) -> str:
    """The line that says that a key's value is wrong and what would be right."""
    return f"config key {key} is {value!r}; it must be {SCHEMA[key].words}"


def unknown_key(key: str) -> str:
    """The line that says that a key does not exist and which ones do."""
    group = [known for known in SCHEMA if known.rpartition(".")[0] == key.rpartition(".")[0]]
    close = get_close_matches(key, SCHEMA, n=1)
    hint = [f"did you mean {close[0]}?"] if close else []
    valid = group or ([] if close else SCHEMA)  # all of them fill a screen
    listed = [f"valid keys: {', '.join(valid)}"] if valid else []
    return f"unknown config key {key}; {' '.join(hint + listed)}"


def flatten(tree: dict, prefix: str = "") -> dict:
    """A nested dict as one of dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _in_float32(value: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(min(value, 1e300)))  # an integer may be too large for any float


def _has_type(value, wanted: type) -> bool:
    if wanted is bool or isinstance(value, bool):
        return wanted is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if wanted is float else wanted)
