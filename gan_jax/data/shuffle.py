"""The order in which a finite data set is met: shuffled anew each epoch, every example exactly once in it.

Which example is where is a function of (words, place), computed without a table of the set, so that every device, every
process and a resumed run finds its own part of it. NumPy and JAX give the same order: a set that is streamed by the
host is met as one that lies on the device.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.utils.hashing import scramble

ROUNDS = 8  # of rows and columns; with six, sets of six examples are not yet met in all their orders equally often


def examples(words, size: int, batch_size: int, minibatch, slots):
    """Which examples of `size` a minibatch of `batch_size` slots holds: int32 [n], in 0 ... size - 1.

    Minibatches run through the epochs without a gap, so that one may lie in two epochs.

    Args:
      words: uint32 [2], what tells one run's order from another's.
      minibatch: its number since the start of the run, an integer or a scalar array.
      slots: uint32 [n], of the minibatch; a NumPy array for NumPy's answer.
    """
    epoch, place = _start(minibatch, batch_size, size, slots)
    place = place + slots
    epoch, place = epoch + place // np.uint32(size), place % np.uint32(size)
    return _walk(_keys(words, epoch), place, size).astype(np.int32)


def _start(minibatch, batch_size: int, size: int, like):
    """(epoch, place in it) of the minibatch's first slot: divmod(minibatch * batch_size, size), and never overflows."""
    ones = like * np.uint32(0) + np.uint32(1)  # arrays, in which NumPy lets uint32 wrap around without a warning
    minibatch = (ones * minibatch).astype(np.uint32)
    epoch = place = ones * np.uint32(0)
    for bit in f"{batch_size:b}":
        epoch, place = 2 * epoch, 2 * place
        if bit == "1":
            epoch, place = epoch + minibatch // np.uint32(size), place + minibatch % np.uint32(size)
        epoch, place = epoch + place // np.uint32(size), place % np.uint32(size)
    return epoch, place


def _keys(words, epoch) -> list:
    """The keys of an epoch's rounds, uint32 [n] each."""
    seed = scramble(scramble(epoch ^ words[0]) + words[1])
    return [scramble(seed + np.uint32(2654435769 * (i + 1) % 2**32)) for i in range(2 * ROUNDS)]


def _walk(keys, place, size: int):
    """A permutation of 0 ... size - 1: that of a slightly larger grid, walked until it is back inside."""
    outside = place < size  # all: each is to take a first step
    if isinstance(place, np.ndarray):
        while np.any(outside):
            place = np.where(outside, _permute(keys, place, size), place)
            outside = place >= size
        return place

    def step(walk):
        place, outside = walk
        place = jnp.where(outside, _permute(keys, place, size), place)
        return place, place >= size

    return jax.lax.while_loop(lambda walk: jnp.any(walk[1]), step, (place, outside))[0]


def _permute(keys, place, size: int):
    """A Feistel network on a grid of rows and columns that holds `size` places and less than a row more."""
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    row, column = place // np.uint32(columns), place % np.uint32(columns)
    for key_of_row, key_of_column in zip(keys[::2], keys[1::2], strict=True):
        row = (row + scramble(column ^ key_of_row) % np.uint32(rows)) % np.uint32(rows)
        column = (column + scramble(row ^ key_of_column) % np.uint32(columns)) % np.uint32(columns)
    return row * np.uint32(columns) + column
