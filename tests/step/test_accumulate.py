"""Gradient accumulation: the update of the whole minibatch, in the memory of a part of it."""

import re
from collections import Counter
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.rounding import DESCENT, TOLERANCE, norm
from helpers.toys import discriminator_loss_of, generator_loss_of
from numpy.testing import assert_allclose

from gan_jax import recipe, step
from gan_jax.analysis.profiling import flops, hlo
from gan_jax.parallel.devices import example_keys, mesh, pmapped
from gan_jax.parallel.population_layout import population
from gan_jax.step import step as step_file
from gan_jax.sweep.population import Population
from gan_jax.utils.errors import InputError

STEPS = 2
LAYOUTS = {"mesh": mesh, "pmapped": pmapped}
CONVOLUTIONS = {"generator.normalization": "none", "discriminator.steps": 1}
LABELLED = {"conditional": True, "penalty.name": "r1", "penalty.weight": 1.0}
RECIPES = {
    "mixture": ("mixture", "ring8", {"discriminator.steps": 2}),  # mlp, rpgan, r1_r2: pairs of examples
    "wgan_gp": ("wgan_gp", None, CONVOLUTIONS),  # written out on a CPU; interpolates
    "conditional": ("digits", None, LABELLED),  # labels, a finite set
}
CASES = [(name, 4, "mesh", 1) for name in RECIPES] + [
    ("mixture", 16, "mesh", 1),  # micro-batches of a single example
    ("mixture", 4, "pmapped", 2),
    ("wgan_gp", 2, "pmapped", 4),
]


class Result(NamedTuple):
    """How far training moved the parameters and statistics of each player and the average, and what it reported."""

    moves: dict
    metrics: dict


def build(config, layout="mesh", count=1):
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipe.LAYOUTS, config.parallel, partial(LAYOUTS[layout], jax.devices()[:count]))
        return recipe.build(config)


def compiled(setup):
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    data = setup.devices.place(setup.source.data)
    return setup.devices.compile(function, recipe.abstract_state(setup), data), data


def players(state):
    chosen = {name: getattr(state, name) for name in ("generator", "discriminator", "ema")}
    return jax.tree.map(np.array, {name: (player.params, player.stats) for name, player in chosen.items()})


def train(setup):
    """The Result of STEPS compiled steps."""
    advance, data = compiled(setup)
    state, series = recipe.initial_state(setup), []
    before = players(state)
    for _ in range(STEPS):
        state, metrics = advance(state, data)
        series.append(jax.device_get(metrics))
    moves = jax.tree.map(np.subtract, players(state), before)
    return Result(moves, jax.tree.map(lambda *values: np.concatenate(values), *series))


def distance(actual, expected):
    """The largest relative difference of what moved in any player."""
    assert min(norm(move) for move in expected.values()) > 1e-3  # or the tolerance would hide it
    return max(norm(jax.tree.map(np.subtract, actual[name], move)) / norm(move) for name, move in expected.items())


@pytest.fixture(scope="module")
def whole(shrunk):
    """`whole(name)`: (the config with accumulate = n, the Result of one device that takes its batch as a whole)."""
    results = {}

    def config(name, accumulate):
        base, variant, changes = RECIPES[name]
        return shrunk(base, variant, DESCENT | changes | {"batch_size": 16, "accumulate": accumulate})

    def get(name):
        if name not in results:
            results[name] = partial(config, name), train(build(config(name, 1)))
        return results[name]

    return get


# --- the same update --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "accumulate", "layout", "count"), CASES)
def test_micro_batches_take_the_step_of_the_whole_batch(whole, name, accumulate, layout, count):
    config, expected = whole(name)
    result = train(build(config(accumulate), layout, count))
    assert distance(result.moves, expected.moves) < TOLERANCE
    assert result.metrics.keys() == expected.metrics.keys()
    for key, series in expected.metrics.items():
        assert_allclose(result.metrics[key], series, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)


def test_networks_of_both_loops_are_compared(whole):
    loops = {name: build(whole(name)[0](4)).recipe.unroll for name in ("mixture", "wgan_gp")}
    assert loops == {"mixture": False, "wgan_gp": jax.default_backend() == "cpu"}


def test_the_comparison_notices_a_wrong_micro_batch(whole, monkeypatch):
    config, expected = whole("mixture")
    setup = build(config(4))
    written_out = setup._replace(recipe=setup.recipe._replace(unroll=True))
    assert distance(train(written_out).moves, expected.moves) < TOLERANCE
    monkeypatch.setattr(step_file, "_after", lambda tree, j: jnp.maximum(j, 1))  # the second in the place of the first
    assert distance(train(written_out).moves, expected.moves) > 100 * TOLERANCE


def test_the_comparison_notices_other_pairs(whole, monkeypatch):
    """A relativistic objective compares each real example with one fake."""
    config, expected = whole("mixture")
    keys = step.discriminator_keys
    monkeypatch.setattr(step_file, "discriminator_keys", lambda *arguments: [each[::-1] for each in keys(*arguments)])
    assert distance(train(build(config(4))).moves, expected.moves) > 100 * TOLERANCE


@pytest.mark.parametrize("j", [0, 3])
def test_waiting_for_a_tree_changes_no_number(j):
    for values in ([1.0, 2.0], [np.inf, 1.0], [-np.inf, 1.0], [np.nan, np.nan]):
        assert int(jax.jit(step_file._after)({"w": jnp.array(values), "b": jnp.float32(3.0)}, jnp.int32(j))) == j


def test_the_members_of_a_population_accumulate_too(shrunk):
    changes = DESCENT | {"accumulate": 4, "penalty.name": "none", "penalty.weight": 0.0}
    setups = [build(shrunk("mixture", "ring8", changes | {"seed": seed})) for seed in range(2)]
    members = Population(setups, population("vmap", devices=jax.devices()[:1]))
    state = members.initial()
    state, _ = members.compiled(STEPS, state)(state, ())
    for i, setup in enumerate(setups):
        begun = players(recipe.initial_state(setup))
        moves = jax.tree.map(np.subtract, players(jax.tree.map(lambda x: x[i], state.members.state)), begun)  # noqa: B023
        assert distance(moves, train(setup).moves) < TOLERANCE


# --- batch normalisation ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def normalised(shrunk):
    """(`setup(accumulate)`, a state, a batch of 8) of DCGAN with batch normalisation in both players."""
    small = {f"{player}.{key}": 2 for player in ("generator", "discriminator") for key in ("width", "depth")}
    changes = DESCENT | small

    def setup(accumulate):
        return build(shrunk("dcgan", None, changes | {"accumulate": accumulate}))

    state, images = recipe.initial_state(setup(1)), np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 1))
    return setup, state, {"image": jnp.asarray(images, jnp.float32)}


def updates(setup, state, real, key):
    """Both players after an update of each from the same state."""
    arguments = setup.recipe, setup.devices, state, real, key
    discriminator, _ = step.discriminator_step(*arguments)
    generator, metrics = step.generator_step(*arguments)
    return {"discriminator": discriminator.discriminator, "generator": generator.generator}, metrics["g_loss"]


def test_a_micro_batch_normalises_by_itself_and_statistics_are_means(normalised):
    setup, state, real = normalised
    key = jax.random.key(3)
    accumulated, _ = jax.jit(partial(updates, setup(4)))(state, real, key)
    whole, _ = jax.jit(partial(updates, setup(1)))(state, real, key)
    for name, by_hand in jax.jit(partial(means, setup(1)))(state, real, key).items():
        before, after = getattr(state, name), accumulated[name]
        moved = [jax.tree.map(jnp.subtract, each.params, before.params) for each in (after, whole[name])]
        gradient, stats = by_hand
        expected = jax.tree.map(lambda x: -0.1 * x, gradient)
        assert norm(jax.tree.map(np.subtract, moved[0], expected)) < TOLERANCE * norm(expected)
        assert norm(jax.tree.map(np.subtract, moved[1], expected)) > 100 * TOLERANCE * norm(expected)
        assert jax.tree.leaves(stats)
        jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-6), after.stats, stats)


def means(setup, state, real, key):
    """The mean gradient and statistics of either player over four micro-batches, each normalised by itself."""
    made, found = setup.recipe, {"discriminator": [], "generator": []}
    for j in range(4):
        part = jax.tree.map(lambda x: x[j::4], real)  # noqa: B023
        keys = [each[j::4] for each in step.discriminator_keys(setup.devices, key, 8)]
        loss = jax.grad(partial(discriminator_loss_of(made), state), has_aux=True)
        found["discriminator"].append(loss(state.discriminator.params, part, *keys))
        loss = jax.grad(partial(generator_loss_of(made, setup.devices), state), has_aux=True)
        found["generator"].append(loss(state.generator.params, part, example_keys(setup.devices, key, 8)[j::4]))
    mean = {name: jax.tree.map(lambda *each: sum(each) / 4, *results) for name, results in found.items()}
    return {name: (gradient, stats) for name, (gradient, (stats, *_)) in mean.items()}


def test_normalised_micro_batches_are_the_same_on_many_devices(shrunk):
    config = shrunk("dcgan", None, DESCENT | {"accumulate": 2, "discriminator.one_pass": True})
    result, expected = train(build(config, "pmapped", 2)), train(build(config))
    assert distance(result.moves, expected.moves) < TOLERANCE


# --- what it costs ----------------------------------------------------------------------------------------------


@pytest.fixture
def program(shrunk, optimized):
    """`program(name, variant, changes, layout, count)`: (the Setup, its compiled step) as a run compiles it."""

    def get(name, variant, changes, layout="mesh", count=1):
        setup = build(shrunk(name, variant, changes), layout, count)
        return setup, compiled(setup)[0].compiled

    return get


LARGE = {
    "a loop": ("mixture", "ring8", {"batch_size": 1024, "penalty.name": "none", "penalty.weight": 0.0}),
    "written out": ("dcgan", None, {"batch_size": 512}),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_batch_needs_the_memory_of_its_micro_batches(program, kind):
    name, variant, changes = LARGE[kind]
    setup, at_once = program(name, variant, changes)
    _, accumulated = program(name, variant, changes | {"accumulate": 4})
    assert setup.recipe.unroll == (kind == "written out" and jax.default_backend() == "cpu")
    bytes_ = [each.memory_analysis().temp_size_in_bytes for each in (at_once, accumulated)]
    assert bytes_[1] < bytes_[0] / 2


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_new_state_takes_the_place_of_the_old_one(program, accumulate):
    setup, made = program("mixture", "ring8", {"accumulate": accumulate})
    leaves = jax.tree.leaves(recipe.abstract_state(setup))
    sizes = [4 * leaf.size if jnp.issubdtype(leaf.dtype, np.number) else 8 for leaf in leaves]  # a key has 8 bytes
    analysis = made.memory_analysis()
    assert analysis.alias_size_in_bytes >= sum(sizes)


def exchanged(made):
    """{kind: float32 numbers} that a program's collectives exchange, those of a loop once."""
    found = Counter()
    for each in hlo.collectives(hlo.parse(made.as_text())):
        found[each.kind] += each.bytes // 4
    return found


def test_under_pmap_gradients_are_averaged_once_an_update(shrunk):
    configs = [shrunk("mixture", "ring8", {"batch_size": 16, "accumulate": n}) for n in (1, 4)]
    at_once, accumulated = (exchanged(compiled(build(config, "pmapped", 4))[0].compiled) for config in configs)
    assert set(accumulated) == {"all-reduce"}
    assert accumulated == at_once


def test_over_a_mesh_examples_stay_on_their_device(shrunk):
    setup = build(shrunk("mixture", "ring8", {"batch_size": 16, "accumulate": 4}), "mesh", 4)
    found, state = exchanged(compiled(setup)[0].compiled), recipe.abstract_state(setup)
    assert set(found) == {"all-reduce"}
    parameters = sum(leaf.size for leaf in jax.tree.leaves((state.generator.params, state.discriminator.params)))
    # In each micro-batch, the gradients (D's in parts that XLA adds up later) and some scalars.
    assert parameters < found["all-reduce"] < 3 * parameters


def test_micro_batches_are_shared_by_the_devices(shrunk):
    changes = {"batch_size": 256, "accumulate": 2, "generator.width": 64, "discriminator.width": 64}
    found = []
    for count in (1, 4):
        setup = build(shrunk("mixture", "ring8", changes), "mesh", count)
        written_out = setup._replace(recipe=setup.recipe._replace(unroll=True))  # XLA counts a loop's body once
        found.append(compiled(written_out)[0].compiled.cost_analysis()["flops"])  # of one device
    assert 0.2 < found[1] / found[0] < 0.35


@pytest.mark.parametrize(("name", "variant"), [("mixture", "ring8"), ("dcgan", None)])
def test_all_micro_batches_are_counted(shrunk, name, variant):
    counts = []
    for accumulate in (1, 4):
        setup = build(shrunk(name, variant, {"accumulate": accumulate, "convolution": "plain"}))
        function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
        counts.append(flops.count(function, recipe.abstract_state(setup), setup.source.data))
    assert counts[0] == counts[1] > 0


# --- mistakes ---------------------------------------------------------------------------------------------------


def test_a_batch_without_so_many_equal_micro_batches_is_an_error(shrunk):
    message = (
        "config key batch_size is 8, which does not split into accumulate=3 micro-batches with an equal share for each "
        "device (1 here); it must be a multiple of 3"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        build(shrunk("mixture", "ring8", {"accumulate": 3}))
    config = shrunk("mixture", "ring8", {"accumulate": 4})
    assert build(config, "mesh", 2).recipe.accumulate == 4
    for layout in LAYOUTS:
        with pytest.raises(InputError, match=r"\(4 here\); it must be a multiple of 16$"):
            build(config, layout, 4)
    with pytest.raises(InputError, match="config key accumulate is 0; it must be a positive integer"):
        build(shrunk("mixture", "ring8", {"accumulate": 0}))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere convolutions run in loops")
def test_more_micro_batches_than_can_be_written_out_are_an_error(shrunk):
    message = r"accumulate is 32: on a CPU the 64 gradients .*; lower the two until there are at most 32$"
    with pytest.raises(InputError, match=message):
        build(shrunk("dcgan", None, {"batch_size": 64, "accumulate": 32}))
    assert build(shrunk("mixture", "ring8", {"batch_size": 64, "accumulate": 64})).recipe.accumulate == 64
