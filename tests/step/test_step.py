"""The training step: who moves, by how much, on which random numbers, and what it reports."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.toys import (
    NOISE,
    assert_all_moved,
    assert_close,
    assert_same_bits,
    constant_prior,
    image,
    linear_discriminator,
    noise,
    numbers,
    one_device,
    raw,
    shifting_generator,
    toy_recipe,
    toy_state,
)
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import penalties, recipe, step
from gan_jax.data import Source
from gan_jax.networks import Network
from gan_jax.parallel.devices import mesh, pmapped
from gan_jax.step.state import TrainState


def built(config):
    """(recipe, state, compiled-call maker) of a config, on one device."""
    setup = recipe.build(config)
    setup = setup._replace(devices=one_device())
    return setup, recipe.initial_state(setup)


def batch_of(setup, state):
    return step.draw_batches(setup.recipe, setup.devices, setup.source, state, setup.source.data)


# --- randomness -------------------------------------------------------------------------------------------------


STEPS, K, N = 2, 3, 4


@pytest.fixture(scope="module", params=["scanned", "written_out"])
def witnessed(request):
    """What two train steps with k = 3 on four examples drew and saw, in order."""
    seen = {"data": [], "prior": [], "penalty": [], "real": [], "fake": []}

    def note(name, x):
        jax.debug.callback(lambda x: seen[name].append(np.asarray(x)), x, ordered=True)

    def draw(data, indices, keys):
        note("data", jax.random.key_data(keys))
        return {"image": noise(keys)}

    def prior(keys):
        note("prior", jax.random.key_data(keys))
        return noise(keys)

    def penalty(critic, keys, real, fake):
        note("penalty", jax.random.key_data(keys))
        note("real", real)
        note("fake", fake)
        return penalties.wgan_gp(critic, keys, real, fake)

    fakes = toy_recipe(batch_size=N, steps=K, prior=prior, penalty=penalty, unroll=request.param == "written_out")
    state = toy_state(fakes, numbers(generator_rate=0.0))  # so that fake examples are their latents
    seen["prior"].clear()
    jax.block_until_ready(
        jax.jit(partial(step.train_steps, fakes, one_device(), NOISE._replace(draw=draw), STEPS))(state, ())
    )
    jax.effects_barrier()
    return seen


def test_each_critic_step_sees_its_own_minibatch_and_noise(witnessed):
    critic_steps = STEPS * K
    assert {name: len(each) for name, each in witnessed.items()} == {
        "data": critic_steps,
        "prior": critic_steps + STEPS,  # and once a step for the generator
        "penalty": critic_steps,
        "real": critic_steps,
        "fake": critic_steps,
    }
    for name in ("real", "fake"):
        assert len(np.unique(np.concatenate(witnessed[name]))) == critic_steps * N
    # The minibatches are the drawn ones, each used once, in order.
    drawn = sorted(noise_of(witnessed["data"]))
    assert_array_equal(drawn, sorted(np.ravel(witnessed["real"])))


def test_no_key_serves_twice_in_or_between_steps(witnessed):
    keys = np.concatenate([np.concatenate(witnessed[name]) for name in ("data", "prior", "penalty")])
    assert len(np.unique(keys, axis=0)) == len(keys) == (3 * STEPS * K + STEPS) * N


def test_the_generators_noise_is_fresh(witnessed):
    critics = set(np.ravel(witnessed["fake"]).tolist())
    generators = [x for x in noise_of(witnessed["prior"]) if x not in critics]
    assert len(generators) == STEPS * N  # one minibatch a step that no critic step saw


def noise_of(keys):
    """What `noise` makes of lists of key data, as a list of floats."""
    return np.ravel(noise(jax.random.wrap_key_data(np.concatenate(keys)))).tolist()


def test_a_step_can_be_repeated_exactly():
    fakes = toy_recipe(penalty=penalties.dragan, steps=2)
    run = jax.jit(partial(step.train_step, fakes, one_device()))
    batch = {"image": jnp.arange(8.0).reshape(2, 4, 1)}
    first, second = (run(toy_state(fakes), batch) for _ in range(2))
    assert_same_bits(first, second)


def test_seeds_give_different_steps():
    fakes = toy_recipe()
    run = jax.jit(partial(step.train_step, fakes, one_device()))
    states = [toy_state(fakes).replace(key=jax.random.key(seed)) for seed in (0, 1)]
    losses = [run(state, {"image": jnp.ones((1, 4, 1))})[1]["d_loss"] for state in states]
    assert losses[0] != losses[1]


# --- who moves --------------------------------------------------------------------------------------------------


class Normalised(NamedTuple):
    """A run of DCGAN with batch normalisation in both networks and Adam, and its step's halves, compiled."""

    setup: recipe.Setup
    state: TrainState
    real: dict
    discriminator_step: Callable
    generator_step: Callable


@pytest.fixture(scope="module")
def normalised(shrunk):
    depth = {"generator.depth": 2, "discriminator.depth": 2, "generator.width": 2, "discriminator.width": 2}
    setup, state = built(shrunk("dcgan", None, depth | {"generator.ema_decay": 0.5}))
    halves = (jax.jit(partial(f, setup.recipe, setup.devices)) for f in (step.discriminator_step, step.generator_step))
    return Normalised(setup, state, jax.tree.map(lambda x: x[0], batch_of(setup, state)), *halves)


def test_the_generator_stays_in_a_discriminator_step(normalised):
    before = normalised.state
    after, _ = normalised.discriminator_step(before, normalised.real, jax.random.key(1))
    assert jax.tree.leaves(before.generator.stats)
    for name in ("generator", "ema", "step", "key", "hyperparameters"):
        assert_same_bits(getattr(after, name), getattr(before, name))
    assert_all_moved(after.discriminator.stats, before.discriminator.stats)
    assert_all_moved(after.discriminator.params, before.discriminator.params)
    assert_all_moved(after.discriminator.opt_state, before.discriminator.opt_state)


def test_the_discriminator_stays_in_a_generator_step(normalised):
    before = normalised.state
    after, _ = normalised.generator_step(before, normalised.real, jax.random.key(1))
    assert jax.tree.leaves(before.discriminator.stats)
    for name in ("discriminator", "step", "key", "hyperparameters"):
        assert_same_bits(getattr(after, name), getattr(before, name))
    assert_all_moved(after.generator.stats, before.generator.stats)
    assert_all_moved(after.generator.params, before.generator.params)
    assert_all_moved(after.generator.opt_state, before.generator.opt_state)
    assert_all_moved(after.ema.params, before.ema.params)


def test_a_train_step_counts_one_and_keeps_its_key():
    fakes = toy_recipe()
    before = toy_state(fakes)
    after, _ = step.train_step(fakes, one_device(), before, {"image": jnp.ones((1, 4, 1))})
    assert int(after.step) == 1
    assert_same_bits((after.key, after.hyperparameters), (before.key, before.hyperparameters))


# --- by how much ------------------------------------------------------------------------------------------------


def sigma(a):
    return 1 / (1 + np.exp(-a))


def test_the_discriminators_update_is_the_one_computed_by_hand():
    w, b, weight, rate = np.array([0.6, -1.1]), 0.3, 2.0, 0.25
    real, fake = np.array([[1.0, 2.0], [-0.5, 0.7], [0.2, -2.0]]), np.array([[0.1, 0.4], [1.5, -0.3], [-1.0, 0.9]])
    fakes = toy_recipe(
        penalty=penalties.wgan_gp,
        generator=shifting_generator((0.0, 0.0)),
        discriminator=linear_discriminator(tuple(w), b),
        prior=constant_prior(*fake.tolist()),
    )
    before = toy_state(fakes, numbers(penalty_weight=weight, discriminator_rate=rate), (2,))
    after, metrics = step.discriminator_step(fakes, one_device(), before, {"image": jnp.array(real)}, jax.random.key(0))

    at_real, at_fake = real @ w + b, fake @ w + b
    norm = np.linalg.norm(w)
    # The derivative of softplus(-a) is sigma(a) - 1, that of softplus(a) is sigma(a); the penalty is (|w| - 1)^2.
    slope_w = ((sigma(at_real) - 1) @ real + sigma(at_fake) @ fake) / 3 + weight * 2 * (norm - 1) * w / norm
    slope_b = np.mean(sigma(at_real) - 1) + np.mean(sigma(at_fake))
    assert_allclose(after.discriminator.params["w"], w - rate * slope_w, rtol=1e-5)
    assert_allclose(after.discriminator.params["b"], b - rate * slope_b, rtol=1e-5)
    assert_allclose(metrics["d_grad_norm"], np.sqrt(slope_w @ slope_w + slope_b**2), rtol=1e-5)
    assert_allclose(metrics["penalty"], (norm - 1) ** 2, rtol=1e-5)
    assert_allclose(metrics["d_loss"], np.mean(np.logaddexp(0, -at_real) + np.logaddexp(0, at_fake)), rtol=1e-5)


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        ("minimax", lambda b: -sigma(b)),
        ("non_saturating", lambda b: sigma(b) - 1),
        ("mle", lambda b: -np.exp(b)),
        ("wgan", lambda b: -np.ones_like(b)),
    ],
)
def test_the_generators_update_is_the_one_computed_by_hand(objective, slope):
    w, c, latents, rate = -1.5, 0.4, np.array([0.3, -2.0, 1.0]), 0.5
    fakes = toy_recipe(
        objective,
        generator=shifting_generator((c,)),
        discriminator=linear_discriminator((w,)),
        prior=constant_prior(*latents[:, None].tolist()),
    )
    before = toy_state(fakes, numbers(generator_rate=rate))
    after, metrics = step.generator_step(fakes, one_device(), before, image(0, 0, 0), jax.random.key(0))
    expected = w * np.mean(slope(w * (latents + c)))
    assert_allclose(after.generator.params["c"], [c - rate * expected], rtol=1e-5)
    assert_allclose(metrics["g_grad_norm"], abs(expected), rtol=1e-5)


def test_a_relativistic_generator_sees_the_real_logits():
    fakes = toy_recipe("rpgan", prior=constant_prior([0.5], [-1.0]))
    before = toy_state(fakes)
    after, metrics = step.generator_step(fakes, one_device(), before, image(2, -3), jax.random.key(0))
    difference = np.array([2, -3]) - np.array([0.5, -1.0])  # of the real logit and the fake one, pair by pair
    assert_allclose(metrics["g_loss"], np.mean(np.logaddexp(0, difference)), rtol=1e-5)
    assert_allclose(after.generator.params["c"], [0.5 * np.mean(sigma(difference))], rtol=1e-5)


# D(x, y) = w_y x and G(z, y) = z + c_y.
LABELLED = {
    "conditional": True,
    "discriminator": Network(
        init=lambda key, x, label: ({"w": jnp.array([1.0, -2.0, 5.0])}, {}),
        apply=lambda params, stats, x, train, label: (x[:, 0] * params["w"][label], stats),
    ),
    "generator": Network(
        init=lambda key, z, label: ({"c": jnp.array([0.5, 1.5, 9.0])}, {}),
        apply=lambda params, stats, z, train, label: (z + params["c"][label][:, None], stats),
    ),
}


@pytest.mark.parametrize("one_pass", [False, True])
def test_both_players_see_the_label_of_each_example(one_pass):
    z, x, label = np.array([0.25, -1.0]), np.array([2.0, -3.0]), np.array([1, 0])
    w, c = np.array([-2.0, 1.0]), np.array([1.5, 0.5])  # of these labels
    fakes = toy_recipe("wgan", penalties.r1_r2, prior=constant_prior(*z[:, None]), one_pass=one_pass, **LABELLED)
    before = toy_state(fakes, numbers(discriminator_rate=0.1, penalty_weight=0.5))
    batch = image(*x) | {"label": jnp.array(label)}
    after, metrics = step.discriminator_step(fakes, one_device(), before, batch, jax.random.key(0))
    assert_allclose(metrics["d_real"], np.mean(w * x), rtol=1e-6)
    assert_allclose(metrics["d_fake"], np.mean(w * (z + c)), rtol=1e-6)
    assert_allclose(metrics["penalty"], np.mean(2 * w**2), rtol=1e-6)  # each gradient is its own label's weight
    slope = (-x + (z + c) + 0.5 * 4 * w) / 2
    assert_allclose(after.discriminator.params["w"], [1 - 0.1 * slope[1], -2 - 0.1 * slope[0], 5], rtol=1e-6)
    before = toy_state(fakes, numbers(generator_rate=0.1))
    after, _ = step.generator_step(fakes, one_device(), before, batch, jax.random.key(0))
    assert_allclose(after.generator.params["c"], [0.5 + 0.1 * 1 / 2, 1.5 + 0.1 * -2 / 2, 9], rtol=1e-6)


def test_an_unconditional_recipe_leaves_labels_alone():
    fakes = toy_recipe()
    labelled = image(1, 2, 3, 4) | {"label": jnp.arange(4)}
    results = [
        step.discriminator_step(fakes, one_device(), toy_state(fakes), batch, jax.random.key(0))
        for batch in (labelled, image(1, 2, 3, 4))
    ]
    assert_same_bits(*results)


def test_a_finite_set_is_met_in_its_order():
    fakes = toy_recipe(batch_size=4, steps=3)
    images = jnp.arange(10.0)[:, None]
    source = Source((1,), lambda data, indices, keys: {"image": data[indices]}, std=1.0, size=10)
    state, met = toy_state(fakes), []
    for i in range(5):
        batch = step.draw_batches(fakes, one_device(), source, state.replace(step=jnp.int32(i)), images)
        met.append(np.ravel(batch["image"]))
    epochs = np.concatenate(met).reshape(6, 10)
    assert_array_equal(np.sort(epochs, axis=1), np.broadcast_to(np.arange(10), epochs.shape))
    assert len(np.unique(epochs, axis=0)) == 6


def test_the_two_learning_rates_act_separately():
    fakes = toy_recipe()
    run = jax.jit(partial(step.train_step, fakes, one_device()))
    batch = {"image": jnp.ones((1, 4, 1))}

    def moves(**rates):
        before = toy_state(fakes, numbers(**rates))
        after = run(before, batch)[0]
        return [
            optax.tree.norm(optax.tree.sub(getattr(after, player).params, getattr(before, player).params))
            for player in ("generator", "discriminator")
        ]

    generator, discriminator = moves(generator_rate=0.125, discriminator_rate=0.0)
    assert generator > 0
    assert discriminator == 0
    doubled, _ = moves(generator_rate=0.25, discriminator_rate=0.0)
    assert_allclose(doubled, 2 * generator, rtol=1e-5)
    generator, discriminator = moves(generator_rate=0.0, discriminator_rate=0.125)
    assert generator == 0
    assert discriminator > 0
    _, doubled = moves(generator_rate=0.0, discriminator_rate=0.25)
    assert_allclose(doubled, 2 * discriminator, rtol=1e-5)
    assert run._cache_size() == 1  # the rates are data


def test_label_smoothing_is_data_and_costs_its_share_of_the_real_logits(shrunk):
    objective = recipe.build(shrunk("digits")).recipe.objective
    fakes, traces = toy_recipe()._replace(objective=objective), []

    def counted(*arguments):
        traces.append(1)
        return step.discriminator_step(fakes, one_device(), *arguments)

    run, results = jax.jit(counted), {}
    for epsilon in (0.0, 0.1):
        state = toy_state(fakes, numbers(label_smoothing=epsilon))
        after, metrics = run(state, image(1, -2, 3, 0.5), jax.random.key(0))
        results[epsilon] = metrics | {"w": after.discriminator.params["w"]}
    assert len(traces) == 1
    plain, smoothed = results[0.0], results[0.1]
    assert_allclose(smoothed["d_loss"], plain["d_loss"] + 0.1 * plain["d_real"], rtol=1e-6)
    assert_allclose(smoothed["divergence"], plain["divergence"], rtol=1e-6)  # of the plain loss, or it bounds nothing
    assert_allclose(smoothed["w"], plain["w"] - 0.25 * 0.1 * np.mean([1, -2, 3, 0.5]), rtol=1e-6)


def test_a_penalty_of_weight_zero_is_none():
    def stepped(weight, penalty):
        fakes = toy_recipe(penalty=penalty, discriminator=linear_discriminator((3.0,)))
        state = toy_state(fakes, numbers(penalty_weight=weight))
        state, _ = step.discriminator_step(fakes, one_device(), state, image(1, 2, 3, 4), jax.random.key(0))
        return state.discriminator.params

    assert_same_bits(stepped(0.0, penalties.wgan_gp), stepped(5.0, None))
    assert stepped(5.0, penalties.wgan_gp)["w"] < stepped(5.0, None)["w"]


def test_every_weight_stays_clipped_from_the_first_critic_step_on(shrunk):
    changes = {"discriminator.clip": 0.01, "discriminator.optimizer.learning_rate": 0.1}
    tx, noted = recipe.build(shrunk("wgan", None, changes)).recipe.discriminator_tx, []
    fakes = toy_recipe("wgan", steps=3, discriminator_tx=tx, unroll=True)

    def noting(params, stats, x, train):
        jax.debug.callback(lambda w, b: noted.append(max(abs(float(w)), abs(float(b)))), params["w"][0], params["b"])
        return x @ params["w"] + params["b"], stats

    fakes = fakes._replace(discriminator=linear_discriminator((1.0,))._replace(apply=noting))
    batch = {"image": jnp.array([[2.0], [3.0]] * 6).reshape(3, 4, 1)}
    state, _ = step.train_step(fakes, one_device(), toy_state(fakes, numbers(discriminator_rate=0.1)), batch)
    jax.effects_barrier()
    bound = float(np.float32(0.01))
    assert noted[:2] == [1.0, 1.0]  # the initial weight, which the first critic step sees on real and on fake
    assert 0.0099 < min(noted[2:]) <= max(noted[2:]) <= bound  # the other two critic steps' and the generator's
    assert all(float(jnp.max(jnp.abs(leaf))) <= bound for leaf in jax.tree.leaves(state.discriminator.params))


# --- the moving average -----------------------------------------------------------------------------------------


def test_the_average_follows_its_closed_form_through_the_warm_up():
    decay = 0.2  # above (1 + t) / (10 + t) at t = 0 and 1, below it from 2 on
    fakes = toy_recipe()
    run = jax.jit(partial(step.train_step, fakes, one_device()))
    state = toy_state(fakes, numbers(ema_decay=decay))
    average = raw((state.ema.params, state.ema.stats))
    for t, rate in enumerate((1 / 10, 2 / 11, decay, decay, decay)):
        state, _ = run(state, {"image": jnp.full((1, 4, 1), 1.0 + t)})
        now = raw((state.generator.params, state.generator.stats))
        average = jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, average, now)  # noqa: B023
        assert_close((state.ema.params, state.ema.stats), average)


def test_without_averaging_the_average_is_the_generator():
    fakes = toy_recipe()
    state = toy_state(fakes, numbers(ema_decay=0.0))
    state, _ = step.train_step(fakes, one_device(), state, {"image": jnp.ones((1, 4, 1))})
    assert_same_bits(state.ema.params, state.generator.params)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_average_never_shares_a_buffer_with_the_generator(decay):
    fakes, devices = toy_recipe(), one_device()
    state, batch = devices.place(toy_state(fakes, numbers(ema_decay=decay))), {"image": jnp.ones((1, 4, 1))}
    compiled = devices.compile(partial(step.train_step, fakes, devices), state, batch)
    for _ in range(3):
        assert not pointers(state.ema) & pointers(state.generator)
        state, _ = compiled(state, batch)  # donates: two arguments in one buffer would be refused


def test_the_average_of_a_run_starts_as_a_copy(normalised):
    state = normalised.state
    assert_same_bits((state.ema.params, state.ema.stats), (state.generator.params, state.generator.stats))
    assert not pointers(state.ema) & pointers(state.generator)


def pointers(tree):
    return {shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards}


# --- the same step in other forms -------------------------------------------------------------------------------


def centering_discriminator():
    """D(x) = w (x - mean of the batch): a batch normalisation in small."""
    return linear_discriminator()._replace(
        apply=lambda params, stats, x, train: ((x - jnp.mean(x)) @ params["w"] + params["b"], stats)
    )


def passes(discriminator):
    """A train step with two passes of D, and with one: [(state, metrics), (state, metrics)]."""
    fakes = toy_recipe("rpgan", penalties.r1_r2, steps=2, discriminator=discriminator)
    batch = {"image": jnp.arange(8.0).reshape(2, 4, 1)}
    return [
        step.train_step(fakes._replace(one_pass=one_pass), one_device(), toy_state(fakes), batch)
        for one_pass in (False, True)
    ]


def test_one_pass_equals_two_where_logits_do_not_depend_on_the_batch():
    two, one = passes(linear_discriminator())
    assert_close(one, two)


def test_one_pass_normalises_over_real_and_fake_together():
    (_, two), (_, one) = passes(centering_discriminator())
    assert_allclose([two["d_real"], two["d_fake"]], 0, atol=1e-5)
    assert one["d_real"] > 1
    assert_allclose(one["d_real"] + one["d_fake"], 0, atol=1e-5)


def test_many_steps_in_one_call_equal_as_many_calls():
    fakes, devices = toy_recipe(penalty=penalties.r1, steps=2), one_device()
    at_once, series = jax.jit(partial(step.train_steps, fakes, devices, NOISE, 3))(toy_state(fakes), ())
    single = jax.jit(partial(step.train_step, fakes, devices))
    state = toy_state(fakes)
    for i in range(3):
        batch = step.draw_batches(fakes, devices, NOISE, state, ())
        state, metrics = single(state, batch)
        assert_close(jax.tree.map(lambda x: x[i], series), metrics)  # noqa: B023
    assert_close(at_once, state)
    assert int(at_once.step) == 3


def test_a_loop_written_out_equals_the_scan():
    fakes = toy_recipe(penalty=penalties.r1, steps=2)
    scanned, written_out = (
        partial(step.train_steps, fakes._replace(unroll=unroll), one_device(), NOISE, 2) for unroll in (False, True)
    )
    state = toy_state(fakes)
    assert [str(jax.make_jaxpr(f)(state, ())).count("scan[") > 0 for f in (scanned, written_out)] == [True, False]
    assert_close(jax.jit(written_out)(state, ()), jax.jit(scanned)(state, ()))


def test_a_recipe_that_convolves_is_written_out_on_a_cpu(shrunk):
    convolves = jax.default_backend() == "cpu"
    assert recipe.build(shrunk("dcgan")).recipe.unroll == convolves
    assert recipe.build(shrunk("dcgan", None, {"generator.network": "mlp"})).recipe.unroll == convolves
    assert not recipe.build(shrunk("digits")).recipe.unroll


@pytest.mark.parametrize("layout", [mesh, pmapped])
def test_a_compiled_call_moves_nothing_between_host_and_device(layout):
    fakes, devices = toy_recipe(), layout(jax.devices()[:1])
    state = devices.place(toy_state(fakes))
    compiled = devices.compile(partial(step.train_steps, fakes, devices, NOISE, 1), state, ())
    state, _ = compiled(state, ())
    with jax.transfer_guard("disallow"):
        state, metrics = compiled(state, ())
    assert int(state.step) == 2
    assert np.isfinite(metrics["d_loss"]).all()


@pytest.mark.parametrize("layout", [mesh, pmapped])
def test_a_step_from_the_compilation_cache_donates_and_gives_the_same_bits(layout):
    fakes, devices, hits, results = toy_recipe(penalty=penalties.r1, steps=2), layout(), [], []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
    for _ in range(2):
        before = devices.place(toy_state(fakes))
        hits.clear()
        compiled = devices.compile(partial(step.train_steps, fakes, devices, NOISE, 2), before, ())
        after, metrics = compiled(before, ())
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.generator, before.ema)))
        results.append((after.generator, after.discriminator, after.ema, metrics))
    assert hits
    assert_same_bits(*results)


def players(state):
    """All parameters of a state."""
    return state.generator.params, state.discriminator.params, state.ema.params


# --- what it reports --------------------------------------------------------------------------------------------

REAL, FAKE = [2.0, -1.0, 0.5, 0.0, 3.0], [-4.5, 1.0, -0.25, 0.0, -2.0]


def reported(objective):
    """The discriminator step's metrics at the known logits REAL and FAKE."""
    fakes = toy_recipe(objective, prior=constant_prior(*[[x] for x in FAKE]))
    return step.discriminator_step(fakes, one_device(), toy_state(fakes), image(*REAL), jax.random.key(0))[1]


def test_logit_metrics_are_those_of_known_logits():
    metrics = reported("non_saturating")
    assert_allclose(metrics["d_real"], np.mean(REAL), rtol=1e-6)
    assert_allclose(metrics["d_fake"], np.mean(FAKE), rtol=1e-6)
    assert_allclose(metrics["d_accuracy_real"], 3 / 5, rtol=1e-6)  # an undecided logit is no success
    assert_allclose(metrics["d_accuracy_fake"], 3 / 5, rtol=1e-6)
    assert metrics["max_logit"] == 4.5
    assert {value.shape for value in metrics.values()} == {()}


def test_accuracy_counts_from_where_the_objective_is_undecided():
    for objective, real, fake in (("lsgan", 2 / 5, 4 / 5), ("fgan_kl", 2 / 5, 4 / 5), ("wgan", 3 / 5, 3 / 5)):
        metrics = reported(objective)  # lsgan's undecided logit is 1/2, fgan_kl's is 1
        assert_allclose([metrics["d_accuracy_real"], metrics["d_accuracy_fake"]], [real, fake], rtol=1e-6)


def test_divergence_is_what_the_objective_bounds():
    real, fake = np.array(REAL), np.array(FAKE)
    value = np.mean(-np.logaddexp(0, -real)) + np.mean(-np.logaddexp(0, fake))  # V(D, G)
    for objective in ("non_saturating", "minimax", "mle"):
        assert_allclose(reported(objective)["divergence"], (value + np.log(4)) / 2, rtol=1e-5)
    assert_allclose(reported("wgan")["divergence"], np.mean(real) - np.mean(fake), rtol=1e-5)


def test_the_largest_logit_is_that_of_all_critic_steps_and_the_generators():
    fakes = toy_recipe(steps=2, prior=constant_prior([1.0], [1.0]))
    still = numbers(generator_rate=0.0, discriminator_rate=0.0)
    run = jax.jit(partial(step.train_step, fakes, one_device()))
    first = {"image": jnp.array([[[-7.0], [1.0]], [[2.0], [1.0]]])}
    _, metrics = run(toy_state(fakes, still), first)
    assert metrics["max_logit"] == 7
    assert_allclose(metrics["d_real"], 1.5)  # the rest is that of the last critic step
    far = fakes._replace(prior=constant_prior([1.0], [-9.0]))
    _, metrics = step.generator_step(far, one_device(), toy_state(far, still), image(50, 1), jax.random.key(0))
    assert metrics["max_logit"] == 9


def test_the_largest_logit_is_a_number_as_long_as_there_was_one():
    """When a run diverges, it is the last logit before that which explains it."""
    fakes = toy_recipe(steps=2, prior=constant_prior([1.0], [1.0]))
    batch = {"image": jnp.array([[[-7.0], [1.0]], [[np.nan], [1.0]]])}
    _, metrics = jax.jit(partial(step.train_step, fakes, one_device()))(toy_state(fakes), batch)
    assert np.isnan(metrics["d_loss"])
    assert metrics["max_logit"] == 7
    _, metrics = step.discriminator_step(fakes, one_device(), toy_state(fakes), image(np.nan, 2), jax.random.key(0))
    assert np.isnan(metrics["max_logit"])


def test_samples_come_from_the_average_and_its_running_statistics(normalised):
    setup, state = normalised.setup, normalised.state
    latents = setup.recipe.prior(jax.random.split(jax.random.key(3), 6))
    ema = state.ema.replace(stats=jax.tree.map(lambda x: x + 0.5, state.ema.stats))
    draw = jax.jit(partial(step.sample, setup.recipe))
    images = draw(ema, latents)
    assert images.shape == (6, 8, 8, 1)
    assert_allclose(draw(ema, latents[:2]), images[:2], rtol=1e-5, atol=1e-6)  # no statistics of the batch
    assert not np.allclose(images, draw(state.ema, latents), atol=1e-4)
