"""The families' shapes, ranges and dtypes, batch statistics, classes, and the convolutions.

Residual blocks: test_resnet.py.
"""

from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.families import NORMALIZED, small
from jax import lax

from gan_jax.networks import FAMILIES, MATMUL_PRECISIONS, from_linen, has
from gan_jax.networks.convolution import (
    StridedConv,
    conv,
    conv_mean_pool,
    strided_conv,
    strided_conv_transpose,
    upsample_conv,
)
from gan_jax.networks.cpu import winograd
from gan_jax.networks.cpu.forms import FORMS
from gan_jax.networks.layers import NORMALIZATIONS, Normalize

DEPTHS = {8: 2, 16: 3, 28: 2, 32: 3, 64: 4}
LATENTS = 6
LAYOUT = ("NHWC", "HWIO", "NHWC")


def players(family, shape, *, depth=2, normalization="none", dtype=jnp.float32, classes=0):
    """The generator and the discriminator of a small network."""
    options = {"depth": depth, "normalization": normalization, "dtype": dtype, "classes": classes}
    generator = from_linen(small(FAMILIES[family].generator, shape=shape, **options), "default")
    return generator, from_linen(small(FAMILIES[family].discriminator, **options), "default")


def initialised(network, x, label=None, gain=1.5):
    """(params, stats, apply) with kernels of the given gain, made without compiling the network's own init."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 100
        return np.asarray(gain * rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + (leaf.ndim == 1), leaf.dtype)

    def apply(*arguments):
        return jax.device_get(network.apply(*arguments))

    params, stats = jax.eval_shape(network.init, jax.random.key(0), x, label)
    stats = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), stats)
    return jax.tree.map(draw, params), stats, apply


# NumPy's arrays, here and in what a network gives: each of JAX's own operations would be compiled for what follows.
def latents(n=4):
    return np.random.default_rng(7).standard_normal((n, LATENTS), np.float32)


def images(shape, n=4):
    return np.random.default_rng(8).uniform(-1, 1, (n, *shape)).astype(np.float32)


def dtypes(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", DEPTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_for_every_size_of_image(family, size, channels):
    shape = (size, size, channels)
    generator, discriminator = players(family, shape, depth=DEPTHS[size], normalization="batch")

    def through(key):
        params, stats = generator.init(key, latents())
        fake, _ = generator.apply(params, stats, latents(), True)
        params, stats = discriminator.init(key, fake)
        return fake, discriminator.apply(params, stats, fake, True)[0]

    fake, logits = jax.eval_shape(through, jax.random.key(0))
    assert fake.shape == (4, *shape)
    assert logits.shape == (4,)
    assert fake.dtype == logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("family", "normalization", "dtype"),
    [
        *((family, kind, (jnp.float32, jnp.bfloat16)[NORMALIZATIONS.index(kind) % 2]) for family, kind in NORMALIZED),
        ("r3gan", "none", jnp.bfloat16),
    ],
)
def test_images_lie_in_range_and_only_the_inside_is_in_the_dtype(family, normalization, dtype):
    shape = (16, 8, 3)  # not square
    generator, discriminator = players(family, shape, normalization=normalization, dtype=dtype)
    params, stats, apply = initialised(generator, latents())
    fake, new = apply(params, stats, 100 * latents(), True)
    assert fake.shape == (4, *shape)
    assert fake.dtype == jnp.float32
    assert 0.99 < np.max(np.abs(fake)) <= 1
    critic_params, critic_stats, critic_apply = initialised(discriminator, fake)
    logits, critic_new = critic_apply(critic_params, critic_stats, fake, True)
    assert logits.dtype == jnp.float32
    assert np.std(logits) > 0
    assert dtypes((params, critic_params, new, critic_new)) == {jnp.dtype("float32")}


@pytest.mark.parametrize(("family", "player"), [("dcgan", 0), ("mlp", 1)], ids=str)
def test_initial_weights_are_float32_and_as_random_as_published(family, player):
    network = players(family, (16, 16, 1), normalization="batch")[player]
    x = (latents(), images((16, 16, 1)))[player]
    key = jax.random.key(0, impl="rbg")  # compiles faster
    params, stats = jax.device_get(jax.jit(network.init)(key, x))
    assert dtypes((params, stats)) == {jnp.dtype("float32")}
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    assert len(kernels) == 3
    for kernel in kernels:
        # N(0, 0.02^2) in arXiv:1511.06434; elsewhere the variance 1 / fan-in.
        std = 0.02 if family == "dcgan" else 1 / np.sqrt(len(kernel))
        assert abs(kernel.std() / std - 1) < 4 / np.sqrt(2 * kernel.size)  # 4 standard errors
    biases = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias"]
    assert not np.concatenate(biases).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_computes_nearly_the_same(family):
    x = images((8, 8, 1), n=64)
    logits = []
    for dtype in (jnp.float32, jnp.bfloat16):
        params, stats, apply = initialised(players(family, (8, 8, 1), dtype=dtype)[1], x)
        logits.append(np.asarray(apply(params, stats, x, True)[0]))
    assert 0 < np.abs(logits[1] - logits[0]).max() < 0.1 * np.abs(logits[0]).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_normalisation_there_are_no_statistics_and_no_mixing(family):
    shape = (8, 8, 1)
    generator, discriminator = players(family, shape)
    for network, x in ((generator, latents()), (discriminator, images(shape))):
        params, stats, apply = initialised(network, x)
        y, new = apply(params, stats, x, True)
        assert not jax.tree.leaves((stats, new))
        np.testing.assert_allclose(apply(params, stats, x[2:], True)[0], y[2:], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(apply(params, stats, x, False)[0], y)
        assert np.abs(y[0] - y[1]).max() > 1e-3


@pytest.mark.parametrize("family", [name for name, kind in NORMALIZED if kind == "batch"])
def test_batch_statistics_move_in_training_and_only_there(family):
    shape = (8, 8, 1)
    generator, discriminator = players(family, shape, normalization="batch")
    for network, x in ((generator, latents()), (discriminator, images(shape))):
        params, stats, apply = initialised(network, x)
        trained, new = apply(params, stats, x, True)
        moved = jax.tree.map(lambda before, after: np.max(np.abs(after - before)), stats, new)
        assert len(jax.tree.leaves(moved)) >= 2
        assert min(jax.tree.leaves(moved)) > 0
        evaluated, same = apply(params, new, x, False)
        jax.tree.map(np.testing.assert_array_equal, same, new)
        assert np.abs(evaluated - trained).max() > 1e-4


def test_batch_normalisation_is_the_batch_s_in_training_and_the_running_one_after():
    x = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    module = Normalize("batch", jnp.float32, None)
    variables = module.init(jax.random.key(0), x, train=True)
    y, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    mean, variance = x.astype(np.float64).mean(axis=0), x.astype(np.float64).var(axis=0)
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5), atol=1e-5)
    running = new["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * variance, rtol=1e-5)
    evaluated = module.apply({"params": variables["params"], **new}, x, train=False)
    np.testing.assert_allclose(evaluated, (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * variance + 1e-5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (2,)], ids=str)
def test_points_are_not_squashed(shape):
    generator, discriminator = players("mlp", shape)
    params, stats, apply = initialised(generator, latents(), gain=5)
    points = apply(params, stats, latents(256), True)[0]
    assert points.shape == (256, *shape)
    assert np.abs(points).max() > 10
    params, stats, apply = initialised(discriminator, points)
    assert apply(params, stats, points, True)[0].shape == (256,)


def products(jaxpr):
    """The precision of every product of matrices and convolution in a program, those of its parts included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("precision", MATMUL_PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_matmul_precision_reaches_every_product_and_its_derivatives(family, precision):
    network = from_linen(small(FAMILIES[family].discriminator, activation="relu", form="plain"), precision)
    x = images((8, 8, 3))
    params, _ = jax.eval_shape(network.init, jax.random.key(0), x)

    def penalty(params, x):
        slope = jax.grad(lambda x: jnp.sum(network.apply(params, {}, x, True)[0]))(x)
        return jnp.sum(slope**2)

    seen = list(products(jax.make_jaxpr(jax.grad(penalty))(params, x).jaxpr))
    wanted = lax.Precision(precision)
    assert len(seen) >= 9
    assert set(seen) == {None if precision == "default" else (wanted, wanted)}


# Classes.

CLASSES = 5
LABEL = np.array([3, 0, 3, 4], np.int32)  # 1 and 2 are missing
OTHER = np.array([3, 2, 1, 4], np.int32)
CONDITIONAL = pytest.mark.parametrize("family", [name for name in FAMILIES if has(FAMILIES[name].generator, "classes")])
PLAYER = pytest.mark.parametrize("player", [0, 1], ids=["generator", "discriminator"])
SHAPE = (8, 8, 1)


def conditional(family, player, **options):
    """(network, x): one of the two players and an input of it."""
    return players(family, SHAPE, classes=CLASSES, **options)[player], (latents(), images(SHAPE))[player]


def split(params):
    """(the parameters that an unconditional network has too, the embedding [classes, features])."""
    (name,) = {"BesideLatents_0", "Projection_0"}.intersection(params)
    return {key: value for key, value in params.items() if key != name}, params[name]["Embedding_0"]["embedding"]


def with_zero_embedding(params):
    return {
        key: jax.tree.map(np.zeros_like, value) if key == "Projection_0" else value for key, value in params.items()
    }


def reference(family):
    """(params, x, kernels [n, features]) -> <kernel, phi(x)> + b, by an unconditional discriminator for each example.

    To the examples of a class y the last layer's kernel is w + e_y, which is another way to write the projection.
    """
    apply = players(family, SHAPE)[1].apply

    def logit(params, x, kernel):
        last = params["Dense_0"] | {"kernel": kernel[:, None]}
        return apply(params | {"Dense_0": last}, {}, x[None], True)[0][0]

    return jax.vmap(logit, in_axes=(None, 0, 0))


@pytest.mark.parametrize(
    ("family", "player", "names"),
    [
        ("mlp", 0, {"Dense_0", "Hidden_0"}),
        ("mlp", 1, {"Dense_0", "Hidden_0"}),
        ("dcgan", 0, {"Dense_0", "Normalize_0", "StridedConvTranspose_0", "Normalize_1", "StridedConvTranspose_1"}),
        ("dcgan", 1, {"Dense_0", "StridedConv_0", "StridedConv_1", "Normalize_1"}),
        ("resnet", 1, {"Dense_0", "Block_0", "Block_1", "Block_2", "Block_3"}),
        ("r3gan", 1, {"Dense_0", "Block_0", "Block_1", "Block_2", "Conv_0", "kernel"}),
    ],
)
def test_classes_add_a_table_and_change_no_other_name(family, player, names):
    """Without them the parameters are those of before there were any: old checkpoints can be read."""
    network, x = conditional(family, player, normalization="batch")
    params, _ = jax.eval_shape(network.init, jax.random.key(0), x, LABEL)
    assert set(split(params)[0]) == names
    assert split(params)[1].shape == (CLASSES, 6 if player == 0 else {"dcgan": 32}.get(family, 4))
    params, _ = jax.eval_shape(players(family, SHAPE, normalization="batch")[player].init, jax.random.key(0), x)
    assert set(params) == names


@CONDITIONAL
def test_embeddings_are_at_first_short_and_as_random_as_the_last_kernel(family):
    """Beside the latents N(0, 0.1^2); in the projection like the last kernel, which classes leave as it was."""
    many = 500
    key, label = jax.random.key(0, impl="rbg"), np.zeros(4, np.int32)  # rbg compiles faster
    networks = players(family, SHAPE, classes=many)
    inputs = latents(), images(SHAPE)
    params = [jax.device_get(jax.jit(n.init)(key, x, label)[0]) for n, x in zip(networks, inputs, strict=True)]
    tables = [split(each)[1] for each in params]
    features = tables[1].shape[1]
    std = 1 / np.sqrt(features)
    stds = 0.1, {"mlp": std, "r3gan": std, "dcgan": 0.02, "resnet": np.sqrt(2 / (features + 1))}[family]
    for table, std in zip(tables, stds, strict=True):
        assert table.dtype == jnp.float32
        assert abs(table.std() / std - 1) < 4 / np.sqrt(2 * table.size)  # 4 standard errors
    unconditional = jax.jit(players(family, SHAPE)[1].init)(key, images(SHAPE))[0]
    jax.tree.map(np.testing.assert_array_equal, split(params[1])[0], unconditional)


@CONDITIONAL
def test_two_labels_differ_by_the_projection_on_their_difference(family):
    network, x = conditional(family, 1)
    params, _, apply = initialised(network, x, LABEL)
    plain, table = split(params)
    logits, others = (apply(params, {}, x, True, label)[0] for label in (LABEL, OTHER))
    plain["Dense_0"]["bias"] = np.zeros(1, np.float32)
    expected = jax.jit(reference(family))(plain, x, table[LABEL] - table[OTHER])
    np.testing.assert_allclose(logits - others, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected[1:3]).min() > 1e-2
    np.testing.assert_array_equal(logits[::3], others[::3])  # of which the labels are the same


def test_the_features_of_an_mlp_are_its_last_hidden_layer():
    network, x = conditional("mlp", 1, depth=1)
    params, _, apply = initialised(network, x, LABEL)
    hidden, last = params["Hidden_0"]["Dense_0"], params["Dense_0"]
    features = np.asarray(x).reshape(4, -1) @ hidden["kernel"] + hidden["bias"]
    features = np.where(features > 0, features, 0.2 * features)
    expected = np.sum(features * (last["kernel"][:, 0] + split(params)[1][LABEL]), axis=1) + last["bias"]
    np.testing.assert_allclose(apply(params, {}, x, True, LABEL)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "normalization"), NORMALIZED)
def test_an_embedding_of_zero_gives_the_unconditional_logits(family, normalization):
    network, x = conditional(family, 1, normalization=normalization)
    params, stats, apply = initialised(network, x, LABEL)
    unconditional = players(family, SHAPE, normalization=normalization)[1].apply
    expected, _ = jax.device_get(unconditional(split(params)[0], stats, x, True))
    np.testing.assert_allclose(apply(with_zero_embedding(params), stats, x, True, LABEL)[0], expected, rtol=1e-5)
    assert np.abs(apply(params, stats, x, True, LABEL)[0] - expected).min() > 1e-3


@PLAYER
@CONDITIONAL
def test_a_vector_of_labels_sums_the_rows_of_classes_and_has_a_gradient(family, player):
    network, x = conditional(family, player, normalization="batch")
    label = np.array([[1, 0, 1, 0, 0.5], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, -2, 0, 1]], np.float32)
    params, stats = network.init(jax.random.key(0), x, label)
    jax.tree.map(np.testing.assert_array_equal, (params, stats), network.init(jax.random.key(0), x, LABEL))
    apply = jax.jit(partial(network.apply, params, stats, x, True))
    one_hot = np.eye(CLASSES, dtype=np.float32)[LABEL]
    np.testing.assert_allclose(apply(one_hot)[0], apply(LABEL)[0], rtol=1e-5, atol=1e-6)
    if family == "resnet" and player == 0:  # its scales and shifts are at first the same for all classes
        params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)

    def total(params, label):
        return jnp.sum(jnp.square(network.apply(params, stats, x, False, label)[0]))

    gradients, of_label = jax.grad(total, argnums=(0, 1))(params, label)
    assert np.all(np.abs(of_label).max(axis=1) > 0)
    tables = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradients) if len(leaf) == CLASSES]
    assert tables
    for table in tables:
        np.testing.assert_array_equal(np.any(table != 0, axis=1), [True, True, True, False, True])


@CONDITIONAL
def test_a_generator_sees_the_embedding_beside_the_latents(family):
    network, z = conditional(family, 0)
    params, _, apply = initialised(network, z, LABEL)
    plain, table = split(params)
    fake, others = (apply(params, {}, z, True, label)[0] for label in (LABEL, OTHER))
    unconditional = players(family, SHAPE)[0].apply
    expected, _ = unconditional(plain, {}, np.concatenate([z, table[LABEL]], axis=1), True)
    np.testing.assert_allclose(fake, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(fake[::3], others[::3])  # of which the labels are the same
    assert np.abs(fake - others).max(axis=(1, 2, 3))[1:3].min() > 0.1


@PLAYER
@CONDITIONAL
def test_a_gradient_reaches_the_rows_of_the_batch_s_labels_and_no_other(family, player):
    network, x = conditional(family, player)
    params, _, _ = initialised(network, x, LABEL)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(network.apply(params, {}, x, True, LABEL)[0]))))(params)
    rows = np.abs(split(jax.device_get(gradient))[1]).max(axis=1)
    assert rows[LABEL].min() > 1e-4
    np.testing.assert_array_equal(rows[[1, 2]], 0)


@CONDITIONAL
def test_the_gradient_penalty_of_a_conditional_critic_and_its_gradients_are_those_of_the_reference(family):
    network, x = conditional(family, 1)
    params, _, _ = initialised(network, x, LABEL)
    reference_logits = reference(family)

    def expected_logits(params, x):
        plain, table = split(params)
        return reference_logits(plain, x, plain["Dense_0"]["kernel"][:, 0] + table[LABEL])

    def penalty(logits, params):
        slopes = jax.grad(lambda x: jnp.sum(jnp.sin(logits(params, x))))(x)
        return jnp.sum((jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3))) - 1) ** 2)

    functions = (lambda params, x: network.apply(params, {}, x, True, LABEL)[0]), expected_logits
    actual, expected = (jax.jit(jax.value_and_grad(partial(penalty, logits)))(params) for logits in functions)
    assert relative_error(actual, expected) < 1e-4
    assert np.abs(split(expected[1])[1][LABEL]).max(axis=1).min() > 1e-3


@CONDITIONAL
def test_conditional_networks_in_bfloat16_give_nearly_the_same_in_float32(family):
    for player in (0, 1):
        results = []
        for dtype in (jnp.float32, jnp.bfloat16):
            network, x = conditional(family, player, dtype=dtype)
            params, _, apply = initialised(network, x, LABEL)
            assert dtypes(params) == {jnp.dtype("float32")}
            results.append(apply(params, {}, x, True, LABEL)[0])
        assert dtypes(results) == {jnp.dtype("float32")}
        assert 0 < np.abs(results[1] - results[0]).max() < 0.1 * np.abs(results[0]).max()


@PLAYER
@CONDITIONAL
def test_a_label_that_is_missing_or_too_much_is_refused(family, player):
    network, x = conditional(family, player)
    unconditional = players(family, SHAPE)[player]
    params, _ = jax.eval_shape(network.init, jax.random.key(0), x, LABEL)
    plain, _ = jax.eval_shape(unconditional.init, jax.random.key(0), x)
    wrong = [
        (network, params, None, "5 classes is called without a label"),
        (network, params, LABEL[:1], r"int32 \[1\]; with 4 examples"),
        (network, params, LABEL.astype(np.float32), r"float32 \[4\]"),
        (network, params, np.eye(4, dtype=np.float32), r"float32 \[4, 4\]; .* or floats \[4, 5\]"),
        (unconditional, plain, LABEL, "without classes"),
    ]
    for each, its, label, message in wrong:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda params, each=each, label=label: each.apply(params, {}, x, True, label), its)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda key, each=each, label=label: each.init(key, x, label), jax.random.key(0))


class Unconditional(nn.Module):
    """A network without a field for classes."""

    @nn.compact
    def __call__(self, x, train):
        return x


def test_a_family_that_cannot_be_conditional_says_so():
    with pytest.raises(ValueError, match="test_networks, whose networks cannot be conditional"):
        jax.eval_shape(from_linen(Unconditional(), "default").init, jax.random.key(0), images(SHAPE), LABEL)


# The strided convolution.

# Thin, between, wide with outputs that are whole tiles (Winograd's algorithm on a CPU), wide with others.
THIN_AND_WIDE = [
    (2, 2, 2, 1, 3),
    (3, 8, 4, 3, 5),
    (2, 6, 10, 4, 1),
    (2, 4, 6, 12, 3),
    (2, 8, 4, 64, 3),
    (1, 4, 6, 64, 5),
]
SHAPES = pytest.mark.parametrize("shape", THIN_AND_WIDE, ids=str)


def operands(shape, integers=False):
    """x [n, 2 h, 2 w, thin], y [n, h, w, wide] and w [4, 4, thin, wide]."""
    n, height, width, thin, wide = shape
    rng = np.random.default_rng(0)
    draw = (lambda size: rng.integers(-4, 5, size)) if integers else rng.standard_normal
    sizes = (n, height, width, thin), (n, height // 2, width // 2, wide), (4, 4, thin, wide)
    return [np.asarray(draw(size), np.float32) for size in sizes]


def relative_error(actual, expected):
    return max(
        np.linalg.norm(a - e) / np.linalg.norm(e)
        for a, e in zip(jax.tree.leaves(jax.device_get(actual)), jax.tree.leaves(jax.device_get(expected)), strict=True)
    )


@SHAPES
def test_the_convolution_and_its_transpose_are_lax_s(shape):
    x, y, w = operands(shape)
    expected = lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)
    tolerance = 1e-6 * np.sqrt(16 * max(w.shape[2:]))
    np.testing.assert_allclose(jax.jit(strided_conv)(x, w), expected, rtol=1e-5, atol=tolerance)
    flipped = w[::-1, ::-1].swapaxes(2, 3)
    expected = lax.conv_transpose(y, flipped, (2, 2), ((2, 2), (2, 2)), dimension_numbers=LAYOUT)
    assert expected.shape == x.shape
    np.testing.assert_allclose(jax.jit(strided_conv_transpose)(y, w), expected, rtol=1e-5, atol=tolerance)


def test_the_convolution_is_the_sum_that_it_should_be():
    x, _, w = operands((2, 6, 4, 3, 2))
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in ((0, 0), (1, 0), (2, 1)):
        window = padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        np.testing.assert_allclose(strided_conv(x, w)[:, i, j], np.einsum("nhwc,hwco->no", window, w), rtol=1e-4)


@SHAPES
def test_they_are_exactly_adjoint(shape):
    """On integers, of which float32 makes no rounding errors."""
    x, y, w = operands(shape, integers=True)
    left = np.sum(np.asarray(jax.jit(strided_conv)(x, w), np.float64) * y)
    right = np.sum(np.asarray(jax.jit(strided_conv_transpose)(y, w), np.float64) * x)
    assert left == right != 0


def derivatives(function):
    """(x, w) -> a loss, its gradients and those of their squared norm: what a gradient penalty needs."""

    def loss(x, w):
        return jnp.sum(jnp.sin(function(x, w)))

    def penalty(x, w):
        gradients = jax.grad(loss, argnums=(0, 1))(x, w)
        return sum(jnp.sum(gradient**2) for gradient in gradients)

    return jax.jit(lambda *a: (loss(*a), jax.grad(loss, argnums=(0, 1))(*a), jax.grad(penalty, argnums=(0, 1))(*a)))


@pytest.mark.parametrize("layer", ["strided_conv", "strided_conv_transpose"])
@pytest.mark.parametrize("shape", THIN_AND_WIDE[1:], ids=str)
def test_gradients_of_both_orders_are_those_of_the_plain_form(shape, layer):
    """First and second order, in the input and in the kernel, through a nonlinearity."""
    x, y, w = operands(shape)
    w /= 4 * np.sqrt(max(w.shape[2:]))  # so that the sine is no lottery
    ours, plain = (derivatives(getattr(FORMS[form], layer)) for form in ("cpu", "plain"))
    x = y if layer == "strided_conv_transpose" else x
    assert relative_error(ours(x, w), plain(x, w)) < 1e-4


@pytest.mark.parametrize("function", [conv_mean_pool, upsample_conv])
def test_resampling_convolutions_refuse_other_kernels(function):
    with pytest.raises(ValueError, match="5x5"):
        function(jnp.zeros((1, 4, 4, 2)), jnp.zeros((5, 5, 2, 3)))


@pytest.mark.parametrize("layer", ["conv", "upsample_conv", "conv_mean_pool"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 3, 5), (1, 4, 4, 64, 66), (1, 6, 2, 64, 64)], ids=str)
def test_convolutions_of_stride_1_and_their_gradients_are_those_of_the_plain_form(shape, layer):
    n, height, width, c, f = shape
    rng = np.random.default_rng(0)
    x = np.asarray(rng.standard_normal((n, height, width, c)), np.float32)
    w = np.asarray(rng.standard_normal((3, 3, c, f)) / (3 * np.sqrt(max(c, f))), np.float32)
    ours, plain = (getattr(FORMS[form], layer) for form in ("cpu", "plain"))
    assert relative_error(jax.jit(ours)(x, w), jax.jit(plain)(x, w)) < 2e-6
    assert relative_error(derivatives(ours)(x, w), derivatives(plain)(x, w)) < 1e-4


# Winograd's algorithm.


def valid_conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def winograd_operands(taps, height, width, draw):
    """x [2, h + r - 1, w + r - 1, 3], w [r, r, 3, 5] and y [2, h, w, 5]."""
    sizes = (2, height + taps - 1, width + taps - 1, 3), (taps, taps, 3, 5), (2, height, width, 5)
    return [np.asarray(draw(size), np.float32) for size in sizes]


TAPS_AND_SIZES = pytest.mark.parametrize(("taps", "height", "width"), [(2, 2, 2), (2, 4, 10), (3, 2, 2), (3, 6, 4)])


@TAPS_AND_SIZES
def test_winograd_gives_the_convolution_and_its_two_adjoints_exactly(taps, height, width):
    """On multiples of 4, where its halves and quarters are integers and float32 makes no rounding errors."""
    rng = np.random.default_rng(0)
    x, w, y = winograd_operands(taps, height, width, lambda size: 4 * rng.integers(-4, 5, size))
    expected, transposes = jax.vjp(valid_conv, x, w)
    dx, dw = transposes(y)
    np.testing.assert_array_equal(winograd.conv(x, w), expected)
    np.testing.assert_array_equal(winograd.adjoint(y, w), dx)
    np.testing.assert_array_equal(winograd.kernel_gradient(x, y, taps), dw)


@pytest.mark.parametrize("taps", [2, 3])
def test_winograd_is_as_exact_as_the_direct_convolution(taps):
    """Both against float64, at a depth of sum at which it counts; the factor is what its additions may cost."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((4, 7 + taps, 7 + taps, 256)), rng.standard_normal((taps, taps, 256, 8))
    with jax.enable_x64(True):
        truth = np.asarray(valid_conv(jnp.asarray(x), jnp.asarray(w)))
    x, w = x.astype(np.float32), w.astype(np.float32)
    errors = [
        np.sqrt(np.mean((np.asarray(f(x, w)) - truth) ** 2) / np.mean(truth**2)) for f in (winograd.conv, valid_conv)
    ]
    assert errors[0] < 3 * errors[1] < 3e-6


def test_wide_strided_convolutions_need_fewer_multiplications_on_a_cpu():
    x, y, w = operands((4, 16, 16, 64, 128))
    for function, arguments in ((strided_conv, (x, w)), (strided_conv_transpose, (y, w))):
        flops = [
            jax.jit(function, static_argnums=2).lower(*arguments, form).compile().cost_analysis()["flops"]
            for form in ("plain", "cpu")
        ]
        assert flops[1] < 0.75 * flops[0]


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (1, 1)], ids=str)
def test_odd_sizes_are_refused(size):
    x = jnp.zeros((1, *size, 2))
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        strided_conv(x, jnp.zeros((4, 4, 2, 3)))
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        conv_mean_pool(x, jnp.zeros((3, 3, 2, 3)))
    with pytest.raises(ValueError, match="halves"):
        StridedConv(3, use_bias=True, dtype=jnp.float32, form="auto").init(jax.random.key(0), x)


# The convolution of stride 1.


@pytest.mark.parametrize("shape", [(3, 5, 4, 3, 6), (2, 4, 7, 12, 2), (2, 1, 2, 9, 16)], ids=str)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_convolution_is_lax_s_to_the_second_derivative(form, size, shape):
    n, height, width, c, f = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, height, width, c), np.float32)
    w = rng.standard_normal((size, size, c, f), np.float32) / 3
    expected = derivatives(lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT))
    actual = derivatives(lambda x, w: conv(x, w, form))
    assert conv(x, w, form).shape == (n, height, width, f)
    assert relative_error(actual(x, w), expected(x, w)) < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_of_single_pixels_is_a_matrix_product(form):
    jaxpr = str(jax.make_jaxpr(lambda x, w: conv(x, w, form))(jnp.zeros((2, 4, 4, 3)), jnp.zeros((1, 1, 3, 5))))
    assert "dot_general" in jaxpr
    assert "conv" not in jaxpr
