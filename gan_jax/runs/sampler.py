"""Examples and pictures from a state."""

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

BATCH = 250  # examples generated in one call, or as many more as make the devices' shares equal
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
        self._batch = -(-BATCH // self._devices.count) * self._devices.count
        self._from_latents = jax.jit(self._sample, out_shardings=self._devices.replicated)
        self._latents = jax.jit(self._draw_latents)
        self._logits = jax.jit(partial(step.discriminate, setup.recipe))

    def of(self, setup: Setup) -> "Generate":
        """The same compiled functions for another run of the same program."""
        other = copy(self)
        other._setup = setup
        for cached in ("_backdrop", "_vectors"):
            vars(other).pop(cached, None)
        return other

    def labels(self, n: int) -> np.ndarray | None:
        """The labels of n examples of a conditional generator, else None.

        The classes in turn, int32 [n]; or vectors of labels of the data in turn, float32 [n, m].
        """
        if not self._conditional:
            return None
        if self._setup.source.attributes:
            return self._vectors[np.arange(n) % len(self._vectors)]
        return np.arange(n, dtype=np.int32) % len(self._setup.source.classes)

    def examples(self, average: Average, key, n: int, labels: np.ndarray | None = None) -> np.ndarray:
        """[n, *shape] float32; example i depends on key, i and its label alone, not on n.

        A conditional generator makes `labels` [n, ...]; those of `self.labels(n)` where they are not given.
        """
        labels = self.labels(n) if labels is None else labels
        average, batches = self._devices.place(average), []
        for start in progress(range(0, n, self._batch), "samples"):
            of_batch = None if labels is None else _resized(labels[start : start + self._batch], self._batch)
            batches.append(self.from_latents(average, self._latents(key, start), of_batch))
        return np.concatenate(batches)[:n]

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
        inputs, n = (latents,) if labels is None else (latents, labels), len(latents)
        if missing := -n % self._devices.count:
            inputs = [_resized(x, n + missing) for x in map(np.asarray, inputs)]
        # Fetched before this returns: an `average` that lay in place is the run's own, donated to its next step.
        return np.asarray(self._from_latents(self._devices.place(average), *inputs))[:n]

    def picture(self, state: TrainState) -> np.ndarray:
        """What the run makes of its fixed latents, uint8 [h, w, 1 or 3]: a grid, or samples over the density."""
        return self.drawing(state)()

    def drawing(self, state: TrainState) -> Callable[[], np.ndarray]:
        """The same, still to be drawn: all processes compute its contents, one draws it."""
        kind, labels = self._kind, None
        if kind == "grid" and self._conditional:  # a label a row, evenly chosen where there are more than MOST_ROWS
            labels = np.repeat(self._rows(), COLUMNS, axis=0)
        count = SHOWN[kind] if labels is None else len(labels)
        samples = self.examples(state.ema, self._setup.keys.pictures, count, labels)
        if kind == "grid":
            return partial(plots.grid, samples, COLUMNS)
        real, points, density = self._backdrop
        logits = None if points is None else np.asarray(self._logits(state.discriminator, points))
        draw, samples = plots.line if kind == "line" else plots.plane, samples[:, :2]
        return partial(draw, samples, real, density, logits, f"{self._setup.title}, step {int(state.step):,}")

    def _rows(self) -> np.ndarray:
        """The labels of the rows of a grid."""
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

    def _draw_latents(self, key, start):
        slots = start + jnp.arange(self._batch)
        return self._setup.recipe.prior(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots))


def _resized(x: np.ndarray, n: int) -> np.ndarray:
    """x [m, ...] again and again, [n, ...]."""
    return np.resize(x, (n, *x.shape[1:]))
