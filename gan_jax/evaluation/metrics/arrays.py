"""What the distances require of their arrays."""

from collections.abc import Iterator

import numpy as np

from gan_jax.utils.errors import InputError

NUMBERS = 2**24  # float64 numbers in a block: 128 MiB


def check_features(least: int, **features: np.ndarray) -> None:
    """Raises InputError unless each is [n, d], of one d, with at least `least` examples and finite numbers only."""
    for name, x in features.items():
        if x.ndim != 2:
            raise InputError(f"{name} features have shape {x.shape}: they should be [examples, dimensions]")
        if len(x) < least:
            raise InputError(f"{name} features have shape {x.shape}: at least {least} examples are needed")
        if not np.isfinite(x).all():
            raise InputError(f"{name} features hold NaN or infinity: they should be finite numbers")
    dimensions = {name: x.shape[1] for name, x in features.items()}
    if len(set(dimensions.values())) > 1:
        raise InputError(f"features of different dimensions, {dimensions}: they should come from one extractor")


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of `rows` such that a block of that many rows and `columns` holds about NUMBERS numbers."""
    size = max(1, NUMBERS // columns)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
