"""From a config to the functions that it names: the only place where a name is looked up."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax import augment, combinations, networks, optimizers, overfitting, schedules, schema, transforms
from gan_jax.data import Source, make_source
from gan_jax.devices import LAYOUTS, Devices
from gan_jax.errors import InputError
from gan_jax.moves import MOVES
from gan_jax.networks import spectral
from gan_jax.networks.minibatch import Minibatch, needed_at_once
from gan_jax.objectives import LOGISTIC, NAMED, Objective, choose, smooth_labels
from gan_jax.penalties import PENALTIES
from gan_jax.priors import PRIORS
from gan_jax.state import Hyperparameters, Recipe, TrainState
from gan_jax.step import init_state

TWICE = ("extragradient", "consensus")  # the moves that derive each loss twice
MOST_UNROLLED = 32  # gradients in one program, of either player
# The config keys that are data to a compiled step, with their Hyperparameters.
NUMBERS = {
    "generator.optimizer.learning_rate": "generator_learning_rate",
    "generator.optimizer.b1": "generator_b1",
    "generator.optimizer.b2": "generator_b2",
    "generator.optimizer.b2_to": "generator_b2_to",
    "generator.ema_decay": "ema_decay",
    "generator.ema_half_life": "ema_half_life",
    "discriminator.optimizer.learning_rate": "discriminator_learning_rate",
    "discriminator.optimizer.b1": "discriminator_b1",
    "discriminator.optimizer.b2": "discriminator_b2",
    "discriminator.optimizer.b2_to": "discriminator_b2_to",
    "penalty.weight": "penalty_weight",
    "penalty.weight_to": "penalty_weight_to",
    "objective.label_smoothing": "label_smoothing",
    "objective.feature_matching": "feature_matching",
    "augment.instance_noise": "instance_noise",
    "augment.probability": "augment_probability",
    "augment.ada_target": "ada_target",
    "discriminator.lecam": "lecam",
    "discriminator.consistency": "consistency",
    "discriminator.fake_consistency": "fake_consistency",
}
# Of these, what no run of a program has, it does not compute; 0: a run has none.
COMPILED_IN = (
    "feature_matching",
    "instance_noise",
    "penalty_weight_to",
    "generator_b2_to",
    "discriminator_b2_to",
    "ema_half_life",
    "augment_probability",
    "ada_target",
    "lecam",
    "consistency",
    "fake_consistency",
)
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
    combinations.check_batch(config, devices, _together(config.discriminator))
    data = config.data.to_dict()
    # Pictures are scored against those that were taken, not against mirrored ones.
    if source is not None:
        reference = partial(_given, source, data["split"])
    else:
        source = make_source(data)
        reference = partial(_unmirrored, source, data)
    combinations.check(config, source)
    recipe = _make_recipe(config, devices, source)
    if runs:
        _check_loop(config, recipe)
    title = f"{config.data.name}, {config.objective.name}"
    numbers, keys = make_hyperparameters(config), run_keys(config.seed)
    return Setup(config, devices, source, reference, recipe, numbers, keys, title)


def _unmirrored(source: Source, data: dict, split: str) -> Source:
    if split == data["split"] and not data["flip"]:
        return source
    try:
        return make_source(data | {"split": split, "flip": False})
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
    if config.augment.policy == transforms.NONE:
        numbers["augment_probability"] = 0
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
    burn_in = config.burn_in or config.num_steps
    return Recipe(
        generator=generator,
        discriminator=discriminator,
        objective=partial(_chosen_objective, [config.objective.name]),
        penalty=_make_penalty(config, source),
        penalty_every=config.penalty.every,
        schedule=partial(schedules.at_step, burn_in, config.batch_size),
        generator_tx=partial(_generator_tx, config.generator.optimizer.to_dict(), burn_in, twice),
        discriminator_tx=partial(
            _discriminator_tx,
            config.discriminator.optimizer.to_dict(),
            burn_in,
            twice * config.discriminator.steps,
            config.discriminator.clip,
        ),
        prior=partial(PRIORS[config.latent.prior], dim=config.latent.dim),
        augment=partial(_augment, transforms.of_policy(config.augment.policy), config.num_steps),
        transform=partial(augment.transformed, transforms=transforms.of_policy(config.augment.policy), probability=1.0),
        remember=partial(
            overfitting.remembered,
            config.discriminator.lecam_decay,
            config.batch_size,
            config.augment.ada_interval,
            config.augment.ada_images,
        ),
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
    if network_class.normalizes:
        architecture |= {"normalization": config[player].normalization, "axis_name": devices.axis_name}
    module = network_class(dtype=jnp.dtype(config.precision), **its_own, **architecture)
    network = networks.from_linen(module, config.matmul_precision)
    return spectral.normalised(network) if config[player].spectral_norm else network


def _architecture(config, source: Source, network_class, player) -> dict:
    chosen = {key: player[key] for key in ("width", "depth", "activation")}
    if network_class.convolves:
        chosen["form"] = config.convolution
    if network_class.conditions:
        chosen["classes"] = len(source.classes) if config.conditional else 0
    if network_class.pools:
        chosen["sums"] = player.spectral_norm
    if network_class.grouped:
        chosen |= {"blocks": player.blocks, "groups": player.groups}
    if player.attention:
        chosen["attention"] = player.attention
    return chosen


def _minibatch(discriminator) -> Minibatch:
    return Minibatch(
        stddev=discriminator.minibatch_stddev,
        kernels=discriminator.minibatch_discrimination,
        group=discriminator.minibatch_group,
    )


def _together(discriminator) -> int:
    return needed_at_once(discriminator.packing, _minibatch(discriminator))


def _augment(policy: Sequence[Callable], steps: int, state: TrainState, keys, x):
    """What D sees of x [n, ...] in this state of a run of so many steps: transformed, then noisy."""
    probability, noise = overfitting.probability(state), state.hyperparameters.instance_noise
    if probability is not None:
        x = augment.transformed(keys, x, policy, probability)
    if noise is None:
        return x
    return augment.instance_noise(keys, x, augment.annealed(noise, state.step, steps))


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
    """A player's transforms; the rate has its course over `steps` train steps with `each` updates in one."""
    direction = optimizers.OPTIMIZERS[optimizer["name"]](b1, b2)
    course = optimizers.scale_by_decayed_rate(rate, steps * each, optimizer["decay_to"], optimizer["warmup"] * each)
    return [*optimizers.around(direction, optimizer["clip_norm"], optimizer["weight_decay"]), course]


def _check_loop(config, recipe: Recipe) -> None:
    twice = 2 if config.moves in TWICE else 1
    gradients = config.steps_per_call * (config.discriminator.steps + 1) * config.accumulate * twice
    if recipe.unroll and gradients > MOST_UNROLLED:
        raise InputError(
            f"steps_per_call is {config.steps_per_call} and accumulate is {config.accumulate}: on a CPU the "
            f"{gradients} gradients of a call of convolutional networks are written out one by one, which would "
            f"compile for very long; lower the two until there are at most {MOST_UNROLLED}"
        )
