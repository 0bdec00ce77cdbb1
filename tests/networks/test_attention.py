"""Self-attention: the block against NumPy, where it sits in the networks, and in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.rounding import TOLERANCE, norm
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe
from gan_jax.networks import FAMILIES, from_linen, spectral
from gan_jax.networks.attention import SelfAttention, inner_sizes
from gan_jax.networks.layers import dcgan_init
from gan_jax.parallel.devices import mesh
from gan_jax.utils.errors import InputError

BOTH = {"generator.attention": 4, "discriminator.attention": 4}


def noise(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(shapes, scale=1.0):
    """Random leaves of these shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def block(dtype, x):
    """(a block, random parameters of it)."""
    module = SelfAttention(dtype, "auto", dcgan_init)
    return module, drawn(jax.eval_shape(module.init, jax.random.key(0), x)["params"])


def by_hand(params, x):
    """The block in float64, a pixel and a place at a time."""
    f, g, h, o = (np.asarray(params[name]["kernel"], np.float64)[0, 0] for name in ("query", "key", "value", "out"))
    x, out = x.astype(np.float64), np.empty(x.shape)
    for example, y in zip(x, out, strict=True):
        places = [(i, j) for i in range(0, x.shape[1], 2) for j in range(0, x.shape[2], 2)]
        blocks = [example[i : i + 2, j : j + 2].reshape(4, -1) for i, j in places]
        keys, values = (np.array([(of @ kernel).max(axis=0) for of in blocks]) for kernel in (g, h))
        for i, j in np.ndindex(x.shape[1:3]):
            weights = np.exp(keys @ (example[i, j] @ f))
            y[i, j] = example[i, j] + float(params["gamma"]) * (weights / weights.sum()) @ values @ o
    return out


def test_the_block_is_attention_by_hand():
    x = noise(2, 4, 6, 16)
    module, params = block(jnp.float32, x)
    shapes = {"query": (1, 1, 16, 2), "key": (1, 1, 16, 2), "value": (1, 1, 16, 8), "out": (1, 1, 8, 16)}
    assert {name: leaf["kernel"].shape for name, leaf in params.items() if name != "gamma"} == shapes
    assert set(params["query"]) == {"kernel"}
    params["gamma"] = jnp.float32(1)
    expected = by_hand(params, x)
    assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - x).max() > 1
    assert_array_equal(module.apply({"params": params | {"gamma": jnp.float32(0)}}, x), x)
    assert module.init(jax.random.key(0), x)["params"]["gamma"] == 0


def test_in_bfloat16_the_softmax_is_float32():
    x = noise(2, 4, 4, 16)
    module, params = block(jnp.bfloat16, x)
    params["gamma"] = jnp.float32(1)
    text = str(jax.make_jaxpr(module.apply)({"params": params}, jnp.asarray(x, jnp.bfloat16)))
    exponentials = [line for line in text.splitlines() if " exp " in line]
    assert exponentials
    assert all("f32[" in line and "bf16[" not in line for line in exponentials)
    actual = module.apply({"params": params}, jnp.asarray(x, jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    assert 0 < norm(np.asarray(actual, np.float64) - by_hand(params, x)) < 0.05 * norm(by_hand(params, x))


def player(family, which, attention):
    options = {"width": 8, "depth": 2, "activation": "relu", "normalization": "batch", "dtype": jnp.float32}
    options |= {"axis_name": None, "classes": 3, "form": "auto", "attention": attention}
    module = getattr(FAMILIES[family], which)(**({"shape": (16, 16, 1)} if which == "generator" else {}), **options)
    return from_linen(module, "default"), noise(4, 6) if which == "generator" else noise(4, 16, 16, 1)


@pytest.mark.parametrize(("family", "which"), [("dcgan", "generator"), ("resnet", "discriminator")])
def test_a_network_gains_a_block_that_at_first_changes_nothing(family, which):
    """The other parameters have the names that they have without; with another gamma each kernel of it matters."""
    (network, x), (plain, _) = player(family, which, 8), player(family, which, 0)
    network, plain, label = spectral.normalised(network), spectral.normalised(plain), np.array([0, 2, 1, 1])
    params, stats = drawn(jax.eval_shape(network.init, jax.random.key(0), x, label), 0.2)
    stats = jax.tree.map(jnp.abs, stats)  # variances
    own = {path: leaf for path, leaf in flatten_dict(params).items() if "SelfAttention_0" in path}
    assert len(own) == 5
    shapes = jax.eval_shape(plain.init, jax.random.key(0), x, label)[0]
    rest = {path: leaf for path, leaf in flatten_dict(params).items() if path not in own}
    assert {path: leaf.shape for path, leaf in rest.items()} == {
        path: leaf.shape for path, leaf in flatten_dict(shapes).items()
    }
    apply = jax.jit(network.apply, static_argnums=3)

    def output(params):
        return np.asarray(apply(params, stats, x, True, label)[0])

    def changed(path, value):
        return unflatten_dict(flatten_dict(params) | {path: value})

    (gamma,) = [path for path in own if path[-1] == "gamma"]
    vectors = {path: leaf for path, leaf in flatten_dict(stats["vectors"]).items() if "SelfAttention_0" not in path}
    without = stats | {"vectors": unflatten_dict(vectors)}
    expected, _ = jax.jit(plain.apply, static_argnums=3)(unflatten_dict(rest), without, x, True, label)
    assert_allclose(output(changed(gamma, jnp.float32(0))), expected, rtol=1e-5, atol=1e-6)
    params = changed(gamma, jnp.float32(2))
    for path, leaf in own.items():
        if path != gamma:
            assert np.abs(output(changed(path, leaf + noise(*leaf.shape))) - output(params)).max() > 1e-4, path


def test_sizes_are_those_of_images_inside_that_halve_once_more():
    assert inner_sizes((32, 32, 3), range(1, 4)) == [16, 8, 4]
    assert inner_sizes((28, 28, 1), range(1, 3)) == [14]
    assert inner_sizes((16, 8, 1), range(0, 4)) == [16, 8, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generator.network": "mlp"},
            r"attention is 4, but mlp has no attention; set it to 0, or generator\.network to one of dcgan, resnet",
        ),
        ({"generator.attention": 8}, r"generator\.attention is 8: .* inside this dcgan of depth 1 .* are even: 4$"),
        ({"discriminator.attention": 3}, r"discriminator\.attention is 3: it must be 0, or the height of images "),
        ({"discriminator.attention": -1}, r"attention is -1; it must be an integer, 0 or more"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_where_it_cannot_be_is_one_line(changes, message, shrunk):
    with pytest.raises(InputError, match=message) as raised:
        recipe.build(shrunk("dcgan", None, BOTH | changes))
    assert "\n" not in str(raised.value)


def test_gradients_are_the_same_on_two_devices_under_jit_and_pmap():
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    x = noise(4, 4, 4, 16)
    module, params = block(jnp.float32, x)

    def loss(params, x):
        return jnp.mean(jnp.sin(module.apply({"params": params}, x)))

    devices = mesh(jax.devices()[:2])
    expected = jax.jit(jax.grad(loss))(params, x)
    sharded = jax.jit(lambda params, x: jax.grad(loss)(params, devices.shard(x)))(devices.place(params), x)
    halves = jax.pmap(jax.grad(loss), in_axes=(None, 0), devices=jax.devices()[:2])(params, x.reshape(2, 2, 4, 4, 16))
    mapped = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), halves)
    for path, leaf in flatten_dict(expected).items():
        assert np.abs(leaf).max() > 0, path
    for actual in (sharded, mapped):
        assert norm(jax.tree.map(np.subtract, jax.device_get(actual), expected)) < TOLERANCE * norm(expected)
