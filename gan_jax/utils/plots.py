"""Pictures: grids of images, and samples over a density for data on the line and in the plane."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from gan_jax.utils.files import write_atomically

SMALLEST_TILE = 48  # pixels: smaller images are magnified by a whole factor
PAD = 2
PIXELS = 200  # along one side of the map of a function on the plane


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [n, h, w, c] in [-1, 1], c 1 or 3, row by row in one picture: uint8 [H, W, c]; missing tiles are black."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:n] = to_uint8(images)
    if height < SMALLEST_TILE:
        tiles = _magnified(tiles, SMALLEST_TILE // height)
    tiles = np.pad(tiles, ((0, 0), (0, PAD), (0, PAD), (0, 0)))
    _, height, width, _ = tiles.shape
    picture = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return np.pad(picture.reshape(rows * height, columns * width, channels), ((PAD, 0), (PAD, 0), (0, 0)))


def _magnified(tiles: np.ndarray, factor: int) -> np.ndarray:
    """Each tile [h, w, c] uint8, `factor` times as large, bicubic: an 8x8 digit is easier to read without its steps."""
    n, height, width, channels = tiles.shape
    height, width = height * factor, width * factor
    images = (_as_image(tile).resize((width, height), Image.Resampling.BICUBIC) for tile in tiles)
    return np.stack([np.asarray(image) for image in images]).reshape(n, height, width, channels)


def _as_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, rounded; values outside are clipped."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 1 or 3 or 4]."""
    buffer = io.BytesIO()
    _as_image(picture).save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def plane_points(real: np.ndarray) -> np.ndarray:
    """The points [k, 2] at which `plane` wants to know functions: a square around the real examples [m, 2]."""
    left, right, bottom, top = _extent(real)
    ticks = np.linspace(0, 1, PIXELS)
    grid_x, grid_y = np.meshgrid(left + (right - left) * ticks, bottom + (top - bottom) * ticks)
    return np.stack([grid_x, grid_y], axis=-1).reshape(-1, 2).astype(np.float32)


def plane(samples: np.ndarray, real: np.ndarray, density: np.ndarray, logits: np.ndarray, title: str) -> np.ndarray:
    """Samples [n, 2] over the true density, and beside it over the discriminator's logits: uint8 [H, W, 3].

    `density` and `logits` [k] are the values at `plane_points(real)`; the real examples [m, 2] are shown too.
    """
    heights, landscape = density.reshape(PIXELS, PIXELS), logits.reshape(PIXELS, PIXELS)
    return _render(lambda axes: _draw_plane(axes, samples, real, heights, landscape), title)


def _extent(real: np.ndarray) -> tuple[float, float, float, float]:
    (x, y), half = real.mean(axis=0), 1.15 * np.abs(real - real.mean(axis=0)).max()
    return x - half, x + half, y - half, y + half


def _draw_plane(axes, samples, real, heights, landscape):
    (left, right), extent = axes, _extent(real)
    left.imshow(np.sqrt(heights), origin="lower", extent=extent, cmap="Blues", aspect="equal")
    left.scatter(*real.T, s=3, c="tab:blue", alpha=0.25, linewidths=0, label="real")
    left.scatter(*samples.T, s=3, c="tab:red", alpha=0.5, linewidths=0, label="samples")
    left.legend(loc="upper right", markerscale=3, fontsize=7)
    left.set_title("samples over the density", fontsize=9)
    shown = right.imshow(landscape, origin="lower", extent=extent, cmap="viridis", aspect="equal")
    right.scatter(*samples.T, s=3, c="tab:red", alpha=0.5, linewidths=0)
    right.figure.colorbar(shown, ax=right, fraction=0.046, pad=0.04)
    right.set_title("the discriminator's logit", fontsize=9)
    for half in axes:
        half.set(xlim=extent[:2], ylim=extent[2:])


def line_points(real: np.ndarray) -> np.ndarray:
    """The points [k, 1] at which `line` wants to know functions: an interval around the real examples [m, 1]."""
    return np.linspace(real.min() - real.std(), real.max() + real.std(), 2 * PIXELS, dtype=np.float32)[:, None]


def line(samples: np.ndarray, real: np.ndarray, density: np.ndarray, logits: np.ndarray, title: str) -> np.ndarray:
    """Samples [n, 1] as a histogram over the true density, and the discriminator's logit: uint8 [H, W, 3].

    `density` and `logits` [k] are the values at `line_points(real)`.
    """
    return _render(lambda axes: _draw_line(axes, samples[:, 0], line_points(real)[:, 0], density, logits), title)


def _draw_line(axes, samples, points, density, logits):
    left, right = axes
    bins = np.linspace(points[0], points[-1], 81)
    shares = np.full(len(samples), 1 / (len(samples) * (bins[1] - bins[0])))  # of all samples, also those outside
    left.hist(samples, bins=bins, weights=shares, color="tab:red", alpha=0.6, label="samples")
    left.plot(points, density, color="tab:blue", label="true density")
    left.legend(fontsize=7)
    left.set_title("samples and the density", fontsize=9)
    right.plot(points, logits, color="black")
    right.axhline(0, color="grey", linewidth=0.5)
    right.set_title("the discriminator's logit", fontsize=9)


def spectrum(values: dict[str, np.ndarray], title: str) -> np.ndarray:
    """Eigenvalues [c] by the end of the spectrum at which they were found, in the plane: uint8 [H, W, 3].

    On the right once more with axes that are logarithmic away from 0, since their sizes often differ a thousandfold.
    """
    return _render(lambda axes: _draw_spectrum(axes, values), title)


ENDS = {"LM": "largest modulus", "LR": "largest real part", "LI": "largest imaginary part"}  # by ARPACK's names


def _draw_spectrum(axes, values):
    largest = max(np.abs(np.concatenate(list(values.values()))).max(), np.finfo(np.float32).tiny)
    for half in axes:
        for (name, eigenvalues), marker, size in zip(values.items(), "osD", (40, 40, 14), strict=False):
            x, y = eigenvalues.real, eigenvalues.imag
            half.scatter(x, y, s=size, marker=marker, label=ENDS[name], alpha=0.6)
        half.axvline(0, color="black", linewidth=0.8)
        half.axhline(0, color="grey", linewidth=0.5)
        half.tick_params(labelsize=7)
    axes[0].legend(fontsize=7)
    axes[0].set_title("eigenvalues: those left of the axis decay", fontsize=9)
    axes[1].set_xscale("symlog", linthresh=1e-2 * largest)
    axes[1].set_yscale("symlog", linthresh=1e-2 * largest)
    axes[1].set(xlim=(-3 * largest, 3 * largest), ylim=(-3 * largest, 3 * largest))
    axes[1].set_title("the same, logarithmic away from 0", fontsize=9)


def _render(draw, title: str) -> np.ndarray:
    # Here: only runs on points draw with it, and it takes a third of a second to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=100)  # no pyplot: nothing global, nothing to close
    canvas = FigureCanvasAgg(figure)
    draw(figure.subplots(1, 2, gridspec_kw={"left": 0.06, "right": 0.93, "bottom": 0.08, "top": 0.86}))
    figure.suptitle(title, fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
