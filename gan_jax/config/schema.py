"""All config keys: gathered from the parts that own them; `python -m gan_jax.config` prints the table."""

import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from gan_jax import data, evaluation
from gan_jax.evaluation.features.extractors import EXTRACTORS, NONE, Kind
from gan_jax.evaluation.metrics.comparison import own_scores
from gan_jax.evaluation.stopping import StopKeys
from gan_jax.networks import FAMILIES, MATMUL_PRECISIONS, Family, NetworkKeys
from gan_jax.networks.cpu.forms import FORMS
from gan_jax.networks.latents import PRIORS
from gan_jax.networks.minibatch import Minibatch
from gan_jax.objectives import NAMED
from gan_jax.parallel.devices import LAYOUTS
from gan_jax.penalties import GENERATOR_PENALTIES, PENALTIES
from gan_jax.step.augment import AugmentKeys
from gan_jax.step.losses import GeneratorPenaltyKeys, ObjectiveKeys, PenaltyKeys
from gan_jax.step.optimizers import OPTIMIZERS, OptimizerKeys, path_of
from gan_jax.step.regularizers import AdaKeys, RegularizerKeys
from gan_jax.step.schedules import AverageKeys
from gan_jax.step.step import MOVES
from gan_jax.step.transfer import InitKeys
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import (
    COUNT,
    FLAG,
    NON_NEGATIVE,
    PATHS,
    POSITIVE_INT,
    Key,
    Needs,
    Rule,
    is_path,
    keys_of,
    one_of,
    require_defaults,
    union,
)

PRECISIONS = ("float32", "bfloat16")
NEEDS_BATCH = Needs("discriminator.normalization", ("batch",))
_SEED = Rule(int, lambda value: 0 <= value < 2**32, "an integer from 0 to 2^32 - 1")


class GeneralKeys(NamedTuple):
    """The config keys of a run as a whole."""

    seed: Annotated[int, _SEED, "of all randomness of the run"] = 0
    num_steps: Annotated[int, POSITIVE_INT, "generator updates"] = 10_000
    burn_in: Annotated[int, COUNT, "steps of the schedules of rates, weight_to, b2_to, ema_half_life; 0: num_steps"] = 0
    batch_size: Annotated[int, POSITIVE_INT, "examples of a minibatch, over all devices"] = 256
    accumulate: Annotated[int, POSITIVE_INT, "micro-batches of a minibatch: memory for batch_size / accumulate"] = 1
    steps_per_call: Annotated[int, POSITIVE_INT, "steps in a compiled call; few where networks convolve on a CPU"] = 100
    parallel: Annotated[str, one_of(LAYOUTS), "jit: a mesh over all devices; pmap: the same step, mapped"] = "jit"
    precision: Annotated[str, one_of(PRECISIONS), "of networks; parameters, logits, losses are float32"] = "float32"
    matmul_precision: Annotated[
        str, one_of(MATMUL_PRECISIONS), "of float32 products on a GPU or TPU; default: JAX's"
    ] = "default"
    convolution: Annotated[str, one_of(("auto", *FORMS)), "how convolutions are written; auto: by backend"] = "auto"
    conditional: Annotated[bool, FLAG, "whether both players see the labels"] = False


class CadenceKeys(NamedTuple):
    """The config keys that say how often, in steps, something is done; 0 is never."""

    log_every: Annotated[int, POSITIVE_INT, "steps between lines of metrics"] = 100
    sample_every: Annotated[int, COUNT, "between pictures; 0: none"] = 1_000
    health_every: Annotated[int, COUNT, "between measures of diversity, logits, singular values; 0: none"] = 500
    checkpoint_every: Annotated[int, POSITIVE_INT, "between checkpoints"] = 1_000
    checkpoints_kept: Annotated[int, POSITIVE_INT, "how many of the newest checkpoints stay"] = 3
    evaluate_every: Annotated[int, COUNT, "between scores; 0: none"] = 0


class DiscriminatorKeys(NamedTuple):
    """The config keys of how D is trained."""

    steps: Annotated[int, POSITIVE_INT, "k: updates of D for one of G, all on fresh minibatches"] = 1
    clip: Annotated[float, NON_NEGATIVE, "every weight of D is kept within this bound; 0: no clipping"] = 0.0
    one_pass: Annotated[bool, FLAG, "D sees real and fake as one batch", NEEDS_BATCH] = False
    freeze: Annotated[int, COUNT, "how many of D's layers stay as they are, from the image on; 0: none"] = 0


class Choice(NamedTuple):
    """A key that names a part, whose own parameters are keys of the same group."""

    key: str
    registry: Mapping[str, Any]
    default: str
    text: str
    part: Callable[[Any], Callable] = lambda entry: entry  # an entry of the registry -> what has its keys
    parts: Mapping[str, Callable] = MappingProxyType({})  # by name: of the registry, and the one by import path
    others: tuple[str, ...] = ()  # what else a value may be, in words
    holds: Callable[[str], bool] | None = None  # whether a value is right, if it need not be a part's own name
    entry: Callable[[str], str] = str  # value -> the name of the part that it stands for
    path_of: Callable[[Any], Any] = is_path  # a value -> the import path that it is or stands for, or something false

    def names_own(self, value) -> bool:
        """Whether a value names a part that the registry has not."""
        known = isinstance(value, str) and value in self.registry  # asked first: a path is sought in optax's signatures
        return not known and bool(self.path_of(value)) and self.entry(value) not in self.registry


class Group(NamedTuple):
    """Config keys that begin alike: of parts that every config has, and of one that it chooses."""

    start: str  # with its dot
    parts: tuple[Callable, ...] = ()
    choice: Choice | None = None
    needs: Needs | None = None  # of all its keys


def groups(values: Mapping[str, Any] = MappingProxyType({})) -> list[Group]:
    """All groups, as the registries are now, with the parts that `values`, by dotted key, name by import path."""
    generator, discriminator = (
        Choice("network", FAMILIES, "mlp", "family of networks", attrgetter(player)) for player in Family._fields
    )
    optimizer = Choice("name", OPTIMIZERS, "adam", "optimiser", others=("any of optax",), path_of=path_of)
    extractors = ChainMap(EXTRACTORS, {NONE: Kind(_no_features)})
    extractor = Choice("extractor", extractors, NONE, "of the features that scores compare", attrgetter("make"))
    objective = Choice("name", NAMED, "non_saturating", "losses of both players", lambda entry: entry.make or _no_keys)
    prior = Choice("prior", PRIORS, "normal", "distribution of the latents")
    source = Choice("name", data.SOURCES, "ring8", "data set", holds=data.is_name, entry=data.entry)
    g_penalty = Choice("name", GENERATOR_PENALTIES, "none", "penalty on G")
    # The keys of a move lie in a group of its own.
    move = Choice("moves", MOVES, "alternating", "how the players move", lambda entry: _no_keys)
    move_groups = [
        Group(f"{move_group(name)}.", (MOVES[name].take,), needs=Needs("moves", (name,)))
        for name in _resolved(move, "", values).parts
    ]
    scores = values.get("evaluation.scores", "")
    own = own_scores(scores) if isinstance(scores, str) and PATHS.holds(scores) else {}
    all_groups = [
        Group("", (GeneralKeys,)),
        Group("", (), move),
        *move_groups,
        Group("data.", (), source),
        Group("latent.", (), prior),
        Group("objective.", (ObjectiveKeys,), objective),
        Group("penalty.", (PenaltyKeys,), Choice("name", PENALTIES, "none", "gradient penalty on D")),
        Group("augment.", (AugmentKeys, AdaKeys)),
        Group("generator.", (NetworkKeys, AverageKeys), generator),
        Group("generator.penalty.", (GeneratorPenaltyKeys,), g_penalty),
        Group("generator.optimizer.", (OptimizerKeys,), optimizer),
        Group("discriminator.", (NetworkKeys, DiscriminatorKeys, Minibatch, RegularizerKeys), discriminator),
        Group("discriminator.optimizer.", (OptimizerKeys,), optimizer),
        Group("evaluation.", (evaluation.Evaluation,), extractor),
        *(Group(f"evaluation.{name}.", (score,)) for name, score in own.items()),
        Group("", (CadenceKeys,)),
        Group("stop.", (StopKeys,)),
        Group("init.", (InitKeys,)),
    ]
    return [
        group._replace(choice=_resolved(group.choice, group.start, values)) if group.choice else group
        for group in all_groups
    ]


def _resolved(choice: Choice, start: str, values: Mapping[str, Any]) -> Choice:
    """The choice with its parts, the one included that a config names by import path. Raises InputError."""
    named = values.get(f"{start}{choice.key}", choice.default)
    own = choice.names_own(named)
    parts = {name: choice.part(choice.registry[name]) for name in (*choice.registry, *([named] if own else []))}
    try:
        union(parts)
    except (TypeError, NameError) as error:  # a name that an annotation has, and its module has not
        if own:
            raise InputError(f"{error}; annotate it as they do, or give it another name") from error
        raise
    return choice._replace(parts=parts)


def move_group(name: str) -> str:
    """The group of a move's keys: its name, without the module of one by import path."""
    return name.rpartition(":")[2]


def _no_keys() -> None:
    """A part without parameters."""


def _no_features() -> None:
    """No scores by features."""


def table(values: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Key]:
    """Every config key, dotted, in the order of the documentation. Raises TypeError if two parts have one name.

    `values`, by dotted key: those of the parts that they name by import path are among them.
    """
    rows = {}
    for group in groups(values):
        keys = [keys_of(part).items() for part in group.parts]
        if choice := group.choice:
            rule = one_of((*choice.parts, *choice.others, "MODULE:NAME"))
            rule = rule._replace(holds=choice.holds or choice.parts.__contains__)
            keys = [[(choice.key, Key(choice.default, rule, choice.text))], union(choice.parts).items(), *keys]
        for name, key in chain.from_iterable(keys):
            if twice := {f"{group.start}{name}", group.start.rstrip(".")} & rows.keys():
                raise (InputError if names_a_path(values) else TypeError)(f"two parts have the config key {min(twice)}")
            rows[f"{group.start}{name}"] = key._replace(needs=key.needs or group.needs)
    return rows


def names_a_path(values: Mapping[str, Any]) -> bool:
    """Whether any of these values is an import path, has one among commas, or stands for one."""
    names = (name for value in values.values() if isinstance(value, str) for name in value.split(","))
    optimizers = (values.get(f"{player}.optimizer.name") for player in Family._fields)
    return any(map(is_path, names)) or any(name not in OPTIMIZERS and path_of(name) for name in optimizers)


def own_parts(values: Mapping[str, Any]) -> set[str]:
    """The keys that name parts which no registry has."""
    chosen = ((f"{group.start}{group.choice.key}", group.choice) for group in groups() if group.choice)
    return {key for key, choice in chosen if choice.names_own(values[key])}


def own_keys(values: Mapping[str, Any]) -> dict[str, Key]:
    """The keys of the parts that these values, by dotted key, choose: without those that they do not have."""
    rows = table(values)
    for group in groups(values):
        if choice := group.choice:
            chosen = keys_of(choice.parts[choice.entry(values[f"{group.start}{choice.key}"])])
            for name in union(choice.parts).keys() - chosen.keys():
                del rows[f"{group.start}{name}"]
    return rows


def varying(values: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, ...]:
    """The keys in which the runs of one program may differ: the seed, the objective and every traced number."""
    return ("seed", "objective.name", *(name for name, key in table(values).items() if key.traced))


def default_config() -> ConfigDict:
    """Every key with its default: a non-saturating GAN of two MLPs on eight Gaussians."""
    return nested({name: key.default for name, key in table().items()})


def with_own_keys(config, changes: Mapping[str, Any] = MappingProxyType({})) -> ConfigDict:
    """The config with the keys of the parts that it names by import path: one that it lacks has its default.

    `changes`: what will be set, by dotted key: the keys are those of the parts that are named then.
    """
    values = flatten(config.to_dict())
    if not names_a_path(values | changes) and not names_a_path(values):
        return config
    known, now, later = table(), table(values), table(values | changes)
    own = {name: key.default for name, key in later.items() if name not in known}
    # What another part by import path had as its default is not meant for this one.
    kept = {
        name: values[name] for name in own if name in values and (name not in now or values[name] != now[name].default)
    }
    dropped = now.keys() & values.keys() - later.keys()
    if own.keys() <= kept.keys() and not dropped:
        return config
    changed = nested({name: value for name, value in values.items() if name not in dropped} | own | kept)
    return changed.lock() if config.is_locked else changed


def check(config) -> None:
    """Holds a ConfigDict to the table: raises InputError at the first key that is unknown, missing or out of range.

    A key that would do nothing, because the part or the key that it needs is not there, must have its default.
    """
    values = flatten(config.to_dict())
    keys = table(values)
    for name in values:
        if name not in keys:
            raise InputError(unknown_key(name, values))
    for name, key in keys.items():
        if name not in values:
            raise InputError(f"config key {name} is missing; it must be {key.rule.words}")
        _check_value(name, key.rule, values[name])
    for group in groups(values):
        own = {key.removeprefix(group.start): value for key, value in values.items() if key.startswith(group.start)}
        if choice := group.choice:
            require_defaults(group.start.rstrip("."), choice.key, choice.entry(own[choice.key]), choice.parts, own)
    for name, key in keys.items():
        if key.needs and values[name] != key.default:
            _check_need(name, key, values, keys)


def _check_value(name: str, rule: Rule, value) -> None:
    if not _has_type(value, rule.type) or not rule.holds(value):
        raise InputError(wrong_value(name, value, rule))
    with np.errstate(over="ignore", under="ignore"):  # an integer may be too large for any float
        computed = float(np.float32(min(value, 1e300))) if rule.type is float else value
    if not rule.holds(computed):
        in_float32 = f"which is {computed} in float32, in which a run computes"
        raise InputError(f"config key {name} is {value!r}, {in_float32}; it must be {rule.words}")


def _check_need(name: str, key: Key, values: Mapping[str, Any], keys: Mapping[str, Key]) -> None:
    need, value = key.needs, values[key.needs.key]
    if value in need.values if need.values else value != keys[need.key].default:
        return
    right = " or ".join(need.values) if need.values else "another"
    raise InputError(
        f"config key {name} is {values[name]!r}, but {need.key} is {value or repr(value)}, with which it does nothing; "
        f"set it to {key.default!r}, or {need.key} to {right}"
    )


def wrong_value(key: str, value, rule: Rule) -> str:
    """The line on a key's value that is wrong."""
    close = get_close_matches(str(value), rule.options, n=1)
    if rule.options and isinstance(value, str) and is_path(path := ":".join(value.rsplit(".", 1))):  # my_lab.NAME
        close = [path]
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"config key {key} is {value!r}; it must be {rule.words}{hint}"


def unknown_key(key: str, values: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The line on a key that a config with these values cannot have."""
    if key in RENAMED:
        return f"config key {key} is now {RENAMED[key]}"
    keys = list(table(values))
    group, _, name = key.rpartition(".")
    of_group = [known for known in keys if known.rpartition(".")[0] == group]
    # Of the keys of both players that which is spelled more like it.
    elsewhere = sorted(keys, key=lambda known: SequenceMatcher(None, known, key).ratio(), reverse=True)
    meant = _named_like(name, of_group, 0.6) or _named_like(name, elsewhere, 0.8)
    hints = [f"did you mean {meant}?"] if meant else []
    if not meant or meant in of_group:
        hints.append(f"valid keys: {', '.join(of_group or keys)}")
    return f"unknown config key {key}; {' '.join(hints)}"


def _named_like(name: str, keys: Sequence[str], cutoff: float) -> str | None:
    """The first key of this name, or else of its initials (lr: learning_rate), or with this word, or spelled alike.

    The whole key is a name too, with underscores; and a key such as optimizer.name has that of its group.
    """
    last = {known: known.rpartition(".")[2] for known in keys}
    names = [*last.items(), *((known, known.split(".")[-2]) for known in keys if known.endswith(".name"))]
    for alike in (
        lambda other: other == name,
        lambda other: name == _initials(other) or other == _initials(name),
        lambda other: name in other.split("_"),
    ):
        if meant := [known for known, other in names if alike(other)]:
            return meant[0]
    spelled = {other: known for known, other in reversed([*names, *((key, key.replace(".", "_")) for key in keys)])}
    return next((spelled[other] for other in get_close_matches(name, spelled, 1, cutoff)), None)


def _initials(name: str) -> str:
    """The first letter of each word, and each digit."""
    return "".join(re.findall(r"(?<![^\W_])[^\W\d_]|\d", name))


# Keys that had another name in configs of before.
RENAMED: dict[str, str] = {}
# What a run had that was made before a key existed, if that is not the key's default.
AS_IT_WAS: dict[str, Any] = {"health_every": 0}


def completed(values: Mapping[str, Any]) -> ConfigDict:
    """The config of a run that may have been made before some keys existed or had their names: nested values.

    A missing key takes the value that means "as it was then". Raises InputError at a key that there never was.
    """
    flat = {RENAMED.get(name, name): value for name, value in flatten(values).items()}
    keys = table(flat)
    for name in flat:
        if name not in keys:
            raise InputError(unknown_key(name, flat))
    return nested({name: flat.get(name, AS_IT_WAS.get(name, key.default)) for name, key in keys.items()}).lock()


def flatten(tree: Mapping) -> dict:
    """A nested dict as one of dotted keys."""
    return flatten_dict(tree, sep=".")


def nested(flat: Mapping[str, Any]) -> ConfigDict:
    """The ConfigDict of a dict of dotted keys."""
    return ConfigDict(unflatten_dict(flat, sep="."))


def markdown() -> str:
    """The table of keys for docs/configuration.md."""
    lines, free = ["|key|default|it may be|what it is|a sweep may vary it|", "|---|---|---|---|---|"], varying()
    for name, key in table().items():
        cells = f"`{name}`", f"`{key.default!r}`", key.rule.words, key.text, "yes" if name in free else ""
        lines.append("|" + "|".join(cells) + "|")
    return "\n".join(lines)


def _has_type(value, expected: type) -> bool:
    if expected is bool or isinstance(value, bool):
        return expected is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if expected is float else expected)
