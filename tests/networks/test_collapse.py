"""What is there against mode collapse: packing, minibatch layers, feature matching, instance noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import small
from helpers.toys import discriminator_loss_of, generator_loss_of
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import objectives, recipe, step
from gan_jax.analysis.profiling import flops, hlo
from gan_jax.networks import FAMILIES, Network, from_linen
from gan_jax.networks.minibatch import ALONE, DIMENSIONS, FLOOR, Minibatch, closeness, standard_deviation
from gan_jax.parallel.devices import mesh, pmapped
from gan_jax.penalties import r1
from gan_jax.step import augment, schedules
from gan_jax.utils.errors import InputError

LAYOUTS = {"mesh": mesh, "pmapped": pmapped}
TOLERANCE = 1e-4  # see on_eight_devices.py, where the same is compared with the same descent
DESCENT = {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"name": "sgd", "b1": 0.5, "learning_rate": 0.1, "decay_to": 1.0}.items()
}
NO_PENALTY = {"penalty.name": "none", "penalty.weight": 0.0}
# Packs of two, of which spreads see two and kernels four: eight examples at once, a device's share of four.
LAYERS = DESCENT | {
    "objective.name": "minimax",
    "penalty.name": "none",
    "penalty.weight": 0.0,
    "batch_size": 32,
    "generator.depth": 1,
    "discriminator.depth": 1,
    "discriminator.packing": 2,
    "discriminator.minibatch_stddev": 2,
    "discriminator.minibatch_discrimination": 3,
    "discriminator.minibatch_group": 4,
    "augment.instance_noise": 0.3,
}


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
    module = small(FAMILIES[family].discriminator, dtype=dtype, minibatch=minibatch, **changes)
    return from_linen(module, "default")


def parameters_of(network, x):
    """(params, stats) as the network's init gives, without compiling that."""
    shapes, stats = jax.eval_shape(network.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(numbers(*leaf.shape) / np.sqrt(leaf.size), leaf.dtype), shapes), stats


@pytest.mark.parametrize(("family", "dtype"), [*((family, jnp.float32) for family in FAMILIES), ("mlp", jnp.bfloat16)])
def test_the_last_affine_map_of_any_discriminator_sees_them_beside_the_features(family, dtype):
    x = jnp.asarray(numbers(6, 8, 8, 3))
    plain, network = (discriminator(family, minibatch, dtype) for minibatch in (ALONE, Minibatch(1, 2, 3, 3)))
    params, stats = parameters_of(network, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    kernel = params["BesideNeighbours_0"]["kernel"]
    (logits, features), _ = jax.jit(network.features, static_argnums=3)(params, stats, x, True)
    *_, last = sorted(name for name in params if name.startswith("Dense"))
    assert_allclose(logits, features @ params[last]["kernel"][:, 0] + params[last].get("bias", 0), rtol=0.03, atol=0.03)
    own = features[:, :-4]
    assert kernel.shape == (own.shape[1], 3 * DIMENSIONS)
    rtol = 1e-5 if dtype == jnp.float32 else 0.03
    assert_allclose(features[:, -4], standard_deviation(own, 2)[:, 0], rtol=rtol)
    rows = (own.astype(dtype) @ kernel.astype(dtype)).reshape(6, 3, DIMENSIONS)
    assert_allclose(features[:, -3:], closeness(rows, 3), rtol=rtol)
    without = {name: leaf for name, leaf in params.items() if name != "BesideNeighbours_0"}
    without[last] = params[last] | {"kernel": params[last]["kernel"][:-4]}
    (_, expected), _ = jax.jit(plain.features, static_argnums=3)(without, stats, x, True)
    assert_allclose(own, expected, rtol=rtol)
    costs = [flops.count(partial(call, train=True), params, stats, x) for call in (network.features, network.apply)]
    assert costs[0] == costs[1] > 0  # one pass


# --- packing ----------------------------------------------------------------------------------------------------


def linear(features=2):
    """D(x) = x w, with w = 1, 10, ...; its features are tanh(x) (and their like)."""
    return Network(
        init=lambda key, x: ({"w": 10.0 ** jnp.arange(x.shape[-1])}, {}),
        apply=lambda params, stats, x, train: (x @ params["w"], stats),
        features=lambda params, stats, x, train: ((x @ params["w"], jnp.tanh(x * params["w"])), stats),
    )


def shifting():
    """G(z) = z + c."""
    return Network(
        init=lambda key, z: ({"c": jnp.array([0.25, -0.5])}, {}),
        apply=lambda params, stats, z, train: (z + params["c"], stats),
    )


def fake_setup(shrunk, changes, penalty=None, devices=None):
    """(the recipe of a config on ring8 with the networks above, devices, the first state)."""
    config = shrunk("mixture", "ring8", DESCENT | NO_PENALTY | {"objective.name": "wgan"} | changes)
    setup = recipe.build(config, devices or mesh(jax.devices()[:1]))
    fakes = setup.recipe._replace(generator=shifting(), discriminator=linear())
    fakes = fakes._replace(penalty=lambda numbers: penalty) if penalty else fakes
    return fakes, setup.devices, step.init_state(fakes, setup.hyperparameters, jax.random.key(0), (2,))


def test_discriminator_sees_neighbours_as_one_input(shrunk):
    """Logits and penalties are of packs, x = (x_0, x_1): by hand, and for each pack a key."""
    keys = jax.random.split(jax.random.key(1), 4)

    def penalty(critic, keys, real, fake):
        return r1(critic, keys, real, fake) + jax.random.key_data(keys)[:, 0] % 2**16

    fakes, _, state = fake_setup(shrunk, {"discriminator.packing": 2}, penalty)
    assert state.discriminator.params["w"].shape == (4,)
    real = numbers(4, 2)
    loss = jax.jit(discriminator_loss_of(fakes))
    _, (_, metrics, _) = loss(state, state.discriminator.params, {"image": jnp.asarray(real)}, keys, keys)
    logits = [real[i] @ [1, 10] + real[i + 1] @ [100, 1000] for i in (0, 2)]
    assert_allclose(metrics["d_real"], np.mean(logits), rtol=1e-5)
    words = jax.random.key_data(keys)[::2, 0] % 2**16
    assert_allclose(metrics["penalty"], 1 + 1e2 + 1e4 + 1e6 + np.mean(words))


def test_packs_of_images_are_joined_along_the_channels(shrunk):
    weights, images = numbers(3, 3, 4), numbers(4, 3, 3, 2)
    judge = Network(
        init=lambda key, x: ({"like": jnp.zeros(x.shape[1:])}, {}),
        apply=lambda params, stats, x, train: (jnp.sum(x * weights, axis=(1, 2, 3)), stats),
    )
    blank = shifting()._replace(apply=lambda params, stats, z, train: (jnp.zeros((len(z), 3, 3, 2)), stats))
    fakes, _, state = fake_setup(shrunk, {"discriminator.packing": 2})
    fakes = fakes._replace(generator=blank, discriminator=judge)
    state = step.init_state(fakes, state.hyperparameters, jax.random.key(0), (3, 3, 2))
    assert state.discriminator.params["like"].shape == (3, 3, 4)
    keys, real = jax.random.split(jax.random.key(1), 4), {"image": jnp.asarray(images)}
    loss = jax.jit(discriminator_loss_of(fakes))
    _, (_, metrics, _) = loss(state, state.discriminator.params, real, keys, keys)
    logits = [np.sum(images[i] * weights[..., :2] + images[i + 1] * weights[..., 2:]) for i in (0, 2)]
    assert_allclose(metrics["d_real"], np.mean(logits), rtol=1e-4)


def test_pictures_show_what_is_said_of_copies_of_a_point(shrunk):
    setup = recipe.build(shrunk("mixture", "ring8", LAYERS), mesh(jax.devices()[:1]))
    player, points = recipe.initial_state(setup).discriminator, jnp.asarray(numbers(3, 2))
    logits = jax.jit(partial(step.discriminate, setup.recipe))(player, points)
    copies = jnp.tile(points[:, None], (1, 4, 2)).reshape(12, 4)  # four packs of each
    apply = jax.jit(setup.recipe.discriminator.apply, static_argnums=3)
    expected, _ = apply(player.params, player.stats, copies, False)
    assert_allclose(logits, expected[::4], rtol=1e-5)


# --- feature matching -------------------------------------------------------------------------------------------


def matching_loss(c, w, real, latents):
    """|E f(x) - E f(G(z))|^2 by its formula."""
    difference = jnp.mean(jnp.tanh(real * w), axis=0) - jnp.mean(jnp.tanh((latents + c) * w), axis=0)
    return jnp.sum(difference**2)


@pytest.mark.parametrize(
    ("name", "layout", "count"),
    [("feature_matching", "mesh", 1), ("wgan", "mesh", 4), ("feature_matching", "pmapped", 2), ("wgan", "pmapped", 4)],
)
def test_gradient_of_feature_matching_is_that_of_its_formula(shrunk, name, layout, count):
    weight, rate, n = 0.75, 0.1, 8
    changes = {"objective.feature_matching": weight, "objective.name": name, "generator.optimizer.b1": 0.0}
    fakes, devices, state = fake_setup(shrunk, changes, devices=LAYOUTS[layout](some(count)))
    real, key = jnp.asarray(numbers(n, 2)), jax.random.key(3)

    def update(state, real):
        part = jax.lax.dynamic_slice_in_dim(
            real, devices.shard_index() * (n // devices.num_shards), n // devices.num_shards
        )
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
    _, metrics = jax.jit(partial(step.generator_step, fakes, devices))(state, real, key)
    assert metrics["feature_matching"] == metrics["g_grad_norm"] == 0


def test_the_objective_that_matches_features_alone_has_the_logistic_discriminator():
    alone, minimax = objectives.NAMED["feature_matching"], objectives.OBJECTIVES["minimax"]
    a, b = jnp.asarray(numbers(5)), jnp.asarray(numbers(5, seed=1))
    assert_array_equal(alone.generator(b, a), np.zeros(5))
    assert_array_equal(alone.discriminator(a, b), minimax.discriminator(a, b))


def test_matching_features_takes_no_second_pass(shrunk):
    """Where the objective needs D's pass over the real examples anyway."""

    def cost(weight):
        changes = {"objective.feature_matching": weight, "objective.name": "rpgan"}
        setup = build(shrunk("dcgan", None, changes))
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
        real = {"image": jax.ShapeDtypeStruct((8, *setup.source.shape), jnp.float32)}
        state = recipe.abstract_state(setup)
        loss = generator_loss_of(setup.recipe, setup.devices)
        return flops.count(jax.grad(loss, argnums=1, has_aux=True), state, state.generator.params, real, keys)

    assert cost(0.0) == cost(1.0) > 0


# --- instance noise ---------------------------------------------------------------------------------------------


def test_instance_noise_is_normal_noise_of_each_example_s_key():
    keys, x = jax.random.split(jax.random.key(0), 2000), np.full((2000, 3), 0.5, np.float32)
    noise = np.asarray(jax.jit(augment.instance_noise)(keys, jnp.asarray(x), 0.3)) - x
    assert_allclose(noise[7], 0.3 * jax.random.normal(keys[7], (3,)), rtol=1e-4, atol=1e-6)
    assert_allclose(noise.mean(axis=0), 0, atol=0.03)
    assert_allclose(np.cov(noise.T), 0.09 * np.eye(3), atol=0.01)


def test_instance_noise_falls_linearly_to_nothing():
    assert_allclose(
        [schedules.annealed(0.4, step, 10) for step in (0, 5, 9, 10, 11)], [0.4, 0.2, 0.04, 0, 0], atol=1e-7
    )


def test_both_players_see_noise_of_its_own_on_each_example(shrunk):
    """wgan with D(x) = x_0 + 10 x_1: the mean logits are the means of data or samples, and of their noise."""
    changes = {"augment.instance_noise": 0.5, "num_steps": 10}
    fakes, _, state = fake_setup(shrunk, changes)
    state = state.replace(step=jnp.int32(4))  # 0.3 is left
    real, keys = jnp.asarray(numbers(8, 2)), jax.random.split(jax.random.key(1), 8)
    params, w = state.discriminator.params, np.array([1, 10])
    _, (_, metrics, _) = jax.jit(discriminator_loss_of(fakes))(state, params, {"image": real}, keys, keys)
    fake = fakes.prior(keys) + state.generator.params["c"]
    pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 2**32 - 1)))(keys)
    noise = 0.3 * np.asarray(jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (2,))))(pairs)).swapaxes(0, 1)
    assert_allclose(metrics["d_real"], np.mean((real + noise[0]) @ w), rtol=1e-4)
    assert_allclose(metrics["d_fake"], np.mean((fake + noise[1]) @ w), rtol=1e-4)
    assert len(np.unique(np.concatenate(noise))) == 32
    loss = jax.jit(generator_loss_of(fakes, None))
    loss, _ = loss(state, state.generator.params, {"image": real}, keys)
    assert_allclose(loss, -metrics["d_fake"], rtol=1e-5)


def test_instance_noise_does_not_reach_what_the_generator_makes(shrunk):
    noisy, plain = (
        recipe.build(shrunk("mixture", "ring8", {"augment.instance_noise": sigma}), mesh(jax.devices()[:1]))
        for sigma in (5.0, 0.0)
    )
    state, z = recipe.initial_state(noisy), jnp.asarray(numbers(4, 2))
    first, second = (jax.jit(partial(step.sample, setup.recipe))(state.ema, z) for setup in (noisy, plain))
    assert_array_equal(first, second)


# --- many devices, micro-batches --------------------------------------------------------------------------------


def build(config, layout="mesh", count=1):
    return recipe.build(config, LAYOUTS[layout](some(count)))


def parameters(state):
    return jax.tree.map(np.array, (state.generator.params, state.discriminator.params))


def train(setup, start):
    """(how far two steps take each player's parameters, metrics, the compiled program)."""
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    state, data = setup.devices.place((jax.tree.map(jnp.copy, start), setup.source.data))
    program, series = setup.devices.compile(function, state, data), []
    for _ in range(2):
        state, metrics = program(state, data)
        series.append(jax.device_get(metrics))
    moves = jax.tree.map(np.subtract, parameters(state), parameters(start))
    return moves, jax.tree.map(lambda *each: np.concatenate(each), *series), program


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def alone(shrunk):
    """(the first state, its training on one device, in one batch)."""
    setup = build(shrunk("mixture", "ring8", LAYERS))
    start = recipe.initial_state(setup)
    return start, train(setup, start)


def test_what_is_compared_has_them_all(alone):
    params = alone[0].discriminator.params
    assert params["Hidden_0"]["Dense_0"]["kernel"].shape[0] == 2 * 2
    assert params["BesideNeighbours_0"]["kernel"].shape[1] == 3 * DIMENSIONS
    assert params["Dense_0"]["kernel"].shape[0] == params["BesideNeighbours_0"]["kernel"].shape[0] + 1 + 3
    assert alone[0].hyperparameters["augment.instance_noise"] == np.float32(0.3)


@pytest.mark.parametrize(
    ("layout", "count", "accumulate"),
    [("mesh", 4, 1), ("pmapped", 4, 1), ("mesh", 2, 2), ("pmapped", 2, 2)],
)
def test_nothing_depends_on_devices_or_micro_batches(shrunk, alone, layout, count, accumulate):
    setup = build(shrunk("mixture", "ring8", LAYERS | {"accumulate": accumulate}), layout, count)
    (moves, metrics, program), (expected, series, _) = train(setup, alone[0]), alone[1]
    for move, other in zip(moves, expected, strict=True):
        assert norm(jax.tree.map(np.subtract, move, other)) < TOLERANCE * norm(other)
        assert norm(other) > 1e-3
    assert metrics.keys() == series.keys()
    for key, values in series.items():
        assert_allclose(metrics[key], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)
    # Neither packs nor groups are sent around: sums are all that the devices exchange.
    assert {each.kind for each in hlo.collectives(hlo.parse(program.compiled.as_text()))} == {"all-reduce"}


# --- what does not go together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discriminator.packing": 3}, r"batch_size is 8, but .* let D see 3 examples .*; it must be a multip"),
        (
            {"discriminator.minibatch_stddev": 4, "discriminator.packing": 4},
            r"let D see 16 examples together, on one device and in .*; it must be a multiple of 16",
        ),
        (
            {"discriminator.minibatch_discrimination": 2, "discriminator.minibatch_group": 4, "accumulate": 4},
            r"let D see 4 examples together, .*; it must be a multiple of 16",
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
            r"objective\.name is feature_matching and objective\.feature_matching is 0\.0: .*give it a weight",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_makes_no_sense_is_one_line(shrunk, changes, message):
    with pytest.raises(InputError, match=message) as raised:
        build(shrunk("digits", None, NO_PENALTY | changes))
    assert "\n" not in str(raised.value)
