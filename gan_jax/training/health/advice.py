"""What this toolbox has against what may be wrong with a run: changes of its config, none of which it has already."""

from collections.abc import Mapping
from typing import Any

from gan_jax.networks.minibatch import Minibatch
from gan_jax.objectives import NAMED

COLLAPSED, SATURATED, DIVERGING = "collapsed", "saturated", "diverging"
REMEDIES = {  # by their names in `_proposals`, the first choice first
    COLLAPSED: ("penalty", "packing", "feature_matching", "noise", "minibatch_stddev", "non_saturating"),
    SATURATED: ("non_saturating", "penalty", "fewer_steps", "noise", "spectral_norm", "label_smoothing"),
    DIVERGING: ("lower_rates", "finite_loss", "penalty", "spectral_norm", "clipped_gradients"),
}
MOST_REMEDIES = 3  # in one piece of advice

Config = Mapping[str, Any]
Changes = dict[str, Any]


def objective_is(config: Config, fact: str) -> bool:
    """Whether the objective is `logistic`, `centred` or `overflows`, as `Objective` has it."""
    return getattr(NAMED[config["objective.name"]], fact)


def remedies(condition: str, config: Config, devices: int = 1) -> list[Changes]:
    """What may help a run of this flat config on so many devices against the condition, the first choice first."""
    proposals = _proposals(config)
    changes = [proposals[name] for name in REMEDIES[condition]]
    return [change for change in changes if change and _whole_groups({**config, **change}, devices)][:MOST_REMEDIES]


def advice(condition: str, config: Config, devices: int) -> str:
    """The same as the end of a sentence, empty where nothing helps."""
    changes = remedies(condition, config, devices)
    return f". What may help: {', or '.join(map(in_words, changes))}" if changes else ""


def in_words(changes: Changes) -> str:
    """As one would write it on the command line."""
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in changes.items()}
    return " ".join(f"{key}={value}" for key, value in shown.items())


def _proposals(config: Config) -> dict[str, Changes]:
    """Each remedy's changes, to begin with; {} where the config has it, or `config.checks` would refuse it."""
    packed = config["discriminator.packing"] > 1 or config["conditional"]
    matching = config["objective.feature_matching"] or config["moves"] == "consensus"
    stddev = config["discriminator.minibatch_stddev"] or config["discriminator.one_pass"]
    stddev = stddev or config["penalty.name"] != "none"
    bounded = config["discriminator.spectral_norm"] or config["discriminator.clip"]
    bounded = bounded or config["discriminator.network"] == "r3gan"  # whose start it would undo
    smooth = config["objective.label_smoothing"] or not objective_is(config, "logistic")
    optimizers = ("discriminator.optimizer", "generator.optimizer")
    norms = [f"{optimizer}.clip_norm" for optimizer in optimizers if not config[f"{optimizer}.clip_norm"]]
    non_saturating = {"objective.name": "non_saturating"}
    return {
        "penalty": _penalty(config),
        "packing": _unless(packed, {"discriminator.packing": 2}),
        "minibatch_stddev": _unless(stddev, {"discriminator.minibatch_stddev": 4}),
        "feature_matching": _unless(matching, {"objective.feature_matching": 1.0}),
        "noise": _unless(config["augment.instance_noise"], {"augment.instance_noise": 0.5}),
        "non_saturating": _unless(config["objective.name"] != "minimax", non_saturating),
        "finite_loss": _unless(not objective_is(config, "overflows"), non_saturating),
        "label_smoothing": _unless(smooth, {"objective.label_smoothing": 0.1}),
        "spectral_norm": _unless(bounded, {"discriminator.spectral_norm": True}),
        "fewer_steps": _unless(config["discriminator.steps"] == 1, {"discriminator.steps": 1}),
        "lower_rates": {key: config[key] / 4 for key in (f"{optimizer}.learning_rate" for optimizer in optimizers)},
        "clipped_gradients": dict.fromkeys(norms, 1.0),
    }


def _unless(condition, changes: Changes) -> Changes:
    return {} if condition else changes


def _penalty(config: Config) -> Changes:
    """The one that suits the objective; D must then not mix examples."""
    comparing = config["discriminator.minibatch_stddev"] or config["discriminator.minibatch_discrimination"]
    if config["penalty.name"] != "none" or comparing:
        return {}
    name, weight = ("wgan_gp", 10.0) if config["objective.name"] == "wgan" else ("r1_r2", 0.1)
    changes = {"penalty.name": name, "penalty.weight": weight}
    if config["discriminator.clip"]:  # which would hold back what the penalty asks for
        changes["discriminator.clip"] = 0.0
    if config["discriminator.normalization"] == "batch":
        changes["discriminator.normalization"] = "none"
        changes |= _unless(not config["discriminator.one_pass"], {"discriminator.one_pass": False})
    return changes


def _whole_groups(config: Config, devices: int) -> bool:
    """Whether each device's micro-batches are whole packs and groups, as `checks.check_batch` asks for."""
    minibatch = Minibatch(*(config[f"discriminator.{key}"] for key in Minibatch._fields))
    return config["batch_size"] % (devices * config["accumulate"] * minibatch.group_size) == 0
