"""The residual networks against their papers' order of operations; what all families share is in test_networks.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from gan_jax.networks import FAMILIES, from_linen
from gan_jax.networks.convolution import conv
from gan_jax.networks.cpu.forms import FORMS
from gan_jax.networks.layers import NORMALIZATIONS, mean_pool, upsample
from gan_jax.networks.resnet import Block

MUTABLE = {"mutable": ["batch_stats"]}


def architecture(**changes):
    options = {"width": 8, "activation": "relu", "normalization": "none", "dtype": jnp.float32, "axis_name": None}
    return options | {"classes": 0, "form": "auto"} | changes


def drawn(module, x):
    """The module's variables, all biases and scales random too."""
    shapes = jax.eval_shape(lambda key: module.init(key, x, train=True), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 3, leaf.dtype), shapes)


def noise(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)


def relative_error(actual, expected):
    return float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))


def test_upsampling_copies_and_pooling_averages():
    x = noise(2, 4, 6, 3)
    assert upsample(x).shape == (2, 8, 12, 3)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        np.testing.assert_array_equal(upsample(x)[:, i::2, j::2], x)
    expected = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    np.testing.assert_allclose(mean_pool(x), expected, atol=1e-6)
    np.testing.assert_allclose(mean_pool(upsample(x)), x, atol=1e-6)


@pytest.mark.parametrize("resample", [upsample, mean_pool])
def test_a_convolution_of_single_pixels_commutes_with_resampling(resample):
    x, w = noise(2, 8, 6, 5), noise(1, 1, 5, 7)
    assert relative_error(conv(resample(x), w), resample(conv(x, w))) < 1e-6


def papers_block(block, params, x):
    """The block without normalisation in the order of the papers: the shortcut's 1x1 convolution on the larger side."""

    def convolve(name, x):
        kernel, layout = params[name]["kernel"], ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout) + params[name].get(
            "bias", 0
        )

    up, down = block.resample == "up", block.resample == "down"
    y = x if block.sees_image else jax.nn.relu(x)
    y = convolve("Conv_0", upsample(y) if up else y)
    y = convolve("Conv_1", jax.nn.relu(y))
    if block.resample == "keep":
        return x + y
    y = y + convolve("Conv_2", upsample(x) if up else x)
    return mean_pool(y) if down else y


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("resample", "sees_image", "channels"),
    [("up", False, 8), ("down", False, 8), ("keep", False, 8), ("down", True, 3)],
    ids=str,
)
def test_a_block_and_its_gradients_are_the_papers(resample, sees_image, channels, form):
    block = Block(resample=resample, sees_image=sees_image, use_bias=True, **architecture(form=form))
    x = noise(2, 4, 6, channels)
    params = drawn(block, x)["params"]
    assert len(params) == (2 if resample == "keep" else 3)

    def values(function):
        def loss(params, x):
            return jnp.sum(jnp.sin(function(params, x)))

        return jax.jit(lambda *a: (function(*a), jax.grad(loss, argnums=(0, 1))(*a)))(params, x)

    actual = values(lambda params, x: block.apply({"params": params}, x, train=True))
    expected = values(lambda params, x: papers_block(block, params, x))
    jax.tree.map(lambda a, e: np.testing.assert_array_less(relative_error(a, e), 1e-5), actual, expected)


def test_the_papers_sizes():
    """At 32x32: SNGAN's generator, 256 wide, and the discriminator of both papers, 128 wide."""
    generator = FAMILIES["resnet"].generator(
        shape=(32, 32, 3), depth=3, **architecture(width=256, normalization="batch")
    )
    discriminator = FAMILIES["resnet"].discriminator(depth=2, **architecture(width=128))
    sizes = []
    for network, x in ((generator, jnp.zeros((1, 128))), (discriminator, jnp.zeros((1, 32, 32, 3)))):
        params, _ = jax.eval_shape(from_linen(network, "default").init, jax.random.key(0), x)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
        blocks = [params[name] for name in sorted(params) if name.startswith("Block")]
        assert [len([name for name in block if name.startswith("Conv")]) for block in blocks] in ([3] * 3, [3, 3, 2, 2])
    dense, norms = 129 * 16 * 256, 7 * 2 * 256
    assert sizes[0] == dense + norms + 3 * (2 * 9 + 1) * 256**2 + (9 * 256 + 1) * 3
    first, others = (9 * 3 + 1) * 128 + 3 * 128, 7 * (9 * 128 + 1) * 128 + 128**2
    assert sizes[1] == first + others + 128 + 1


def test_initial_weights_are_as_random_as_published():
    network = FAMILIES["resnet"].discriminator(depth=1, **architecture(width=32))
    params = jax.jit(from_linen(network, "default").init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim == 1:
            assert not leaf.any()
            continue
        fans = leaf.size / leaf.shape[-1] + leaf.size / leaf.shape[-2]
        bound = np.sqrt(3 * (4 if leaf.shape[:2] == (3, 3) else 2) / fans)
        assert bound * 0.9 < float(jnp.abs(leaf).max()) <= bound, path
        assert abs(float(leaf.std()) * np.sqrt(3) / bound - 1) < 3 / np.sqrt(leaf.size), path


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_every_parameter_matters(normalization):
    """No bias that a normalisation swallows: Adam would move it by the sign of a rounding error."""
    options = architecture(normalization=normalization)
    generator = FAMILIES["resnet"].generator(shape=(8, 8, 1), depth=1, **options)
    discriminator = FAMILIES["resnet"].discriminator(depth=2, **options)
    for module, x in ((generator, noise(16, 4)), (discriminator, noise(16, 8, 8, 1))):
        variables = drawn(module, x)

        def loss(params, module=module, x=x, variables=variables):
            y, _ = module.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(3 * y + jnp.arange(y.size).reshape(y.shape)))

        gradients = jax.jit(jax.grad(loss))(variables["params"])
        sizes = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradients)
        assert min(jax.tree.leaves(sizes)) > 1e-4 * max(jax.tree.leaves(sizes)), sizes


def test_the_logits_do_not_depend_on_the_size_of_flat_images():
    """They are a mean over pixels, the borders aside: of a constant image nearly the same at every size."""
    discriminator = FAMILIES["resnet"].discriminator(depth=1, **architecture())
    image = jnp.ones((1, 64, 64, 3)) * jnp.array([0.5, -0.3, 0.8])
    variables = drawn(discriminator, image)
    large, small = (discriminator.apply(variables, image[:, :n, :n], train=True) for n in (64, 32))
    assert 0 < abs(float(large[0] - small[0])) < 0.3 * abs(float(small[0]))


def test_the_sum_over_pixels_is_so_many_times_the_mean():
    x = noise(2, 8, 8, 1)
    mean, total = (FAMILIES["resnet"].discriminator(depth=1, sums=sums, **architecture()) for sums in (False, True))
    variables = drawn(mean, x)
    bias = variables["params"]["Dense_0"]["bias"]
    means, totals = (each.apply(variables, x, train=True) - bias for each in (mean, total))
    np.testing.assert_allclose(totals, 16 * means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalization", ["batch", "layer", "group"])
def test_a_class_gets_into_a_generator_by_every_normalisation_and_nowhere_else(normalization):
    """With the same scales and shifts for all classes it is the unconditional generator with these."""
    z, label, options = noise(4, 6), np.array([2, 0, 2, 1]), architecture(normalization=normalization)
    plain = FAMILIES["resnet"].generator(shape=(8, 8, 1), depth=1, **options)
    conditional = FAMILIES["resnet"].generator(shape=(8, 8, 1), depth=1, **(options | {"classes": 3}))
    variables = drawn(plain, z)
    shapes = jax.eval_shape(lambda key: conditional.init(key, z, True, label), jax.random.key(0))
    flat, spread = flatten_dict(variables["params"]), {}
    for path, leaf in flatten_dict(shapes["params"]).items():
        inner = {"batch": "BatchNorm_0", "layer": "LayerNorm_0", "group": "GroupNorm_0"}[normalization]
        of_class = path[-2].startswith("Normalize")
        spread[path] = jnp.tile(flat[*path[:-1], inner, path[-1]], (3, 1)) if of_class else flat[path]
        assert spread[path].shape == leaf.shape == ((3, 8) if of_class else flat[path].shape)
    assert len(spread) == len(flat)
    apply = jax.jit(lambda params: conditional.apply(variables | {"params": params}, z, True, label, **MUTABLE)[0])
    expected = jax.jit(lambda: plain.apply(variables, z, True, **MUTABLE)[0])()
    np.testing.assert_allclose(apply(unflatten_dict(spread)), expected, rtol=1e-4, atol=1e-4)
    for path in [path for path in spread if path[-2].startswith("Normalize")]:
        changed = spread | {path: spread[path].at[1].add(1)}
        moved = np.abs(apply(unflatten_dict(changed)) - expected).max(axis=(1, 2, 3))
        assert moved[3] > 1e-3
        if normalization != "batch":
            np.testing.assert_allclose(moved[:3], 0, atol=1e-4)


@pytest.mark.parametrize(("side", "inner"), [(32, 4), (48, 6), (64, 4)])
def test_images_of_the_papers_sizes_and_labels_go_through_both_players(side, inner):
    """Traced alone, which already fails where a size does not fit."""
    halvings, normalized = (side // inner).bit_length() - 1, {"normalization": "batch", "classes": 10}
    generator = FAMILIES["resnet"].generator(shape=(side, side, 3), depth=halvings, **architecture(**normalized))
    discriminator = FAMILIES["resnet"].discriminator(depth=halvings - 1, **architecture(classes=10))

    def play(key, z, label):
        images, params = generator.init_with_output(key, z, True, label)
        logits, _ = discriminator.init_with_output(key, images, True, label)
        return images, logits, params

    key, z, label = jax.random.key(0), jnp.zeros((5, 16)), jnp.zeros(5, jnp.int32)
    images, logits, params = jax.eval_shape(play, key, z, label)
    assert (images.shape, logits.shape) == ((5, side, side, 3), (5,))
    assert flatten_dict(params["params"])["Dense_0", "kernel"].shape == (16, inner * inner * 8)
    tables = [leaf for path, leaf in flatten_dict(params["params"]).items() if path[-1] == "scale"]
    assert len(tables) == 2 * halvings + 1
    assert all(leaf.shape == (10, 8) for leaf in tables)
