"""Data sets, by name: each a `Source` whose examples are drawn on the device."""

from gan_jax.data.digits import SPLITS, digits
from gan_jax.data.mixture import gaussian, grid25, ring8, swiss_roll
from gan_jax.data.source import Entry, Source

SOURCES = {
    "digits": Entry(digits, tuple(SPLITS)),
    "ring8": Entry(ring8, ("train",)),
    "grid25": Entry(grid25, ("train",)),
    "swiss_roll": Entry(swiss_roll, ("train",)),
    "gaussian": Entry(gaussian, ("train",)),
}

__all__ = ["SOURCES", "Source"]
