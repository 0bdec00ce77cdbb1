"""Many devices: the same training as on one, the work shared, the statistics of the whole batch."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.devices import AXIS, example_keys, mesh, pmapped
from gan_jax.errors import InputError

STEPS = 3
LAYOUTS = {"mesh": mesh, "pmapped": pmapped}

# The networks, losses, penalties and schedules are those of the shipped recipes; the optimiser is gradient descent.
# The layouts differ by the order of their sums, so by rounding, and Adam (at its first step, or with b1 = 0) and
# RMSProp divide a gradient by its own size: one that is zero but for rounding moves its weight by a whole learning
# rate, to either side. The rates are large, so that what is compared moved by much more than the tolerance.
DESCENT = {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"name": "sgd", "b1": 0.5, "learning_rate": 0.1, "decay_to": 1.0}.items()
}
RECIPES = {
    "mixture": ("mixture", "ring8", {}),  # mlp, rpgan, r1_r2: pairs of examples, a penalty
    "dcgan": ("dcgan", None, {}),  # batch normalisation in both players
    "wgan_gp": ("wgan_gp", None, {}),  # two critic steps, interpolates
    "wgan": ("wgan", None, {"discriminator.steps": 1}),  # clipped weights and batch normalisation
    "mle_gan": ("mle_gan", None, {"discriminator.one_pass": True}),  # real and fake normalised together
    "conditional": ("digits", None, {"conditional": True, "penalty.name": "r1", "penalty.weight": 1.0}),  # labels
    "dragan": ("digits", None, {"penalty.name": "dragan", "penalty.weight": 1.0}),  # noise in every component
}

# Relative to the norm of what is compared. Float32 rounds at 6e-8; after these steps 1e-6 of a move is seen, and a
# scale near 1 that moved little could lose ten times that to one rounding. A broken collective costs more than 1e-2.
TOLERANCE = 1e-4


# Each case is a compilation: every recipe once under jit and once under pmap, two of them on other counts as well.
CASES = [(name, *place) for name in RECIPES for place in (("mesh", 4), ("pmapped", 2))] + [
    ("mixture", "mesh", 2),
    ("mixture", "pmapped", 1),
    ("mixture", "pmapped", 4),
    ("dcgan", "mesh", 2),
    ("dcgan", "pmapped", 4),
]


class Result(NamedTuple):
    """Where training took each part of the state, how far that is, and what it reported, on the host."""

    state: dict
    moves: dict
    metrics: dict


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    """Compiling is most of the time here, and these few steps gain nothing by XLA's care."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def some(count):
    """The first `count` devices; skips where there are fewer."""
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    return jax.devices()[:count]


def build(config, layout, count):
    """The config's Setup on `count` devices: as in a run, so that networks know the layout's mapped axis."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipe.LAYOUTS, config.parallel, partial(layout, some(count)))
        return recipe.build(config)


def parts(state):
    """What the layouts must agree on, by name."""
    players = {name: getattr(state, name) for name in ("generator", "discriminator", "ema")}
    return {f"{name}.{kind}": getattr(player, kind) for name, player in players.items() for kind in ("params", "stats")}


def train(setup, steps=STEPS):
    """The Result of a few compiled steps."""
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    state, data, series = recipe.initial_state(setup), setup.devices.place(setup.source.data), []
    compiled = setup.devices.compile(function, state, data)
    before = jax.tree.map(np.array, parts(state))
    for _ in range(steps):
        state, metrics = compiled(state, data)
        series.append(jax.device_get(metrics))
    assert int(state.step) == steps
    after = jax.tree.map(np.array, parts(state))
    return Result(
        after, jax.tree.map(np.subtract, after, before), jax.tree.map(lambda *values: np.concatenate(values), *series)
    )


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))


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
    """`alone(name)`: (config, Result on one device under jit) of a recipe, trained once."""
    results = {}

    def get(name):
        if name not in results:
            base, variant, changes = RECIPES[name]
            config = shrunk(base, variant, DESCENT | changes)
            results[name] = config, train(build(config, mesh, 1))
        return results[name]

    return get


# --- the same training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "layout", "count"), CASES)
def test_training_on_many_devices_is_training_on_one(alone, name, layout, count):
    config, expected = alone(name)
    result = train(build(config, LAYOUTS[layout], count))
    assert distance(result.moves, expected.moves) < TOLERANCE
    assert result.metrics.keys() == expected.metrics.keys()
    for key, series in expected.metrics.items():
        assert_allclose(result.metrics[key], series, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_compared_do_what_they_are_there_for(alone, name):
    config, result = alone(name)
    assert all(np.isfinite(series).all() and series.shape == (STEPS,) for series in result.metrics.values())
    assert bool(jax.tree.leaves(result.moves["generator.stats"])) == (config.generator.normalization == "batch")
    assert np.all(result.metrics["penalty"] > 0) == (config.penalty.name != "none")
    # Nothing is so small that the tolerance would hide it.
    assert min(norm(move) for move in result.moves.values() if jax.tree.leaves(move)) > 1e-3
    if config.discriminator.clip:
        largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(result.state["discriminator.params"]))
        assert largest == np.float32(config.discriminator.clip)


@pytest.mark.parametrize("broken", ["mean", "part"])
def test_the_comparison_notices_a_broken_collective(alone, broken):
    config, expected = alone("mixture")
    setup = build(config, pmapped, 2)
    replacement = {"mean": lambda tree: tree, "part": lambda: 0}[broken]
    result = train(setup._replace(devices=setup.devices._replace(**{broken: replacement})))
    assert distance(result.moves, expected.moves) > 100 * TOLERANCE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_device_ends_with_the_same_bits(alone, layout):
    setup = build(alone("mixture")[0], LAYOUTS[layout], 4)
    state = recipe.initial_state(setup)
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    state, _ = setup.devices.compile(function, state, ())(state, ())
    for leaf in jax.tree.leaves((state.generator, state.discriminator, state.ema)):
        assert len(leaf.devices()) == 4
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(copy.shape == leaf.shape for copy in copies)
        for copy in copies[1:]:
            assert_array_equal(copy, copies[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_that_devices_cannot_share_equally_is_an_error(shrunk, layout):
    config = shrunk("mixture", "ring8", {"batch_size": 6})
    with pytest.raises(InputError, match="batch_size is 6, which 4 devices cannot share equally"):
        build(config, LAYOUTS[layout], 4)
    assert build(config, LAYOUTS[layout], 2).devices.count == 2


# --- randomness -------------------------------------------------------------------------------------------------


def all_keys(layout, count, n):
    """The keys of a batch of n examples on `count` devices, in order, as numbers."""
    devices, key = layout(some(count)), jax.random.key(5)
    if layout is mesh:
        return np.asarray(jax.random.key_data(jax.jit(lambda: example_keys(devices, key, n))()))
    mapped = jax.pmap(
        lambda _: jax.random.key_data(example_keys(devices, key, n // devices.parts)),
        axis_name=AXIS,
        devices=some(count),
    )
    return np.concatenate(np.asarray(mapped(np.arange(count))))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_examples_key_does_not_depend_on_the_devices(layout, count):
    keys = all_keys(LAYOUTS[layout], count, 8)
    assert len(np.unique(keys, axis=0)) == 8
    expected = [jax.random.key_data(jax.random.fold_in(jax.random.key(5), slot)) for slot in range(8)]
    assert_array_equal(keys, expected)


# --- shared work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_noise_is_born_on_the_device_that_uses_it(shrunk, count):
    setup = build(shrunk("mixture", "ring8"), mesh, count)
    latents = jax.jit(lambda key: setup.recipe.prior(example_keys(setup.devices, key, 8)))(jax.random.key(0))
    assert [shard.data.shape for shard in latents.addressable_shards] == [(8 // count, 2)] * count


def test_the_work_of_a_step_is_shared_by_the_devices(shrunk):
    changes = {"batch_size": 256, "generator.width": 64, "discriminator.width": 64}  # the examples' share dominates
    config, flops = shrunk("digits", None, changes), {}
    for count in (1, 2, 4):
        setup = build(config, mesh, count)
        function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
        data = setup.devices.place(setup.source.data)
        compiled = setup.devices.compile(function, recipe.initial_state(setup), data)
        flops[count] = compiled.compiled.cost_analysis()["flops"]  # of one device
    assert 0.45 < flops[2] / flops[1] < 0.6
    assert 0.2 < flops[4] / flops[1] < 0.35


# --- batch normalisation ----------------------------------------------------------------------------------------


def normalised(setup, latents):
    """(the generator's statistics and images of this batch): images [parts, n, ...], over all devices."""
    devices, average = setup.devices, recipe.initial_state(setup).ema
    n = len(latents) // devices.parts

    def apply(average, latents):
        z = devices.shard(jax.lax.dynamic_slice_in_dim(latents, devices.part() * n, n))
        images, stats = setup.recipe.generator.apply(average.params, average.stats, z, True)
        return stats, jax.lax.all_gather(images, AXIS) if devices.axis_name else images[None]

    data = devices.place(latents)
    stats, images = jax.device_get(devices.compile(apply, average, data)(average, data))
    return stats, images.reshape(len(latents), *images.shape[2:])


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["digits", "dcgan"])  # an mlp and a convolutional network
def test_batch_normalisation_sees_the_whole_batch(shrunk, name, layout):
    config = shrunk(name, None, {"generator.normalization": "batch"})
    # Far apart, since DCGAN starts with weights of 0.02: batches of such latents differ.
    latents = jnp.asarray(np.random.default_rng(0).normal(0, 20, (8, config.latent.dim)), jnp.float32)
    one = build(config, mesh, 1)
    stats, images = normalised(one, latents)
    shard_stats, shard_images = normalised(one, latents[:2])
    shared_stats, shared_images = normalised(build(config, LAYOUTS[layout], 4), latents)

    # A few float32 roundings, of sums of a batch and of what is divided by its standard deviation.
    assert jax.tree.leaves(stats)
    assert_allclose(shared_images, images, rtol=1e-4, atol=1e-4)
    assert not np.allclose(shard_images, images[:2], rtol=1e-2, atol=1e-3)
    for shared, whole, shard in zip(*map(jax.tree.leaves, (shared_stats, stats, shard_stats)), strict=True):
        assert_allclose(shared, whole, rtol=1e-4, atol=1e-5)
        assert not np.allclose(shard, whole, rtol=1e-3, atol=1e-4)
