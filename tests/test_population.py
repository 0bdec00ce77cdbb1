"""Populations: a member's trajectory is that of the same run alone, and one that is lost takes nobody with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.devices import mesh
from gan_jax.objectives import LOGISTIC, NAMED, OBJECTIVES, choose
from gan_jax.population import Population
from gan_jax.population_layout import population

NAMES = list(OBJECTIVES)


# Objectives as data.


@pytest.mark.parametrize("name", NAMES)
def test_the_chosen_objective_is_that_one(name):
    real, fake = jnp.array([-2.0, 0.3, 1.5]), jnp.array([0.7, -1.1, 2.0])
    chosen = jax.jit(lambda index: _all_of(choose(list(OBJECTIVES.values()), index), real, fake))(NAMES.index(name))
    for found, expected in zip(chosen, _all_of(OBJECTIVES[name], real, fake), strict=True):
        assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def _all_of(objective, real, fake):
    """Values and derivatives of everything in it."""

    def total(function, first, second):
        return jnp.sum(function(first, second))

    pairs = (objective.discriminator, real, fake), (objective.generator, fake, real)
    gradients = [jax.grad(partial(total, function), argnums=(0, 1))(a, b) for function, a, b in pairs]
    values = [function(a, b) for function, a, b in pairs]
    return [*values, objective.divergence(real, fake), *jax.tree.leaves(gradients), jnp.float32(objective.undecided)]


def test_an_infinity_of_one_objective_does_not_reach_a_run_of_another():
    pair = [OBJECTIVES["wgan"], OBJECTIVES["mle"]]
    slope = jax.grad(lambda b, index: choose(pair, index).generator(b, 0.0))
    found = jax.jit(jax.vmap(slope))(jnp.array([200.0, 200.0]), jnp.array([0, 1]))
    assert found[0] == -1
    assert found[1] == -np.inf


# Members.


def alone(config, steps):
    """The state and the metrics of a run by itself on one device."""
    setup = recipe.build(config, mesh(jax.devices()[:1]))
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, steps)
    state = recipe.initial_state(setup)
    return setup.devices.compile(function, state, setup.source.data)(state, setup.source.data)


def together(configs, layout, steps):
    """The states of the runs and their metrics, as a population."""
    devices = layout.within if layout.within.count > 1 else mesh(jax.devices()[:1])
    crowd = Population([recipe.build(config, devices) for config in configs], layout)
    crew = crowd.initial()
    call = crowd.compiled(steps, crew)
    return call(crew, layout.within.place(crowd.setup.source.data))


def assert_is_member(crew, index, state, tolerance):
    """Member `index` of the crew is in this state, up to `tolerance` of each array's largest number."""
    member = jax.tree.map(lambda x: x[index], crew.members.state)
    for found, expected in zip(*map(jax.tree.leaves, (_numbers(member), _numbers(state))), strict=True):
        assert found.shape == expected.shape
        assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(np.abs(expected).max(initial=0), 1e-3))


def _numbers(state):
    numbers = {field: getattr(state.hyperparameters, field) for field in recipe.COMPILED_IN}
    zero = jnp.zeros_like(state.hyperparameters.ema_decay)
    numbers = {field: zero if number is None else number for field, number in numbers.items()}
    kept = state.replace(key=None, hyperparameters=state.hyperparameters.replace(objective=None, **numbers))
    return jax.device_get(kept)


CHANGES = [
    {"objective.name": "non_saturating", "seed": 3},
    {"objective.name": "mle", "objective.label_smoothing": 0.1},
    {"objective.name": "wgan", "generator.optimizer.learning_rate": 1e-3},
    {"objective.name": "rpgan", "discriminator.optimizer.b1": 0.0, "generator.optimizer.b2": 0.9}
    | {"augment.instance_noise": 0.3, "discriminator.optimizer.b2_to": 0.8},
    {"objective.name": "hinge", "generator.ema_decay": 0.0, "penalty.weight": 2.0}
    | {"generator.ema_half_life": 20.0, "penalty.weight_to": 0.5},
    {"objective.name": "lsgan", "seed": 3, "discriminator.optimizer.learning_rate": 1e-3}
    | {"objective.feature_matching": 0.5},
]


@pytest.fixture(scope="module", params=["ring8", "digits"])
def by_themselves(request, shrunk):
    """Runs that differ in what a population's may: (their configs, three steps of each alone)."""
    common = {"data.name": request.param, "penalty.name": "r1", "penalty.weight": 0.5}
    chosen = CHANGES if request.param == "ring8" else CHANGES[-2:]
    configs = [shrunk("mixture", "ring8", common | changes) for changes in chosen]
    return configs, [alone(config, 3) for config in configs]


@pytest.mark.parametrize("how", ["vmap", "map"])
def test_a_member_of_mlps_is_the_run_alone(by_themselves, how):
    configs, runs = by_themselves
    crew, metrics = together(configs, population(how), 3)
    for i, (state, expected) in enumerate(runs):
        assert_is_member(crew, i, state, 1e-4)
        for name, values in expected.items():
            assert_allclose(metrics[name][i], values, rtol=1e-3, atol=1e-4)
    assert int(crew.step) == 3


def test_a_member_of_convolutions_is_the_run_alone(shrunk):
    configs = [shrunk("dcgan", None, {"seed": seed}) for seed in range(2)]
    crew, _ = together(configs, population("unroll", devices=jax.devices()[:2]), 2)
    for i, config in enumerate(configs):
        assert_is_member(crew, i, alone(config, 2)[0], 1e-3)


@pytest.mark.parametrize(
    "changes",
    [{"generator.normalization": "batch"}, {"generator.spectral_norm": True, "discriminator.spectral_norm": True}],
    ids=["batch", "spectral"],
)
def test_devices_may_share_a_member(shrunk, changes):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    changes = changes | {"batch_size": 8, "penalty.name": "none", "penalty.weight": 0.0}
    configs = [shrunk("mixture", "ring8", {"seed": seed} | changes) for seed in range(3)]
    crew, metrics = together(configs, population("vmap", per_member=2), 3)
    for i, config in enumerate(configs):
        state, expected = alone(config, 3)
        assert_is_member(crew, i, state, 1e-4)
        assert_allclose(metrics["d_loss"][i], expected["d_loss"], rtol=1e-4)


def test_members_lie_on_their_devices_and_do_not_communicate(shrunk):
    if jax.device_count() < 2:
        pytest.skip("needs more than one device")
    layout, one = population("vmap"), mesh(jax.devices()[:1])
    crowd = Population([recipe.build(shrunk("mixture", "ring8", {"seed": seed}), one) for seed in range(5)], layout)
    crew = crowd.initial()
    share = -(-5 // jax.device_count())
    for leaf in jax.tree.leaves(crew.members.state.generator.params):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {share}
    text = crowd.compiled(2, crew).program.compiled.as_text()
    assert not [word for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all") if word in text]


def test_a_lost_member_is_frozen_and_the_others_go_on(shrunk):
    rates = {"generator.optimizer.learning_rate": 1e30, "discriminator.optimizer.learning_rate": 1e30}
    good, bad = shrunk("mixture", "ring8", {"seed": 1}), shrunk("mixture", "ring8", rates)
    layout, one = population("vmap"), mesh(jax.devices()[:1])
    crowd = Population([recipe.build(config, one) for config in (good, bad)], layout)
    first = jax.device_get(_numbers(crowd.initial().members.state))
    crew = crowd.initial()
    call = crowd.compiled(4, crew)
    for _ in range(2):
        crew, metrics = call(crew, ())
        assert not np.isfinite(metrics["d_loss"][1]).all()
    assert_array_equal(crew.members.alive[:2], [1, 0])
    after = _numbers(crew.members.state)
    for was, found in zip(jax.tree.leaves(first), jax.tree.leaves(after), strict=True):
        assert_array_equal(found[1], was[1])
    assert_is_member(crew, 0, alone(good, 8)[0], 1e-4)


def test_one_objective_needs_no_number(shrunk):
    setup = recipe.build(shrunk("mixture", "ring8"))
    joined, numbers = recipe.together([setup, setup])
    assert joined.recipe.objective(setup.hyperparameters) is OBJECTIVES["rpgan"]
    assert_array_equal(numbers.objective, [0, 0])
    assert set(LOGISTIC) < set(NAMED)
