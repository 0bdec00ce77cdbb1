"""Examples and pictures from a state."""

import math
from collections.abc import Callable
from copy import copy
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax import step
from gan_jax.config.build import Setup
from gan_jax.data import independent
from gan_jax.data.source import evenly_spaced, example_labels
from gan_jax.parallel import agreement
from gan_jax.parallel.devices import Devices, mesh
from gan_jax.step.state import Average, TrainState
from gan_jax.utils import plots
from gan_jax.utils.progress import progress

BATCH = 250  # examples generated in one call, at most; or as many more as make the devices' shares equal
NUMBERS = BATCH * 32 * 32 * 3  # in the examples of one call, at most: of larger images there are fewer at a time
LEAST = 8  # of a call, which has the next power of two for few
COLUMNS = 10  # of a grid
SHOWN = {"line": 10_000, "plane": 2_000, "grid": COLUMNS**2}  # examples in a picture
REAL_SHOWN = 2_000
LABELS = 2**32 - 1  # folded into the key of the latents, which are numbered from 0
MOST_ROWS = 20  # of a grid with a class a row


class Generate:
    """The averaged generator of a run, compiled once for all its pictures and scores.

    Of several processes each makes the same calls, and gets all the examples.
    """

    def __init__(self, setup: Setup, devices: Devices | None = None):
        """`devices` share the work, all by default, however the run is trained: an example is made by itself."""
        self._setup, self._devices = setup, devices or mesh()
        self._from_latents = jax.jit(self._sample, out_shardings=self._devices.replicated)
        self.latents = jax.jit(self._draw_latents, static_argnums=2)
        self._logits = jax.jit(partial(step.discriminate, setup.recipe))

    def of(self, setup: Setup) -> "Generate":
        """The same compiled functions for another run of the same program."""
        other = copy(self)
        other._setup = setup
        for cached in ("_backdrop", "_vectors"):
            vars(other).pop(cached, None)
        return other

    def labels(self, n: int, start: int = 0) -> np.ndarray | None:
        """The labels of n examples of a conditional generator, from place `start` on, else None.

        The classes in turn, int32 [n]; or vectors of labels of the data in turn, float32 [n, m].
        """
        if not self._conditional:
            return None
        places = np.arange(start, start + n, dtype=np.int32)
        if self._setup.source.attributes:
            return self._vectors[places % len(self._vectors)]
        return places % len(self._setup.source.classes)

    def examples(self, average: Average, key, n: int, labels: np.ndarray | None = None) -> np.ndarray:
        """[n, *shape] float32; example i depends on key, i and its label alone, not on n.

        A conditional generator makes `labels` [n, ...]; those of `self.labels(n)` where they are not given.
        """
        labels = self.labels(n) if labels is None else labels
        return self._batches(average, partial(self.latents, key), n, labels)

    def place(self, average: Average) -> Average:
        """The average on all devices that share the work; one that is there already is not copied."""
        return self._devices.place(average)

    def size(self, n: int) -> int:
        """How many examples a call makes when n are to be made: programs of few sizes serve all n."""
        most = max(LEAST, min(BATCH, NUMBERS // math.prod(self._setup.source.shape)))
        size = most if n > most else max(LEAST, 1 << (n - 1).bit_length())
        return -(-size // self._devices.count) * self._devices.count

    def for_scores(self, average: Average, key, n: int) -> np.ndarray:
        """`examples` to be compared with the data: their labels are drawn from it, as often as they are there."""
        labels = None
        if self._conditional:
            keys = jax.random.split(jax.random.fold_in(key, LABELS), n)
            drawn = agreement.by_first(lambda: np.asarray(independent(self._setup.source, keys)["label"]).tolist())
            labels = np.array(drawn, np.float32 if self._setup.source.attributes else np.int32)
        return self.examples(average, key, n, labels)

    def from_latents(self, average: Average, latents, labels: np.ndarray | None = None) -> np.ndarray:
        """The examples at latents [n, d], for a conditional generator with labels [n]: [n, *shape] float32."""
        latents = np.asarray(latents)

        def batch(start: int, size: int):
            return resized(latents[start : start + size], size)

        return self._batches(average, batch, len(latents), labels)

    def _batches(self, average: Average, latents: Callable, n: int, labels: np.ndarray | None) -> np.ndarray:
        """The examples at n latents; `latents`: (first, count) -> [count, d]."""
        average, size, examples = self.place(average), self.size(n), []
        for start in progress(range(0, n, size), "samples"):
            of_batch = () if labels is None else (resized(labels[start : start + size], size),)
            # Fetched at once: an `average` that lay in place is the run's own, donated to its next step.
            examples.append(np.asarray(self._from_latents(average, latents(start, size), *of_batch)))
        return np.concatenate(examples)[:n]

    def picture(self, state: TrainState) -> np.ndarray:
        """What the run makes of its fixed latents, uint8 [h, w, 1 or 3]: a grid, or samples over the density."""
        return self.drawing(state)()

    def drawing(self, state: TrainState) -> Callable[[], np.ndarray]:
        """The same, still to be drawn: all processes compute its contents, one draws it."""
        count, labels = self.shown()
        return self.drawing_of(state, self.examples(state.ema, self._setup.keys.pictures, count, labels))

    def shown(self) -> tuple[int, np.ndarray | None]:
        """How many examples a picture shows, and their labels: a label a row of a grid, else those of `labels`."""
        if self._kind == "grid" and self._conditional:
            labels = np.repeat(self._rows(), COLUMNS, axis=0)
            return len(labels), labels
        return SHOWN[self._kind], self.labels(SHOWN[self._kind])

    def drawing_of(self, state: TrainState, samples: np.ndarray) -> Callable[[], np.ndarray]:
        """What draws samples [n, *shape] of this state as its pictures are drawn."""
        if self._kind == "grid":
            return partial(plots.grid, samples, COLUMNS)
        real, points, density = self._backdrop
        logits = None if points is None else np.asarray(self._logits(state.discriminator, points))
        draw, samples = plots.line if self._kind == "line" else plots.plane, samples[:, :2]
        return partial(draw, samples, real, density, logits, f"{self._setup.title}, step {int(state.step):,}")

    def _rows(self) -> np.ndarray:
        """The labels of the rows of a grid, evenly chosen where there are more than MOST_ROWS."""
        if self._setup.source.attributes:
            return self._vectors[evenly_spaced(len(self._vectors), COLUMNS)]
        last = len(self._setup.source.classes) - 1
        return np.unique(np.linspace(0, last, min(last + 1, MOST_ROWS)).round().astype(np.int32))

    @cached_property
    def _vectors(self) -> np.ndarray:
        return example_labels(self._setup.source)

    @property
    def _conditional(self) -> bool:
        return self._setup.recipe.conditional

    @property
    def _kind(self) -> str:
        shape = self._setup.source.shape
        return "grid" if len(shape) == 3 else "line" if shape[0] == 1 else "plane"

    @cached_property
    def _backdrop(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """(real examples [m, d], points [k, d], the density there [k] or None), the same in all pictures of a run.

        Of points of more than two numbers, the real examples' first two, and None.
        """
        source = self._setup.source
        keys = jax.random.split(self._setup.keys.backdrop, REAL_SHOWN)
        real = np.asarray(independent(source, keys)["image"])
        if source.shape[0] > 2:
            return real[:, :2], None, None
        points = plots.line_points(real) if self._kind == "line" else plots.plane_points(real)
        return real, points, None if source.density is None else np.asarray(jax.jit(source.density)(points))

    def _sample(self, average, *inputs):
        return step.sample(self._setup.recipe, average, *map(self._devices.shard, inputs))

    def _draw_latents(self, key, start, n: int):
        slots = start + jnp.arange(n)
        return self._setup.recipe.prior(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots))


def resized(x: np.ndarray, n: int) -> np.ndarray:
    """x [m, ...] again and again, [n, ...]."""
    return np.resize(x, (n, *x.shape[1:]))
