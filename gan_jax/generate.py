"""Examples and pictures from a state: shared by the training loop and by the verbs that read checkpoints."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax import images, step
from gan_jax.recipe import Setup, run_keys
from gan_jax.state import Average, TrainState

BATCH = 250  # examples generated in one call
COLUMNS = 10  # of a grid
SHOWN = {"line": 10_000, "plane": 2_000, "grid": COLUMNS**2}  # examples in a picture


class Generate:
    """The averaged generator of a run, compiled once for all its pictures and scores."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._from_latents = jax.jit(partial(step.sample, setup.recipe))
        self._latents = jax.jit(self._draw_latents)
        self._logits = jax.jit(self._discriminate)
        self._density = jax.jit(setup.source.density) if setup.source.density else None

    def examples(self, average: Average, key, n: int) -> np.ndarray:
        """[n, *shape] float32; example i depends on key and i alone, not on n."""
        starts = range(0, n, BATCH)
        batches = [np.asarray(self._from_latents(average, self._latents(key, start))) for start in starts]
        return np.concatenate(batches)[:n]

    def from_latents(self, average: Average, latents) -> np.ndarray:
        """The examples at latents [n, d]: [n, *shape] float32."""
        return np.asarray(self._from_latents(average, latents))

    def picture(self, state: TrainState) -> np.ndarray:
        """What the run makes of its fixed latents, uint8 [h, w, 1 or 3]: a grid, or samples over the density."""
        key = run_keys(self._setup.config.seed).pictures
        source = self._setup.source
        kind = {1: "line", 2: "plane"}[source.shape[0]] if len(source.shape) == 1 else "grid"
        samples = self.examples(state.ema, key, SHOWN[kind])
        if kind == "grid":
            return images.grid(samples, COLUMNS)
        real = source.draw(source.data, jax.random.split(key, 2_000))["image"]
        title = f"{self._setup.config.data.name}, {self._setup.config.objective.name}, step {int(state.step):,}"
        draw = images.line if kind == "line" else images.plane
        return draw(samples, np.asarray(real), self._density, partial(self._logits, state.discriminator), title)

    def _draw_latents(self, key, start):
        slots = start + jnp.arange(BATCH)
        return self._setup.recipe.prior(jax.vmap(lambda slot: jax.random.fold_in(key, slot))(slots))

    def _discriminate(self, player, x):
        return self._setup.recipe.discriminator.apply(player.params, player.stats, x, False)[0]
