"""Populations: a member's trajectory is that of the same run alone, and one that is lost takes nobody with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.config import schema
from gan_jax.objectives import OBJECTIVES, choose
from gan_jax.parallel.devices import mesh
from gan_jax.parallel.population_layout import population
from gan_jax.sweep.population import Population

# Objectives as data.


def test_the_chosen_objective_is_that_one():
    real, fake = jnp.array([-2.0, 0.3, 1.5]), jnp.array([0.7, -1.1, 2.0])
    chosen = jax.jit(lambda index: _all_of(choose(list(OBJECTIVES.values()), index), real, fake))
    alone = jax.jit(lambda: [_all_of(objective, real, fake) for objective in OBJECTIVES.values()])()
    for index, (name, expected) in enumerate(zip(OBJECTIVES, alone, strict=True)):
        for value, other in zip(chosen(index), expected, strict=True):
            assert_allclose(value, other, rtol=1e-6, atol=1e-7, err_msg=name)


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


ONE_LAYER = {f"{player}.depth": 1 for player in ("generator", "discriminator")}  # compiles in less time


def alone(*configs, steps):
    """(state, metrics) of each run by itself on one device; they differ in their seeds, so that one program does."""
    setups = [recipe.build(config, mesh(jax.devices()[:1])) for config in configs]
    setup, states = setups[0], [recipe.initial_state(setup) for setup in setups]
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, steps)
    program = setup.devices.compile(function, states[0], setup.source.data)
    return [program(state, setup.source.data) for state in states]


def together(configs, layout, steps):
    """The states of the runs and their metrics, as a population."""
    devices = layout.within if layout.within.count > 1 else mesh(jax.devices()[:1])
    population = Population([recipe.build(config, devices) for config in configs], layout)
    state = population.initial()
    return population.compiled(steps, state)(state, layout.within.place(population.setup.source.data))


def assert_is_member(population, index, state, tolerance):
    """Member `index` of the population is in this state, up to `tolerance` of each array's largest number."""
    member = jax.tree.map(lambda x: x[index], population.members.state)
    for value, expected in zip(*map(jax.tree.leaves, (_numbers(member), _numbers(state))), strict=True):
        assert value.shape == expected.shape
        assert_allclose(value, expected, rtol=tolerance, atol=tolerance * max(np.abs(expected).max(initial=0), 1e-3))


def _numbers(state):
    """All numbers of a state; a hyperparameter that its program does without is 0."""
    zero = jnp.zeros_like(state.hyperparameters["generator.ema_decay"])
    traced = [name for name, key in schema.table().items() if key.traced]
    numbers = {name: state.hyperparameters.get(name, zero) for name in traced}
    return jax.device_get(state.replace(key=None, hyperparameters=numbers))


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
    common = ONE_LAYER | {"data.name": request.param, "penalty.name": "r1", "penalty.weight": 0.5}
    chosen = CHANGES if request.param == "ring8" else CHANGES[-2:]
    configs = [shrunk("mixture", "ring8", common | changes) for changes in chosen]
    return configs, [alone(config, steps=3)[0] for config in configs]


@pytest.mark.parametrize("how", ["vmap", "map"])
def test_a_member_of_mlps_is_the_run_alone(by_themselves, how):
    configs, runs = by_themselves
    state, metrics = together(configs, population(how), 3)
    for i, (expected_state, expected) in enumerate(runs):
        assert_is_member(state, i, expected_state, 1e-4)
        for name, values in expected.items():
            assert_allclose(metrics[name][i], values, rtol=1e-3, atol=1e-4)
    assert int(state.step) == 3


def test_a_member_of_convolutions_is_the_run_alone(shrunk):
    configs = [shrunk("dcgan", None, {"seed": seed}) for seed in range(2)]
    state, _ = together(configs, population("unroll", devices=jax.devices()[:2]), 2)
    for i, (expected, _) in enumerate(alone(*configs, steps=2)):
        assert_is_member(state, i, expected, 1e-3)


def test_devices_may_share_a_member(shrunk):
    """With batch normalisation and spectral normalisation, which both are of the whole batch."""
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    changes = {"generator.normalization": "batch", "generator.spectral_norm": True, "discriminator.spectral_norm": True}
    changes |= ONE_LAYER | {"batch_size": 8, "penalty.name": "none", "penalty.weight": 0.0}
    configs = [shrunk("mixture", "ring8", {"seed": seed} | changes) for seed in range(3)]
    state, metrics = together(configs, population("vmap", per_member=2), 3)
    for i, (expected_state, expected) in enumerate(alone(*configs, steps=3)):
        assert_is_member(state, i, expected_state, 1e-4)
        assert_allclose(metrics["d_loss"][i], expected["d_loss"], rtol=1e-4)


def test_members_do_not_meet_and_a_lost_one_is_frozen(shrunk):
    """They lie on their devices, which do not communicate, and a member that diverges takes no other with it."""
    if jax.device_count() < 2:
        pytest.skip("needs more than one device")
    configs = [shrunk("mixture", "ring8", ONE_LAYER | {"seed": seed}) for seed in range(5)]
    rates = {"generator.optimizer.learning_rate": 1e30, "discriminator.optimizer.learning_rate": 1e30}
    configs[1] = shrunk("mixture", "ring8", ONE_LAYER | rates)
    layout, one = population("vmap"), mesh(jax.devices()[:1])
    members = Population([recipe.build(config, one) for config in configs], layout)
    state = members.initial()
    share = -(-5 // jax.device_count())
    for leaf in jax.tree.leaves(state.members.state.generator.params):
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {share}
    first = jax.device_get(_numbers(state.members.state))
    call = members.compiled(4, state)
    text = call.args[-1].compiled.as_text()
    assert not [word for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all") if word in text]
    for _ in range(2):
        state, metrics = call(state, ())
        assert not np.isfinite(metrics["d_loss"][1]).all()
    assert_array_equal(state.members.alive[:5], [1, 0, 1, 1, 1])
    after = _numbers(state.members.state)
    for was, now in zip(jax.tree.leaves(first), jax.tree.leaves(after), strict=True):
        assert_array_equal(now[1], was[1])
    assert_is_member(state, 0, alone(configs[0], steps=8)[0][0], 1e-4)


def test_one_objective_needs_no_number(shrunk):
    setup = recipe.build(shrunk("mixture", "ring8"))
    joined, numbers = recipe.merge_setups([setup, setup])
    assert joined.recipe.objective(setup.hyperparameters) is OBJECTIVES["rpgan"]
    assert_array_equal(numbers["objective.name"], [0, 0])
