"""One step, many devices: the same training as on one, the work shared, and no more said between them than it needs.

For a process with eight fake devices, which `test_devices.py` starts. By hand:
XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m pytest -n 0 tests/on_eight_devices.py
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.rounding import DESCENT, TOLERANCE, norm
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import networks, recipe, step
from gan_jax.analysis.profiling import hlo
from gan_jax.objectives import OBJECTIVES
from gan_jax.parallel.devices import mesh, pmapped
from gan_jax.penalties import PENALTIES
from gan_jax.step.state import TrainState

STEPS = 3
LAYOUTS = {"mesh": mesh, "pmapped": pmapped}

BATCH = {f"{player}.normalization": "batch" for player in ("generator", "discriminator")}
PLAIN = {f"{player}.normalization": "none" for player in ("generator", "discriminator")}
NO_PENALTY = {"penalty.name": "none", "penalty.weight": 0.0}
CONSTANT_B2 = {f"{player}.optimizer.b2_to": 0.0 for player in ("generator", "discriminator")}  # for DESCENT
DEEP = {"discriminator.depth": 2}  # a DCGAN's first layer is not normalised


def penalty(name):
    return {"penalty.name": name, "penalty.weight": 1.0}


# Between them every network with and without batch normalisation, every penalty, labels in each way that they get in,
# resident and generated data; of `objectives` every objective, in one program.
RECIPES = {
    "objectives": ("mixture", "ring8", {}),  # r1_r2; the shipped one is rpgan, which compares examples in pairs
    "steep": ("mixture", "ring8", penalty("wgan_gp_one_sided")),  # see `alone`
    "mlp": ("digits", None, BATCH | {"conditional": True}),
    "dcgan": ("dcgan", None, DEEP),
    "dcgan_plain": ("dcgan", None, PLAIN | penalty("dragan") | {"conditional": True}),  # noise in every component
    "wgan": ("wgan", None, DEEP | {"discriminator.steps": 1, "discriminator.one_pass": True, "conditional": True}),
    "wgan_gp": ("wgan_gp", None, {}),  # two critic steps
    "resnet": ("resnet", None, PLAIN | penalty("r2") | {"penalty.weight": 0.01, "discriminator.steps": 1}),
    "resnet_batch": ("resnet", None, BATCH | NO_PENALTY | {"convolution": "plain", "discriminator.steps": 1}),
    "r3gan": ("r3gan", None, CONSTANT_B2 | {"penalty.name": "r1", "conditional": True}),
}

# Parts of one's own: noise in both networks, a penalty on D that keeps a state and reports, one on G.
OWN = {
    "generator.network": "helpers.own_parts:NoisyGenerator",
    "discriminator.network": "helpers.own_parts:NoisyDiscriminator",
    "generator.penalty.name": "mode_seeking",
    "generator.penalty.weight": 0.1,
    "penalty.every": 2,
}
OWN = {"own": ("mixture", "ring8", OWN | penalty("helpers.own_parts:centred_r1"))}

# Each is a compilation: all on eight devices under both layouts, every objective and batch normalisation on fewer too.
CASES = [
    *((name, layout, 8) for name in RECIPES for layout in LAYOUTS),
    ("objectives", "mesh", 2),
    ("objectives", "pmapped", 4),
    ("mlp", "mesh", 2),
    ("mlp", "pmapped", 4),
    ("steep", "pmapped", 1),
    *(("own", layout, 8) for layout in LAYOUTS),
]


class Result(NamedTuple):
    """Where training took each part of the state, how far that is, and what it reported, on the host."""

    state: dict
    moves: dict
    metrics: dict


class Trained(NamedTuple):
    """One program and what it did."""

    setup: recipe.Setup
    program: hlo.Program
    results: list[Result]  # of one run; of each objective where there are several
    last: TrainState


@pytest.fixture(scope="module", autouse=True)
def _eight_devices():
    assert jax.device_count() == 8


def build(config, layout, count):
    """The config's Setup on the first `count` devices: networks know the layout's mapped axis."""
    return recipe.build(config, layout(jax.devices()[:count]))


def compared(state):
    """What the layouts must agree on, by name."""
    players = {name: getattr(state, name) for name in ("generator", "discriminator", "ema")}
    return {f"{name}.{kind}": getattr(player, kind) for name, player in players.items() for kind in ("params", "stats")}


def setup_of(shrunk, name, layout, count):
    """(the setup, the hyperparameters of each of its runs)."""
    base, variant, changes = (RECIPES | OWN)[name]
    names = OBJECTIVES if name == "objectives" else [None]
    configs = [
        shrunk(base, variant, DESCENT | changes | ({"objective.name": objective} if objective else {}))
        for objective in names
    ]
    setups = [build(config, layout, count) for config in configs]
    if len(setups) == 1:
        return setups[0], [setups[0].hyperparameters]
    setup, numbers = recipe.merge_setups(setups)
    return setup, [jax.tree.map(lambda x, i=i: x[i], numbers) for i in range(len(setups))]


def train(setup, runs, start):
    """Trained: a few compiled steps from `start`, with the hyperparameters of each run."""
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    data = setup.devices.place(setup.source.data)
    program = setup.devices.compile(function, setup.devices.place(start), data)
    results = []
    for numbers in runs:
        state = setup.devices.place(jax.tree.map(jnp.copy, start.replace(hyperparameters=numbers)))
        series = []
        for _ in range(STEPS):
            state, metrics = program(state, data)
            series.append(jax.device_get(metrics))
        assert int(state.step) == STEPS
        before, after = (jax.tree.map(np.array, compared(point)) for point in (start, state))
        moves = jax.tree.map(np.subtract, after, before)
        results.append(Result(after, moves, jax.tree.map(lambda *values: np.concatenate(values), *series)))
    return Trained(setup, hlo.parse(program.compiled.as_text()), results, state)


def distance(actual, expected):
    """The largest relative difference of any part's moves."""
    assert actual.keys() == expected.keys()
    ratios = []
    for name, move in expected.items():
        if jax.tree.leaves(move):
            assert norm(move) > 0, f"{name} did not move"
            ratios.append(norm(jax.tree.map(np.subtract, actual[name], move)) / norm(move))
    return max(ratios)


@pytest.fixture(scope="module")
def alone(shrunk):
    """`alone(name)`: (the state at the start, Trained on one device under jit) of a recipe, trained once."""
    kept = {}

    def get(name):
        if name not in kept:
            setup, runs = setup_of(shrunk, name, mesh, 1)
            start = recipe.initial_state(setup).replace(hyperparameters=runs[0])
            if setup.config.penalty.name == "wgan_gp_one_sided":  # slopes above 1 alone cost
                steep = jax.tree.map(lambda x: 2 * x, start.discriminator.params)
                start = start.replace(discriminator=start.discriminator.replace(params=steep))
            kept[name] = start, train(setup, runs, start)
        return kept[name]

    return get


@pytest.fixture(scope="module")
def shared(shrunk, alone):
    """`shared(name, layout, count)`: Trained of a recipe, from the same start, once."""
    kept = {}

    def get(name, layout, count):
        if (name, layout, count) not in kept:
            setup, runs = setup_of(shrunk, name, LAYOUTS[layout], count)
            kept[name, layout, count] = train(setup, runs, alone(name)[0])
        return kept[name, layout, count]

    return get


# --- the same training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layout", "count"), CASES)
def test_training_on_many_devices_is_training_on_one(alone, shared, name, layout, count):
    for result, expected in zip(shared(name, layout, count).results, alone(name)[1].results, strict=True):
        assert distance(result.moves, expected.moves) < TOLERANCE
        assert result.metrics.keys() == expected.metrics.keys()
        for key, series in expected.metrics.items():
            assert_allclose(result.metrics[key], series, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_compared_do_what_they_are_there_for(alone, name):
    trained = alone(name)[1]
    config, results = trained.setup.config, trained.results
    for result in results:
        assert all(np.isfinite(series).all() and series.shape == (STEPS,) for series in result.metrics.values())
        for player in ("generator", "discriminator"):
            assert bool(jax.tree.leaves(result.moves[f"{player}.stats"])) == (config[player].normalization == "batch")
        assert np.all(result.metrics["penalty"] > 0) == (config.penalty.name != "none")
        # Nothing is so small that the tolerance would hide it.
        assert min(norm(move) for move in result.moves.values() if jax.tree.leaves(move)) > 1e-3
    if config.discriminator.clip:
        largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(results[0].state["discriminator.params"]))
        assert largest == np.float32(config.discriminator.clip)


def test_the_recipes_compared_cover_what_there_is(alone):
    configs = {name: alone(name)[1].setup.config for name in RECIPES}
    assert {config.penalty.name for config in configs.values()} == set(PENALTIES)
    for player in ("generator", "discriminator"):
        met = {(config[player].network, config[player].normalization) for config in configs.values()}
        assert met == {
            (name, kind)
            for name, family in networks.FAMILIES.items()
            for kind in (("none", "batch") if networks.has(family.generator, "normalization") else ("none",))
        }
    results = alone("objectives")[1].results
    assert len({result.metrics["d_loss"].tobytes() + result.metrics["g_loss"].tobytes() for result in results}) == len(
        OBJECTIVES
    )


@pytest.mark.parametrize("broken", ["mean", "shard_index"])
def test_the_comparison_notices_a_broken_collective(shrunk, alone, broken):
    start, expected = alone("steep")
    setup, runs = setup_of(shrunk, "steep", pmapped, 2)
    replacement = {"mean": lambda tree: tree, "shard_index": lambda: 0}[broken]
    (result,) = train(setup._replace(devices=setup.devices._replace(**{broken: replacement})), runs, start).results
    assert distance(result.moves, expected.results[0].moves) > 100 * TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_device_ends_with_the_same_bits(shared, layout):
    for leaf in jax.tree.leaves(compared(shared("dcgan", layout, 8).last)):
        assert len(leaf.devices()) == 8
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(copy.shape == leaf.shape for copy in copies)
        for copy in copies[1:]:
            assert_array_equal(copy, copies[0])


# --- what the devices say to each other -------------------------------------------------------------------------


def size(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


# Scalars that a step averages: d_loss, d_real, d_fake, divergence, penalty, d_accuracy_real, d_accuracy_fake of D's
# last update, and g_loss; and of every update the largest |logit|, which goes into max_logit. Norms need none.
AVERAGED = 8


def expected_bytes(setup, state):
    """What one train step has to move: gradients, statistics and metrics, each once.

    Batch normalisation moves two numbers a channel in every pass, forward (mean and mean square) and, where the pass is
    derived, backward; `stats` holds two numbers a channel.
    """
    k, passes = setup.recipe.discriminator_steps, 1 if setup.recipe.one_pass else 2
    generator, discriminator = state.generator, state.discriminator
    gradients = k * size(discriminator.params) + size(generator.params)
    statistics = (k + 2) * size(generator.stats) + (2 * passes * k + 2) * size(discriminator.stats)
    if setup.devices.axis_name:  # the new running statistics, which all devices have alike, are averaged as well
        statistics += size(generator.stats) + k * size(discriminator.stats)
    return gradients + statistics + 4 * (AVERAGED + k + 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RECIPES)
def test_devices_average_gradients_statistics_and_metrics_and_nothing_else(shared, name, layout):
    setup, program, _, state = shared(name, layout, 8)
    met = hlo.collectives(program)
    assert {collective.kind for collective in met} == {"all-reduce"}
    assert all(collective.bytes % 4 == 0 for collective in met)  # float32: no byte asks whether a loop goes on
    moved, expected = sum(collective.bytes * collective.count for collective in met), expected_bytes(setup, state)
    if layout == "pmapped":
        # Of a WGAN's critic XLA knows that the last bias, a float32, has the gradient 0.
        assert expected - 4 * setup.recipe.discriminator_steps <= moved <= expected
    else:
        assert moved <= expected + again(setup, state)


def again(setup, state):
    """Bytes that XLA:CPU moves more than it has to under jit: it averages each term of a sum by itself.

    D's gradient has a term from each pass, and two from each point at which a penalty takes the critic's slope.
    """
    config = setup.config
    points = {"none": 0, "r1_r2": 2}.get(config.penalty.name, 1)
    terms = (1 if config.discriminator.one_pass else 2) + 2 * points
    return (terms - 1) * config.discriminator.steps * size(state.discriminator.params)


# --- shared work ------------------------------------------------------------------------------------------------


def step_flops(config, layout, count):
    """FLOPs of one device in a step of both players."""
    setup = build(config, LAYOUTS[layout], count)
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    data = setup.devices.place(setup.source.data)
    return setup.devices.compile(function, recipe.abstract_state(setup), data).compiled.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("steep", [("mesh", 8)]),
        ("dcgan", [("mesh", 2), ("mesh", 8), ("pmapped", 4)]),
    ],
)
def test_each_device_does_its_share_of_the_work(shrunk, name, places):
    base, variant, changes = RECIPES[name]
    config = shrunk(base, variant, DESCENT | changes | {"batch_size": 512})  # what is not of an example is little
    alone = step_flops(config, "mesh", 1)
    for layout, count in places:
        assert alone < count * step_flops(config, layout, count) < 1.05 * alone
