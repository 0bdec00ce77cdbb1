"""The families' shapes, ranges and dtypes, batch statistics, and the convolutions; residual blocks: test_resnet.py."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gan_jax.networks import FAMILIES, MATMUL_PRECISIONS, from_linen, winograd
from gan_jax.networks.convolution import (
    StridedConv,
    conv,
    conv_mean_pool,
    strided_conv,
    strided_conv_transpose,
    upsample_conv,
)
from gan_jax.networks.convolution_forms import FORMS
from gan_jax.networks.layers import NORMALIZATIONS, Normalize

DEPTHS = {8: 2, 16: 3, 28: 2, 32: 3, 64: 4}
LATENTS = 6
LAYOUT = ("NHWC", "HWIO", "NHWC")


def players(family, shape, *, depth=2, normalization="none", dtype=jnp.float32):
    """The generator and the discriminator of a small network."""
    options = {
        "width": 4,
        "depth": depth,
        "activation": "leaky_relu",
        "normalization": normalization,
        "dtype": dtype,
        "axis_name": None,
    }
    if FAMILIES[family].generator.convolves:
        options["form"] = "auto"
    generator = from_linen(FAMILIES[family].generator(shape=shape, **options), "default")
    return generator, from_linen(FAMILIES[family].discriminator(**options), "default")


def initialised(network, x, gain=1.5):
    """(params, stats, apply) with kernels of the given gain, made without compiling the network's own init."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 100
        return jnp.asarray(gain * rng.standard_normal(leaf.shape) / np.sqrt(fan_in) + (leaf.ndim == 1), leaf.dtype)

    params, stats = jax.eval_shape(network.init, jax.random.key(0), x)
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), stats)
    return jax.tree.map(draw, params), stats, jax.jit(network.apply, static_argnums=3)


def latents(n=4):
    return jax.random.normal(jax.random.key(7), (n, LATENTS))


def images(shape, n=4):
    return jax.random.uniform(jax.random.key(8), (n, *shape), minval=-1.0)


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
    ("normalization", "dtype"), list(zip(NORMALIZATIONS, (jnp.float32, jnp.bfloat16), strict=True))
)
@pytest.mark.parametrize("family", FAMILIES)
def test_images_lie_in_range_and_only_the_inside_is_in_the_dtype(family, normalization, dtype):
    shape = (16, 8, 3)  # not square
    generator, discriminator = players(family, shape, normalization=normalization, dtype=dtype)
    params, stats, apply = initialised(generator, latents())
    fake, new = apply(params, stats, 100 * latents(), True)
    assert fake.shape == (4, *shape)
    assert fake.dtype == jnp.float32
    assert 0.99 < jnp.max(jnp.abs(fake)) <= 1
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
    params, stats = jax.jit(network.init)(key, x)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_statistics_move_in_training_and_only_there(family):
    shape = (8, 8, 1)
    generator, discriminator = players(family, shape, normalization="batch")
    for network, x in ((generator, latents()), (discriminator, images(shape))):
        params, stats, apply = initialised(network, x)
        trained, new = apply(params, stats, x, True)
        moved = jax.tree.map(lambda before, after: float(jnp.max(jnp.abs(after - before))), stats, new)
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
    options = {"width": 4, "depth": 2, "activation": "relu", "normalization": "none"}
    options |= {"dtype": jnp.float32, "axis_name": None} | ({} if family == "mlp" else {"form": "plain"})
    network, x = from_linen(FAMILIES[family].discriminator(**options), precision), images((8, 8, 3))
    params, _ = jax.eval_shape(network.init, jax.random.key(0), x)

    def penalty(params, x):
        slope = jax.grad(lambda x: jnp.sum(network.apply(params, {}, x, True)[0]))(x)
        return jnp.sum(slope**2)

    seen = list(products(jax.make_jaxpr(jax.grad(penalty))(params, x).jaxpr))
    wanted = lax.Precision(precision)
    assert len(seen) >= 9
    assert set(seen) == {None if precision == "default" else (wanted, wanted)}


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
        float(jnp.linalg.norm(a - e) / jnp.linalg.norm(e))
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    )


@SHAPES
def test_the_convolution_and_its_transpose_are_lax_s(shape):
    x, y, w = operands(shape)
    expected = lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)
    tolerance = 1e-6 * np.sqrt(16 * max(w.shape[2:]))
    np.testing.assert_allclose(strided_conv(x, w), expected, rtol=1e-5, atol=tolerance)
    flipped = w[::-1, ::-1].swapaxes(2, 3)
    expected = lax.conv_transpose(y, flipped, (2, 2), ((2, 2), (2, 2)), dimension_numbers=LAYOUT)
    assert expected.shape == x.shape
    np.testing.assert_allclose(strided_conv_transpose(y, w), expected, rtol=1e-5, atol=tolerance)


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
    left = np.sum(np.asarray(strided_conv(x, w), np.float64) * y)
    right = np.sum(np.asarray(strided_conv_transpose(y, w), np.float64) * x)
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
@pytest.mark.parametrize("shape", [(2, 4, 6, 3, 5), (1, 8, 4, 12, 2), (1, 4, 4, 64, 66), (1, 6, 2, 64, 64)], ids=str)
def test_convolutions_of_stride_1_and_their_gradients_are_those_of_the_plain_form(shape, layer):
    n, height, width, c, f = shape
    rng = np.random.default_rng(0)
    x = np.asarray(rng.standard_normal((n, height, width, c)), np.float32)
    w = np.asarray(rng.standard_normal((3, 3, c, f)) / (3 * np.sqrt(max(c, f))), np.float32)
    ours, plain = (getattr(FORMS[form], layer) for form in ("cpu", "plain"))
    assert relative_error(ours(x, w), plain(x, w)) < 2e-6
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
