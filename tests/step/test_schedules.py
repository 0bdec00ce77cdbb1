"""What moves over the burn-in: closed forms, and what is off."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.parallel.devices import mesh
from gan_jax.step import schedules
from gan_jax.utils.errors import InputError

BURN_IN, BATCH = 100, 64
GIVEN = {
    "generator.optimizer.learning_rate": 1e-3,
    "generator.optimizer.b1": 0.0,
    "generator.optimizer.b2": 0.9,
    "discriminator.optimizer.learning_rate": 1e-3,
    "discriminator.optimizer.b1": 0.0,
    "discriminator.optimizer.b2": 0.8,
    "penalty.weight": 2.0,
    "generator.ema_decay": 0.5,
}
SCHEDULED = ("penalty.weight", "generator.optimizer.b2", "discriminator.optimizer.b2")
ENDS = {
    "penalty.weight_to": 0.2,
    "generator.optimizer.b2_to": 0.99,
    "discriminator.optimizer.b2_to": 0.95,
    "generator.ema_half_life": 3_000.0,
}


def hyperparameters(changes=()):
    return jax.tree.map(jnp.float32, GIVEN | dict(changes))


def at(numbers, t):
    """The numbers that move, in step t."""
    now = jax.jit(partial(schedules.at_step, BURN_IN, 1_000, BATCH))(numbers, jnp.int32(t))
    return {name: np.asarray(now[name]) for name in (*SCHEDULED, "generator.ema_decay")}


@pytest.mark.parametrize(
    ("t", "share"), [(0, 0.0), (25, 0.5 - np.sqrt(0.125)), (50, 0.5), (100, 1.0), (101, 1.0), (10**6, 1.0)]
)
def test_all_go_from_the_first_value_to_the_last_by_half_a_cosine_and_stay(t, share):
    found = at(hyperparameters(ENDS), t)
    for name in SCHEDULED:
        start, end = GIVEN[name], ENDS[f"{name}_to"]
        assert_allclose(found[name], start + share * (end - start), rtol=1e-6)
        if share in (0, 1):
            assert found[name] == np.float32(end if share else start)
    half_life = share * ENDS["generator.ema_half_life"]
    assert_allclose(found["generator.ema_decay"], 0.5 ** (BATCH / half_life) if share else 0.0, rtol=1e-6)


def test_without_ends_nothing_moves_but_the_cap_on_the_average():
    for t, decay in ((0, 1 / 10), (2, 3 / 12), (50, 0.5), (10**6, 0.5)):
        now = at(hyperparameters(), t)
        assert_allclose(now["generator.ema_decay"], decay, rtol=1e-6)
        for name in SCHEDULED:
            assert now[name] == np.float32(GIVEN[name])


def test_a_run_without_an_end_beside_others_that_have_one_is_as_alone():
    beside = hyperparameters(dict.fromkeys(ENDS, 0.0))
    for t in (0, 50, 200):
        jax.tree.map(assert_array_equal, at(beside, t), at(hyperparameters(), t))


# --- in training ------------------------------------------------------------------------------------------------

SCHEDULES = {
    "num_steps": 8,
    "burn_in": 4,
    "penalty.weight_to": 0.01,
    "generator.ema_decay": 0.0,
    "generator.ema_half_life": 16.0,
    "generator.optimizer.b2_to": 0.5,
    "discriminator.optimizer.b2_to": 0.5,
}
OFF = {"burn_in": 0, "penalty.weight_to": 0.0, "generator.ema_half_life": 0.0} | {
    f"{player}.optimizer.b2_to": 0.0 for player in ("generator", "discriminator")
}


def build(config):
    return recipe.build(config, mesh(jax.devices()[:1]))


def test_a_step_has_the_numbers_of_its_schedule(shrunk):
    """Each step of a run with schedules is that of a run without whose numbers are written in."""
    setup = build(shrunk("mixture", "ring8", SCHEDULES))
    rate = {f"{player}.optimizer.decay_to": 1.0 for player in ("generator", "discriminator")}
    plain = build(shrunk("mixture", "ring8", SCHEDULES | OFF | rate | {"generator.ema_decay": 0.0}))
    one = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    bare = partial(step.train_steps, plain.recipe, plain.devices, plain.source, 1)
    one, bare = jax.jit(one), jax.jit(bare)
    state = recipe.initial_state(setup)
    decays = {player: setup.config[player].optimizer.decay_to for player in ("generator", "discriminator")}
    for t in range(6):
        share = (1 - np.cos(np.pi * min(t / 4, 1))) / 2
        start = state.hyperparameters
        numbers = dict(plain.hyperparameters)
        numbers["penalty.weight"] = start["penalty.weight"] + share * (0.01 - start["penalty.weight"])
        for player, decay in decays.items():
            rate = f"{player}.optimizer.learning_rate"
            numbers |= {f"{player}.optimizer.b2": 0.99 + share * (0.5 - 0.99)}
            numbers |= {rate: start[rate] * (1 + share * (decay - 1))}
        expected, metrics = bare(state.replace(hyperparameters=jax.tree.map(jnp.float32, numbers)), setup.source.data)
        average = state.ema
        state, found = one(state, setup.source.data)
        for player in ("generator", "discriminator"):
            jax.tree.map(
                partial(assert_allclose, rtol=1e-4, atol=1e-6),
                getattr(state, player).params,
                getattr(expected, player).params,
            )
        assert_allclose(found["penalty"], metrics["penalty"], rtol=1e-5)
        kept = 0.5 ** (8 / (16 * share)) if share else 0.0
        average = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average.params, state.generator.params)  # noqa: B023
        jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-6), state.ema.params, average)


def test_a_population_has_runs_with_and_without(shrunk):
    configs = [shrunk("mixture", "ring8", SCHEDULES | changes) for changes in ({}, OFF | {"burn_in": 4})]
    _, numbers = recipe.merge_setups([build(config) for config in configs])
    assert_array_equal(numbers["penalty.weight_to"], np.float32([0.01, 0]))
    assert_array_equal(numbers["generator.ema_half_life"], np.float32([16, 0]))
    assert "generator.ema_half_life" not in build(configs[1]).hyperparameters


def test_the_rate_has_its_course_over_the_burn_in(shrunk):
    config = shrunk("mixture", "ring8", SCHEDULES | {"generator.optimizer.name": "sgd", "generator.optimizer.b2_to": 0})
    setup = build(config)
    tx, gradient = setup.recipe.generator_tx(setup.hyperparameters), jnp.ones(())
    state, rates = tx.init(gradient), []
    for _ in range(6):
        update, state = tx.update(gradient, state, gradient)
        rates.append(-float(update) / config.generator.optimizer.learning_rate)
    end = config.generator.optimizer.decay_to
    expected = end + (1 - end) * (1 + np.cos(np.pi * np.minimum(np.arange(6) / 4, 1))) / 2
    assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator.ema_decay": 0.9}, r"ema_half_life is 16\.0 and generator\.ema_decay is 0\.9: the average has one"),
        ({"generator.optimizer.name": "sgd"}, r"generator\.optimizer\.b2_to is 0\.5, but sgd has no b2_to"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(shrunk, changes, message):
    with pytest.raises(InputError, match=message) as error:
        build(shrunk("mixture", "ring8", SCHEDULES | changes))
    assert "\n" not in str(error.value)
