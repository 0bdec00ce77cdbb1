"""What is there against mode collapse: packing, minibatch layers, feature matching, instance noise."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import augment, objectives, recipe, step
from gan_jax.devices import mesh, pmapped
from gan_jax.errors import InputError
from gan_jax.networks import FAMILIES, from_linen
from gan_jax.networks.minibatch import DIMENSIONS, FLOOR, Minibatch, closeness, standard_deviation
from gan_jax.penalties import none, r1
from gan_jax.profiling import flops, hlo

LAYOUTS = {"mesh": mesh, "pmapped": pmapped}
PLACES = [("mesh", 2), ("mesh", 4), ("pmapped", 2), ("pmapped", 4)]
TOLERANCE = 1e-4  # see on_eight_devices.py, where the same is compared with the same descent
DESCENT = {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"name": "sgd", "b1": 0.5, "learning_rate": 0.1, "decay_to": 1.0}.items()
}
NO_PENALTY = {"penalty.name": "none", "penalty.weight": 0.0}
# Packs of two, of which spreads see two and kernels four: eight examples at once, a device's share of four.
LAYERS = NO_PENALTY | {
    "batch_size": 32,
    "discriminator.packing": 2,
    "discriminator.minibatch_stddev": 2,
    "discriminator.minibatch_discrimination": 3,
    "discriminator.minibatch_group": 4,
    "augment.instance_noise": 0.3,
}
ALL = LAYERS | {"objective.feature_matching": 0.5}


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


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- layers -----------------------------------------------------------------------------------------------------


def test_minibatch_standard_deviation_is_the_closed_form():
    x = numbers(6, 5)
    expected = [np.sqrt(group.var(axis=0) + FLOOR).mean() for group in (x[:3], x[3:])]
    assert_allclose(standard_deviation(x, 3), np.repeat(expected, 3)[:, None], rtol=1e-5)


def test_minibatch_standard_deviation_grows_with_diversity_from_its_floor():
    alike = np.repeat(numbers(1, 5), 4, axis=0)
    spreads = [float(standard_deviation(alike + scale * numbers(4, 5, seed=1), 4)[0, 0]) for scale in (0, 0.1, 1, 10)]
    assert spreads[0] == np.sqrt(np.float32(FLOOR))
    assert_allclose(np.diff(np.log10(spreads))[1:], 1, atol=1e-3)
    slope = jax.grad(lambda x: jnp.sum(standard_deviation(x, 4)))
    assert_array_equal(slope(jnp.asarray(alike)), 0)
    assert np.all(slope(jnp.asarray(numbers(4, 5))) != 0)


def test_minibatch_discrimination_is_the_closed_form():
    rows = numbers(6, 2, DIMENSIONS)
    expected = np.zeros((6, 2))
    for i in range(6):
        for j in range(i - i % 3, i - i % 3 + 3):
            expected[i] += np.exp(-np.abs(rows[i] - rows[j]).sum(axis=-1))
    assert_allclose(closeness(rows, 3), expected, rtol=1e-5)
    assert_allclose(closeness(np.repeat(rows[:1], 4, axis=0), 4), 4)  # all alike
    assert np.all(jax.grad(lambda x: jnp.sum(closeness(x, 3)))(jnp.asarray(rows)) != 0)


def discriminator(family, minibatch, dtype=jnp.float32, **changes):
    options = {"width": 4, "depth": 2, "activation": "leaky_relu", "normalization": "none"} | changes
    options |= {"form": "auto"} if FAMILIES[family].discriminator.convolves else {}
    options |= {"classes": 0} if FAMILIES[family].discriminator.conditions else {}
    module = FAMILIES[family].discriminator(dtype=dtype, axis_name=None, minibatch=minibatch, **options)
    return from_linen(module, "default")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_affine_map_of_any_discriminator_sees_them_beside_the_features(family, dtype):
    x = jnp.asarray(numbers(6, 8, 8, 3))
    plain, network = (discriminator(family, each, dtype) for each in (Minibatch(0, 0, 1), Minibatch(2, 3, 3)))
    params, stats = jax.jit(network.init)(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    kernel = params["BesideNeighbours_0"]["kernel"]
    (logits, features), _ = jax.jit(network.features, static_argnums=3)(params, stats, x, True)
    *_, last = sorted(name for name in params if name.startswith("Dense"))
    assert_allclose(logits, features @ params[last]["kernel"][:, 0] + params[last]["bias"], rtol=0.03, atol=0.03)
    own = features[:, :-4]
    assert kernel.shape == (own.shape[1], 3 * DIMENSIONS)
    rtol = 1e-5 if dtype == jnp.float32 else 0.03
    assert_allclose(features[:, -4], standard_deviation(own, 2)[:, 0], rtol=rtol)
    rows = (own.astype(dtype) @ kernel.astype(dtype)).reshape(6, 3, DIMENSIONS)
    assert_allclose(features[:, -3:], closeness(rows, 3), rtol=rtol)
    without = {name: leaf for name, leaf in params.items() if name != "BesideNeighbours_0"}
    without[last] = {"kernel": params[last]["kernel"][:-4], "bias": params[last]["bias"]}
    (_, expected), _ = jax.jit(plain.features, static_argnums=3)(without, stats, x, True)
    assert_allclose(own, expected, rtol=rtol)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_come_with_the_logits_of_one_pass(family):
    network, x = discriminator(family, Minibatch(0, 0, 1)), jnp.asarray(numbers(4, 8, 8, 3))
    params, stats = jax.jit(network.init)(jax.random.key(0), x)
    (logits, _), _ = jax.jit(network.features, static_argnums=3)(params, stats, x, True)
    assert_array_equal(logits, jax.jit(network.apply, static_argnums=3)(params, stats, x, True)[0])
    costs = [flops.count(partial(call, train=True), params, stats, x) for call in (network.features, network.apply)]
    assert costs[0] == costs[1] > 0


# --- packing ----------------------------------------------------------------------------------------------------


class Fake(NamedTuple):
    """A network of functions, small enough to differentiate by hand."""

    init: object
    apply: object
    features: object = None


def linear(features=2):
    """D(x) = x w, with w = 1, 10, ...; its features are tanh(x) (and their like)."""
    return Fake(
        init=lambda key, x: ({"w": 10.0 ** jnp.arange(x.shape[-1])}, {}),
        apply=lambda params, stats, x, train: (x @ params["w"], stats),
        features=lambda params, stats, x, train: ((x @ params["w"], jnp.tanh(x * params["w"])), stats),
    )


def shifting():
    """G(z) = z + c."""
    return Fake(
        init=lambda key, z: ({"c": jnp.array([0.25, -0.5])}, {}),
        apply=lambda params, stats, z, train: (z + params["c"], stats),
    )


def fake_setup(shrunk, changes, penalty=none, devices=None):
    """(the recipe of a config on ring8 with the networks above, devices, the first state)."""
    config = shrunk("mixture", "ring8", DESCENT | NO_PENALTY | {"objective.name": "wgan"} | changes)
    setup = recipe.build(config, devices or mesh(jax.devices()[:1]))
    fakes = setup.recipe._replace(generator=shifting(), discriminator=linear(), penalty=penalty)
    return fakes, setup.devices, step.init_state(fakes, setup.hyperparameters, jax.random.key(0), (2,))


def test_discriminator_sees_neighbours_as_one_input(shrunk):
    """Logits and penalties are of packs, x = (x_0, x_1): by hand, and for each pack a key."""
    keys = jax.random.split(jax.random.key(1), 4)
    met = []

    def penalty(critic, keys, real, fake):
        met.append(jax.random.key_data(keys))
        return r1(critic, keys, real, fake)

    fakes, _, state = fake_setup(shrunk, {"discriminator.packing": 2}, penalty)
    assert state.discriminator.params["w"].shape == (4,)
    real = numbers(4, 2)
    _, (_, metrics, _) = step.discriminator_loss(
        fakes, state, state.discriminator.params, {"image": jnp.asarray(real)}, keys, keys
    )
    logits = [real[i] @ [1, 10] + real[i + 1] @ [100, 1000] for i in (0, 2)]
    assert_allclose(metrics["d_real"], np.mean(logits), rtol=1e-5)
    assert_allclose(metrics["penalty"], 1 + 1e2 + 1e4 + 1e6)
    assert_array_equal(met[0], jax.random.key_data(keys)[::2])


def test_packs_of_images_are_joined_along_the_channels(shrunk):
    setup = recipe.build(shrunk("digits", None, {"discriminator.packing": 2, **NO_PENALTY}), mesh(jax.devices()[:1]))
    met = []
    spy = setup.recipe.discriminator._replace(apply=lambda params, stats, x, train: (met.append(x), (x[:, 0], stats))[1])
    state = recipe.initial_state(setup)
    images = jnp.asarray(numbers(4, 8, 8, 1))
    keys = jax.random.split(jax.random.key(1), 4)
    spied = setup.recipe._replace(discriminator=spy)
    step.discriminator_loss(spied, state, state.discriminator.params, {"image": images}, keys, keys)
    assert met[0].shape == (2, 8, 8, 2)
    for pack, channel, example in [(0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3)]:
        assert_array_equal(met[0][pack, ..., channel], images[example, ..., 0])


def test_pictures_show_what_is_said_of_copies_of_a_point(shrunk):
    setup = recipe.build(shrunk("mixture", "ring8", LAYERS), mesh(jax.devices()[:1]))
    player, points = recipe.initial_state(setup).discriminator, jnp.asarray(numbers(3, 2))
    logits = jax.jit(partial(step.discriminate, setup.recipe))(player, points)
    copies = jnp.tile(points[:, None], (1, 4, 2)).reshape(12, 4)  # four packs of each
    expected = setup.recipe.discriminator.apply(player.params, player.stats, copies, False)[0]
    assert_allclose(logits, expected[::4], rtol=1e-5)


# --- feature matching -------------------------------------------------------------------------------------------


def matching_loss(c, w, real, latents):
    """|E f(x) - E f(G(z))|^2 by its formula."""
    difference = jnp.mean(jnp.tanh(real * w), axis=0) - jnp.mean(jnp.tanh((latents + c) * w), axis=0)
    return jnp.sum(difference**2)


@pytest.mark.parametrize(("layout", "count"), [("mesh", 1), ("mesh", 4), ("pmapped", 2), ("pmapped", 4)])
@pytest.mark.parametrize("name", ["feature_matching", "wgan"])
def test_gradient_of_feature_matching_is_that_of_its_formula(shrunk, name, layout, count):
    weight, rate, n = 0.75, 0.1, 8
    changes = {"objective.feature_matching": weight, "objective.name": name, "generator.optimizer.b1": 0.0}
    fakes, devices, state = fake_setup(shrunk, changes, devices=LAYOUTS[layout](some(count)))
    real, key = jnp.asarray(numbers(n, 2)), jax.random.key(3)

    def update(state, real):
        part = jax.lax.dynamic_slice_in_dim(real, devices.part() * (n // devices.parts), n // devices.parts)
        return step.generator_step(fakes, devices, state, {"image": devices.shard(part)}, key)

    old = jax.device_get(state.generator.params["c"])
    placed, w = devices.place((state, real)), jax.device_get(state.discriminator.params["w"])
    after, metrics = devices.compile(update, *placed)(*placed)
    latents = fakes.prior(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(jnp.arange(n, dtype=jnp.uint32)))
    distance, gradient = jax.value_and_grad(matching_loss)(old, w, real, latents)
    gradient = weight * gradient - (w if name == "wgan" else 0)
    assert_allclose(metrics["feature_matching"], distance, rtol=1e-5)
    assert_allclose(old - jax.device_get(after.generator.params["c"]), rate * gradient, rtol=1e-4, atol=1e-6)
    assert (float(metrics["g_loss"]) == 0) == (name == "feature_matching")


def test_equal_batches_leave_nothing_to_match(shrunk):
    changes = {"objective.feature_matching": 2.0, "objective.name": "feature_matching"}
    fakes, devices, state = fake_setup(shrunk, changes)
    key = jax.random.key(3)
    latents = fakes.prior(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(jnp.arange(8, dtype=jnp.uint32)))
    real = {"image": latents + state.generator.params["c"]}
    _, metrics = step.generator_step(fakes, devices, state, real, key)
    assert metrics["feature_matching"] == metrics["g_grad_norm"] == 0


def test_the_objective_that_matches_features_alone_has_the_logistic_discriminator():
    alone, minimax = objectives.NAMED["feature_matching"], objectives.OBJECTIVES["minimax"]
    a, b = jnp.asarray(numbers(5)), jnp.asarray(numbers(5, seed=1))
    assert_array_equal(alone.generator(b, a), np.zeros(5))
    assert_array_equal(alone.discriminator(a, b), minimax.discriminator(a, b))


def test_matching_features_takes_no_second_pass(shrunk):
    """Where the objective needs D's pass over the real examples anyway."""

    def cost(weight):
        setup = recipe.build(shrunk("dcgan", None, {"objective.feature_matching": weight, "objective.name": "rpgan"}))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
        real = {"image": jax.ShapeDtypeStruct((8, *setup.source.shape), jnp.float32)}
        state = recipe.abstract_state(setup)
        loss = partial(step.generator_loss, setup.recipe, mesh(jax.devices()[:1]), state)
        return flops.count(jax.grad(loss, has_aux=True), state.generator.params, real, keys)

    assert cost(0.0) == cost(1.0) > 0


# --- instance noise ---------------------------------------------------------------------------------------------


def test_instance_noise_is_normal_noise_of_each_example_s_key():
    keys, x = jax.random.split(jax.random.key(0), 2000), np.full((2000, 3), 0.5, np.float32)
    noise = np.asarray(augment.instance_noise(keys, jnp.asarray(x), 0.3)) - x
    assert_allclose(noise[7], 0.3 * jax.random.normal(keys[7], (3,)), rtol=1e-4, atol=1e-6)
    assert_allclose(noise.mean(axis=0), 0, atol=0.03)
    assert_allclose(np.cov(noise.T), 0.09 * np.eye(3), atol=0.01)


def test_instance_noise_falls_linearly_to_nothing():
    assert_allclose([augment.annealed(0.4, step, 10) for step in (0, 5, 9, 10, 11)], [0.4, 0.2, 0.04, 0, 0], atol=1e-7)


def test_both_players_see_noise_of_its_own_on_each_example(shrunk):
    """wgan with D(x) = x_0 + 10 x_1: the mean logits are the means of data or samples, and of their noise."""
    changes = {"augment.instance_noise": 0.5, "num_steps": 10}
    fakes, _, state = fake_setup(shrunk, changes)
    state = state.replace(step=jnp.int32(4))  # 0.3 is left
    real, keys = jnp.asarray(numbers(8, 2)), jax.random.split(jax.random.key(1), 8)
    params, w = state.discriminator.params, np.array([1, 10])
    _, (_, metrics, _) = step.discriminator_loss(fakes, state, params, {"image": real}, keys, keys)
    fake = fakes.prior(keys) + state.generator.params["c"]
    of_each = [jax.random.split(jax.random.fold_in(key, 2**32 - 1)) for key in keys]
    noise = [0.3 * np.stack([jax.random.normal(pair[i], (2,)) for pair in of_each]) for i in (0, 1)]
    assert_allclose(metrics["d_real"], np.mean((real + noise[0]) @ w), rtol=1e-4)
    assert_allclose(metrics["d_fake"], np.mean((fake + noise[1]) @ w), rtol=1e-4)
    assert len(np.unique(np.concatenate(noise))) == 32
    loss, _ = step.generator_loss(fakes, None, state, state.generator.params, {"image": real}, keys)
    assert_allclose(loss, -metrics["d_fake"], rtol=1e-5)


def test_instance_noise_does_not_reach_what_the_generator_makes(shrunk):
    noisy, plain = (
        recipe.build(shrunk("mixture", "ring8", {"augment.instance_noise": sigma}), mesh(jax.devices()[:1]))
        for sigma in (5.0, 0.0)
    )
    state, z = recipe.initial_state(noisy), jnp.asarray(numbers(4, 2))
    assert_array_equal(step.sample(noisy.recipe, state.ema, z), step.sample(plain.recipe, state.ema, z))


# --- many devices, micro-batches --------------------------------------------------------------------------------


def build(config, layout="mesh", count=1):
    return recipe.build(config, LAYOUTS[layout](some(count)))


def train(setup, start):
    """(how far two steps take each player's parameters, metrics, the compiled program)."""
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    state, data = setup.devices.place(start), setup.devices.place(setup.source.data)
    program = setup.devices.compile(function, state, data)
    series = []
    for _ in range(2):
        state, metrics = program(state, data)
        series.append(jax.device_get(metrics))
    moves = [
        jax.tree.map(np.subtract, *jax.device_get((player(state).params, player(start).params)))
        for player in (lambda state: state.generator, lambda state: state.discriminator)
    ]
    return moves, jax.tree.map(lambda *each: np.concatenate(each), *series), program


def assert_same_training(found, expected):
    for move, other in zip(found[0], expected[0], strict=True):
        size = norm(other)
        assert norm(jax.tree.map(np.subtract, move, other)) < TOLERANCE * size
        assert size > 1e-3
    assert found[1].keys() == expected[1].keys()
    for key, series in expected[1].items():
        assert_allclose(found[1][key], series, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def alone(shrunk):
    """`alone(changes)`: (the first state, its training on one device, in one batch)."""
    kept = {}

    def get(changes):
        key = tuple(sorted(changes.items()))
        if key not in kept:
            setup = build(shrunk("mixture", "ring8", DESCENT | {"objective.name": "minimax"} | changes))
            start = jax.device_get(recipe.initial_state(setup).replace(key=None)).replace(key=setup.keys.training)
            kept[key] = start, train(setup, start)
        return kept[key]

    return get


@pytest.mark.parametrize(("layout", "count"), PLACES)
def test_nothing_depends_on_the_number_of_devices(shrunk, alone, layout, count):
    start, expected = alone(ALL)
    setup = build(shrunk("mixture", "ring8", DESCENT | {"objective.name": "minimax"} | ALL), layout, count)
    found = train(setup, start)
    assert_same_training(found, expected)
    # Neither packs nor groups are sent around: sums are all that the devices exchange.
    assert {each.kind for each in hlo.collectives(hlo.parse(found[2].compiled.as_text()))} == {"all-reduce"}


def test_each_of_them_changes_the_training(alone):
    moves = [alone(ALL)[1][0]]
    for key, value in ALL.items():
        if key not in NO_PENALTY and key != "batch_size":
            off = {"discriminator.packing": 1, "discriminator.minibatch_group": 2}.get(key, 0 * value)
            moves.append(alone(ALL | {key: off})[1][0])
    assert len({norm(each[0]) for each in moves}) == len(moves) == 7


@pytest.mark.parametrize(("layout", "count"), [("mesh", 1), ("mesh", 2), ("pmapped", 2)])
def test_packs_and_groups_stay_together_in_micro_batches(shrunk, alone, layout, count):
    start, expected = alone(LAYERS)
    changes = DESCENT | {"objective.name": "minimax", "accumulate": 2} | LAYERS
    assert_same_training(train(build(shrunk("mixture", "ring8", changes), layout, count), start), expected)


# --- what does not go together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discriminator.packing": 3}, r"batch_size is 8, but .* let D see 3 examples .*; batch_size must be a multip"),
        (
            {"discriminator.minibatch_stddev": 4, "discriminator.packing": 4},
            r"let D see 16 examples together, on one device and in one micro-batch; batch_size must be a multiple of 16",
        ),
        (
            {"discriminator.minibatch_discrimination": 2, "discriminator.minibatch_group": 4, "accumulate": 4},
            r"let D see 4 examples together, .*; batch_size must be a multiple of 16",
        ),
        ({"discriminator.minibatch_stddev": 1}, r"minibatch_stddev is 1; it must be 0, or 2 or more"),
        ({"discriminator.minibatch_group": 1}, r"minibatch_group is 1; it must be an integer, 2 or more"),
        ({"discriminator.packing": 0}, r"packing is 0; it must be a positive integer"),
        ({"augment.instance_noise": -1.0}, r"instance_noise is -1\.0; it must be a number, 0 or more"),
        (
            {"conditional": True, "discriminator.packing": 2},
            r"conditional is True and discriminator\.packing is 2: .*set discriminator\.packing to 1",
        ),
        (
            {"penalty.name": "r1", "penalty.weight": 1.0, "discriminator.minibatch_stddev": 4},
            r"penalty\.name is r1 and discriminator\.minibatch_stddev is 4: .* the other examples; set penalty\.name",
        ),
        (
            {
                "penalty.name": "r1",
                "penalty.weight": 1.0,
                "discriminator.minibatch_discrimination": 2,
                "discriminator.minibatch_group": 4,
            },
            r"penalty\.name is r1 and discriminator\.minibatch_discrimination is 2: .*_discrimination to 0",
        ),
        (
            {
                "discriminator.one_pass": True,
                "discriminator.normalization": "batch",
                "discriminator.minibatch_stddev": 4,
            },
            r"one_pass is True and discriminator\.minibatch_stddev is 4: real and fake .*set one_pass to False",
        ),
        (
            {"objective.name": "feature_matching"},
            r"objective\.name is feature_matching but objective\.feature_matching is 0: .*give it a weight",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_one_line(shrunk, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        build(shrunk("digits", None, NO_PENALTY | changes))
    assert "\n" not in str(raised.value)


def test_a_penalty_goes_with_packs(shrunk):
    changes = {"penalty.name": "r1", "penalty.weight": 0.5, "discriminator.packing": 2, "objective.name": "minimax"}
    setup = build(shrunk("mixture", "ring8", DESCENT | changes))
    _, metrics, _ = train(setup, recipe.initial_state(setup))
    assert np.all(metrics["penalty"] > 0)
