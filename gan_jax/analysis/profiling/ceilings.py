"""What the devices can do at most: FLOP/s of a large matrix product, bytes a second of a pass over memory."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.networks import products
from gan_jax.parallel.devices import Devices

PASSES = 5  # of which the fastest counts
# By whether the device is a CPU: rows and columns of a matrix, bytes of an array that no cache holds.
SIZES = {True: (2048, 1 << 28), False: (8192, 1 << 32)}


class Ceilings(NamedTuple):
    """Of all devices together, each doing the same work of its own at the same time."""

    flops: float  # a second
    bytes: float  # a second
    product: int  # rows and columns of the matrices


def measure(devices: Devices, precision: str, matmul_precision: str) -> Ceilings:
    """The ceilings of the devices, with matrices of the dtype `precision` and products as precise as the networks'."""
    n, size = SIZES[jax.default_backend() == "cpu"]
    # Of this scale a product's entries are about as large as its factors', however often one multiplies.
    factor = jax.random.normal(jax.random.key(0), (n, n), precision) / jnp.sqrt(n).astype(precision)
    with products(matmul_precision):
        product = _seconds(devices, lambda x, y: (x @ y, ()), jnp.ones_like(factor), factor)
    one_pass = _seconds(devices, lambda x, _: (x + 1, ()), jnp.zeros(size // 4, jnp.float32), ())
    return Ceilings(devices.count * 2.0 * n**3 / product, devices.count * 2.0 * size / one_pass, n)


def _seconds(devices: Devices, function: Callable, *arguments) -> float:
    """Of the fastest call, after one that warms up."""
    x, data = devices.place(arguments)
    function, durations = devices.compile(function, x, data), []
    for _ in range(1 + PASSES):
        start = time.perf_counter()
        x = jax.block_until_ready(function(x, data)[0])
        durations.append(time.perf_counter() - start)
    return min(durations[1:])
