"""Examples and pictures from a state: shared by the training loop and by the verbs that read checkpoints."""

from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax import images, step
from gan_jax.recipe import Setup
from gan_jax.state import Average, TrainState

BATCH = 250  # examples generated in one call
COLUMNS = 10  # of a grid
SHOWN = {"line": 10_000, "plane": 2_000, "grid": COLUMNS**2}  # examples in a picture
REAL_SHOWN = 2_000


class Backdrop(NamedTuple):
    """What does not change between a run's pictures of data on the line or in the plane."""

    real: np.ndarray  # [m, d]
    points: np.ndarray  # [k, d]
    density: np.ndarray  # [k]


class Generate:
    """The averaged generator of a run, compiled once for all its pictures and scores."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._from_latents = jax.jit(partial(step.sample, setup.recipe))
        self._latents = jax.jit(self._draw_latents)
        self._logits = jax.jit(self._discriminate)

    def examples(self, average: Average, key, n: int) -> np.ndarray:
        """[n, *shape] float32; example i depends on key and i alone, not on n."""
        starts = range(0, n, BATCH)
        batches = [self.from_latents(average, self._latents(key, start)) for start in starts]
        return np.concatenate(batches)[:n]

    def from_latents(self, average: Average, latents) -> np.ndarray:
        """The examples at latents [n, d]: [n, *shape] float32."""
        return np.asarray(self._from_latents(average, latents))

    def picture(self, state: TrainState) -> np.ndarray:
        """What the run makes of its fixed latents, uint8 [h, w, 1 or 3]: a grid, or samples over the density."""
        kind = self._kind
        samples = self.examples(state.ema, self._setup.keys.pictures, SHOWN[kind])
        if kind == "grid":
            return images.grid(samples, COLUMNS)
        real, points, density = self._backdrop
        logits = np.asarray(self._logits(state.discriminator, points))
        draw = images.line if kind == "line" else images.plane
        return draw(samples, real, density, logits, f"{self._setup.title}, step {int(state.step):,}")

    @property
    def _kind(self) -> str:
        shape = self._setup.source.shape
        return "grid" if len(shape) == 3 else {1: "line", 2: "plane"}[shape[0]]

    @cached_property
    def _backdrop(self) -> Backdrop:
        source = self._setup.source
        keys = jax.random.split(self._setup.keys.backdrop, REAL_SHOWN)
        real = np.asarray(jax.jit(source.draw)(source.data, keys)["image"])
        points = images.line_points(real) if self._kind == "line" else images.plane_points(real)
        return Backdrop(real, points, np.asarray(jax.jit(source.density)(points)))

    def _draw_latents(self, key, start):
        slots = start + jnp.arange(BATCH)
        return self._setup.recipe.prior(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots))

    def _discriminate(self, player, x):
        return self._setup.recipe.discriminator.apply(player.params, player.stats, x, False)[0]
