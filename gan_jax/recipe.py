"""From a config to the functions that it names: the only place where a name is looked up."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax import networks, optimizers, schema
from gan_jax.data import Source, Spec, make_source
from gan_jax.devices import LAYOUTS, Devices
from gan_jax.errors import InputError
from gan_jax.evaluation.comparison import LEAST, better
from gan_jax.evaluation.extractors import NONE
from gan_jax.moves import MOVES
from gan_jax.objectives import LOGISTIC, OBJECTIVES, Objective, choose, smooth_labels
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
}
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


def build(config, devices: Devices | None = None, source: Source | None = None) -> Setup:
    """Everything that a config names, for training on `devices` (those that it names, by default).

    A `source` of one's own takes the place of the data set that the config names, for research code that calls this.
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
    numbers = {field: jnp.float32(flat[key]) for key, field in NUMBERS.items()}
    return Hyperparameters(**numbers)


def together(setups: Sequence[Setup]) -> tuple[Setup, Hyperparameters]:
    """The setup of runs that differ in VARYING alone, as one program, and their hyperparameters, each [runs].

    All but its recipe is that of the first run; its objective is each run's own, by number.
    """
    names = list(dict.fromkeys(setup.config.objective.name for setup in setups))
    numbers = [
        setup.hyperparameters.replace(objective=jnp.int32(names.index(setup.config.objective.name))) for setup in setups
    ]
    recipe = setups[0].recipe._replace(objective=partial(_chosen_objective, names))
    return setups[0]._replace(recipe=recipe), jax.tree.map(lambda *each: jnp.stack(each), *numbers)


def _make_recipe(config, devices: Devices, source: Source) -> Recipe:
    common = {"dtype": jnp.dtype(config.precision), "axis_name": devices.axis_name}
    generator_class = networks.FAMILIES[config.generator.network].generator
    discriminator_class = networks.FAMILIES[config.discriminator.network].discriminator
    generator = networks.from_linen(
        generator_class(
            shape=source.shape, **_architecture(config, source, generator_class, config.generator), **common
        ),
        config.matmul_precision,
    )
    discriminator = networks.from_linen(
        discriminator_class(**_architecture(config, source, discriminator_class, config.discriminator), **common),
        config.matmul_precision,
    )
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
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        discriminator_steps=config.discriminator.steps,
        move=_make_move(config),
        one_pass=config.discriminator.one_pass,
        conditional=config.conditional,
        unroll=jax.default_backend() == "cpu" and (generator.convolves or discriminator.convolves),
    )


def _architecture(config, source: Source, network_class, player) -> dict:
    chosen = {key: player[key] for key in ("width", "depth", "activation", "normalization")}
    if network_class.convolves:
        chosen["form"] = config.convolution
    if network_class.conditions:
        chosen["classes"] = len(source.classes) if config.conditional else 0
    return chosen


def _chosen_objective(names: list[str], hyperparameters: Hyperparameters) -> Objective:
    """The objective of a run: the only one, or that of its number."""
    objectives = [
        smooth_labels(OBJECTIVES[name], hyperparameters.label_smoothing) if name in LOGISTIC else OBJECTIVES[name]
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
            f"config key accumulate is {config.accumulate}, but batch_size is {config.batch_size}, of which "
            f"{devices.count} devices cannot share so many equal micro-batches; batch_size must be a multiple of "
            f"{devices.count * config.accumulate}"
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
            "logits that do not depend on the other examples; set discriminator.normalization to none"
        )
    if config.penalty.name != "none" and config.penalty.weight == 0:
        raise InputError(f"penalty.name is {config.penalty.name} but penalty.weight is 0; give it a weight")
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
