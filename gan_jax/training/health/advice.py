"""What this toolbox has against what may be wrong with a run: changes of its config, none of which it has already.

Each remedy is a function of the flat config: the keys that it would change, with values to begin with; {} where the
config has the remedy, or where it does not go with the rest of it (`config.checks` would refuse it).
"""

from collections.abc import Mapping
from typing import Any

from gan_jax.networks.minibatch import Minibatch
from gan_jax.objectives import NAMED

COLLAPSED, SATURATED, DIVERGING = "collapsed", "saturated", "diverging"
SAID = 3  # remedies, the first ones that there are

Config = Mapping[str, Any]
Changes = dict[str, Any]


def objective_is(config: Config, fact: str) -> bool:
    """Whether the objective is `logistic`, `centred` or `overflows`, as `Objective` has it."""
    return getattr(NAMED[config["objective.name"]], fact)


def remedies(condition: str, config: Config, devices: int = 1) -> list[Changes]:
    """What may help a run of this flat config on so many devices against the condition, the first choice first."""
    proposed = (remedy(config) for remedy in REMEDIES[condition])
    return [changes for changes in proposed if changes and _whole_groups({**config, **changes}, devices)][:SAID]


def advice(condition: str, config: Config, devices: int) -> str:
    """The same as the end of a sentence, empty where nothing helps."""
    helps = remedies(condition, config, devices)
    return f". What may help: {', or '.join(map(in_words, helps))}" if helps else ""


def in_words(changes: Changes) -> str:
    """As one would write it on the command line."""
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in changes.items()}
    return " ".join(f"{key}={value}" for key, value in shown.items())


def _penalty(config: Config) -> Changes:
    """The one that suits the objective; D must then not mix examples."""
    if config["penalty.name"] != "none" or _compares(config):
        return {}
    name, weight = ("wgan_gp", 10.0) if config["objective.name"] == "wgan" else ("r1_r2", 0.1)
    changes = {"penalty.name": name, "penalty.weight": weight}
    if config["discriminator.clip"]:  # which would hold back what the penalty asks for
        changes["discriminator.clip"] = 0.0
    if config["discriminator.normalization"] == "batch":
        changes["discriminator.normalization"] = "none"
        changes |= {"discriminator.one_pass": False} if config["discriminator.one_pass"] else {}
    return changes


def _compares(config: Config) -> bool:
    return bool(config["discriminator.minibatch_stddev"] or config["discriminator.minibatch_discrimination"])


def _packing(config: Config) -> Changes:
    has = config["discriminator.packing"] > 1
    return {} if has or config["conditional"] else {"discriminator.packing": 2}


def _minibatch_stddev(config: Config) -> Changes:
    fits = config["penalty.name"] == "none" and not config["discriminator.one_pass"]
    return {"discriminator.minibatch_stddev": 4} if not config["discriminator.minibatch_stddev"] and fits else {}


def _whole_groups(config: Config, devices: int) -> bool:
    """Whether each device's micro-batches are whole packs and groups, as `checks.check_batch` asks for."""
    minibatch = Minibatch(*(config[f"discriminator.{key}"] for key in Minibatch._fields))
    return config["batch_size"] % (devices * config["accumulate"] * minibatch.group_size) == 0


def _feature_matching(config: Config) -> Changes:
    has = config["objective.feature_matching"] or config["moves"] == "consensus"
    return {} if has else {"objective.feature_matching": 1.0}


def _instance_noise(config: Config) -> Changes:
    return {} if config["augment.instance_noise"] else {"augment.instance_noise": 0.5}


def _non_saturating(config: Config) -> Changes:
    return {"objective.name": "non_saturating"} if config["objective.name"] == "minimax" else {}


def _finite_loss(config: Config) -> Changes:
    return {"objective.name": "non_saturating"} if objective_is(config, "overflows") else {}


def _label_smoothing(config: Config) -> Changes:
    able = objective_is(config, "logistic") and not config["objective.label_smoothing"]
    return {"objective.label_smoothing": 0.1} if able else {}


def _spectral_norm(config: Config) -> Changes:
    has = config["discriminator.spectral_norm"] or config["discriminator.clip"]
    has = has or config["discriminator.network"] == "r3gan"  # whose start it would undo
    return {} if has else {"discriminator.spectral_norm": True}


def _fewer_steps(config: Config) -> Changes:
    return {"discriminator.steps": 1} if config["discriminator.steps"] > 1 else {}


def _lower_rates(config: Config) -> Changes:
    keys = [f"{player}.optimizer.learning_rate" for player in ("discriminator", "generator")]
    return {key: config[key] / 4 for key in keys}


def _clipped_gradients(config: Config) -> Changes:
    keys = [f"{player}.optimizer.clip_norm" for player in ("discriminator", "generator")]
    return {key: 1.0 for key in keys if not config[key]}


REMEDIES = {
    COLLAPSED: (_penalty, _packing, _feature_matching, _instance_noise, _minibatch_stddev, _non_saturating),
    SATURATED: (_non_saturating, _penalty, _fewer_steps, _instance_noise, _spectral_norm, _label_smoothing),
    DIVERGING: (_lower_rates, _finite_loss, _penalty, _spectral_norm, _clipped_gradients),
}
