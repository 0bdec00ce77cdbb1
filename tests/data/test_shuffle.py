"""The order of examples: exactly once an epoch, in any number of parts, by NumPy and by JAX."""

import math
from collections import Counter
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_jax.data import shuffle
from gan_jax.data.loader import process_slots

WORDS = np.array([123, 456], np.uint32)
SIZES = [1, 2, 3, 4, 5, 7, 16, 97, 100, 1797, 65_537]


def first(size, count, words=WORDS):
    """The first `count` examples that are met."""
    return shuffle.examples(words, size, count, 0, np.arange(count, dtype=np.uint32))


@pytest.mark.parametrize("size", SIZES)
def test_each_epoch_meets_every_example_once(size):
    epochs = first(size, 3 * size).reshape(3, size)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
    if size > 16:
        assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("size", "batch_size"), [(100, 8), (97, 8), (5, 8), (1797, 64)])
def test_minibatches_run_through_epochs_without_a_gap_in_any_number_of_processes(size, batch_size, processes):
    minibatches = math.ceil(3 * size / batch_size)
    met = np.concatenate(
        [
            shuffle.examples(WORDS, size, batch_size, minibatch, process_slots(batch_size, process, processes))
            for minibatch in range(minibatches)
            for process in range(processes)
        ]
    )
    np.testing.assert_array_equal(met, first(size, minibatches * batch_size))
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(met[epoch * size : (epoch + 1) * size]), np.arange(size))


@pytest.mark.parametrize("batch_size", [12, 5])
def test_processes_share_a_batch_that_they_do_not_divide(batch_size):
    parts = [process_slots(batch_size, process, 3) for process in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(batch_size))


@pytest.mark.parametrize("size", SIZES)
def test_jax_gives_numpy_s_order(size):
    slots = np.arange(48, dtype=np.uint32)
    traced = jax.jit(partial(shuffle.examples, size=size, batch_size=48))
    for minibatch in (0, 1, 1234):
        expected = shuffle.examples(WORDS, size, 48, minibatch, slots)
        actual = traced(jnp.array(WORDS), minibatch=jnp.int32(minibatch), slots=jnp.array(slots))
        np.testing.assert_array_equal(actual, expected)
        assert actual.dtype == expected.dtype == np.int32


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_all_orders_are_equally_frequent(size):
    orders = math.factorial(size)
    epochs = 200 * orders
    counts = Counter(map(tuple, first(size, size * epochs).reshape(epochs, size)))
    statistic = sum((counts[order] - 200) ** 2 / 200 for order in permutations(range(size)))
    assert abs(statistic - (orders - 1)) < 4 * np.sqrt(2 * (orders - 1))  # of chi^2, whose variance is twice its mean


def test_an_example_s_place_is_uniform_and_its_neighbours_are_any():
    size, epochs = 50, 4000
    epochs = first(size, size * epochs).reshape(epochs, size)
    for pairs in (
        np.stack([epochs, np.broadcast_to(np.arange(size), epochs.shape)], -1),  # which, and where
        np.stack([epochs[:, :-1], epochs[:, 1:]], -1),  # which, and which follows
        np.stack([epochs[:-1], epochs[1:]], -1),  # which, and which is there an epoch later
    ):
        table = np.bincount(pairs.reshape(-1, 2) @ [size, 1], minlength=size**2).reshape(size, size)
        allowed = table > 0
        expected = table.sum() / allowed.sum()
        assert np.ptp(table[allowed]) < 2 * 6 * np.sqrt(expected)
        assert allowed.sum() in (size**2, size * (size - 1))  # nothing follows itself


def test_runs_have_orders_of_their_own():
    others = [first(1797, 1797, np.array(words, np.uint32)) for words in ((123, 457), (124, 456), (456, 123))]
    for other in others:
        assert np.mean(other == first(1797, 1797)) < 0.01


def test_a_start_is_divmod_where_the_product_overflows():
    for minibatch, batch_size, size in [(4_000_000_000, 2048, 14_000_000), (3_999, 65_536, 7), (0, 64, 60_000)]:
        start = shuffle._start(minibatch, batch_size, size, np.zeros(1, np.uint32))
        assert tuple(int(number[0]) for number in start) == divmod(minibatch * batch_size, size)
