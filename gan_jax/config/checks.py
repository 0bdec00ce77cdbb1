"""Whether the keys of a config go together, each of which is right by itself: one line where they do not."""

from collections.abc import Iterator
from itertools import chain

from gan_jax import networks
from gan_jax.config.schema import flatten
from gan_jax.data import Source
from gan_jax.evaluation.features.extractors import NONE
from gan_jax.evaluation.metrics.comparison import LEAST, SCORES, better, needs_met, scores_of
from gan_jax.networks.attention import inner_sizes
from gan_jax.objectives import NAMED
from gan_jax.parallel.devices import Devices
from gan_jax.step import transforms
from gan_jax.step.optimizers import OPTIMIZERS, OptimizerKeys, is_whole
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import keys_of

PLAYERS = ("generator", "discriminator")
Faults = Iterator[tuple[str, str]]  # (the keys at fault, with blanks between them; why, and what would be right)


def check_batch(config, devices: Devices, group_size: int) -> None:
    """Raises InputError where the devices cannot share a batch; `group_size`: examples that D needs together."""
    count, accumulate = devices.count, config.accumulate
    split = f"micro-batches with an equal share for each device ({count} here)"
    together = f"let D see {group_size} examples together, on one device and in one micro-batch"
    multiple = 1
    for factor, why in (
        (count, f"which {count} devices cannot share equally"),
        (accumulate, f"which does not split into {accumulate=} {split}"),
        (group_size, f"but discriminator.packing, minibatch_stddev and minibatch_group {together}"),
    ):
        multiple *= factor
        if config.batch_size % multiple:
            right = f"it must be a multiple of {multiple}"
            raise InputError(f"config key batch_size is {config.batch_size}, {why}; {right}")


def check(config, source: Source) -> None:
    """Raises InputError where two keys, each right by itself, do not go together."""
    faults = [_evaluation_faults(config, source), _label_faults(config, source)]
    faults += [_network_faults(player, config, source) for player in PLAYERS]
    faults += [_penalty_faults(config), _batch_faults(config), _augment_faults(config, source)]
    faults += [_move_faults(config), _weight_faults(config), _stop_faults(config, source)]
    values = flatten(config.to_dict())
    for keys, why in chain(*faults):
        raise InputError(f"{' and '.join(f'{key} is {values[key]}' for key in keys.split())}: {why}")


def _evaluation_faults(config, source: Source) -> Faults:
    evaluation = config.evaluation
    if evaluation.extractor != NONE:
        if len(source.shape) != 3:
            yield "evaluation.extractor", f"it sees images, but {config.data.name} is points; set it to {NONE}"
        if evaluation.num_samples < LEAST:
            yield "evaluation.num_samples", f"scores by features need at least {LEAST}"
        if not evaluation.num_real and not source.size:
            yield "evaluation.num_real", "that is all real images, and this data is endless; give it a number"
        if 0 < evaluation.num_real < LEAST:
            yield "evaluation.num_real", f"it must be 0 (all) or at least {LEAST}"
    if evaluation.best and not config.evaluate_every:
        yield "evaluation.best evaluate_every", "no step is scored; set evaluate_every, or leave best empty"
    known = better(evaluation.extractor, source, metrics := scores_of(evaluation))
    if evaluation.best and evaluation.best not in known:
        yield "evaluation.best", f"the scores of this config are {', '.join(known)}"
    met = needs_met(evaluation.extractor, source)
    for name in metrics.keys() - SCORES.keys():
        if metrics[name].needs not in met:
            why = f"{name.removesuffix('_{}')} needs {metrics[name].needs.value}; name an extractor that gives them"
            yield "evaluation.scores evaluation.extractor", why


def _label_faults(config, source: Source) -> Faults:
    if not config.conditional:
        return
    name, classes = config.data.name, source.classes
    if len(classes) < 2 and not source.attributes:
        has = f"a single one, {classes[0]}" if classes else "none"
        right = "set conditional to False, or data.name to a labelled set"
        yield "conditional", f"it needs labels of two or more classes, but {name} has {has}; {right}"
    if len(source.shape) != 3:
        yield "conditional", f"it is for images, but {name} is points; set it to False"
    for player in PLAYERS:
        able = [name for name, family in networks.FAMILIES.items() if networks.has(getattr(family, player), "classes")]
        if not networks.has(getattr(networks.FAMILIES[config[player].network], player), "classes"):
            right = f"set {player}.network to one of {', '.join(able)}"
            yield f"conditional {player}.network", f"the network is one which has no use for labels; {right}"


def _network_faults(player: str, config, source: Source) -> Faults:
    values, shape = config[player], source.shape
    network, depth = values.network, values.depth
    family = getattr(networks.FAMILIES[network], player)
    if networks.has(family, "form"):
        sides = "x".join(map(str, shape[:2]))
        if len(shape) != 3:
            yield f"{player}.network", f"it makes images, but {config.data.name} is points {shape}; use mlp"
        if depth == 0:
            why = f"{network} halves or doubles its images at least once"
            yield f"{player}.depth", f"{why}; give it 1 or more, or use mlp"
        if any(size % 2**depth for size in shape[:2]):
            of = f"which {sides} ({config.data.name}) does not allow"
            yield f"{player}.depth", f"{network} halves or doubles its images {depth} times, {of}"
    if hasattr(family, "check"):
        family.check(player, values)
    if values.attention:
        sizes = inner_sizes(shape, range(family.attends_from, depth + 1))
        if values.attention not in sizes:
            inner = f"images inside this {network} of depth {depth} whose sides are even"
            listed = ", ".join(map(str, sizes)) or "none"
            yield f"{player}.attention", f"it must be 0, or the height of {inner}: {listed}"
    if is_whole(OPTIMIZERS[values.optimizer.name]):
        for key, default in ((name, key.default) for name, key in keys_of(OptimizerKeys).items()):
            if values.optimizer[key] != default:
                why = f"it is a whole transformation, with a rate of its own; set {key} to {default}"
                yield f"{player}.optimizer.name {player}.optimizer.{key}", why
    if values.optimizer.warmup > config.num_steps:
        yield f"{player}.optimizer.warmup num_steps", "the warm-up must be at most as long as the run"


def _penalty_faults(config) -> Faults:
    penalty = config.penalty
    if config.generator.penalty.name != "none" and config.generator.penalty.weight == 0:
        yield "generator.penalty.name generator.penalty.weight", "the penalty does nothing; give it a weight"
    if penalty.name == "none":
        if penalty.weight_to:
            yield "penalty.weight_to penalty.name", "there is no penalty; set weight_to to 0, or name one"
        return
    if config.discriminator.normalization == "batch":
        right = "set discriminator.normalization to none, layer or group"
        yield "penalty.name discriminator.normalization", f"{_ONE_BY_ONE}; {right}"
    if penalty.weight == 0:
        yield "penalty.name penalty.weight", "the penalty does nothing; give it a weight"
    for key in ("minibatch_stddev", "minibatch_discrimination"):
        if config.discriminator[key]:
            right = f"set penalty.name to none, or discriminator.{key} to 0"
            yield f"penalty.name discriminator.{key}", f"{_ONE_BY_ONE}; {right}"


_ONE_BY_ONE = "a gradient penalty needs logits that do not depend on the other examples"


def _batch_faults(config) -> Faults:
    """Of what D sees at once."""
    player = config.discriminator
    if config.conditional and player.packing > 1:
        why = "the examples of a pack have labels of their own, and D takes one"
        yield "conditional discriminator.packing", f"{why}; set discriminator.packing to 1"
    one_group = "real and fake would be in one group, and D compares examples of one kind"
    one_side = "D would normalise over both kinds on one side of the comparison and over one on the other"
    groups, sides = ("minibatch_stddev", "minibatch_discrimination"), ("consistency", "fake_consistency")
    for key, why in (dict.fromkeys(groups, one_group) | dict.fromkeys(sides, one_side)).items():
        if player.one_pass and player[key]:
            yield f"discriminator.one_pass discriminator.{key}", f"{why}; set one_pass to False"


def _augment_faults(config, source: Source) -> Faults:
    augment, player, name = config.augment, config.discriminator, config.data.name
    if augment.policy != transforms.NONE:
        if len(source.shape) != 3:
            yield "augment.policy", f"it is for images, but {name} is points; set it to {transforms.NONE}"
        height, width = source.shape[:2]
        if "rotation" in transforms.names(augment.policy) and height != width:
            right = "leave it out, or set data.image_size"
            yield "augment.policy", f"rotation is for square images, but {name} is {height}x{width}; {right}"
        if not (augment.probability or augment.ada_target or player.consistency or player.fake_consistency):
            right = f"give it a probability, an ada_target or a consistency, or set augment.policy to {transforms.NONE}"
            yield "augment.policy augment.probability", f"nothing is transformed; {right}"
    if augment.ada_target and not NAMED[config.objective.name].centred:
        why = f"it is of the sign of D's logits, but those of {config.objective.name} have no zero"
        yield "augment.ada_target", f"{why}; set it to 0, or objective.name to another"


def _move_faults(config) -> Faults:
    if config.moves != "alternating" and config.discriminator.steps > 1:
        yield "moves discriminator.steps", "both players move at once; set steps to 1, or moves to alternating"
    if config.moves != "consensus":
        return
    if config.consensus.weight == 0:
        yield "moves consensus.weight", "the weight must be greater than 0"
    if config.accumulate > 1:
        why = "it needs the gradient of the whole minibatch at once"
        yield "moves accumulate", f"{why}; set accumulate to 1, or moves to another"
    why = "its means over the whole batch would be differentiated twice over the devices"
    if config.objective.feature_matching:
        yield "moves objective.feature_matching", f"{why}; set feature_matching to 0, or moves to another"
    if config.generator.penalty.name == "mode_seeking":
        yield "moves generator.penalty.name", f"{why}; set it to none, or moves to another"


def _weight_faults(config) -> Faults:
    if config.discriminator.spectral_norm and config.discriminator.clip:
        why = "the size of the weights, which clipping bounds, makes no difference then"
        yield "discriminator.spectral_norm discriminator.clip", f"{why}; set spectral_norm to False or clip to 0"
    if config.generator.ema_half_life and config.generator.ema_decay:
        yield "generator.ema_half_life generator.ema_decay", "the average has one memory; set one of them to 0"
    if config.objective.name == "feature_matching" and not config.objective.feature_matching:
        why = "the generator has nothing to descend"
        yield "objective.name objective.feature_matching", f"{why}; give it a weight"


def _stop_faults(config, source: Source) -> Faults:
    stop, evaluation = config.stop, config.evaluation
    if stop.undecided_band and not NAMED[config.objective.name].centred:
        why = f"D's accuracy says nothing, since the logits of {config.objective.name} have no zero"
        yield "stop.undecided_band", f"{why}; set it to 0, or objective.name to another"
    if not stop.patience:
        return
    known, score = better(evaluation.extractor, source, scores_of(evaluation)), stop.score or evaluation.best
    if not config.evaluate_every:
        yield "stop.patience evaluate_every", "no step is scored; set evaluate_every, or patience to 0"
    if not score:
        yield "stop.patience stop.score", f"name the score that must improve: one of {', '.join(known)}"
    if score and score not in known:
        yield "stop.score", f"the scores of this config are {', '.join(known)}"
