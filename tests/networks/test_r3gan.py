"""R3GAN's networks: grouped convolutions, resampling, fix-up initialisation; the rest is in test_networks.py."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.families import small
from jax import lax
from numpy.testing import assert_allclose

from gan_jax import recipe
from gan_jax.networks import FAMILIES, r3gan
from gan_jax.networks.convolution import conv
from gan_jax.networks.cpu.forms import FORMS
from gan_jax.networks.layers import ACTIVATIONS, bilinear_downsample, bilinear_upsample
from gan_jax.utils.errors import InputError


def noise(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


# --- grouped convolutions ---------------------------------------------------------------------------------------


def block_diagonal(w, groups):
    """The kernel [k, k, c, f] of the convolution of all channels that a grouped one [k, k, c / g, f] is."""
    inputs, outputs = w.shape[2], w.shape[3] // groups
    dense = np.zeros((*w.shape[:2], inputs * groups, outputs * groups), np.float32)
    for g in range(groups):
        within = slice(g * outputs, (g + 1) * outputs)
        dense[:, :, g * inputs : (g + 1) * inputs, within] = w[..., within]
    return dense


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "features", "groups"), [(6, 12, 3), (4, 4, 4)])
def test_a_grouped_convolution_is_one_with_a_kernel_of_diagonal_blocks(channels, features, groups, form):
    x, w = noise(2, 5, 4, channels), np.asarray(noise(3, 3, channels // groups, features))

    def values(kernel, embed):
        """The images, the slope in both arguments of a loss, and of the squared slope in x, as a penalty has it."""

        def loss(x, w):
            return jnp.sum(jnp.sin(conv(x, embed(w), form)))

        def penalty(w):
            return jnp.sum(jax.grad(loss)(x, w) ** 2)

        return jax.jit(lambda w: (conv(x, embed(w), form), *jax.grad(loss, (0, 1))(x, w), jax.grad(penalty)(w)))(kernel)

    actual = values(w, lambda w: w)
    mask = block_diagonal(np.ones_like(w), groups)
    expected = values(block_diagonal(w, groups), lambda w: w * mask)
    assert actual[0].shape == (2, 5, 4, features)
    for found, wanted in zip(actual[:2], expected[:2], strict=True):
        assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    for found, wanted in zip(actual[2:], expected[2:], strict=True):
        assert_allclose(block_diagonal(np.asarray(found), groups), wanted, rtol=1e-4, atol=1e-3)
        assert np.abs(found).max() > 0.1


# --- resampling -------------------------------------------------------------------------------------------------


def test_resampling_is_the_published_filter():
    """Weights 1 3 3 1 along either axis, as a strided convolution of each channel and as its adjoint times 4."""
    x, row = noise(2, 6, 4, 3), jnp.array([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = jnp.tile((row[:, None] * row)[:, :, None, None], (1, 1, 1, 3))

    def strided(x):
        layout = ("NHWC", "HWIO", "NHWC")
        padding = ((1, 1), (1, 1))
        return lax.conv_general_dilated(x, kernel, (2, 2), padding, dimension_numbers=layout, feature_group_count=3)

    assert_allclose(bilinear_downsample(x), strided(x), atol=1e-6)
    adjoint = jax.linear_transpose(strided, jnp.zeros((2, 12, 8, 3)))
    assert_allclose(bilinear_upsample(x), 4 * adjoint(x)[0], atol=1e-6)


def test_flat_images_stay_flat_but_at_the_border():
    flat = jnp.ones((1, 6, 6, 1))
    assert_allclose(bilinear_upsample(flat)[:, 1:-1, 1:-1], 1, rtol=1e-6)
    assert_allclose(bilinear_downsample(flat)[:, 1:-1, 1:-1], 1, rtol=1e-6)


# --- fix-up -----------------------------------------------------------------------------------------------------


def initial(module, x):
    return jax.jit(partial(module.init, train=True))(jax.random.key(0, impl="rbg"), x)


PLAYERS = pytest.mark.parametrize(("player", "x"), [("generator", noise(4, 6)), ("discriminator", noise(4, 8, 8, 3))])


@PLAYERS
def test_at_first_a_network_is_that_without_its_blocks(player, x):
    network_class = getattr(FAMILIES["r3gan"], player)
    module, bare = (small(network_class, shape=(8, 8, 3), blocks=blocks) for blocks in (2, 0))
    variables = initial(module, x)
    params = variables["params"]
    blocks = {name for name in params if name.startswith("Block")}
    assert len(blocks) == 2 * 3
    assert bool(params["Block_5"]["Conv_0"]["kernel"].any())
    without = {name: leaf for name, leaf in params.items() if name not in blocks}
    apply, bare_apply = (jax.jit(partial(each.apply, train=True)) for each in (module, bare))
    expected = bare_apply({"params": without}, x)
    assert np.std(expected) > 0.01
    assert_allclose(apply(variables, x), expected, rtol=1e-6, atol=1e-6)  # compiled apart
    # The last kernels are where each branch begins to count: they have a gradient at once, the others none.
    slope = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(module.apply({"params": params}, x, train=True)))))(params)
    for name in blocks:
        sizes = {path: float(jnp.abs(leaf).max()) for path, leaf in flatten_dict(slope[name]).items()}
        assert sizes.pop(("Conv_2", "kernel")) > 1e-4
        assert set(sizes.values()) == {0.0}


@PLAYERS
def test_biases_are_where_an_activation_follows(player, x):
    module = small(getattr(FAMILIES["r3gan"], player), shape=(8, 8, 3))
    shapes = jax.eval_shape(partial(module.init, train=True), jax.random.key(0), x)["params"]
    biased = {path[-2] for path in flatten_dict(shapes) if path[-1] == "bias"}
    assert biased == {"Conv_0", "Conv_1"}
    assert all(len(path) == 3 and path[0].startswith("Block") for path in flatten_dict(shapes) if path[-1] == "bias")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gains_keep_the_mean_square_of_normal_numbers(name):
    points, weights = np.polynomial.hermite_e.hermegauss(201)
    mean = np.sum(weights * np.asarray(ACTIVATIONS[name](points), np.float64) ** 2) / math.sqrt(2 * math.pi)
    assert_allclose(r3gan.GAINS[name] ** 2 * mean, 1, rtol=1e-3)


@pytest.mark.parametrize("name", ["leaky_relu", "relu"])  # to which the size of their input makes no difference
def test_within_a_branch_the_mean_square_shrinks_with_the_number_of_blocks(name):
    """Each of its two activated layers takes the factor blocks^(-1/2) of the square: together one over the blocks."""
    blocks, options = 9, {"groups": 2, "activation": name, "dtype": jnp.float32, "form": "auto"}
    block, x = r3gan.Block(width=64, blocks_in_all=blocks, **options), noise(8, 8, 8, 64)
    params = jax.jit(block.init)(jax.random.key(0, impl="rbg"), x)["params"]
    activate = ACTIVATIONS[name]
    y = activate(conv(x, params["Conv_0"]["kernel"]))
    assert_allclose(jnp.mean(y**2) * np.sqrt(blocks), 1, rtol=0.05)
    y = activate(conv(y, params["Conv_1"]["kernel"]))[:, 1:-1, 1:-1]
    assert_allclose(jnp.mean(y**2) * blocks, 1, rtol=0.1)


def test_initial_kernels_have_the_variance_of_their_fan_in():
    """In G the first map and the basis pixels keep the latents' variance 1; D's basis and last layer its pixels'."""
    generator = small(FAMILIES["r3gan"].generator, shape=(16, 16, 3), width=256, blocks=0)
    discriminator = small(FAMILIES["r3gan"].discriminator, width=256, blocks=0)
    params = initial(generator, noise(2, 64))["params"], initial(discriminator, noise(2, 16, 16, 3))["params"]
    stds = [
        {("Dense_0", "kernel"): 64, ("kernel",): 1, ("Conv_0", "kernel"): 256},
        {("Conv_0", "kernel"): 3, ("kernel",): 16, ("Dense_0", "kernel"): 256},
    ]
    for tree, fans in zip(params, stds, strict=True):
        flat = flatten_dict(tree)
        assert set(flat) == set(fans)
        for path, fan in fans.items():
            assert abs(float(flat[path].std()) * np.sqrt(fan) - 1) < 4 / np.sqrt(2 * flat[path].size), path


def test_the_published_size():
    """For CIFAR-10, by the shapes of the published code's layers."""
    options = {"width": 768, "depth": 3, "blocks": 2, "groups": 96}
    generator = small(FAMILIES["r3gan"].generator, shape=(32, 32, 3), **options)
    discriminator = small(FAMILIES["r3gan"].discriminator, **options)
    block = 768 * 1536 + 1536 * (9 * 16) + 1536 * 768 + 2 * 1536
    expected = 8 * block + 64 * 768 + 16 * 768 + 768 * 3, 8 * block + 3 * 768 + 16 * 768 + 768
    for module, x, wanted in zip(
        (generator, discriminator), (noise(1, 64), noise(1, 32, 32, 3)), expected, strict=True
    ):
        shapes = jax.eval_shape(partial(module.init, train=True), jax.random.key(0), x)
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == wanted


# --- what does not go together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "r3gan",
            {"generator.normalization": "batch"},
            r"normalization is 'batch', but r3gan has no normalization; set it to 'none', or",
        ),
        ("r3gan", {"discriminator.groups": 3}, r"discriminator\.groups is 3, which does not divide the 8 channels"),
        ("r3gan", {"generator.blocks": 0}, r"generator\.blocks is 0 and generator\.network is r3gan, which needs 1 or"),
        (
            "dcgan",
            {"discriminator.groups": 2},
            r"groups is 2, but dcgan has no groups; set it to 0, or discriminator\.network to one of r3gan",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(shrunk, name, changes, message):
    with pytest.raises(InputError, match=message) as error:
        recipe.build(shrunk(name, None, changes))
    assert "\n" not in str(error.value)
