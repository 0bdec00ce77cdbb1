"""From a checked config to the functions that it names, and to the setup of a run."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from gan_jax.config import checks, schema, shapes
from gan_jax.config.by_hand import with_parts
from gan_jax.data import SOURCES, Source, entry, make_source
from gan_jax.evaluation.metrics.comparison import Metric
from gan_jax.networks import FAMILIES, make_network
from gan_jax.networks.cpu.forms import Form
from gan_jax.networks.latents import PRIORS
from gan_jax.networks.minibatch import Minibatch
from gan_jax.networks.network import Network, convolves, layers
from gan_jax.objectives import Objective, of_names
from gan_jax.parallel.devices import LAYOUTS, Devices, mesh
from gan_jax.penalties import GENERATOR_PENALTIES, PENALTIES
from gan_jax.step import augment, regularizers, schedules, transforms
from gan_jax.step.losses import OF_G
from gan_jax.step.optimizers import clip_weights, make_optimizer
from gan_jax.step.state import Hyperparameters, Move, Own, Recipe, TrainState
from gan_jax.step.step import MOVES, init_state, network_inputs
from gan_jax.step.transfer import started, with_frozen
from gan_jax.utils.errors import InputError, users_code
from gan_jax.utils.keys import bind

MOST_UNROLLED = 32  # gradients in one program, of either player


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


def build(
    config: ConfigDict,
    devices: Devices | None = None,
    source: Any = None,
    runs: bool = True,
    *,
    objective: str | Objective | Callable[..., Objective] | None = None,
    penalty: str | Callable | None = None,
    generator: Any = None,
    discriminator: Any = None,
    generator_optimizer: str | optax.GradientTransformation | Callable | None = None,
    discriminator_optimizer: str | optax.GradientTransformation | Callable | None = None,
    move: str | Move | Callable | None = None,
    prior: str | Callable | None = None,
    generator_penalty: str | Callable | None = None,
    scores: Sequence[str | Callable | Metric] | None = None,
) -> Setup:
    """Everything that a config names, for training on `devices` (those that it names, by default).

    What never `runs` on this machine may have more written out in a call than its compiler could bear.

    Each part that is handed over takes the place of the one that the config names; its annotated parameters are config
    keys (see `gan_jax.config.by_hand`). One that can be imported is as if the config named its import path.

    Args:
      source: the data set, of any form that `gan_jax.data.own.FORMS` names.
      objective: an `Objective`, or a function that returns one.
      penalty: (critic, keys [n], real, fake) -> [n]; `penalty.weight` is its weight.
      generator, discriminator: a `Network`, or what `gan_jax.networks.as_network` makes one of: a module of Linen or
        NNX, or a pair of functions. A generator maps latents [n, d] to examples [n, *shape], a discriminator examples
        to logits [n].
      generator_optimizer, discriminator_optimizer: a transformation of optax with its rate, or a function that returns
        a direction, which the config's rate scales.
      move: a `Move`, or (recipe, devices, numbers, keys, state, batch) -> (state, metrics).
      prior: keys [n] -> latents [n, d].
      generator_penalty: (generate, keys [n], latents, fake) -> [n]; `generator.penalty.weight` is its weight.
      scores: functions after `gan_jax.evaluation.lower_is_better` or `higher_is_better`; see `evaluation.scores`.
    Raises InputError, one line, where the config makes no sense or a part is not what it should be.
    """
    parts = {"objective": objective, "penalty": penalty, "generator": generator, "discriminator": discriminator}
    parts |= {"generator_optimizer": generator_optimizer, "discriminator_optimizer": discriminator_optimizer}
    parts |= {"move": move, "prior": prior, "generator_penalty": generator_penalty, "scores": scores}
    return build_on(None, with_parts(config, parts | {"source": source}), devices, runs)


def build_on(
    source: Source | None,
    config: ConfigDict,
    devices: Devices | None = None,
    runs: bool = True,
    others: Sequence[Setup] = (),
) -> Setup:
    """`build` of a config that names all parts; of its data, the `source` may be there already.

    `others`: setups of the same program on this source, whose parts need not be traced again.
    """
    config = schema.with_own_keys(config)
    schema.check(config)
    devices = devices or LAYOUTS[config.parallel]()
    checks.check_batch(config, devices, _minibatch(config).group_size)
    data = config.data.to_dict()
    part = SOURCES[entry(config.data.name)]
    source = make_source(data, part) if source is None else source
    checks.check(config, source)
    recipe, numbers = _make_recipe(config, devices, source), make_hyperparameters(config)
    alike = next((other.recipe for other in others if _traces_alike(other, config, numbers)), None)
    if alike is not None:
        recipe = _with_convolutions(recipe, alike.generator.convolves, alike.discriminator.convolves)
    elif schema.own_parts(values := schema.flatten(config.to_dict())) - {"data.name"}:
        one = mesh(jax.local_devices()[:1])
        alone = _make_recipe(config, one, source)  # without the mapped axis of the others
        if source.draw:
            shapes.check(values, alone, one, source, numbers)
        recipe = _with_known_networks(recipe, alone, source.shape)
    unroll = jax.default_backend() == "cpu" and (recipe.generator.convolves or recipe.discriminator.convolves)
    recipe = recipe._replace(unroll=unroll, frozen=_frozen(recipe, config.discriminator, source.shape))
    updates = config.steps_per_call * (config.discriminator.steps + 1)
    gradients = updates * config.accumulate * recipe.move.gradients_per_update
    if runs and recipe.unroll and gradients > MOST_UNROLLED:
        raise InputError(
            f"steps_per_call is {config.steps_per_call} and accumulate is {config.accumulate}: on a CPU the "
            f"{gradients} gradients of a call of convolutional networks are written out one by one, which would "
            f"compile for very long; lower the two until there are at most {MOST_UNROLLED}"
        )
    reference = partial(_reference, source, part, data)
    return Setup(config, devices, source, reference, recipe, numbers, run_keys(config.seed), title_of(config))


def title_of(config: ConfigDict) -> str:
    """What pictures of such a run are called."""
    return f"{config.data.name}, {config.objective.name}"


def _traces_alike(other: Setup, config: ConfigDict, numbers: Hyperparameters) -> bool:
    """Whether a run of the same program has the same objective and the same terms on."""
    return other.config.objective.name == config.objective.name and other.hyperparameters.keys() == numbers.keys()


def _reference(source: Source, part: Callable, data: dict, split: str) -> Source:
    """The images of a split as they were taken, not mirrored; `part`: what makes the source of a split."""
    if split == data["split"] and not data["flip"]:
        return source
    try:
        return make_source(data | {"split": split, "flip": False}, part)
    except InputError as error:
        raise InputError(str(error).replace("data.split", "evaluation.split")) from error


def initial_state(setup: Setup, other: TrainState | None = None) -> TrainState:
    """The state before the first step, on every device; with what config.init takes of the `other` run."""
    init = jax.jit(partial(first_state, setup), out_shardings=setup.devices.replicated)
    return init(setup.hyperparameters, setup.keys.training, other)


def abstract_state(setup: Setup) -> TrainState:
    """The shapes, dtypes and placement of a state, without its arrays: what a checkpoint is restored into."""
    shapes = jax.eval_shape(partial(first_state, setup), setup.hyperparameters, setup.keys.training)
    return setup.devices.placed_shapes(shapes)


def first_state(setup: Setup, hyperparameters: Hyperparameters, key, other: TrainState | None = None) -> TrainState:
    """`initial_state` as a pure function of these numbers and this key."""
    state = init_state(setup.recipe, hyperparameters, key, setup.source.shape)
    return state if other is None else started(setup.recipe, setup.config.init.players, state, other)


def make_hyperparameters(config) -> Hyperparameters:
    """The traced numbers of the parts that a config chooses. One that is off is left out: the step compiles less."""
    flat = schema.flatten(config.to_dict())
    keys = schema.own_keys(flat).items()
    numbers = {name: flat[name] for name, key in keys if key.traced and not (key.optional and flat[name] == 0)}
    if config.augment.policy == transforms.NONE or config.augment.probability == 0:
        numbers.pop("augment.probability")
    return {name: jnp.float32(number) for name, number in numbers.items()}


def merge_setups(setups: Sequence[Setup]) -> tuple[Setup, Hyperparameters]:
    """The setup of runs that differ in `schema.varying` alone, as one program, and their hyperparameters, each [runs].

    All but its recipe is that of the first run; its objective is each run's own, by number.
    """
    names = list(dict.fromkeys(setup.config.objective.name for setup in setups))
    keys = {}
    for setup in setups:
        keys |= schema.table(schema.flatten(setup.config.to_dict()))
    present = {name for setup in setups for name in setup.hyperparameters}
    # What a run does without is off in it: 0, as is the default, but for a probability.
    off = {name: 0 if name == "augment.probability" else keys[name].default for name in present}
    numbers = [
        {name: setup.hyperparameters.get(name, jnp.float32(off[name])) for name in present}
        | {"objective.name": jnp.int32(names.index(setup.config.objective.name))}
        for setup in setups
    ]
    recipe = setups[0].recipe._replace(objective=of_names(names, setups[0].config.objective))
    return setups[0]._replace(recipe=recipe), jax.tree.map(lambda *leaves: jnp.stack(leaves), *numbers)


def _make_recipe(config, devices: Devices, source: Source) -> Recipe:
    move, minibatch, augmentation = MOVES[config.moves], _minibatch(config), config.augment
    burn_in, clip = config.burn_in or config.num_steps, config.discriminator.clip
    noise_steps = augmentation.instance_noise_steps or config.num_steps
    policy = transforms.of_policy(augmentation.policy)
    move_keys = schema.move_group(config.moves)
    take = bind(move_keys, move.take, config.to_dict().get(move_keys, {}))({})
    prior = bind("latent", PRIORS[config.latent.prior], config.latent)({})

    def mean(x):
        return devices.mean(jnp.mean(x))

    penalties, own = {}, {"moves": Own(move.initial)} if move.initial else {}
    for name, values, registry, context in (
        ("penalty", config.penalty, PENALTIES, {"scale": source.std}),
        (OF_G, config.generator.penalty, GENERATOR_PENALTIES, {"prior": prior, "mean": mean}),
    ):
        part = registry[values.name]
        penalties[name] = None if values.name == "none" else bind(name, part, values, **context)
        if hasattr(part, "initial"):
            own[name] = Own(part.initial, part.update, values.every)
    return Recipe(
        generator=_make_network(config, devices, source, "generator"),
        discriminator=_make_network(config, devices, source, "discriminator"),
        objective=of_names([config.objective.name], config.objective),
        penalty=penalties["penalty"],
        penalty_every=config.penalty.every,
        generator_penalty=penalties[OF_G],
        generator_penalty_every=config.generator.penalty.every,
        own=own,
        schedule=partial(schedules.at_step, burn_in, noise_steps, config.batch_size),
        generator_tx=make_optimizer("generator.optimizer", config.generator.optimizer, burn_in, move.updates_per_step),
        discriminator_tx=make_optimizer(
            "discriminator.optimizer",
            config.discriminator.optimizer,
            burn_in,
            move.updates_per_step * config.discriminator.steps,
            clip_weights(clip) if clip else optax.identity(),
        ),
        prior=prior,
        augment=partial(augment.augmented, policy),
        transform=partial(augment.transformed, policy=policy, probability=1.0),
        update_regularizers=partial(
            regularizers.updated,
            config.discriminator.lecam_decay,
            config.batch_size * augmentation.ada_interval / augmentation.ada_images,
            augmentation.ada_interval,
        ),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        discriminator_steps=config.discriminator.steps,
        packing=minibatch.packing,
        group_size=minibatch.group_size,
        move=move._replace(take=take),
        one_pass=config.discriminator.one_pass,
        conditional=config.conditional,
        label_size=len(source.attributes),
    )


def _with_known_networks(recipe: Recipe, alone: Recipe, shape: tuple[int, ...]) -> Recipe:
    """The recipe, once it is known whether its networks convolve; `alone`: that of one device."""
    inputs = jax.eval_shape(partial(network_inputs, alone, shape=shape), jax.random.key(0))
    known = (convolves(network, *x) for network, x in zip((alone.generator, alone.discriminator), inputs, strict=True))
    return _with_convolutions(recipe, *known)


def _frozen(recipe: Recipe, values, shape: tuple[int, ...]) -> Callable | None:
    """What keeps the first `values.freeze` of D's `layers` as they are (arXiv:2002.10964); None: they all move."""
    if not values.freeze:
        return None
    known = f"config key discriminator.freeze is {values.freeze}, but {values.network}"
    if recipe.discriminator.opened is None:
        raise InputError(f"{known} is no Linen module, whose layers have an order; set it to 0")
    _, inputs = jax.eval_shape(partial(network_inputs, recipe, shape=shape), jax.random.key(0))
    numbers = layers(recipe.discriminator, *inputs)
    if values.freeze > (last := max(numbers.values(), default=0)):
        raise InputError(
            f"{known} has {last + 1} layer{'s' * bool(last)} here, and the last one moves; set it to {last} or less"
        )
    return partial(with_frozen, values.freeze, numbers)


def _with_convolutions(recipe: Recipe, generator: bool, discriminator: bool) -> Recipe:
    return recipe._replace(
        generator=recipe.generator._replace(convolves=generator),
        discriminator=recipe.discriminator._replace(convolves=discriminator),
    )


def make_generator(setup: Setup, form: str | Form) -> Network:
    """The generator of a setup with its convolutions in this form of `networks.cpu.forms`, or of that name."""
    return _make_network(setup.config, setup.devices, setup.source, "generator", form)


def _make_network(config, devices: Devices, source: Source, player: str, form: str | Form | None = None) -> Network:
    """The player's network; its class takes what it has a field for (see `gan_jax.networks`)."""
    values = config[player]
    context = {
        "shape": source.shape,
        "dtype": jnp.dtype(config.precision),
        "axis_name": devices.axis_name,
        "classes": len(source.classes or source.attributes) if config.conditional else 0,
        "form": form or config.convolution,
        "minibatch": _minibatch(config),
        "sums": values.spectral_norm,  # where weights are normalised, no weight can make up for a mean over pixels
    }
    part, own = getattr(FAMILIES[values.network], player), values.network not in FAMILIES
    with users_code(values.network) if own else nullcontext():
        return make_network(part, values, config.matmul_precision, own, **context)


def _minibatch(config) -> Minibatch:
    return Minibatch(**{field: config.discriminator[field] for field in Minibatch._fields})
