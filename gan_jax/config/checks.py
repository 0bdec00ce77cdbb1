"""Whether the keys of a config go together, each of which is right by itself: one line where they do not."""

from gan_jax import networks
from gan_jax.data import Source
from gan_jax.evaluation.features.extractors import NONE
from gan_jax.evaluation.metrics.comparison import LEAST, better
from gan_jax.networks.attention import inner_sizes
from gan_jax.objectives import NAMED
from gan_jax.parallel.devices import Devices
from gan_jax.step import transforms
from gan_jax.utils.errors import InputError


def check_batch(config, devices: Devices, group_size: int) -> None:
    """Raises InputError where the devices cannot share a batch; `group_size`: examples that D needs together."""
    if config.batch_size % devices.count:
        raise InputError(
            f"config key batch_size is {config.batch_size}, which {devices.count} devices cannot share equally; "
            f"it must be a multiple of {devices.count}"
        )
    if config.batch_size % (devices.count * config.accumulate):
        raise InputError(
            f"config key batch_size is {config.batch_size}, which does not split into accumulate={config.accumulate} "
            f"micro-batches with an equal share for each device ({devices.count} here); it must be a multiple of "
            f"{devices.count * config.accumulate}"
        )
    if config.batch_size % (devices.count * config.accumulate * group_size):
        raise InputError(
            f"config key batch_size is {config.batch_size}, but discriminator.packing, minibatch_stddev and "
            f"minibatch_group let D see {group_size} examples together, on one device and in one micro-batch; "
            f"batch_size must be a multiple of {devices.count * config.accumulate * group_size}"
        )


def check(config, source: Source) -> None:
    """Raises InputError where two keys, each right by itself, do not go together."""
    _check_evaluation(config, source)
    if config.conditional:
        _check_labels(config, source)
    for player in ("generator", "discriminator"):
        _check_network(player, config[player], config, source)
        if config[player].optimizer.warmup > config.num_steps:
            raise InputError(
                f"{player}.optimizer.warmup is {config[player].optimizer.warmup}, but num_steps is {config.num_steps}; "
                "it must be at most that"
            )
    _check_penalty(config)
    _check_comparisons(config)
    _check_augment(config, source)
    _check_moves(config)
    if config.discriminator.spectral_norm and config.discriminator.clip:
        raise InputError(
            f"discriminator.spectral_norm is True and discriminator.clip is {config.discriminator.clip}: the size of "
            "the weights, which clipping bounds, makes no difference then; set spectral_norm to False or clip to 0"
        )
    if config.generator.ema_half_life and config.generator.ema_decay:
        raise InputError(
            f"generator.ema_half_life is {config.generator.ema_half_life} and generator.ema_decay is "
            f"{config.generator.ema_decay}: the average has one memory; set one of them to 0"
        )
    if config.objective.name == "feature_matching" and not config.objective.feature_matching:
        raise InputError(
            "objective.name is feature_matching but objective.feature_matching is 0: the generator has nothing to "
            "descend; give it a weight"
        )


def _check_penalty(config) -> None:
    if config.penalty.name == "none":
        if config.penalty.weight_to:
            raise InputError(
                f"penalty.weight_to is {config.penalty.weight_to}, but penalty.name is none; set it to 0, or name one"
            )
        return
    if config.discriminator.normalization == "batch":
        raise InputError(
            f"penalty.name is {config.penalty.name} and discriminator.normalization is batch: a gradient penalty needs "
            "logits that do not depend on the other examples; set discriminator.normalization to none, layer or "
            "group"
        )
    if config.penalty.weight == 0:
        raise InputError(f"penalty.name is {config.penalty.name} but penalty.weight is 0; give it a weight")


def _check_comparisons(config) -> None:
    """Of what lets D see several examples at once."""
    player = config.discriminator
    if config.conditional and player.packing > 1:
        raise InputError(
            f"conditional is True and discriminator.packing is {player.packing}: the examples of a pack have labels of "
            "their own, and D takes one; set discriminator.packing to 1"
        )
    for key in ("minibatch_stddev", "minibatch_discrimination"):
        if player[key] and config.penalty.name != "none":
            raise InputError(
                f"penalty.name is {config.penalty.name} and discriminator.{key} is {player[key]}: a gradient penalty "
                f"needs logits that do not depend on the other examples; set penalty.name to none, or "
                f"discriminator.{key} to 0"
            )
        if player[key] and player.one_pass:
            raise InputError(
                f"discriminator.one_pass is True and discriminator.{key} is {player[key]}: real and fake would be in "
                "one group, and D compares examples of one kind; set one_pass to False"
            )


def _check_augment(config, source: Source) -> None:
    """Of what images are transformed for: D's losses, and consistency."""
    _check_consistency(config)
    wanted = config.augment
    if wanted.policy != transforms.NONE and len(source.shape) != 3:
        raise InputError(
            f"augment.policy is {wanted.policy}, which is for images, but {config.data.name} is points; set it to "
            f"{transforms.NONE}"
        )
    if "rotation" in transforms.names(wanted.policy) and source.shape[0] != source.shape[1]:
        raise InputError(
            f"augment.policy is {wanted.policy}: rotation is for square images, but {config.data.name} is "
            f"{source.shape[0]}x{source.shape[1]}; leave it out, or set data.image_size"
        )
    consistent = config.discriminator.consistency or config.discriminator.fake_consistency
    if wanted.policy != transforms.NONE and not (wanted.probability or wanted.ada_target or consistent):
        raise InputError(
            f"augment.policy is {wanted.policy} and augment.probability is 0: nothing is transformed; give it a "
            f"probability, an augment.ada_target or a consistency, or set augment.policy to {transforms.NONE}"
        )
    if wanted.ada_target and not NAMED[config.objective.name].centred:
        raise InputError(
            f"augment.ada_target is {wanted.ada_target}, of the sign of D's logits, but those of "
            f"{config.objective.name} have no zero; set it to 0, or objective.name to another"
        )


def _check_consistency(config) -> None:
    player = config.discriminator
    for key in ("consistency", "fake_consistency"):
        if player[key] and player.one_pass:
            raise InputError(
                f"discriminator.one_pass is True and discriminator.{key} is {player[key]}: D would normalise over both "
                "kinds on one side of the comparison and over one on the other; set one_pass to False"
            )


def _check_moves(config) -> None:
    if config.moves != "alternating" and config.discriminator.steps > 1:
        raise InputError(
            f"moves is {config.moves}, where both players move at once, but discriminator.steps is "
            f"{config.discriminator.steps}; set it to 1, or moves to alternating"
        )
    if config.moves == "consensus" and config.consensus.weight == 0:
        raise InputError("moves is consensus but consensus.weight is 0; it must be greater than 0")
    if config.moves == "consensus" and config.accumulate > 1:
        raise InputError(
            f"moves is consensus, which needs the gradient of the whole minibatch at once, but accumulate is "
            f"{config.accumulate}; set it to 1, or moves to another"
        )
    if config.moves == "consensus" and config.objective.feature_matching:
        raise InputError(
            f"moves is consensus and objective.feature_matching is {config.objective.feature_matching}: its means over "
            "the whole batch would be differentiated twice over the devices; set it to 0, or moves to another"
        )


def _check_network(player: str, values, config, source: Source) -> None:
    family = getattr(networks.FAMILIES[values.network], player)
    if networks.has(family, "form"):
        _check_halvings(player, values.network, values.depth, config.data.name, source.shape)
    if hasattr(family, "check"):
        family.check(player, values)
    if not values.attention:
        return
    sizes = inner_sizes(source.shape, range(family.attends_from, values.depth + 1))
    if values.attention not in sizes:
        raise InputError(
            f"{player}.attention is {values.attention}; it must be 0, or the height of images inside this "
            f"{values.network} of depth {values.depth} whose sides are even: {', '.join(map(str, sizes)) or 'none'}"
        )


def _check_evaluation(config, source: Source) -> None:
    wanted = config.evaluation
    if wanted.extractor != NONE and len(source.shape) != 3:
        raise InputError(
            f"evaluation.extractor is {wanted.extractor}, which sees images, but {config.data.name} is points; set it "
            f"to {NONE}"
        )
    if wanted.extractor != NONE:
        _check_counts(wanted, source)
    if not wanted.best:
        return
    if not config.evaluate_every:
        raise InputError(f"evaluation.best is {wanted.best}, but evaluate_every is 0: no step is scored")
    known = better(wanted.extractor, source)
    if wanted.best not in known:
        raise InputError(f"evaluation.best is {wanted.best!r}; the scores of this config are {', '.join(known)}")


def _check_counts(wanted, source: Source) -> None:
    if wanted.num_samples < LEAST:
        raise InputError(f"evaluation.num_samples is {wanted.num_samples}; scores by features need at least {LEAST}")
    if not wanted.num_real and not source.size:
        raise InputError("evaluation.num_real is 0, for all real images, and this data is endless; give it a number")
    if 0 < wanted.num_real < LEAST:
        raise InputError(f"evaluation.num_real is {wanted.num_real}; it must be 0 (all) or at least {LEAST}")


def _check_labels(config, source: Source) -> None:
    if len(source.classes) < 2:
        has = f"a single one, {source.classes[0]}" if source.classes else "none"
        raise InputError(
            f"conditional is True, which needs labels of two or more classes, but {config.data.name} has {has}; "
            "set conditional to False, or data.name to a labelled set"
        )
    if len(source.shape) != 3:
        raise InputError(f"conditional is True, which is for images, but {config.data.name} is points; set it to False")
    for player in ("generator", "discriminator"):
        able = [name for name, family in networks.FAMILIES.items() if networks.has(getattr(family, player), "classes")]
        if config[player].network not in able:
            raise InputError(
                f"conditional is True, but {player}.network is {config[player].network}, which has no use for labels; "
                f"set it to one of {', '.join(able)}"
            )


def _check_halvings(player: str, network: str, depth: int, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise InputError(f"{player}.network is {network}, which makes images, but {name} is points {shape}; use mlp")
    if depth == 0:
        raise InputError(
            f"{player}.depth is 0: {network} halves or doubles its images at least once; give it 1 or more, or use mlp"
        )
    if any(size % 2**depth for size in shape[:2]):
        raise InputError(
            f"{player}.depth is {depth}: {network} halves or doubles its images {depth} times, which "
            f"{shape[0]}x{shape[1]} ({name}) does not allow"
        )
