"""`--mode=sample`: pictures and arrays from a finished or interrupted run."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.config.build import Setup
from gan_jax.runs.sampler import COLUMNS, Generate
from gan_jax.step.state import TrainState
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import write_atomically

ROWS = 8  # of an interpolation


def sample(setup: Setup, state: TrainState, workdir: Path, num_samples: int, interpolation: bool) -> list[Path]:
    """Writes pictures and arrays of the averaged generator into `workdir`; returns their paths.

    `samples.png` shows the run's fixed latents. num_samples > 0 adds `samples.npz`: `samples` [N, *shape] float32,
    images in [-1, 1] and points in the data's own units, and of a conditional run `labels`: the classes in turn, [N]
    int32, or the data's vectors in turn, [N, m] float32. `interpolation` (images only) adds `interpolation.png`, a
    label a row where there are labels.
    """
    if interpolation and len(setup.source.shape) != 3:
        raise InputError(f"--interpolation draws images, but {setup.config.data.name} is points; leave it out")
    generate = Generate(setup)
    written = [workdir / "samples.png"]
    plots.write_png(written[0], generate.picture(state))
    if num_samples:
        buffer, labels = io.BytesIO(), generate.labels(num_samples)
        samples = generate.examples(state.ema, setup.keys.pictures, num_samples, labels)
        np.savez(buffer, samples=samples, **({} if labels is None else {"labels": labels}))
        written.append(workdir / "samples.npz")
        write_atomically(written[-1], buffer.getvalue())
    if interpolation:
        ends = setup.recipe.prior(jax.random.split(setup.keys.interpolation, 2 * ROWS))
        path = interpolate(ends, setup.config.latent.prior)
        written.append(workdir / "interpolation.png")
        rows = generate.labels(ROWS)  # in turn
        labels = None if rows is None else np.repeat(rows, COLUMNS, axis=0)
        plots.write_png(written[-1], plots.grid(generate.from_latents(state.ema, path, labels), COLUMNS))
    return written


def interpolate(ends, prior: str, columns: int = COLUMNS):
    """Latents [r * columns, d] that lead from ends[2 i] to ends[2 i + 1] of [2 r, d], row by row.

    Normal latents go along great circles (arXiv:1609.04468), since a normal prior has its mass near a sphere; others
    along straight lines, which in a uniform one stay in the cube.
    """
    start, end = ends[0::2, None], ends[1::2, None]  # [r, 1, d]
    path = _great_circle if prior == "normal" else _straight
    return path(start, end, jnp.linspace(0, 1, columns)[None, :, None]).reshape(-1, ends.shape[1])


def _straight(start, end, t):
    return (1 - t) * start + t * end


def _great_circle(start, end, t):
    """Direction and length apart: the direction turns evenly, the length changes evenly."""
    lengths = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (start, end)]
    start, end = start / lengths[0], end / lengths[1]
    angle = jnp.arccos(jnp.clip(jnp.sum(start * end, -1, keepdims=True), -1, 1))
    turned = jnp.sin((1 - t) * angle) * start + jnp.sin(t * angle) * end
    # Opposite or equal latents span no plane to turn in: the path between them is straight.
    turned = jnp.where(jnp.sin(angle) < 1e-3, _straight(start, end, t), turned / jnp.sin(angle))
    return turned * _straight(*lengths, t)
