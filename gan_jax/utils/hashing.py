"""Hashing of 32-bit words, the same with NumPy's and with JAX's arrays."""

import numpy as np


def scramble(x):
    """A bijection of uint32 arrays in which every input bit moves about half of the output's (xor-shift, multiply)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
