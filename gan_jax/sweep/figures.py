"""The figures of a sweep's report: maps over two keys, learning curves, and samples over training."""

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gan_jax.sweep.results import Condition, short
from gan_jax.utils import plots

FINISHED = "finished"  # a map's title: the share of seeds that did
COLUMNS = 3  # of maps
REFERENCES = ("_floor", "_ceiling")  # ends of names of what is no score of a run
SPAN = 30  # highest over lowest, from where on colours are logarithmic
FARTHEST = 1e6  # of points that decide on the extent of a picture
NAMED = 48  # conditions whose curves have a legend


class Axis(NamedTuple):
    """Keys that vary together."""

    label: str
    values: list[str]  # in the order in which they first appear
    places: tuple[int, ...]  # of each condition, among the values


def axes(groups: list[Condition]) -> list[Axis]:
    """What varies between conditions; keys that always change together, as two players' rates may, are one axis."""
    keys_of: dict[tuple[int, ...], list[str]] = {}
    for key in dict.fromkeys(key for group in groups for key in group.overrides):
        values = [group.overrides.get(key) for group in groups]
        distinct = list(dict.fromkeys(values))
        if len(distinct) > 1:
            keys_of.setdefault(tuple(map(distinct.index, values)), []).append(key)
    varying = []
    for places, keys in keys_of.items():
        first = [groups[places.index(i)].overrides for i in range(max(places) + 1)]
        values = [" ".join(dict.fromkeys(str(overrides.get(key, "")) for key in keys)) for overrides in first]
        varying.append(Axis(", ".join(dict.fromkeys(map(short, keys))), values, places))
    return varying


def grids(groups: list[Condition], down: Axis, across: Axis) -> dict[str, np.ndarray]:
    """The means of each score, [down, across]; NaN where no seed has it. FINISHED comes first."""
    means = defaultdict(lambda: np.full((len(down.values), len(across.values)), np.nan))
    for group, i, j in zip(groups, down.places, across.places, strict=True):
        means[FINISHED][i, j] = len(group.finished) / len(group.results)
        for name, spread in group.spreads.items():
            means[name][i, j] = spread.mean
    return means


def maps(groups: list[Condition]) -> Figure | None:
    """A map of each score that is not the same everywhere; None where other than two things vary."""
    varying = axes(groups)
    if len(varying) != 2:
        return None
    down, across = varying
    shown = {
        name: means
        for name, means in grids(groups, down, across).items()
        if np.unique(means[~np.isnan(means)]).size > 1 and not name.endswith(REFERENCES)
    }
    rows = max(-(-len(shown) // COLUMNS), 1)
    figure, subplots = plots.subplots(4.2 * COLUMNS, rows * (1.2 + 0.25 * len(down.values)), rows, COLUMNS)
    for ax in subplots.flat[len(shown) :]:
        ax.set_axis_off()
    rotation = 45 if len(across.values) > 4 else 0
    for ax, (name, means) in zip(subplots.flat, shown.items(), strict=False):
        low, high = np.nanmin(means), np.nanmax(means)
        image = ax.imshow(means, aspect="auto", cmap="viridis", norm="log" if 0 < SPAN * low < high else "linear")
        ax.set_title(name, fontsize=9)
        ax.set_xticks(range(len(across.values)), across.values, fontsize=7, rotation=rotation)
        ax.set_yticks(range(len(down.values)), down.values, fontsize=7)
        ax.set_xlabel(across.label, fontsize=8)
        figure.colorbar(image, ax=ax).ax.tick_params(labelsize=7)
    return figure


def curve(groups: list[Condition], name: str) -> Figure:
    """The mean of a metric across the seeds of each condition that finished, and the range between them."""
    points = [[result.curves[name] for result in group.finished if name in result.curves] for group in groups]
    shown = [(group.label, np.stack(runs)) for group, runs in zip(groups, points, strict=True) if runs]
    means = [(label, runs[0, :, 0], runs[:, :, 1].mean(axis=0)) for label, runs in shown]
    figure, lines = plots.curves(name, means, -(-len(groups) // 24) if 1 < len(groups) <= NAMED else 0)
    for line, (_, runs) in zip(lines, shown, strict=True):
        low, high = runs[:, :, 1].min(axis=0), runs[:, :, 1].max(axis=0)
        line.axes.fill_between(runs[0, :, 0], low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    return figure


def frames(paths: Sequence[Path]) -> list[Image.Image]:
    """Pictures of the points [n, 2] in the files STEP.npy, all of one extent."""
    points = [np.load(path) for path in paths]
    late = np.abs(np.concatenate(points[len(points) // 2 :]))
    late = late[late < FARTHEST]  # none of NaN
    extent = 1.2 * float(np.quantile(late, 0.99)) if late.size else 1.0
    pictures = []
    for path, samples in zip(paths, points, strict=True):
        figure, ((ax,),) = plots.subplots(3, 3)
        ax.scatter(*samples.T, s=3, alpha=0.5, linewidths=0)
        ax.set(xlim=(-extent, extent), ylim=(-extent, extent), title=f"step {int(path.stem):,}")
        pictures.append(drawn(figure).quantize(32))
    return pictures


def drawn(figure: Figure) -> Image.Image:
    """The figure in pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
