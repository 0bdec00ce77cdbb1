"""Pictures: grids of images, and samples over a density for data on the line and in the plane."""

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gan_jax.files import write_atomically

SMALLEST_TILE = 48  # pixels: smaller images are magnified by a whole factor, so that their own pixels stay visible
PAD = 2


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [n, h, w, c] in [-1, 1], c 1 or 3, row by row in one picture: uint8 [H, W, c]; missing tiles are black."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:n] = to_uint8(images)
    factor = max(1, SMALLEST_TILE // height)
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    tiles = np.pad(tiles, ((0, 0), (0, PAD), (0, PAD), (0, 0)))
    _, height, width, _ = tiles.shape
    picture = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return np.pad(picture.reshape(rows * height, columns * width, channels), ((PAD, 0), (PAD, 0), (0, 0)))


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, rounded; values outside are clipped."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes uint8 [H, W, 1 or 3 or 4]."""
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "png")
    write_atomically(path, buffer.getvalue())


def plane(samples: np.ndarray, real: np.ndarray, density, logits, title: str) -> np.ndarray:
    """Samples [n, 2] over the true density, and beside it over the discriminator's logits: uint8 [H, W, 3].

    Args:
      real: real examples [m, 2], which set the frame.
      density, logits: functions of points [k, 2] -> [k].
    """
    center, half = real.mean(axis=0), 1.15 * np.abs(real - real.mean(axis=0)).max()
    ticks = np.linspace(-half, half, 200)
    points = np.stack(np.meshgrid(center[0] + ticks, center[1] + ticks), axis=-1).reshape(-1, 2).astype(np.float32)
    extent = (center[0] - half, center[0] + half, center[1] - half, center[1] + half)
    heights = np.asarray(density(points)).reshape(200, 200)
    landscape = np.asarray(logits(points)).reshape(200, 200)
    return _render(lambda axes: _draw_plane(axes, samples, real, extent, heights, landscape), title)


def _draw_plane(axes, samples, real, extent, heights, landscape):
    left, right = axes
    left.imshow(np.sqrt(heights), origin="lower", extent=extent, cmap="Blues", aspect="equal")
    left.scatter(*real.T, s=3, c="tab:blue", alpha=0.25, linewidths=0, label="real")
    left.scatter(*samples.T, s=3, c="tab:red", alpha=0.5, linewidths=0, label="samples")
    left.legend(loc="upper right", markerscale=3, fontsize=7)
    left.set_title("samples over the density", fontsize=9)
    bound = max(float(np.abs(landscape).max()), 1e-6)
    shown = right.imshow(landscape, origin="lower", extent=extent, cmap="RdBu", vmin=-bound, vmax=bound, aspect="equal")
    right.scatter(*samples.T, s=2, c="black", alpha=0.4, linewidths=0)
    right.figure.colorbar(shown, ax=right, shrink=0.8)
    right.set_title("the discriminator's logit", fontsize=9)
    for each in axes:
        each.set_xlim(extent[:2])
        each.set_ylim(extent[2:])


def line(samples: np.ndarray, real: np.ndarray, density, logits, title: str) -> np.ndarray:
    """Samples [n, 1] as a histogram over the true density, and the discriminator's logit: uint8 [H, W, 3]."""
    low, high = real.min() - real.std(), real.max() + real.std()
    points = np.linspace(low, high, 400, dtype=np.float32)[:, None]
    heights, landscape = np.asarray(density(points)), np.asarray(logits(points))

    def draw(axes):
        bins = np.linspace(low, high, 81)
        axes[0].hist(samples[:, 0], bins=bins, density=True, color="tab:red", alpha=0.6, label="samples")
        axes[0].plot(points[:, 0], heights, color="tab:blue", label="true density")
        axes[0].legend(fontsize=7)
        axes[1].plot(points[:, 0], landscape, color="black")
        axes[1].axhline(0, color="grey", linewidth=0.5)
        axes[1].set_title("the discriminator's logit", fontsize=9)

    return _render(draw, title)


def _render(draw, title: str) -> np.ndarray:
    figure = Figure(figsize=(9, 4.2), dpi=100, layout="constrained")  # no pyplot: nothing global, nothing to close
    canvas = FigureCanvasAgg(figure)
    draw(figure.subplots(1, 2))
    figure.suptitle(title, fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
