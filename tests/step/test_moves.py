"""How the players move: closed forms on the bilinear game, the Dirac-GAN, and shipped configs on one device and two."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.toys import descent, numbers, one_device, toy_recipe, toy_state
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import penalties, recipe
from gan_jax.networks import Network
from gan_jax.parallel.devices import Devices, mesh, pmapped
from gan_jax.step import optimizers, step
from gan_jax.step.state import Recipe
from gan_jax.theory import dirac
from gan_jax.utils.errors import InputError

RATE, WEIGHT = 0.2, 0.5  # of the games: a learning rate, and that of consensus
STEPS, START = 60, (0.6, -0.8)  # theta, psi, at distance 1
CONSENSUS = step.MOVES["consensus"]
MOVES = step.MOVES | {"consensus": CONSENSUS._replace(take=partial(CONSENSUS.take, weight=WEIGHT))}
AT_ONCE = [name for name in MOVES if name != "alternating"]
DESCENT = {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"name": "sgd", "b1": 0.0, "learning_rate": 0.1, "decay_to": 1.0}.items()
}


# --- games of two numbers ---------------------------------------------------------------------------------------


def at_rate(numbers):
    return optax.sgd(RATE)


def optimistic(numbers):
    return optax.chain(optimizers.optimistic_sgd(0.0), optax.scale(-RATE))


def adam(numbers):
    return optax.chain(optimizers.adam(0.5, 0.9), optax.scale(-RATE))


def dirac_recipe(move, objective="wgan", tx=at_rate, **changes):
    """The Dirac-GAN as a Recipe: G is the point theta, D's logit psi x, the data 0; with `wgan` it is bilinear."""
    generator = Network(
        init=lambda key, z: ({"theta": jnp.float32(START[0])}, {}),
        apply=lambda params, stats, z, train: (jnp.zeros((len(z), 1)) + params["theta"], stats),
    )
    discriminator = Network(
        init=lambda key, x: ({"psi": jnp.float32(START[1])}, {}),
        apply=lambda params, stats, x, train: (params["psi"] * x[:, 0], stats),
    )
    fields = {"generator_tx": tx, "discriminator_tx": tx, "prior": lambda keys: jnp.zeros((len(keys), 1))} | changes
    return toy_recipe(
        objective, batch_size=2, generator=generator, discriminator=discriminator, move=MOVES[move], **fields
    )


class Only(NamedTuple):
    """What of a Setup a step needs."""

    recipe: Recipe
    devices: Devices


def trajectory(made, steps=STEPS):
    """The points (theta, psi) from the start on, [steps + 1, 2], of the shipped train step, in float32."""
    state = toy_state(made)

    def body(state, _):
        state, _ = step.train_step(made, one_device(), state, {"image": jnp.zeros((1, 2, 1))})
        return state, jnp.stack([state.generator.params["theta"], state.discriminator.params["psi"]])

    return np.concatenate([[START], jax.jit(lambda state: jax.lax.scan(body, state, length=steps)[1])(state)])


def bilinear(point):
    """(gradient of -theta psi in theta, gradient of theta psi in psi)."""
    return np.array([-point[1], point[0]])


def repeated(update, steps=STEPS):
    """The points of a NumPy update, in float64."""
    points = [np.array(START)]
    for _ in range(steps):
        points.append(update(points[-1]))
    return np.array(points)


# Of a step of gradient descent at the rate h, on f = theta psi: the distance from the equilibrium after over before.
FACTORS = {
    "simultaneous": lambda h: np.sqrt(1 + h**2),
    "extragradient": lambda h: np.sqrt(1 - h**2 + h**4),
    "consensus": lambda h: np.sqrt((1 - h * WEIGHT) ** 2 + h**2),
}
IN_NUMPY = {
    "simultaneous": lambda w: w - RATE * bilinear(w),
    "extragradient": lambda w: w - RATE * bilinear(w - RATE * bilinear(w)),
    "consensus": lambda w: w - RATE * (bilinear(w) + WEIGHT * w),  # J^T v = w, since v turns w by a quarter
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_on_the_bilinear_game_the_distance_changes_by_its_factor(name):
    points = trajectory(dirac_recipe(name))
    assert_allclose(points, repeated(IN_NUMPY[name]), rtol=1e-5, atol=1e-5)
    radii = np.linalg.norm(points, axis=1)
    assert_allclose(radii[1:] / radii[:-1], FACTORS[name](RATE), rtol=1e-5)
    assert (FACTORS[name](RATE) < 1) == (name != "simultaneous")


def test_alternating_players_stay_on_a_closed_orbit():
    """D first: theta^2 + psi^2 - h theta psi is what a step conserves, an ellipse where h < 2."""
    theta, psi = trajectory(dirac_recipe("alternating"), 300).T
    assert_allclose(theta**2 + psi**2 - RATE * theta * psi, 1 - RATE * START[0] * START[1], rtol=1e-5)


def test_optimistic_descent_contracts_where_plain_descent_leaves():
    """w - 2 h v_t + h v_(t-1): eigenvalues of modulus sqrt((1 + s) / 2) and sqrt((1 - s) / 2), s = sqrt(1 - 4 h^2)."""
    points = trajectory(dirac_recipe("simultaneous", tx=optimistic))
    previous, expected = bilinear(np.array(START)), [np.array(START)]
    for _ in range(STEPS):
        gradient = bilinear(expected[-1])
        expected.append(expected[-1] - RATE * (2 * gradient - previous))
        previous = gradient
    assert_allclose(points, expected, rtol=1e-5, atol=1e-5)
    radii = np.linalg.norm(points, axis=1)
    factor = np.sqrt((1 + np.sqrt(1 - 4 * RATE**2)) / 2)
    assert_allclose(radii[41:] / radii[40:-1], factor, rtol=1e-5)  # the smaller modulus has died out
    assert factor < 1


def test_extra_adam_is_the_paper_s():
    """Algorithm 4 of arXiv:1802.10551, with one minibatch for both: the moments go on through the look-ahead."""

    class Adam:
        first, second, count = np.zeros(2), np.zeros(2), 0

        def direction(self, gradient):
            self.count += 1
            self.first = 0.5 * self.first + 0.5 * gradient
            self.second = 0.9 * self.second + 0.1 * gradient**2
            return (
                self.first / (1 - 0.5**self.count) / (np.sqrt(self.second / (1 - 0.9**self.count)) + 1e-8)
            )  # each player has its own, which is elementwise the same

    moments = Adam()

    def update(point):
        ahead = point - RATE * moments.direction(bilinear(point))
        return point - RATE * moments.direction(bilinear(ahead))

    points = trajectory(dirac_recipe("extragradient", tx=adam), 20)
    assert_allclose(points, repeated(update, 20), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MOVES)
def test_on_the_dirac_gan_a_move_is_its_formula(name):
    """A logistic loss: the field is that of `theory.dirac`, which has its own losses and expectations."""
    game = dirac.Game("non_saturating")

    def field(point):
        return dirac.vector_field(game, point)  # where both want to go

    def half_square(point):
        return jnp.sum(field(point) ** 2) / 2

    update = {
        "alternating": partial(dirac.alternating, game, RATE),
        "simultaneous": partial(dirac.simultaneous, game, RATE),
        "extragradient": lambda w: w + RATE * field(w + RATE * field(w)),
        "consensus": lambda w: w + RATE * (field(w) - WEIGHT * jax.grad(half_square)(w)),
    }[name]
    expected = jax.jit(lambda start: dirac.trajectory(update, start, STEPS))(jnp.array(START))
    assert_allclose(trajectory(dirac_recipe(name, "non_saturating")), expected, rtol=1e-5, atol=1e-5)


# --- shipped configs, shrunk ------------------------------------------------------------------------------------

# Statistics in G, means over the devices in the losses, a penalty, a finite set, small.
BASE = DESCENT | {"generator.depth": 1, "discriminator.depth": 1, "generator.normalization": "batch"}
BASE |= {"discriminator.steps": 1, "penalty.name": "r1", "penalty.weight": 1.0}


def setups(shrunk, devices):
    """A Setup for each way to move at once."""
    weights = dict.fromkeys(AT_ONCE, 0.0) | {"consensus": WEIGHT}
    changes = {move: BASE | {"moves": move, "consensus.weight": weight} for move, weight in weights.items()}
    return {move: recipe.build(shrunk("digits", None, change), devices) for move, change in changes.items()}


def batch_for(setup):
    """A minibatch [1, 1, n, ...] where the setup's devices take it."""
    shape = 1, 1, setup.config.batch_size, *setup.source.shape
    return setup.devices.spread({"image": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)})


def step_of_each(built, state, data):
    """(the state, {move: (where its step leads, metrics)}): one program for all."""
    reached = {}
    for move, setup in built.items():
        batch = jax.tree.map(lambda x: x[0], data)
        reached[move] = step.train_step(setup.recipe, setup.devices, state, batch)
    kept = {
        move: ((after.generator, after.discriminator, after.ema), metrics) for move, (after, metrics) in reached.items()
    }
    return state, kept


def moved(built):
    """{move: ((generator, discriminator, average), metrics)} after one step from the initial state, on the host."""
    setup = next(iter(built.values()))
    state, data = recipe.initial_state(setup), batch_for(setup)
    return jax.device_get(setup.devices.compile(partial(step_of_each, built), state, data)(state, data)[1])


@pytest.fixture(scope="module")
def alone(shrunk):
    """(the setups on one device, what their steps lead to)."""
    built = setups(shrunk, one_device())
    return built, moved(built)


@pytest.mark.parametrize("layout", [mesh, pmapped])
def test_two_devices_move_as_one(shrunk, alone, layout):
    if jax.device_count() < 2:
        pytest.skip("needs 2 devices")
    expected, results = alone[1], moved(setups(shrunk, layout(jax.devices()[:2])))
    assert set(results) == set(AT_ONCE)
    # Parameters, statistics, the average and metrics.
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=2e-6), results, expected)
    for move in ("extragradient", "consensus"):  # nothing is so small that the tolerance would hide it
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected[move][0], expected["simultaneous"][0])
        assert min(max(jax.tree.leaves(player.params)) for player in apart) > 1e-3


@pytest.mark.parametrize("layout", [mesh, pmapped])
def test_consensus_is_about_the_norm_of_the_mean_over_all_devices(layout):
    """Not the mean of the norms: on a logistic Dirac-GAN whose data is 2 on one device and -1 on the other."""
    if jax.device_count() < 2:
        pytest.skip("needs 2 devices")

    def field(point, real):
        theta, psi = point
        of_discriminator = jax.grad(lambda psi: jnp.mean(jax.nn.softplus(-psi * real)) + jax.nn.softplus(psi * theta))
        return jnp.stack([jax.grad(lambda theta: jax.nn.softplus(-psi * theta))(theta), of_discriminator(psi)])

    def half_square(point, real):
        return jnp.sum(field(point, real) ** 2) / 2

    devices, start, real = layout(jax.devices()[:2]), jnp.array(START), jnp.array([2.0, -1.0])
    made = dirac_recipe("consensus", "non_saturating")
    state = devices.place(toy_state(made))
    data = devices.spread({"image": np.array(real).reshape(1, 1, 2, 1)})
    program = devices.compile(partial(step_of_each, {"consensus": Only(made, devices)}), state, data)
    (generator, discriminator, _), _ = program(state, data)[1]["consensus"]
    moves_to = start - RATE * (field(start, real) + WEIGHT * jax.grad(half_square)(start, real))
    assert_allclose((generator.params["theta"], discriminator.params["psi"]), moves_to, rtol=1e-5)
    of_parts = jnp.mean(jax.vmap(lambda part: jax.grad(half_square)(start, part))(real[:, None]), axis=0)
    assert np.abs(of_parts - jax.grad(half_square)(start, real)).max() > 0.1


@pytest.mark.parametrize("name", ["simultaneous", "extragradient"])
def test_micro_batches_move_as_the_whole_batch(name):
    made = dirac_recipe(name, "non_saturating")
    assert_allclose(trajectory(made._replace(accumulate=2)), trajectory(made), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", AT_ONCE)
def test_members_of_a_population_move_as_they_would_alone(name):
    rates = jnp.array([0.1, 0.3])
    made = dirac_recipe(name, "non_saturating", descent("generator"))
    states = [toy_state(made, numbers(generator_rate=rate)) for rate in rates]
    run = partial(step.train_step, made, one_device(), batch={"image": jnp.ones((1, 2, 1))})
    together, _ = jax.jit(jax.vmap(run))(jax.tree.map(lambda *each: jnp.stack(each), *states))
    members = together.generator.params["theta"], together.discriminator.params["psi"]
    for i, state in enumerate(states):
        after, _ = jax.jit(run)(state)
        expected = after.generator.params["theta"], after.discriminator.params["psi"]
        assert_allclose([x[i] for x in members], expected, rtol=1e-6)
        assert np.abs(np.array(expected) - START).min() > 1e-3


def test_both_players_move_from_the_same_point(alone):
    built, reached = alone
    setup = built["simultaneous"]
    state, real = recipe.initial_state(setup), {"image": batch_for(setup)["image"][0, 0]}
    keys = step.step_keys(state)

    @jax.jit
    def halves(state):
        key = jax.random.split(keys.discriminator, 1)[0]
        arguments = setup.recipe, setup.devices, state, real
        return step.generator_step(*arguments, keys.generator), step.discriminator_step(*arguments, key)

    (generator, of_generator), (discriminator, of_discriminator) = halves(state)
    (new_generator, new_discriminator, ema), metrics = reached["simultaneous"]
    expected = generator.generator, discriminator.discriminator, generator.ema
    jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-6), (new_generator, new_discriminator, ema), expected)
    for name, value in (of_generator | of_discriminator).items():
        if name != "max_logit":
            assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert metrics["max_logit"] == max(of_generator["max_logit"], of_discriminator["max_logit"])


def test_extragradient_applies_the_gradients_of_the_look_ahead(alone):
    """Plain descent: w + (what a simultaneous step from the look-ahead adds to that); statistics move once."""
    built, reached = alone
    setup = built["simultaneous"]
    state, batch = recipe.initial_state(setup), {"image": batch_for(setup)["image"][0]}

    @jax.jit
    def from_the_look_ahead(state, generator, discriminator):
        state = state.replace(
            generator=state.generator.replace(params=generator),
            discriminator=state.discriminator.replace(params=discriminator),
        )
        return step.train_step(setup.recipe, setup.devices, state, batch)

    ahead = [player.params for player in reached["simultaneous"][0][:2]]
    further, metrics = from_the_look_ahead(state, *ahead)
    for i, name in enumerate(("generator", "discriminator")):
        player, last = reached["extragradient"][0][i], getattr(further, name)
        expected = jax.tree.map(lambda w, a, b: w + (b - a), getattr(state, name).params, ahead[i], last.params)
        jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-6), player.params, expected)
        jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-6), player.stats, last.stats)
    assert jax.tree.leaves(reached["extragradient"][0][0].stats)
    for key, value in metrics.items():
        assert_allclose(reached["extragradient"][1][key], value, rtol=1e-5, atol=1e-6, err_msg=key)


def test_every_move_reports_the_same_metrics(alone):
    names = [set(metrics) for _, metrics in alone[1].values()]
    built = alone[0]["simultaneous"]
    alternating = built.recipe._replace(move=MOVES["alternating"])
    shapes = jax.eval_shape(
        partial(step.train_step, alternating, built.devices),
        recipe.abstract_state(built),
        {"image": jnp.zeros((1, 8, 8, 8, 1))},
    )
    assert names == [set(shapes[1])] * 3


def test_consensus_derives_convolutions_twice(shrunk):
    """The derivative of the derivative that convolutions on a CPU bring along is that of XLA's own."""
    changes = DESCENT | {"moves": "consensus", "consensus.weight": 0.1, "batch_size": 2}
    results = []
    for form in ("cpu", "plain"):
        setup = recipe.build(shrunk("dcgan", None, changes | {"convolution": form}), one_device())
        results.append(moved({form: setup})[form])
    jax.tree.map(partial(assert_allclose, rtol=1e-3, atol=1e-6), *results)


@pytest.mark.parametrize("name", AT_ONCE)
def test_the_players_have_noise_of_their_own_and_the_look_ahead_that_of_its_step(name):
    met = []

    def prior(keys):
        met.append(jax.random.key_data(keys))
        return jnp.zeros((len(keys), 1))

    made = dirac_recipe(name)._replace(prior=prior)
    state = toy_state(made)

    @jax.jit
    def keys_of_a_step(state):
        met.clear()
        step.train_step(made, one_device(), state, {"image": jnp.zeros((1, 2, 1))})
        return list(met)

    first, second = (jax.device_get(keys_of_a_step(state.replace(step=i))) for i in range(2))
    looks = 2 if name == "extragradient" else 1
    assert len(first) == len(second) == 2 * looks  # players
    assert len(np.unique(np.concatenate([*first, *second]), axis=0)) == 2 * 2 * 2  # steps, players, examples
    assert_array_equal(first[:2], first[-2:])
    assert_array_equal(second[:2], second[-2:])


# --- optimisers of a config -------------------------------------------------------------------------------------


def transform(shrunk, player, changes):
    """The optimiser of a player of a config, for any tree of parameters."""
    setup = recipe.build(shrunk("mixture", "ring8", changes), one_device())
    return getattr(setup.recipe, f"{player}_tx")(setup.hyperparameters)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_gradients_are_clipped_by_the_norm_of_all_of_them_before_the_optimiser(shrunk, player):
    tx = transform(shrunk, player, DESCENT | {f"{player}.optimizer.clip_norm": 2.0})
    params = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    for gradients, scale in (
        ({"w": jnp.array([0.0, 3.0]), "b": jnp.float32(4.0)}, 0.4),
        ({"w": jnp.ones(2), "b": jnp.float32(0.5)}, 1),
    ):
        updates, _ = tx.update(gradients, tx.init(params), params)
        jax.tree.map(lambda u, g: assert_allclose(u, -0.1 * scale * g, rtol=1e-6), updates, gradients)  # noqa: B023


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_weight_decay_is_decoupled_from_adam(shrunk, player):
    changes = DESCENT | {f"{player}.optimizer.{key}": value for key, value in {"name": "adamw", "b1": 0.5}.items()}
    tx = transform(shrunk, player, changes | {f"{player}.optimizer.weight_decay": 0.3})
    params, gradients = jnp.array([2.0, -1.0]), jnp.array([0.1, 5.0])
    updates, _ = tx.update(gradients, tx.init(params), params)
    # Adam's first direction is the sign of the gradient.
    assert_allclose(updates, -0.1 * (np.sign(gradients) + 0.3 * params), rtol=1e-5)


@pytest.mark.parametrize(("move", "each"), [("simultaneous", 1), ("extragradient", 2)])
def test_the_rate_warms_up_and_falls_by_steps_of_the_run(shrunk, move, each):
    """Each update of an extragradient step counts, so that its rate has the same course over the run."""
    changes = {"generator.optimizer.warmup": 4, "generator.optimizer.decay_to": 0.0, "num_steps": 8}
    tx = transform(shrunk, "generator", DESCENT | changes | {"moves": move, "discriminator.steps": 1})

    def body(opt_state, _):
        updates, opt_state = tx.update(jnp.float32(1.0), opt_state)
        return opt_state, -updates

    _, rates = jax.lax.scan(body, tx.init(jnp.float32(0.0)), length=8 * each)
    t = np.arange(8 * each)
    expected = 0.1 * np.minimum((t + 1) / (4 * each), 1) * (1 + np.cos(np.pi * t / (8 * each))) / 2
    assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"moves": "together"}, "config key moves is 'together'; it must be one of alternating, simultaneous"),
        (
            {"moves": "simultaneous", "discriminator.steps": 2},
            "moves is simultaneous and discriminator.steps is 2: .*; set",
        ),
        ({"moves": "consensus"}, "moves is consensus and consensus.weight is 0.0: the weight must be greater than 0"),
        (
            {"consensus.weight": 1.0},
            "consensus.weight is 1.0, but moves is alternating, .* set it to 0.0, or moves to consensus",
        ),
        (
            {"moves": "consensus", "consensus.weight": 1.0, "accumulate": 2},
            "moves is consensus and accumulate is 2: .*; set",
        ),
        (
            {"generator.optimizer.weight_decay": 0.1},
            "generator.optimizer.weight_decay is 0.1, but adam has no weight_decay; .* to one of adamw",
        ),
        (
            {"discriminator.optimizer.warmup": 5},
            "discriminator.optimizer.warmup is 5 and num_steps is 4: the warm-up must",
        ),
        (
            {"discriminator.optimizer.name": "adamm"},
            "optimizer.name is 'adamm'; it must be one of adam, adamw, optimistic",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(shrunk, changes, line):
    with pytest.raises(InputError, match=line) as raised:
        recipe.build(shrunk("mixture", "ring8", changes), one_device())
    assert "\n" not in str(raised.value)


def test_written_out_steps_count_what_is_derived_twice(shrunk):
    """32 gradients are written out at most: 16 alternating steps, 8 of extragradient."""
    if jax.default_backend() != "cpu":
        pytest.skip("loops are written out on a CPU")
    changes = {"discriminator.steps": 1, "num_steps": 20}
    recipe.build(shrunk("dcgan", None, changes | {"steps_per_call": 16}), one_device())
    recipe.build(shrunk("dcgan", None, changes | {"steps_per_call": 8, "moves": "extragradient"}), one_device())
    with pytest.raises(InputError, match="36 gradients"):
        recipe.build(shrunk("dcgan", None, changes | {"steps_per_call": 9, "moves": "extragradient"}), one_device())


# --- lazy penalties ---------------------------------------------------------------------------------------------


def test_a_lazy_penalty_is_computed_in_every_nth_step_and_counts_n_times():
    met = []

    def penalty(critic, keys, real, fake):
        jax.debug.callback(lambda: met.append(1))
        return penalties.r1(critic, keys, real, fake)

    made = dirac_recipe("alternating")._replace(penalty=lambda numbers: penalty, discriminator_steps=2)
    state = toy_state(made, numbers(penalty_weight=0.25))
    theta, psi = START
    lazy = jax.jit(partial(step.train_step, made._replace(penalty_every=3), one_device()))
    for i in range(6):
        due = i in (2, 5)
        state, metrics = lazy(state, {"image": jnp.zeros((2, 2, 1))})
        for _ in range(2):
            paid, psi = psi**2 * due, psi - RATE * (theta + 2 * 0.25 * 3 * psi * due)
        theta += RATE * psi
        found = state.generator.params["theta"], state.discriminator.params["psi"], metrics["penalty"]
        assert_allclose(found, (theta, psi, paid), rtol=1e-5, atol=1e-7)
    jax.effects_barrier()
    assert len(met) == 2 * 2  # steps in which it is due, updates of D


def test_a_lazy_penalty_is_the_same_on_two_devices():
    if jax.device_count() < 2:
        pytest.skip("needs 2 devices")
    made = dirac_recipe("alternating")._replace(penalty=lambda numbers: penalties.r1, penalty_every=2)
    start, real = toy_state(made, numbers(penalty_weight=0.25)), {"image": np.float32([2.0, -1.0]).reshape(1, 1, 2, 1)}
    results = []
    for devices in (one_device(), mesh(jax.devices()[:2]), pmapped(jax.devices()[:2])):
        state, data = devices.place(jax.tree.map(jnp.copy, start)), devices.spread(real)
        program = devices.compile(partial(two_steps, Only(made, devices)), state, data)
        results.append(jax.device_get(program(state, data)[1]))
    for found in results[1:]:
        jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=2e-6), found, results[0])
    first, second = (metrics["penalty"] for _, metrics in results[0])
    assert first == 0 < second


def two_steps(setup, state, data):
    """(the state, (players, metrics) after each of two steps on the same minibatch)."""
    batch, reached = jax.tree.map(lambda x: x[0], data), []
    for _ in range(2):
        state, metrics = step.train_step(setup.recipe, setup.devices, state, batch)
        reached.append(((state.generator, state.discriminator), metrics))
    return state, reached
