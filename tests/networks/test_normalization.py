"""Spectral normalisation around every network, and the normalisations that do not mix examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.families import small
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.networks import FAMILIES, from_linen, spectral
from gan_jax.networks.layers import GROUPS, LEAST_GROUP, Normalize, groups_of
from gan_jax.parallel.devices import example_keys, mesh, pmapped
from gan_jax.utils.errors import InputError

normalised_weights = jax.jit(spectral.normalised_weights)
LAYOUTS = {"mesh": mesh, "pmapped": pmapped}
SPECTRAL = {f"{player}.spectral_norm": True for player in ("generator", "discriminator")}
NO_PENALTY = {"penalty.name": "none", "penalty.weight": 0.0}
CLASSES = 3
LABEL = np.array([2, 0, 2, 1], np.int32)


def noise(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def player(family, which, *, depth=1, normalization="none", classes=0):
    """(a small network, an input of it): the generator (0) or the discriminator (1)."""
    options = {"width": 8, "depth": depth, "activation": "relu", "normalization": normalization, "classes": classes}
    module = small(FAMILIES[family][which], shape=(8, 8, 1), **options)
    return from_linen(module, "default"), noise(4, 8, 8, 1) if which else noise(4, 6)


def drawn(network, *inputs):
    """(params, stats) of a spectrally normalised network, random ones for all, made without compiling its init."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def singular_value(kernel):
    """The largest of a kernel as the matrix [all but the last axis, the last axis], by NumPy."""
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def converged(params, vectors, iterations=500):
    """The vectors after many calls with the same parameters."""
    following = jax.jit(
        lambda params, vectors: jax.lax.fori_loop(
            0, iterations, lambda _, vectors: spectral.normalised_weights(params, vectors)[1], vectors
        )
    )
    return following(params, vectors)


# --- spectral normalisation -------------------------------------------------------------------------------------

# Dense, convolutions of stride 1 and of 1x1, strided, transposed, and the tables of classes.
KINDS = {
    ("dcgan", 0): {"BesideLatents_0", "Dense_0", "StridedConvTranspose_0"},
    ("dcgan", 1): {"Dense_0", "Projection_0", "StridedConv_0"},
    ("resnet", 0): {"Block_0", "Conv_0", "Dense_0"},
    ("resnet", 1): {"Block_0", "Block_1", "Block_2", "Dense_0", "Projection_0"},
}


@pytest.mark.parametrize(("family", "which"), KINDS)
def test_every_weight_is_divided_by_its_largest_singular_value(family, which):
    plain, x = player(family, which, normalization="batch", classes=CLASSES)
    network = spectral.normalised(plain)
    params, stats = drawn(network, x, LABEL)
    stats = jax.tree.map(jnp.abs, stats)  # variances
    vectors = flatten_dict(stats["vectors"])
    assert {path[0] for path in vectors} == KINDS[family, which]
    weights = flatten_dict(params)
    for path, vector in vectors.items():
        assert vector.shape == weights[path].shape[-1:]
    assert all(leaf.ndim == 1 or path[-1] in ("scale", "bias") or path in vectors for path, leaf in weights.items())
    stats["vectors"] = converged(params, stats["vectors"])
    normalised = flatten_dict(normalised_weights(params, stats["vectors"])[0])
    for path, kernel in weights.items():
        sigma = singular_value(kernel) if path in vectors else 1
        assert_allclose(normalised[path], kernel / sigma, rtol=1e-4, err_msg=str(path))
        weights[path] = kernel / sigma
    apply = jax.jit(network.apply, static_argnums=3), jax.jit(plain.apply, static_argnums=3)
    actual, new = apply[0](params, stats, x, True, LABEL)
    expected, own = apply[1](unflatten_dict(weights), stats["network"], x, True, LABEL)
    assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    jax.tree.map(partial(assert_allclose, rtol=1e-2, atol=1e-4), new["network"], own)
    assert np.std(expected) > 0


def test_the_same_key_gives_the_same_parameters_and_unit_vectors():
    plain, x = player("mlp", 1, depth=2)
    expected, stats = jax.jit(plain.init)(jax.random.key(3), x)
    assert not stats
    params, stats = jax.jit(spectral.normalised(plain).init)(jax.random.key(3), x)
    jax.tree.map(assert_array_equal, params, expected)
    vectors = jax.tree.leaves(stats["vectors"])
    assert [vector.shape for vector in vectors] == [(1,), (8,), (8,)]
    assert_allclose([np.linalg.norm(vector) for vector in vectors], 1, rtol=1e-6)
    assert np.abs(vectors[1] - vectors[2]).max() > 0.1  # each has a key of its own


def test_vectors_move_in_training_by_an_iteration_and_are_used_in_evaluation():
    plain, x = player("mlp", 1, depth=2)
    network = spectral.normalised(plain)
    params, stats = drawn(network, x)
    apply = jax.jit(network.apply, static_argnums=3)
    logits, new = apply(params, stats, x, True)
    for path, u in flatten_dict(stats["vectors"]).items():
        kernel = np.asarray(flatten_dict(params)[path], np.float64)
        u = kernel.T @ (kernel @ u)
        assert_allclose(flatten_dict(new["vectors"])[path], u / np.linalg.norm(u), rtol=1e-4, atol=1e-5)
    same, kept = apply(params, stats, x, False)
    assert_array_equal(same, logits)
    jax.tree.map(assert_array_equal, kept, stats)
    # Another start is another estimate; the same direction at another length, as an average has it, is not.
    assert np.abs(apply(params, new, x, False)[0] - logits).max() > 1e-3
    shorter = jax.tree.map(lambda u: u / 3, stats)
    assert_allclose(apply(params, shorter, x, False)[0], logits, rtol=1e-5)


@pytest.mark.parametrize("depth", [0, 2])
def test_the_slope_of_a_discriminator_is_at_most_1(depth):
    network, x = player("mlp", 1, depth=depth)
    network = spectral.normalised(network)
    params, stats = drawn(network, x)
    stats["vectors"] = converged(params, stats["vectors"])
    slopes = jax.vmap(jax.grad(lambda x: network.apply(params, stats, x[None], True)[0][0]))(x)
    norms = np.linalg.norm(slopes.reshape(len(x), -1), axis=1)
    assert norms.max() < 1 + 1e-3
    if depth == 0:
        assert_allclose(norms, 1, rtol=1e-5)


def test_gradients_are_those_of_a_quotient_whose_vectors_are_constant():
    """d<C, W / s> = (C - <C, W / s> v u^T) / s, equation 12 of arXiv:1802.05957, before the vectors converge too."""
    kernel, cotangent, u = noise(7, 5), noise(7, 5, seed=2), noise(5, seed=3)

    def loss(kernel):
        return jnp.sum(cotangent * kernel / spectral.power_iteration(kernel, u)[0])

    sigma, following = spectral.power_iteration(kernel, u)
    v = np.asarray(kernel @ u, np.float64)
    v /= np.linalg.norm(v)
    assert_allclose(sigma, v @ kernel @ following, rtol=1e-5)
    assert sigma < 0.99 * singular_value(kernel)
    expected = (cotangent - loss(kernel) * np.outer(v, following)) / sigma
    assert_allclose(jax.grad(loss)(kernel), expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_penalty_goes_through_the_quotient():
    """Second derivatives are those of a critic whose kernels are W / (v^T W u) with v and u written in."""
    plain, x = player("mlp", 1, depth=2)
    network = spectral.normalised(plain)
    params, stats = drawn(network, x)
    new = flatten_dict(network.apply(params, stats, x, True)[1]["vectors"])
    flat, constants = flatten_dict(params), {}
    for path, following in new.items():
        v = flat[path] @ flatten_dict(stats["vectors"])[path]
        constants[path] = v / jnp.linalg.norm(v), following

    def written_out(params, x):
        flat = flatten_dict(params)
        flat |= {path: flat[path] / (v @ flat[path] @ u) for path, (v, u) in constants.items()}
        return plain.apply(unflatten_dict(flat), {}, x, True)[0]

    def penalty(logits, params):
        slopes = jax.grad(lambda x: jnp.sum(jnp.sin(logits(params, x))))(x)
        return jnp.mean((jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3))) - 1) ** 2)

    def actual(params, x):
        return network.apply(params, stats, x, True)[0]

    gradients = [jax.jit(jax.grad(partial(penalty, logits)))(params) for logits in (actual, written_out)]
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-5), *gradients)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[0])) > 1e-2


def test_a_matrix_of_zeros_stays_and_does_not_lose_its_vector():
    u = noise(3)
    sigma, following = spectral.power_iteration(jnp.zeros((4, 3)), u)
    assert sigma == 1
    assert_array_equal(following, u)
    gradient = jax.grad(lambda w: jnp.sum(w / spectral.power_iteration(w, u)[0]))(jnp.zeros((4, 3)))
    assert_array_equal(gradient, 1)


# --- in training ------------------------------------------------------------------------------------------------


def build(config, layout="mesh", count=1):
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    return recipe.build(config, LAYOUTS[layout](jax.devices()[:count]))


def train(setup, steps):
    """(the state at the start, at the end, the metrics of each step) of so many steps, on the host."""
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    state, data = recipe.initial_state(setup), setup.devices.place(setup.source.data)
    program = setup.devices.compile(function, state, data)
    before, series = numbers(state), []
    for _ in range(steps):
        state, metrics = program(state, data)
        series.append(jax.device_get(metrics))
    return before, numbers(state), jax.tree.map(lambda *values: np.concatenate(values), *series)


def numbers(state):
    """What moves, as copies on the host: the start is donated."""
    return jax.tree.map(np.array, state.replace(key=None, hyperparameters=None))


def test_vectors_move_with_their_player_alone(shrunk):
    setup = build(shrunk("mixture", "ring8", SPECTRAL | NO_PENALTY))
    state, key = recipe.initial_state(setup), jax.random.key(1)
    real = setup.source.draw((), None, example_keys(setup.devices, key, 8))
    moved, _ = jax.jit(partial(step.discriminator_step, setup.recipe, setup.devices))(state, real, key)
    jax.tree.map(assert_array_equal, numbers(moved).generator, numbers(state).generator)
    expected = state.discriminator.stats["vectors"]
    for _ in range(2):  # real and fake, one after the other
        expected = normalised_weights(state.discriminator.params, expected)[1]
    jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-6), moved.discriminator.stats["vectors"], expected)
    moved, _ = jax.jit(partial(step.generator_step, setup.recipe, setup.devices))(state, real, key)
    jax.tree.map(assert_array_equal, numbers(moved).discriminator, numbers(state).discriminator)
    _, expected = normalised_weights(state.generator.params, state.generator.stats["vectors"])
    jax.tree.map(partial(assert_allclose, rtol=1e-5, atol=1e-6), moved.generator.stats["vectors"], expected)


def test_a_shipped_config_keeps_its_norms_near_1_in_training(shrunk):
    config = shrunk("sngan", None, {"discriminator.steps": 1, "discriminator.optimizer.learning_rate": 1e-2})
    before, after, _ = train(build(config), 8)
    norms = []
    for vectors in (before.discriminator.stats["vectors"], after.discriminator.stats["vectors"]):
        kernels = flatten_dict(normalised_weights(after.discriminator.params, vectors)[0])
        norms.append([singular_value(kernels[path]) for path in flatten_dict(vectors)])
    assert len(norms[1]) == 8
    assert min(norms[1]) > 1 - 1e-4  # sigma is at most the largest singular value
    assert max(norms[1]) < 1.05
    assert max(norms[0]) > 1.1  # by the vectors of the start


# As in test_devices.py: gradient descent, since Adam makes a step of a rounding error.
DESCENT = {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"name": "sgd", "b1": 0.5, "learning_rate": 0.1, "decay_to": 1.0}.items()
}
APART = SPECTRAL | {"generator.normalization": "group", "discriminator.normalization": "layer"} | DESCENT | NO_PENALTY


@pytest.fixture(scope="module")
def alone(shrunk):
    return train(build(shrunk("mixture", "ring8", APART)), 3)


@pytest.mark.parametrize(("layout", "count", "accumulate"), [("mesh", 2, 1), ("pmapped", 2, 2)])
def test_training_is_the_same_on_two_devices_and_in_micro_batches(shrunk, alone, layout, count, accumulate):
    before, expected, metrics = alone
    setup = build(shrunk("mixture", "ring8", APART | {"accumulate": accumulate}), layout, count)
    start, actual, reported = train(setup, 3)
    jax.tree.map(assert_array_equal, start, before)
    jax.tree.map(partial(assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)
    for key, series in metrics.items():
        assert_allclose(reported[key], series, rtol=1e-4, atol=1e-5, err_msg=key)
    moves = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected.discriminator.stats, before.discriminator.stats)
    assert max(jax.tree.leaves(moves)) > 1e-2


@pytest.mark.parametrize("normalization", ["layer", "group"])
def test_a_penalty_goes_with_what_does_not_mix_examples(shrunk, normalization):
    build(shrunk("wgan_gp", None, SPECTRAL | {"discriminator.normalization": normalization}))


def test_clipping_does_not_go_with_spectral_normalisation(shrunk):
    with pytest.raises(
        InputError, match=r"spectral_norm is True and discriminator\.clip is 0\.03: .*set spectral_norm to False"
    ):
        build(shrunk("wgan", None, {"discriminator.spectral_norm": True}))


# --- layers, groups, classes ------------------------------------------------------------------------------------


def test_groups_divide_the_channels_and_have_more_than_a_number():
    assert [groups_of(channels) for channels in (1, 3, 7, 8, 24, 36, 128, 160, 256)] == [1, 1, 1, 2, 6, 9, 32, 32, 32]
    assert (GROUPS, LEAST_GROUP) == (32, 4)


@pytest.mark.parametrize("shape", [(12,), (4, 6, 12)], ids=str)
@pytest.mark.parametrize("kind", ["layer", "group"])
def test_an_example_is_normalised_by_itself(kind, shape):
    x = 2 * noise(5, *shape) + jnp.arange(12)
    module = Normalize(kind, jnp.float32, None)
    rng = np.random.default_rng(0)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=True))
    assert set(variables) == {"params"}
    assert [leaf.shape for leaf in jax.tree.leaves(variables)] == [(12,)] * 2
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), variables)
    (params,) = variables["params"].values()
    groups = {"layer": 1, "group": 3}[kind]
    parts = np.asarray(x, np.float64).reshape(5, -1, groups, 12 // groups)
    mean, variance = parts.mean(axis=(1, 3), keepdims=True), parts.var(axis=(1, 3), keepdims=True)
    expected = ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * params["scale"] + params["bias"]
    for train in (True, False):
        assert_allclose(module.apply(variables, x, train=train), expected, atol=1e-5)
    assert_allclose(module.apply(variables, x[2:3], train=True), expected[2:3], atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
def test_each_class_has_an_affine_map_of_its_own(kind):
    x, label = 3 * noise(4, 2, 2, 8) + 1, np.array([1, 0, 1, 1])
    module, plain = Normalize(kind, jnp.float32, None, classes=2), Normalize(kind, jnp.float32, None)
    variables = module.init(jax.random.key(0), x, True, label)
    assert_array_equal(variables["params"]["scale"], np.ones((2, 8)))
    assert_array_equal(variables["params"]["bias"], np.zeros((2, 8)))
    assert set(variables["params"]) == {"scale", "bias"}
    scale, shift = noise(2, 8), noise(2, 8, seed=2)
    variables["params"] = {"scale": scale, "bias": shift}
    actual, new = module.apply(variables, x, True, label, mutable=["batch_stats"])
    expected, own = plain.apply(plain.init(jax.random.key(0), x, True), x, True, mutable=["batch_stats"])
    for i, of_class in enumerate(label):
        assert_allclose(actual[i], expected[i] * scale[of_class] + shift[of_class], rtol=1e-5, atol=1e-5)
    jax.tree.map(assert_array_equal, new, own)  # the examples of all classes are one batch
    vectors = np.array([[0, 0], [1, 0], [1, 1], [0, -2]], np.float32)
    actual = module.apply(variables, x, True, vectors, mutable=["batch_stats"])[0]
    for i, vector in enumerate(vectors):
        assert_allclose(actual[i], expected[i] * (1 + vector @ (scale - 1)) + vector @ shift, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="2 classes is called without a label"):
        module.apply(variables, x, True)
