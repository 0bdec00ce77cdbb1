"""`--mode=sample`: pictures and arrays of a trained run, written a batch at a time."""

import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.runs.sampler import COLUMNS
from gan_jax.runs.trained import Trained
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError, reason
from gan_jax.utils.files import replacing
from gan_jax.utils.progress import progress

PICTURES = "pictures"  # the latents and the labels of the pictures that training draws
GRID, PNG, NPZ, GIF = FORMATS = ("grid", "png", "npz", "gif")
WAYS = ("auto", "linear", "spherical")
ROWS = 8  # of an interpolation between the run's own latents
FRAME = 100  # ms that a GIF shows an image


class Wish(NamedTuple):
    """What samples are made of and written as: the flags of --mode=sample."""

    num_samples: int = 0  # of each seed; 0: as many as a picture shows
    seeds: tuple[int, ...] = ()
    label: str | None = None  # numbers or names of classes, or attributes joined by +, with commas
    latents: str | None = None  # a .npy of [n, d], or PICTURES
    truncation: float | None = None
    interpolate: int = 0  # images from one latent to the next; 0: samples
    way: str = "auto"
    format: str | None = None  # None: a grid, and an .npz where num_samples is given
    dtype: str = "float32"  # of an .npz


class Draws(NamedTuple):
    """Latents and labels, to be made when they are needed."""

    name: str  # of files: the seed
    count: int
    latents: Callable[[int, int], np.ndarray]  # (first, count) -> [count, d]
    labels: Callable[[int, int], np.ndarray | None]  # likewise [count] or [count, m]

    def batches(self, run: Trained) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """(first, examples [k, *shape], labels) for all of them, in order."""
        at_once = run.sampler.size(self.count)
        for first in progress(range(0, self.count, at_once), "samples"):
            size = min(at_once, self.count - first)
            labels = self.labels(first, size)
            yield first, run.generate(self.latents(first, size), labels), labels


def sample(run: Trained, out: Path, wish: Wish) -> Iterator[Path]:
    """Writes what is wished for into the folder `out`; yields each path when it is whole.

    grid: samples.png, a grid of images, or points over the density. png: SEED-INDEX.png for each image, in a folder a
    class where the run is conditional. npz: samples.npz with `samples` [n, *shape], float32 (images in [-1, 1], points
    in the data's units) or uint8, and of a conditional run `labels`, [n] int32 or [n, m] float32. With `interpolate`
    interpolation.png, a row from each latent to the next, or interpolation.gif, or interpolation/FRAME.png.
    """
    is_image = len(run.shape) == 3
    if not is_image and (wish.interpolate or wish.format in (PNG, GIF) or wish.dtype == "uint8"):
        flag = "--interpolate" if wish.interpolate else "--dtype=uint8" if wish.dtype == "uint8" else "--format"
        raise InputError(f"{flag} is for images, and {run.config.data.name} is points; leave it out")
    if wish.interpolate:
        yield _interpolation(run, out, wish)
        return
    if wish.format == GIF:
        raise InputError("--format=gif is for --interpolate=FRAMES and for --mode=movie; choose grid, png or npz")
    if wish.dtype == "uint8" and not (wish.format == NPZ or (wish.format is None and wish.num_samples)):
        raise InputError("--dtype is for samples.npz; add --num_samples=N or --format=npz")
    if wish.format in (None, GRID):
        yield _grid(run, out, wish)
    if wish.format == NPZ or (wish.format is None and wish.num_samples):
        yield _arrays(run, out / "samples.npz", _draws(run, wish), wish.dtype)
    if wish.format == PNG:
        yield from _images(run, out, _draws(run, wish))


def _draws(run: Trained, wish: Wish) -> list[Draws]:
    """What is to be made: by seed, of the pictures, or of a file. Without a label it is in turn, or as in a picture."""
    if wish.latents is not None and wish.seeds:
        raise InputError("--seed and --latents both say which latents to take; give one")
    shown, shown_labels = run.sampler.shown()
    label, count = _label(run, wish.label), wish.num_samples or shown
    rows = _rows(run, wish.latents) if wish.latents not in (None, PICTURES) else None

    def labels(first: int, size: int) -> np.ndarray | None:
        if label is None and shown_labels is not None and rows is None and not wish.num_samples:
            return shown_labels[first : first + size]
        return run.labels(label, size, first)

    def drawn(name: str, key) -> Draws:
        def latents(first: int, size: int) -> np.ndarray:
            return run.truncated(np.asarray(run.sampler.latents(key, first, size)), wish.truncation)

        return Draws(name, count, latents, labels)

    if wish.latents == PICTURES:
        return [drawn(PICTURES, run.setup.keys.pictures)]
    if rows is None:
        return [drawn(str(seed), jax.random.key(seed)) for seed in wish.seeds or (0,)]
    if wish.num_samples > len(rows):
        raise InputError(f"--num_samples is {wish.num_samples}, and --latents={wish.latents} has {len(rows)}")
    rows = run.truncated(rows[: wish.num_samples or len(rows)], wish.truncation)
    return [Draws(Path(wish.latents).stem, len(rows), lambda first, size: rows[first : first + size], labels)]


def _rows(run: Trained, path: str) -> np.ndarray:
    """The latents [n, d] in a file."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read --latents={path}: {reason(error)}; it must be a .npy file") from error
    if not isinstance(rows, np.ndarray):
        raise InputError(f"--latents={path} holds several arrays; it must be a .npy file")
    return run.checked_latents(rows)


def _label(run: Trained, text: str | None) -> Any:
    """What `Trained.labels` takes: classes, or of attributes the vectors in which those named are 1."""
    if text is None:
        return None
    attributes = run.setup.source.attributes
    if not (run.setup.recipe.conditional and attributes):
        return [text] if text in run.classes else text.split(",")
    vectors = np.zeros((len(parts := text.split(",")), len(attributes)), np.float32)
    for vector, part in zip(vectors, parts, strict=True):
        for name in filter(None, part.split("+")):
            if name not in attributes:
                raise InputError(f"there is no attribute {name!r}; they are {', '.join(attributes)}, joined by +")
            vector[attributes.index(name)] = 1
    return vectors


def _grid(run: Trained, out: Path, wish: Wish) -> Path:
    """A picture as training draws them; without seeds and latents it is of theirs."""
    if wish.format is None:  # then --num_samples is of the .npz
        wish = wish._replace(num_samples=0)
    if not wish.seeds and wish.latents is None:
        wish = wish._replace(latents=PICTURES)
    samples = np.concatenate([examples for draws in _draws(run, wish) for _, examples, _ in draws.batches(run)])
    path = out / "samples.png"
    plots.write_png(path, run.sampler.drawing_of(run.state, samples)())
    return path


def _images(run: Trained, out: Path, draws: list[Draws]) -> Iterator[Path]:
    """One file an image."""
    for draw in draws:
        for first, images, labels in draw.batches(run):
            for i, image in enumerate(run.to_uint8(images)):
                folder = out
                if labels is not None and run.classes:
                    folder = out / re.sub(r"[^\w.-]+", "_", run.classes[labels[i]])
                plots.write_png(folder / f"{draw.name}-{first + i:06d}.png", image)
    yield out


def _arrays(run: Trained, path: Path, draws: list[Draws], dtype: str) -> Path:
    """An .npz, whose arrays are written as they are made: memory does not grow with their length."""
    count, size = sum(draw.count for draw in draws), run.setup.recipe.label_size
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        with _array(archive, "samples", dtype, (count, *run.shape)) as samples:
            for draw in draws:
                for _, examples, _ in draw.batches(run):
                    samples.write((run.to_uint8(examples) if dtype == "uint8" else examples).data)
        if run.setup.recipe.conditional:
            kind, shape = ("float32", (count, size)) if size else ("int32", (count,))
            with _array(archive, "labels", kind, shape) as labels:
                for draw in draws:
                    labels.write(draw.labels(0, draw.count).tobytes())
    return path


@contextmanager
def _array(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]):
    """A file in the archive for the bytes of an array of this form."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _interpolation(run: Trained, out: Path, wish: Wish) -> Path:
    """From each latent to the next: a strip of rows, a GIF, or a file a frame."""
    if wish.interpolate < 2:
        raise InputError(
            f"--interpolate is {wish.interpolate}; a way from one latent to the next has at least 2 images"
        )
    if wish.format == NPZ:
        raise InputError("--interpolate is for --format=grid, gif or png")
    ends = _ends(run, wish)
    if len(ends) < 2:
        raise InputError("--interpolate needs at least 2 latents; give as many seeds, rows or --num_samples")
    spherical = wish.way == "spherical" or (wish.way == "auto" and run.config.latent.prior == "normal")
    path = interpolate(ends, spherical, wish.interpolate)  # [rows, columns, d]
    labels = run.labels(_label(run, wish.label), len(path))
    labels = None if labels is None else np.repeat(labels, wish.interpolate, axis=0)
    images = run.generate(path.reshape(-1, path.shape[-1]), labels)
    if wish.format in (None, GRID):
        plots.write_png(out / "interpolation.png", plots.grid(images, wish.interpolate))
        return out / "interpolation.png"
    # Where a row ends the next one begins.
    kept = [i for i in range(len(images)) if i % wish.interpolate or not i]
    frames = [plots.grid(images[i : i + 1], 1) for i in kept]
    if wish.format == GIF:
        plots.write_animation(out / "interpolation.gif", map(plots.to_picture, frames), FRAME)
        return out / "interpolation.gif"
    for number, image in enumerate(run.to_uint8(images[kept])):
        plots.write_png(out / "interpolation" / f"{number:06d}.png", image)
    return out / "interpolation"


def _ends(run: Trained, wish: Wish) -> np.ndarray:
    """The latents [r + 1, d] between which r rows lead: of several seeds the first of each."""
    if wish.latents is None and not wish.seeds:
        ends = np.asarray(run.sampler.latents(run.setup.keys.interpolation, 0, wish.num_samples or ROWS + 1))
        return run.truncated(ends, wish.truncation)
    draws = _draws(run, wish)
    if len(draws) > 1:
        return np.concatenate([draw.latents(0, 1) for draw in draws])
    return draws[0].latents(0, wish.num_samples or (ROWS + 1 if wish.latents is None else draws[0].count))


def interpolate(ends: np.ndarray, spherical: bool, columns: int = COLUMNS) -> np.ndarray:
    """Latents [r, columns, d] that lead from each of `ends` [r + 1, d] to the next.

    Spherical, along great circles (arXiv:1609.04468), for a normal prior, which has its mass near a sphere; or along
    straight lines, which in a uniform one stay in the cube.
    """
    start, end = (jnp.stack(part)[:, None] for part in zip(*pairwise(ends), strict=True))  # [r, 1, d]
    way = _great_circle if spherical else _straight
    return np.asarray(way(start, end, jnp.linspace(0, 1, columns)[None, :, None]))


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
