"""`--mode=sample`: pictures and arrays from a finished or interrupted run."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax import images
from gan_jax.files import write_atomically
from gan_jax.generate import COLUMNS, Generate
from gan_jax.recipe import Setup, run_keys
from gan_jax.state import TrainState

ROWS = 8  # of an interpolation


def sample(setup: Setup, state: TrainState, workdir: Path, num_samples: int, interpolation: bool) -> list[Path]:
    """Writes what was asked for into `workdir` and returns the paths.

    Always `samples.png`, the run's fixed latents. With num_samples, `samples.npz`: `samples` [N, *shape] float32,
    images in [-1, 1] and points in the data's own units. With `interpolation` (images only), `interpolation.png`.
    """
    generate = Generate(setup)
    written = [workdir / "samples.png"]
    images.write_png(written[0], generate.picture(state))
    key = run_keys(setup.config.seed).pictures
    if num_samples:
        buffer = io.BytesIO()
        np.savez(buffer, samples=generate.examples(state.ema, key, num_samples))
        written.append(workdir / "samples.npz")
        write_atomically(written[-1], buffer.getvalue())
    if interpolation:
        path = interpolate(setup.recipe.prior(jax.random.split(key, 2 * ROWS)), setup.config.latent.prior)
        written.append(workdir / "interpolation.png")
        images.write_png(written[-1], images.grid(generate.from_latents(state.ema, path), COLUMNS))
    return written


def interpolate(ends, prior: str, columns: int = COLUMNS):
    """Latents [r * columns, d] that lead from ends[2 i] to ends[2 i + 1] of [2 r, d], row by row.

    Normal latents go along great circles (arXiv:1609.04468), since a normal prior has its mass on a sphere; uniform
    ones along straight lines, which stay in the cube.
    """
    start, end = ends[0::2, None], ends[1::2, None]  # [r, 1, d]
    t = jnp.linspace(0, 1, columns)[None, :, None]
    path = (1 - t) * start + t * end if prior == "uniform" else _great_circle(start, end, t)
    return path.reshape(-1, ends.shape[1])


def _great_circle(start, end, t):
    cosine = jnp.sum(start * end, -1, keepdims=True) / (
        jnp.linalg.norm(start, axis=-1, keepdims=True) * jnp.linalg.norm(end, axis=-1, keepdims=True)
    )
    angle = jnp.arccos(jnp.clip(cosine, -0.9999, 0.9999))
    return (jnp.sin((1 - t) * angle) * start + jnp.sin(t * angle) * end) / jnp.sin(angle)
