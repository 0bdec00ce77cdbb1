"""Pictures: grids of images, and samples over a density for data on the line and in the plane."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gan_jax.utils.files import replacing, write_atomically

SMALLEST_TILE = 48  # pixels: smaller images are magnified by a whole factor
PAD = 2
SEEN = 128  # pixels a side, from which the colours of a frame of a GIF are chosen
COLOURS = 10  # of lines, by Matplotlib, before they come again
PIXELS = 200  # along one side of the map of a function on the plane
ENDS = {"LM": "largest modulus", "LR": "largest real part", "LI": "largest imaginary part"}  # by ARPACK's names


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [n, h, w, c] in [-1, 1], c 1 or 3, row by row in one picture: uint8 [H, W, c]; missing tiles are black."""
    n, height, width, channels = images.shape
    rows, factor = -(-n // columns), max(1, SMALLEST_TILE // height)
    height, width = factor * height, factor * width
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    for tile, image in zip(tiles, to_uint8(images), strict=False):
        # Bicubic: an 8x8 digit is easier to read without its steps.
        magnified = to_picture(image).resize((width, height), Image.Resampling.BICUBIC)
        tile[:] = np.asarray(magnified).reshape(tile.shape)
    tiles = np.pad(tiles, ((0, 0), (0, PAD), (0, PAD), (0, 0)))
    picture = tiles.reshape(rows, columns, height + PAD, width + PAD, channels).swapaxes(1, 2)
    picture = picture.reshape(rows * (height + PAD), columns * (width + PAD), channels)
    return np.pad(picture, ((PAD, 0), (PAD, 0), (0, 0)))


def to_picture(pixels: np.ndarray) -> Image.Image:
    """uint8 [h, w, 1 or 3 or 4] as an image of Pillow's."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, rounded; values outside are clipped."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 1 or 3 or 4]."""
    buffer = io.BytesIO()
    to_picture(picture).save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def write_animation(path: Path, frames: Iterable[Image.Image], durations: float | Sequence[float]) -> None:
    """Writes pictures of one size, grey or RGB, as a GIF or WebP that repeats itself; durations in ms.

    Pillow holds what it has of all frames until the end: of a GIF a byte a pixel, of a WebP three.
    """
    kind = path.suffix.lower().removeprefix(".")
    frames = map(_in_256_colours, frames) if kind == "gif" else iter(frames)
    with replacing(path) as file:
        options = {"append_images": frames, "duration": durations, "loop": 0, "quality": 90}
        next(frames).save(file, kind, save_all=True, **options)


def _in_256_colours(frame: Image.Image) -> Image.Image:
    """Grey as it is; of colours the nearest of 256 that fit this frame."""
    if frame.mode == "L":
        return frame
    # k-means is 2 dB nearer on CIFAR-10, but takes seconds of all pixels; dithered, small images have speckles.
    palette = frame.resize((SEEN, SEEN), Image.Resampling.NEAREST).quantize(256, kmeans=1)
    return frame.quantize(palette=palette, dither=Image.Dither.NONE)


def plane_points(real: np.ndarray) -> np.ndarray:
    """The points [k, 2] at which `plane` needs functions: a square around the real examples [m, 2]."""
    left, right, bottom, top = _extent(real)
    ticks = np.linspace(0, 1, PIXELS)
    grid_x, grid_y = np.meshgrid(left + (right - left) * ticks, bottom + (top - bottom) * ticks)
    return np.stack([grid_x, grid_y], axis=-1).reshape(-1, 2).astype(np.float32)


def _extent(real: np.ndarray) -> tuple[float, float, float, float]:
    (x, y), half = real.mean(axis=0), 1.15 * np.abs(real - real.mean(axis=0)).max()
    return x - half, x + half, y - half, y + half


def plane(samples: np.ndarray, real: np.ndarray, density: np.ndarray, logits: np.ndarray, title: str) -> np.ndarray:
    """Samples [n, 2] over the true density, and beside it over the discriminator's logits: uint8 [H, W, 3].

    `density` and `logits` [k] are the values at `plane_points(real)`, or None where there are none; the real examples
    [m, 2] are shown too.
    """
    left, right = axes = _axes(title)
    maps = {"origin": "lower", "extent": _extent(real), "aspect": "equal"}
    if density is not None:
        left.imshow(np.sqrt(density).reshape(PIXELS, PIXELS), cmap="Blues", **maps)
    left.scatter(*real.T, s=3, c="tab:blue", alpha=0.25, linewidths=0, label="real")
    left.scatter(*samples.T, s=3, c="tab:red", alpha=0.5, linewidths=0, label="samples")
    left.legend(loc="upper right", markerscale=3, fontsize=7)
    left.set_title("samples over the density", fontsize=9)
    if logits is not None:
        landscape = right.imshow(logits.reshape(PIXELS, PIXELS), cmap="viridis", **maps)
        right.figure.colorbar(landscape, ax=right, fraction=0.046, pad=0.04)
    right.scatter(*samples.T, s=3, c="tab:red", alpha=0.5, linewidths=0)
    right.set_title("the discriminator's logit", fontsize=9)
    for half in axes:
        half.set(xlim=maps["extent"][:2], ylim=maps["extent"][2:])
    return _pixels(axes)


def line_points(real: np.ndarray) -> np.ndarray:
    """The points [k, 1] at which `line` needs functions: an interval around the real examples [m, 1]."""
    return np.linspace(real.min() - real.std(), real.max() + real.std(), 2 * PIXELS, dtype=np.float32)[:, None]


def line(samples: np.ndarray, real: np.ndarray, density: np.ndarray, logits: np.ndarray, title: str) -> np.ndarray:
    """Samples [n, 1] as a histogram over the true density, and the discriminator's logit: uint8 [H, W, 3].

    `density` and `logits` [k] are the values at `line_points(real)`; a density that is not known is None.
    """
    left, right = axes = _axes(title)
    points = line_points(real)[:, 0]
    bins = np.linspace(points[0], points[-1], 81)
    shares = np.full(len(samples), 1 / (len(samples) * (bins[1] - bins[0])))  # of all samples, also those outside
    left.hist(samples[:, 0], bins=bins, weights=shares, color="tab:red", alpha=0.6, label="samples")
    if density is not None:
        left.plot(points, density, color="tab:blue", label="true density")
    left.legend(fontsize=7)
    left.set_title("samples and the density", fontsize=9)
    right.plot(points, logits, color="black")
    right.axhline(0, color="grey", linewidth=0.5)
    right.set_title("the discriminator's logit", fontsize=9)
    return _pixels(axes)


def spectrum(values: dict[str, np.ndarray], title: str) -> np.ndarray:
    """Eigenvalues [c] by the end of the spectrum (see ENDS), in the plane: uint8 [H, W, 3].

    On the right once more with axes that are logarithmic away from 0, since their sizes often differ a thousandfold.
    """
    left, right = axes = _axes(title)
    largest = max(np.abs(np.concatenate(list(values.values()))).max(), np.finfo(np.float32).tiny)
    for half in axes:
        for (name, eigenvalues), marker, size in zip(values.items(), "osD", (40, 40, 14), strict=False):
            half.scatter(eigenvalues.real, eigenvalues.imag, s=size, marker=marker, label=ENDS[name], alpha=0.6)
        half.axvline(0, color="black", linewidth=0.8)
        half.axhline(0, color="grey", linewidth=0.5)
        half.tick_params(labelsize=7)
    left.legend(fontsize=7)
    left.set_title("eigenvalues: those left of the axis decay", fontsize=9)
    right.set_xscale("symlog", linthresh=1e-2 * largest)
    right.set_yscale("symlog", linthresh=1e-2 * largest)
    right.set(xlim=(-3 * largest, 3 * largest), ylim=(-3 * largest, 3 * largest))
    right.set_title("the same, logarithmic away from 0", fontsize=9)
    return _pixels(axes)


def subplots(width: float, height: float, rows: int = 1, columns: int = 1):
    """(a figure of this size in inches, its axes: an array [rows, columns])."""
    from matplotlib.figure import Figure  # here: most runs draw none, and it takes a third of a second to import

    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")  # no pyplot: nothing global
    return figure, figure.subplots(rows, columns, squeeze=False)


def curves(title: str, points: Sequence[tuple], columns: int, styles: Sequence[str] = ("-",)):
    """(a figure with a curve for each of `points`: label, steps [n], values [n]; its lines).

    `columns`: of the legend; 0: none. `styles`: of the first COLOURS lines, of the next, and so on, in turn.
    """
    figure, ((ax,),) = subplots(6, 4)
    lines = []
    for number, (label, steps, values) in enumerate(points):
        style = styles[number // COLOURS % len(styles)]
        lines += ax.plot(steps, values, style, label=label, linewidth=1.5)
    ax.set(xlabel="step", title=title)
    if columns:
        figure.legend(fontsize=6, loc="outside right", ncols=columns)
    return figure, lines


def _axes(title: str) -> np.ndarray:
    """The two axes, side by side, of a figure with this title."""
    from matplotlib.figure import Figure  # here: only runs on points draw, and it takes a third of a second to import

    figure = Figure(figsize=(9, 4.2), dpi=100)  # no pyplot: nothing global, nothing to close
    figure.suptitle(title, fontsize=10)
    return figure.subplots(1, 2, gridspec_kw={"left": 0.06, "right": 0.93, "bottom": 0.08, "top": 0.86})


def _pixels(axes: np.ndarray) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(axes[0].figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
