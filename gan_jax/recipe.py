"""From a config to the functions that it names: the only place where a name is looked up."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax import augment, networks, optimizers, schema
from gan_jax.data import Source, Spec, make_source
from gan_jax.devices import LAYOUTS, Devices
from gan_jax.errors import InputError
from gan_jax.evaluation.comparison import LEAST, better
from gan_jax.evaluation.extractors import NONE
from gan_jax.moves import MOVES
from gan_jax.networks import spectral
from gan_jax.networks.minibatch import Minibatch
from gan_jax.objectives import LOGISTIC, NAMED, Objective, choose, smooth_labels
from gan_jax.penalties import PENALTIES
from gan_jax.priors import PRIORS
from gan_jax.state import Hyperparameters, TrainState
from gan_jax.step import Recipe, init_state

TWICE = ("extragradient", "consensus")  # the moves that derive each loss twice
MOST_UNROLLED = 32  # gradients in one program, of either player
# The config keys that are data to a compiled step, with their Hyperparameters.
NUMBERS = {
    "generator.optimizer.learning_rate": "generator_learning_rate",
    "generator.optimizer.b1": "generator_b1",
    "generator.optimizer.b2": "generator_b2",
    "generator.ema_decay": "ema_decay",
    "discriminator.optimizer.learning_rate": "discriminator_learning_rate",
    "discriminator.optimizer.b1": "discriminator_b1",
    "discriminator.optimizer.b2": "discriminator_b2",
    "penalty.weight": "penalty_weight",
    "objective.label_smoothing": "label_smoothing",
    "objective.feature_matching": "feature_matching",
    "augment.instance_noise": "instance_noise",
}
COMPILED_IN = ("feature_matching", "instance_noise")  # of these, what no run of a program has, it does not compute
VARYING = ("seed", "objective.name", *NUMBERS)  # the keys in which the runs of one program may differ


class RunKeys(NamedTuple):
    """The independent streams of randomness of a run, all from its seed."""

    training: jax.Array  # initial parameters, data, noise
    pictures: jax.Array  # the fixed latents of the pictures
    backdrop: jax.Array  # the real examples in them
    interpolation: jax.Array  # the latents between which one interpolates
    evaluation: jax.Array  # the latents of what is scored
    reference: jax.Array  # the real examples that it is compared with


class Setup(NamedTuple):
    """A checked config with all that it stands for."""

    config: Any  # a locked ConfigDict
    devices: Devices
    source: Source
    reference: Callable[[str], Source]  # split -> the real images of it that samples are compared with
    recipe: Recipe
    hyperparameters: Hyperparameters
    keys: RunKeys
    title: str  # of pictures


def run_keys(seed: int) -> RunKeys:
    """The keys of the run with this seed."""
    return RunKeys(*jax.random.split(jax.random.key(seed), len(RunKeys._fields)))


def build(config, devices: Devices | None = None, source: Source | None = None, runs: bool = True) -> Setup:
    """Everything that a config names, for training on `devices` (those that it names, by default).

    A `source` of one's own takes the place of the data set that the config names, for research code that calls this.
    What never `runs` on this machine may have more written out in a call than its compiler could bear.
    Raises InputError, one line, where the config makes no sense.
    """
    schema.check(config)
    devices = devices or LAYOUTS[config.parallel]()
    _check_batch(config, devices)
    spec = Spec(**config.data.to_dict())
    # Pictures are scored against those that were taken, not against mirrored ones.
    if source is not None:
        reference = partial(_given, source, spec.split)
    else:
        source = make_source(spec)
        reference = partial(_unmirrored, source, spec)
    _check_combinations(config, source)
    recipe = _make_recipe(config, devices, source)
    if runs:
        _check_loop(config, recipe)
    title = f"{config.data.name}, {config.objective.name}"
    numbers, keys = make_hyperparameters(config), run_keys(config.seed)
    return Setup(config, devices, source, reference, recipe, numbers, keys, title)


def _unmirrored(source: Source, spec: Spec, split: str) -> Source:
    if split == spec.split and not spec.flip:
        return source
    try:
        return make_source(spec._replace(split=split, flip=False))
    except InputError as error:
        raise InputError(str(error).replace("data.split", "evaluation.split")) from error


def _given(source: Source, its_split: str, split: str) -> Source:
    if split != its_split:
        raise InputError(f"evaluation.split is {split}, of data that was handed over as {its_split}; name that one")
    return source


def initial_state(setup: Setup) -> TrainState:
    """The state before the first step, on every device."""
    state = jax.jit(_init(setup), out_shardings=setup.devices.replicated)
    return state(setup.hyperparameters, setup.keys.training)


def abstract_state(setup: Setup) -> TrainState:
    """The shapes, dtypes and placement of a state, without its arrays: what a checkpoint is restored into."""
    shapes = jax.eval_shape(_init(setup), setup.hyperparameters, setup.keys.training)
    sharding = setup.devices.replicated
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _init(setup: Setup) -> Callable:
    return partial(init_state, setup.recipe, shape=setup.source.shape)


def make_hyperparameters(config) -> Hyperparameters:
    """The numbers of a config that a compiled step takes as arguments."""
    flat = schema.flatten(config.to_dict())
    numbers = {field: flat[key] for key, field in NUMBERS.items()}
    return Hyperparameters(
        **{
            field: None if field in COMPILED_IN and number == 0 else jnp.float32(number)
            for field, number in numbers.items()
        }
    )


def together(setups: Sequence[Setup]) -> tuple[Setup, Hyperparameters]:
    """The setup of runs that differ in VARYING alone, as one program, and their hyperparameters, each [runs].

    All but its recipe is that of the first run; its objective is each run's own, by number.
    """
    names = list(dict.fromkeys(setup.config.objective.name for setup in setups))
    numbers = [
        setup.hyperparameters.replace(objective=jnp.int32(names.index(setup.config.objective.name))) for setup in setups
    ]
    for field in COMPILED_IN:
        if any(getattr(each, field) is not None for each in numbers):
            numbers = [each.replace(**{field: _or_zero(getattr(each, field))}) for each in numbers]
    recipe = setups[0].recipe._replace(objective=partial(_chosen_objective, names))
    return setups[0]._replace(recipe=recipe), jax.tree.map(lambda *each: jnp.stack(each), *numbers)


def _or_zero(number):
    return jnp.float32(0) if number is None else number


def _make_recipe(config, devices: Devices, source: Source) -> Recipe:
    generator = _make_network(config, devices, source, "generator", shape=source.shape)
    neighbours = _minibatch(config.discriminator)
    discriminator = _make_network(config, devices, source, "discriminator", minibatch=neighbours)
    twice = 2 if config.moves == "extragradient" else 1  # updates that an optimiser counts for one of its player
    return Recipe(
        generator=generator,
        discriminator=discriminator,
        objective=partial(_chosen_objective, [config.objective.name]),
        penalty=_make_penalty(config, source),
        penalty_every=config.penalty.every,
        generator_tx=partial(_generator_tx, config.generator.optimizer.to_dict(), config.num_steps, twice),
        discriminator_tx=partial(
            _discriminator_tx,
            config.discriminator.optimizer.to_dict(),
            config.num_steps,
            twice * config.discriminator.steps,
            config.discriminator.clip,
        ),
        prior=partial(PRIORS[config.latent.prior], dim=config.latent.dim),
        augment=partial(_augment, config.num_steps),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        discriminator_steps=config.discriminator.steps,
        packing=config.discriminator.packing,
        together=_together(config.discriminator),
        move=_make_move(config),
        one_pass=config.discriminator.one_pass,
        conditional=config.conditional,
        unroll=jax.default_backend() == "cpu" and (generator.convolves or discriminator.convolves),
    )


def _make_network(config, devices: Devices, source: Source, player: str, **its_own) -> networks.Network:
    network_class = getattr(networks.FAMILIES[config[player].network], player)
    architecture = _architecture(config, source, network_class, config[player])
    module = network_class(dtype=jnp.dtype(config.precision), axis_name=devices.axis_name, **its_own, **architecture)
    network = networks.from_linen(module, config.matmul_precision)
    return spectral.normalised(network) if config[player].spectral_norm else network


def _architecture(config, source: Source, network_class, player) -> dict:
    chosen = {key: player[key] for key in ("width", "depth", "activation", "normalization")}
    if network_class.convolves:
        chosen["form"] = config.convolution
    if network_class.conditions:
        chosen["classes"] = len(source.classes) if config.conditional else 0
    if network_class.pools:
        chosen["sums"] = player.spectral_norm
    return chosen


def _minibatch(discriminator) -> Minibatch:
    kernels = discriminator.minibatch_discrimination
    return Minibatch(discriminator.minibatch_stddev, kernels, discriminator.minibatch_group if kernels else 1)


def _together(discriminator) -> int:
    """Examples that D needs at once: whole packs, and of these whole groups."""
    wanted = _minibatch(discriminator)
    return discriminator.packing * math.lcm(wanted.stddev or 1, wanted.group)


def _augment(steps: int, hyperparameters: Hyperparameters, step, keys, x):
    """What D sees of x [n, ...] at this step of a run of so many."""
    if hyperparameters.instance_noise is None:
        return x
    return augment.instance_noise(keys, x, augment.annealed(hyperparameters.instance_noise, step, steps))


def _chosen_objective(names: list[str], hyperparameters: Hyperparameters) -> Objective:
    """The objective of a run: the only one, or that of its number."""
    objectives = [
        smooth_labels(NAMED[name], hyperparameters.label_smoothing) if name in LOGISTIC else NAMED[name]
        for name in names
    ]
    return objectives[0] if len(objectives) == 1 else choose(objectives, hyperparameters.objective)


def _make_penalty(config, source: Source):
    penalty = PENALTIES[config.penalty.name]
    return partial(penalty, scale=source.std) if config.penalty.name == "dragan" else penalty


def _make_move(config) -> Callable:
    move = MOVES[config.moves]
    return partial(move, config.consensus.weight) if config.moves == "consensus" else move


def _generator_tx(optimizer: dict, steps: int, each: int, hyperparameters: Hyperparameters):
    rate, b1, b2 = (getattr(hyperparameters, f"generator_{name}") for name in ("learning_rate", "b1", "b2"))
    return optax.chain(*_optimizer(optimizer, steps, each, rate, b1, b2))


def _discriminator_tx(optimizer: dict, steps: int, each: int, clip: float, hyperparameters: Hyperparameters):
    rate, b1, b2 = (getattr(hyperparameters, f"discriminator_{name}") for name in ("learning_rate", "b1", "b2"))
    bounded = optimizers.clip_weights(clip) if clip else optax.identity()
    return optax.chain(*_optimizer(optimizer, steps, each, rate, b1, b2), bounded)


def _optimizer(optimizer: dict, steps: int, each: int, rate, b1, b2):
    """A player's transforms, for a run of `steps` train steps with `each` updates in one."""
    direction = optimizers.OPTIMIZERS[optimizer["name"]](b1, b2)
    course = optimizers.scale_by_decayed_rate(rate, steps * each, optimizer["decay_to"], optimizer["warmup"] * each)
    return [*optimizers.around(direction, optimizer["clip_norm"], optimizer["weight_decay"]), course]


def _check_batch(config, devices: Devices) -> None:
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
    together = _together(config.discriminator)
    if config.batch_size % (devices.count * config.accumulate * together):
        raise InputError(
            f"config key batch_size is {config.batch_size}, but discriminator.packing, minibatch_stddev and "
            f"minibatch_group let D see {together} examples together, on one device and in one micro-batch; batch_size "
            f"must be a multiple of {devices.count * config.accumulate * together}"
        )


def _check_combinations(config, source: Source) -> None:
    """Raises InputError where two keys, each right by itself, do not go together."""
    _check_evaluation(config, source)
    if config.conditional:
        _check_labels(config, source)
    for player in ("generator", "discriminator"):
        _check_optimizer(f"{player}.optimizer", config[player].optimizer, config.num_steps)
        if networks.FAMILIES[config[player].network].generator.convolves:
            _check_halvings(player, config[player].network, config[player].depth, config.data.name, source.shape)
    if config.penalty.name != "none" and config.discriminator.normalization == "batch":
        raise InputError(
            f"penalty.name is {config.penalty.name} and discriminator.normalization is batch: a gradient penalty needs "
            "logits that do not depend on the other examples; set discriminator.normalization to none, layer or "
            "group"
        )
    _check_comparisons(config)
    if config.penalty.name != "none" and config.penalty.weight == 0:
        raise InputError(f"penalty.name is {config.penalty.name} but penalty.weight is 0; give it a weight")
    if config.discriminator.spectral_norm and config.discriminator.clip:
        raise InputError(
            f"discriminator.spectral_norm is True and discriminator.clip is {config.discriminator.clip}: the size of "
            "the weights, which clipping bounds, makes no difference then; set spectral_norm to False or clip to 0"
        )
    if config.penalty.every > 1 and config.penalty.name == "none":
        raise InputError(f"penalty.every is {config.penalty.every}, but penalty.name is none; set it to 1, or name one")
    _check_moves(config)
    if config.discriminator.one_pass and config.discriminator.normalization != "batch":
        raise InputError(
            "discriminator.one_pass is True, which without batch normalisation changes nothing; set it to False, or "
            "discriminator.normalization to batch"
        )
    if config.objective.label_smoothing and config.objective.name not in LOGISTIC:
        raise InputError(
            f"objective.label_smoothing is {config.objective.label_smoothing}, but {config.objective.name} has no "
            f"labels to smooth; set it to 0, or objective.name to one of {', '.join(LOGISTIC)}"
        )
    if config.objective.name == "feature_matching" and not config.objective.feature_matching:
        raise InputError(
            "objective.name is feature_matching but objective.feature_matching is 0: the generator has nothing to "
            "descend; give it a weight"
        )


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


def _check_moves(config) -> None:
    if config.moves != "alternating" and config.discriminator.steps > 1:
        raise InputError(
            f"moves is {config.moves}, where both players move at once, but discriminator.steps is "
            f"{config.discriminator.steps}; set it to 1, or moves to alternating"
        )
    if (config.moves == "consensus") != (config.consensus.weight > 0):
        raise InputError(
            f"moves is {config.moves} but consensus.weight is {config.consensus.weight}; the weight must be greater "
            "than 0 where moves is consensus, and 0 elsewhere"
        )
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


def _check_optimizer(key: str, optimizer, num_steps: int) -> None:
    if optimizer.weight_decay and optimizer.name not in optimizers.DECAYING:
        raise InputError(
            f"{key}.weight_decay is {optimizer.weight_decay}, but {optimizer.name} has none; set it to 0, or "
            f"{key}.name to {' or '.join(optimizers.DECAYING)}"
        )
    if optimizer.warmup > num_steps:
        raise InputError(f"{key}.warmup is {optimizer.warmup}, but num_steps is {num_steps}; it must be at most that")


def _check_evaluation(config, source: Source) -> None:
    wanted = config.evaluation
    if wanted.extractor != NONE and len(source.shape) != 3:
        raise InputError(
            f"evaluation.extractor is {wanted.extractor}, which sees images, but {config.data.name} is points; set it "
            f"to {NONE}"
        )
    if wanted.weights and wanted.extractor in (NONE, "pixels"):
        raise InputError(f"evaluation.weights is {wanted.weights!r}, of which {wanted.extractor} makes no use")
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
        if not networks.FAMILIES[config[player].network].generator.conditions:
            able = [name for name, family in networks.FAMILIES.items() if family.generator.conditions]
            raise InputError(
                f"conditional is True, but {player}.network is {config[player].network}, which has no use for labels; "
                f"set it to one of {', '.join(able)}"
            )


def _check_loop(config, recipe: Recipe) -> None:
    twice = 2 if config.moves in TWICE else 1
    gradients = config.steps_per_call * (config.discriminator.steps + 1) * config.accumulate * twice
    if recipe.unroll and gradients > MOST_UNROLLED:
        raise InputError(
            f"steps_per_call is {config.steps_per_call} and accumulate is {config.accumulate}: on a CPU the "
            f"{gradients} gradients of a call of convolutional networks are written out one by one, which would "
            f"compile for very long; lower the two until there are at most {MOST_UNROLLED}"
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
