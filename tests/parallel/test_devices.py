"""Many devices: the same training as on one, the work shared, the statistics of the whole batch."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import with_devices
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe
from gan_jax.parallel.devices import AXIS, example_keys, in_order, mesh, pmapped
from gan_jax.utils.errors import InputError

TESTS = Path(__file__).parents[1]
LAYOUTS = {"mesh": mesh, "pmapped": pmapped}


def some(count):
    """The first `count` devices; skips where there are fewer."""
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices")
    return jax.devices()[:count]


def build(config, layout, count):
    """The config's Setup on `count` devices."""
    return recipe.build(config, layout(some(count)))


# --- the same training ------------------------------------------------------------------------------------------


def test_eight_devices_train_as_one_does():
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(TESTS / "on_eight_devices.py")]
    done = subprocess.run(command, cwd=TESTS.parent, env=with_devices(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_that_devices_cannot_share_equally_is_an_error(shrunk, layout):
    config = shrunk("mixture", "ring8", {"batch_size": 6})
    with pytest.raises(InputError, match="batch_size is 6, which 4 devices cannot share equally"):
        build(config, LAYOUTS[layout], 4)
    assert build(config, LAYOUTS[layout], 2).devices.count == 2


def test_the_devices_of_a_process_are_neighbours():
    class Fake(NamedTuple):
        process_index: int
        id: int

    torus = [Fake(0, 0), Fake(1, 2), Fake(0, 1), Fake(1, 3)]  # as a TPU may give them
    assert in_order(torus) == [Fake(0, 0), Fake(0, 1), Fake(1, 2), Fake(1, 3)]
    for layout in LAYOUTS.values():
        assert list(layout(some(4)[::-1]).replicated.mesh.devices) == some(4)


# --- randomness -------------------------------------------------------------------------------------------------


def all_keys(layout, count, n):
    """The keys of a batch of n examples on `count` devices, in order, as numbers."""
    devices, key = layout(some(count)), jax.random.key(5)
    if layout is mesh:
        return np.asarray(jax.random.key_data(jax.jit(lambda: example_keys(devices, key, n))()))
    mapped = jax.pmap(
        lambda _: jax.random.key_data(example_keys(devices, key, n // devices.num_shards)),
        axis_name=AXIS,
        devices=some(count),
    )
    return np.concatenate(np.asarray(mapped(np.arange(count))))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_examples_key_does_not_depend_on_the_devices(layout, count):
    keys = all_keys(LAYOUTS[layout], count, 8)
    assert len(np.unique(keys, axis=0)) == 8
    expected = [jax.random.key_data(jax.random.fold_in(jax.random.key(5), slot)) for slot in range(8)]
    assert_array_equal(keys, expected)


# --- shared work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_noise_is_born_on_the_device_that_uses_it(shrunk, count):
    setup = build(shrunk("mixture", "ring8"), mesh, count)
    latents = jax.jit(lambda key: setup.recipe.prior(example_keys(setup.devices, key, 8)))(jax.random.key(0))
    assert [shard.data.shape for shard in latents.addressable_shards] == [(8 // count, 2)] * count


# --- batch normalisation ----------------------------------------------------------------------------------------


def normalised(setup, latents):
    """(the generator's statistics and images of this batch): images [shards, n, ...], over all devices."""
    devices, average = setup.devices, recipe.initial_state(setup).ema
    n = len(latents) // devices.num_shards

    def apply(average, latents):
        z = devices.shard(jax.lax.dynamic_slice_in_dim(latents, devices.shard_index() * n, n))
        images, stats = setup.recipe.generator.apply(average.params, average.stats, z, True)
        return stats, jax.lax.all_gather(images, AXIS) if devices.axis_name else images[None]

    data = devices.place(latents)
    stats, images = jax.device_get(devices.compile(apply, average, data)(average, data))
    return stats, images.reshape(len(latents), *images.shape[2:])


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize("name", ["digits", "dcgan"])  # an mlp and a convolutional network
def test_batch_normalisation_sees_the_whole_batch(shrunk, name):
    config = shrunk(name, None, {"generator.normalization": "batch"})
    # Far apart, since DCGAN starts with weights of 0.02: batches of such latents differ.
    latents = jnp.asarray(np.random.default_rng(0).normal(0, 20, (8, config.latent.dim)), jnp.float32)
    one = build(config, mesh, 1)
    stats, images = normalised(one, latents)
    shard_stats, shard_images = normalised(one, latents[:2])
    assert jax.tree.leaves(stats)
    assert not np.allclose(shard_images, images[:2], rtol=1e-2, atol=1e-3)
    for layout in LAYOUTS.values():
        shared_stats, shared_images = normalised(build(config, layout, 4), latents)
        # A few float32 roundings, of sums of a batch and of what is divided by its standard deviation.
        assert_allclose(shared_images, images, rtol=1e-4, atol=1e-4)
        for shared, whole, shard in zip(*map(jax.tree.leaves, (shared_stats, stats, shard_stats)), strict=True):
            assert_allclose(shared, whole, rtol=1e-4, atol=1e-5)
            assert not np.allclose(shard, whole, rtol=1e-3, atol=1e-4)
