"""Against a discriminator that overfits: augmentation in the step, ADA, LeCam, consistency."""

from contextlib import closing
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.rounding import DESCENT, TOLERANCE
from helpers.toys import discriminator_loss_of, generator_loss_of
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.networks import Network
from gan_jax.parallel.devices import Program, mesh, pmapped
from gan_jax.parallel.population_layout import population
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.runs.sampler import Generate
from gan_jax.step import augment, regularizers, transforms
from gan_jax.step.state import Adaptive, LogitAverages, TrainState
from gan_jax.sweep.population import Population, only_own
from gan_jax.utils.errors import InputError

LAYOUTS = {"mesh": mesh, "pmapped": pmapped}
SMALL = {"generator.depth": 0, "discriminator.depth": 0, "batch_size": 16}
POLICY = {"augment.policy": "contrast,translation"}
ADA = POLICY | {
    "augment.probability": 0.5,
    "augment.ada_target": 0.4,
    "augment.ada_interval": 1,
    "augment.ada_images": 320,  # p moves by 16 / 320
}
TERMS = {"discriminator.lecam": 0.5, "discriminator.consistency": 2.0, "discriminator.fake_consistency": 1.0}
EVERYTHING = SMALL | DESCENT | ADA | TERMS
METRICS = {"augment_probability", "lecam", "consistency", "fake_consistency"}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(config, layout="mesh", count=1):
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    return recipe.build(config, LAYOUTS[layout](jax.devices()[:count]))


# --- ADA's controller -------------------------------------------------------------------------------------------


def controlled(start, target, overfitting_of, updates, stride=0.1, interval=4):
    """p after each of so many updates of D with these r_t, [updates]."""
    adapted = jax.jit(partial(regularizers.adapted, stride=stride, interval=interval))
    state, series = Adaptive(*map(jnp.float32, (start, 0, 0))), []
    for i in range(updates):
        state = adapted(state, jnp.float32(target), jnp.float32(overfitting_of(i)))
        series.append(float(state.probability))
    return np.array(series)


def test_the_probability_moves_every_few_updates_towards_its_target_and_stays_one():
    moves = np.arange(1, 61) // 4
    assert_allclose(controlled(0.25, 0.6, lambda i: 0.7, 60), np.minimum(0.25 + 0.1 * moves, 1), atol=1e-6)
    assert_allclose(controlled(0.75, 0.6, lambda i: 0.5, 60), np.maximum(0.75 - 0.1 * moves, 0), atol=1e-6)
    # 0.8 and 0.4 in turn are the target, in the mean; rounding has no say.
    assert_allclose(controlled(0.5, 0.6, lambda i: 0.8 - 0.4 * (i % 2), 60), 0.5, rtol=1e-6)
    assert_allclose(controlled(0.5, 0.6, lambda i: 1.0 if i % 4 == 0 else 0.5, 8), [0.5] * 3 + [0.6] * 4 + [0.7])
    assert_array_equal(controlled(0.5, 0.0, lambda i: 0.9, 9), 0.5)  # no target: a member without, among some with


def test_the_probability_has_the_speed_of_the_paper(shrunk):
    """From 0 to 1 in `ada_images` real images, and r_t = E[sign(D(x))]."""
    speed = {"augment.probability": 0.0, "augment.ada_interval": 5, "augment.ada_images": 160}
    setup = build(shrunk("digits", None, ADA | speed))
    memory = regularizers.initial(setup.hyperparameters)
    update = jax.jit(setup.recipe.update_regularizers)
    series = []
    for accuracy in [0.75] * 20 + [0.65] * 10:  # r_t 0.5 and 0.3, of a target of 0.4; batches of 8
        memory = update(setup.hyperparameters, memory, {"d_accuracy_real": jnp.float32(accuracy)})
        series.append(float(memory.adaptive.probability))
    assert_allclose(series[3:6], [0, 0.25, 0.25])
    assert_allclose(series[18:], [0.75] + [1.0] * 5 + [0.75] * 5 + [0.5], rtol=1e-6)
    assert series[19] == 1.0  # after 160 images


# --- LeCam ------------------------------------------------------------------------------------------------------


def test_lecam_and_its_averages_are_those_computed_by_hand():
    real, fake = np.array([2.0, -1.0, 0.5]), np.array([0.25, -3.0, 4.0])
    averages, decay, series = LogitAverages(*map(jnp.float32, (0, 0, 0))), 0.75, [(1.0, -2.0), (0.5, 1.0), (3.0, 0.2)]
    assert regularizers.lecam(jnp.asarray(real), jnp.asarray(fake), averages) == 0
    for each in series:
        averages = regularizers.averaged(averages, decay, *map(jnp.float32, each))
    weights = decay ** np.arange(3)[::-1]
    alpha_real, alpha_fake = weights @ np.array(series) / weights.sum()  # means in which the last counts most
    expected = np.mean(np.maximum(real - alpha_fake, 0) ** 2) + np.mean(np.maximum(alpha_real - fake, 0) ** 2)
    assert_allclose(regularizers.lecam(jnp.asarray(real), jnp.asarray(fake), averages), expected, rtol=1e-5)
    slope = jax.grad(regularizers.lecam)(jnp.asarray(real), jnp.asarray(fake), averages)
    assert_allclose(slope, 2 * np.maximum(real - alpha_fake, 0) / 3, rtol=1e-5)


# --- in the step ------------------------------------------------------------------------------------------------


def summing(shape=(8, 8, 1)):
    """D(x) = w . x; as its w starts, flips and rotations make no difference to it."""
    return Network(
        init=lambda key, x: ({"w": jnp.ones(shape)}, {}),
        apply=lambda params, stats, x, train: (jnp.sum(x * params["w"], axis=(1, 2, 3)), stats),
        convolves=False,
    )


def constant():
    """G(z) = c, at every z."""
    return Network(
        init=lambda key, z: ({"c": jnp.asarray(numbers(8, 8, 1, seed=7))}, {}),
        apply=lambda params, stats, z, train: (jnp.zeros((len(z), 8, 8, 1)) + params["c"], stats),
        convolves=False,
    )


def fakes_of(shrunk, changes):
    """(the recipe of a config on the digits with the networks above, devices, the first state, real images)."""
    setup = build(shrunk("digits", None, {"objective.name": "hinge"} | DESCENT | changes))
    made = setup.recipe._replace(generator=constant(), discriminator=summing())
    state = step.init_state(made, setup.hyperparameters, jax.random.key(0), (8, 8, 1))
    return made, setup.devices, state, jnp.asarray(numbers(8, 8, 8, 1))


def test_both_players_see_augmented_images_each_by_a_key_of_its_own(shrunk):
    made, devices, state, real = fakes_of(shrunk, {"augment.policy": "brightness", "augment.probability": 0.5})
    keys, params = jax.random.split(jax.random.key(1), 8), state.discriminator.params
    _, (_, metrics, _) = jax.jit(discriminator_loss_of(made))(state, params, {"image": real}, keys, keys)
    pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 2**32 - 1)))(keys)
    fake = jnp.broadcast_to(state.generator.params["c"], real.shape)
    see = jax.jit(partial(augment.transformed, policy=[transforms.brightness], probability=0.5))
    seen = [see(pairs[:, i], x) for i, x in enumerate((real, fake))]
    assert_allclose(metrics["d_real"], jnp.mean(jnp.sum(seen[0], axis=(1, 2, 3))), rtol=1e-4)
    assert_allclose(metrics["d_fake"], jnp.mean(jnp.sum(seen[1], axis=(1, 2, 3))), rtol=1e-4)
    shifts = np.concatenate([np.ravel((a - b)[:, 0, 0, 0]) for a, b in zip(seen, (real, fake), strict=True)])
    assert 0 < np.sum(np.abs(shifts) < 1e-6) < 16
    assert len(np.unique(shifts[np.abs(shifts) > 1e-6].round(5))) == np.sum(np.abs(shifts) > 1e-6)
    loss = jax.jit(generator_loss_of(made, devices))
    assert_allclose(loss(state, state.generator.params, {"image": real}, keys)[0], -metrics["d_fake"], rtol=1e-5)


def test_consistency_costs_nothing_where_d_is_invariant(shrunk):
    changes = {"augment.policy": "flip,rotation", "augment.probability": 0.0}
    changes |= {"discriminator.consistency": 3.0, "discriminator.fake_consistency": 2.0}
    made, _, state, real = fakes_of(shrunk, changes)
    loss, keys = jax.jit(discriminator_loss_of(made)), jax.random.split(jax.random.key(1), 8)
    _, (_, metrics, _) = loss(state, state.discriminator.params, {"image": real}, keys, keys)
    assert_allclose([metrics["consistency"], metrics["fake_consistency"]], 0, atol=1e-9)
    favouring = {"w": jnp.asarray(numbers(8, 8, 1, seed=3))}  # some orientations over others
    total, (_, metrics, _) = loss(state, favouring, {"image": real}, keys, keys)
    assert min(metrics["consistency"], metrics["fake_consistency"]) > 1
    assert_allclose(total - metrics["d_loss"], 3 * metrics["consistency"] + 2 * metrics["fake_consistency"], rtol=1e-4)


def test_consistency_compares_what_d_saw_with_the_example_transformed(shrunk):
    """T(x) = x + 1 in every pixel, while D saw x: D(x) - D(T(x)) = -sum w, and the slope of its square 2 sum w."""
    changes = {"augment.policy": "flip", "augment.probability": 0.0, "discriminator.consistency": 3.0}
    made, _, state, real = fakes_of(shrunk, changes)
    made = made._replace(transform=lambda keys, x: x + 1)
    w, keys = numbers(8, 8, 1, seed=3), jax.random.split(jax.random.key(1), 8)
    loss = jax.jit(jax.value_and_grad(discriminator_loss_of(made), argnums=1, has_aux=True))
    (_, (_, metrics, _)), gradient = loss(state, {"w": jnp.asarray(w)}, {"image": real}, keys, keys)
    assert_allclose(metrics["consistency"], w.sum() ** 2, rtol=1e-4)
    plain = state.replace(hyperparameters=state.hyperparameters | {"discriminator.consistency": jnp.float32(0)})
    _, without = loss(plain, {"w": jnp.asarray(w)}, {"image": real}, keys, keys)
    assert_allclose(gradient["w"] - without["w"], 3 * 2 * w.sum(), rtol=1e-3)


def test_lecam_s_averages_are_those_of_the_updates_before(shrunk):
    changes = {"discriminator.lecam": 0.5, "discriminator.lecam_decay": 0.9, "moves": "simultaneous"}
    made, devices, state, real = fakes_of(shrunk, changes)
    run, seen = jax.jit(partial(step.train_step, made, devices)), []
    for i in range(3):
        averages = state.regularizers.averages
        state, metrics = run(state, {"image": real[None] * (i + 1)})
        seen.append((metrics["d_real"], metrics["d_fake"]))
        assert (metrics["lecam"] > 0) == (i > 0)
        assert_allclose(averages.weight, 1 - 0.9**i, rtol=1e-5, atol=1e-7)
    weights = 0.1 * 0.9 ** np.arange(3)[::-1]
    assert_allclose(
        [state.regularizers.averages.real, state.regularizers.averages.fake], weights @ np.array(seen), rtol=1e-5
    )


@pytest.mark.parametrize("moves", ["alternating", "extragradient"])
def test_each_update_of_d_is_remembered_once(shrunk, moves):
    changes = ADA | {
        "augment.policy": "brightness",
        "augment.ada_interval": 9,
        "discriminator.lecam": 0.1,
        "moves": moves,
    }
    made, devices, state, real = fakes_of(shrunk, changes)
    state, _ = jax.jit(partial(step.train_step, made, devices))(state, {"image": real[None]})
    assert state.regularizers.adaptive.updates == 1
    assert_allclose(state.regularizers.averages.weight, 0.01, rtol=1e-4)


def test_samples_are_never_augmented(shrunk):
    seen, plain = (build(shrunk("digits", None, SMALL | changes)) for changes in (ADA | TERMS, {}))
    state = recipe.initial_state(seen)
    samples = [Generate(each, each.devices).examples(state.ema, each.keys.pictures, 20) for each in (seen, plain)]
    assert_array_equal(*samples)


def test_without_them_the_state_is_what_it_was(shrunk):
    state = recipe.abstract_state(build(shrunk("digits", None, {"augment.probability": 0.5})))
    assert state.regularizers is None
    always = {
        f"{player}.optimizer.{name}"
        for player in ("generator", "discriminator")
        for name in ("learning_rate", "b1", "b2")
    }
    assert set(state.hyperparameters) == always | {"generator.ema_decay"}


# --- many devices, micro-batches, a checkpoint, a population ----------------------------------------------------


def compiled(setup, start):
    """The program of one step of the run from this state."""
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    return setup.devices.compile(function, *setup.devices.place((start, setup.source.data)))


def train(setup, program, start, steps=3):
    """(the state after so many steps, their metrics)."""
    state, data = setup.devices.place((jax.tree.map(jnp.copy, start), setup.source.data))
    series = []
    for _ in range(steps):
        state, metrics = program(state, data)
        series.append(jax.device_get(metrics))
    return state, jax.tree.map(lambda *each: np.concatenate(each), *series)


class Run(NamedTuple):
    """A run, and what three steps made of it."""

    setup: recipe.Setup
    start: TrainState
    program: Program
    state: TrainState
    series: dict


@pytest.fixture(scope="module")
def alone(shrunk):
    """A run with all of them, on one device and in one batch."""
    setup = build(shrunk("digits", None, EVERYTHING))
    start = recipe.initial_state(setup)
    program = compiled(setup, start)
    return Run(setup, start, program, *train(setup, program, start))


def parts(state):
    kept = state.generator.params, state.discriminator.params, state.regularizers
    return jax.tree.map(np.array, kept)


@pytest.mark.parametrize(("layout", "count", "accumulate"), [("mesh", 4, 1), ("pmapped", 2, 2)])
def test_nothing_depends_on_devices_or_micro_batches(shrunk, alone, layout, count, accumulate):
    setup = build(shrunk("digits", None, EVERYTHING | {"accumulate": accumulate}), layout, count)
    state, metrics = train(setup, compiled(setup, alone.start), alone.start)
    assert METRICS < metrics.keys() == alone.series.keys()
    for name, values in alone.series.items():
        assert_allclose(metrics[name], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
    jax.tree.map(partial(assert_allclose, rtol=1e-3, atol=TOLERANCE), parts(state), parts(alone.state))


def test_what_is_compared_moves(alone):
    series = alone.series
    assert np.all(np.abs(np.diff(series["augment_probability"])) > 0.04)  # by 16 / 320 at each update
    assert series["augment_probability"][0] == 0.5
    assert_array_equal(np.sign(np.diff(series["augment_probability"])), np.sign(series["d_accuracy_real"][:2] - 0.7))
    assert np.all(series["lecam"][1:] > 0)
    assert np.all(series["consistency"] > 0)
    assert np.all(series["fake_consistency"] > 0)


def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(alone, tmp_path):
    middle, _ = train(alone.setup, alone.program, alone.start, 2)
    with closing(Checkpoints(tmp_path, kept=1)) as checkpoints:
        checkpoints.save(middle)
        checkpoints.wait()
        restored = checkpoints.restore(recipe.abstract_state(alone.setup))
    after, _ = train(alone.setup, alone.program, restored, 1)
    jax.tree.map(assert_array_equal, parts(after), parts(alone.state))
    assert after.regularizers.adaptive.probability != alone.start.regularizers.adaptive.probability


MEMBERS = (
    {"augment.ada_target": 0.0, "augment.probability": 0.7},
    {"augment.probability": 0.0, "discriminator.lecam": 0.5, "seed": 1},
)


def test_members_of_a_population_have_their_own(shrunk):
    common = SMALL | DESCENT | ADA | {"augment.policy": "flip"}
    setups = [build(shrunk("digits", None, common | changes)) for changes in MEMBERS]
    members = Population(setups, population("vmap", devices=jax.devices()[:1]))
    state = members.initial()
    state, metrics = members.compiled(3, state)(state, members.setup.source.data)
    first, second = (
        only_own(jax.tree.map(lambda x: x[i], state.members.state), setup.hyperparameters)  # noqa: B023
        for i, setup in enumerate(setups)
    )
    start = recipe.initial_state(setups[1])
    expected, series = train(setups[1], compiled(setups[1], start), start)
    jax.tree.map(partial(assert_allclose, rtol=1e-3, atol=TOLERANCE), parts(second), parts(expected))
    for name, values in series.items():
        assert_allclose(metrics[name][1], values, rtol=1e-3, atol=TOLERANCE, err_msg=name)
    assert first.regularizers is None
    assert jax.tree.structure(first) == jax.tree.structure(recipe.abstract_state(setups[0]))
    assert_array_equal(metrics["augment_probability"][0], np.float32([0.7] * 3))
    assert len(np.unique(metrics["augment_probability"][1])) > 1


# --- what does not go together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augment.policy": "colour"},
            r"augment\.policy is 'colour'; it must be none, or some of color, .* none twice",
        ),
        ({"augment.probability": 1.5}, r"augment\.probability is 1\.5; it must be a number from 0 to 1"),
        ({"data.name": "ring8", "augment.policy": "color"}, r"for images, but ring8 is points; set it to none"),
        (
            {"augment.policy": "flip", "augment.probability": 0.0},
            r"nothing is transformed; give it a probability, .* or set augment\.policy to none",
        ),
        (
            {"augment.ada_target": 0.6},
            r"ada_target is 0\.6, but augment\.policy is none, .*set it to 0\.0, or augment\.policy to another",
        ),
        (
            {"augment.ada_target": 0.6, "augment.policy": "flip", "objective.name": "rpgan"},
            r"those of rpgan have no zero; set it to 0, or objective\.name to another",
        ),
        (
            {"discriminator.consistency": 1.0},
            r"consistency is 1\.0, but augment\.policy is none, .*set it to 0\.0, or augment\.policy to",
        ),
        (
            {
                "discriminator.fake_consistency": 1.0,
                "augment.policy": "flip",
                "discriminator.one_pass": True,
                "discriminator.normalization": "batch",
            },
            r"one_pass is True and discriminator\.fake_consistency is 1\.0: .*; set one_pass to False",
        ),
        ({"discriminator.lecam_decay": 1.0}, r"lecam_decay is 1\.0; it must be a number from 0 to 1, 1 excluded"),
    ],
)
def test_what_makes_no_sense_is_one_line(shrunk, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        build(shrunk("digits", None, changes))
    assert "\n" not in str(raised.value)


def test_rotation_is_for_squares(shrunk, tmp_path):
    np.savez(tmp_path / "wide.npz", image=np.zeros((20, 4, 8, 1), np.uint8))
    changes = {"data.name": "arrays", "data.dir": str(tmp_path / "wide.npz"), "augment.policy": "rotation"}
    with pytest.raises(InputError, match=r"rotation is for square images, but arrays is 4x8; leave it out, or set"):
        build(shrunk("digits", None, changes))
