"""What a data set looks like to the rest of the program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Modes(NamedTuple):
    """The components of an equal-weight Gaussian mixture, for counting which of them a generator found."""

    centers: np.ndarray  # [m, d]
    sigma: float  # of each component, in every direction


class Entry(NamedTuple):
    """A data set in the registry: its splits, and what makes its `Source` from the name of one."""

    make: Callable  # split -> Source
    splits: tuple[str, ...]


class Source(NamedTuple):
    """A data set held on the device, or made there. Which examples a step sees is a function of its keys alone."""

    shape: tuple[int, ...]  # of one example: (h, w, c) for images in [-1, 1], (d,) for points
    data: Any  # a pytree of arrays, given to `draw`; empty where examples are generated
    draw: Callable  # (data, keys [n]) -> {"image": [n, *shape]} float32, independent draws
    std: float  # standard deviation of the data, over all examples and components
    density: Callable | None = None  # points [n, d] -> probability density [n], where it is known
    modes: Modes | None = None  # where the data is such a mixture
