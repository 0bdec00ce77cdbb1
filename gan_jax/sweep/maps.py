"""Scores over a grid of two keys, such as learning rate and objective: a colour for each mean across seeds."""

from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gan_jax.sweep.results import Condition, scores_of, short

FINISHED = "finished"  # the share of seeds that did
COLUMNS = 3
REFERENCES = ("_floor", "_ceiling")  # ends of names of what is no score of a run
SPAN = 30  # highest over lowest, from where on colours are logarithmic


class Axis(NamedTuple):
    """Keys that vary together."""

    label: str
    values: list[str]  # in the order in which they first appear
    places: tuple[int, ...]  # of each condition, among the values


def axes(groups: list[Condition]) -> list[Axis]:
    """What varies between conditions; keys that always change together, as two players' rates may, are one axis."""
    together: dict[tuple[int, ...], list[str]] = {}
    for key in dict.fromkeys(key for group in groups for key in group.overrides):
        values = [group.overrides.get(key) for group in groups]
        distinct = list(dict.fromkeys(values))
        if len(distinct) > 1:
            together.setdefault(tuple(distinct.index(value) for value in values), []).append(key)
    return [_axis(groups, places, keys) for places, keys in together.items()]


def _axis(groups: list[Condition], places: tuple[int, ...], keys: list[str]) -> Axis:
    first = [groups[places.index(i)].overrides for i in range(max(places) + 1)]
    values = [" ".join(dict.fromkeys(str(overrides.get(key, "")) for key in keys)) for overrides in first]
    return Axis(", ".join(dict.fromkeys(short(key) for key in keys)), values, places)


def grids(groups: list[Condition], down: Axis, across: Axis) -> dict[str, np.ndarray]:
    """Of each score the means [down, across]; NaN where no seed has it. FINISHED comes first."""
    scores = [scores_of(group) for group in groups]
    names = list(dict.fromkeys(name for each in scores for name in each))
    found = {name: np.full((len(down.values), len(across.values)), np.nan) for name in (FINISHED, *names)}
    for group, each, i, j in zip(groups, scores, down.places, across.places, strict=True):
        found[FINISHED][i, j] = group.finished / len(group.results)
        for name, values in each.items():
            found[name][i, j] = values.mean()
    return found


def draw(groups: list[Condition]) -> Figure | None:
    """A map of each score that is not the same everywhere; None where other than two things vary."""
    varying = axes(groups)
    if len(varying) != 2:
        return None
    down, across = varying
    shown = {
        name: grid
        for name, grid in grids(groups, down, across).items()
        if np.unique(grid[~np.isnan(grid)]).size > 1 and not name.endswith(REFERENCES)
    }
    rows = max(-(-len(shown) // COLUMNS), 1)
    height = 1.2 + 0.25 * len(down.values)
    figure = Figure(figsize=(4.2 * COLUMNS, rows * height), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in places.flat:
        ax.set_axis_off()
    for ax, (name, grid) in zip(places.flat, shown.items(), strict=False):
        _map(ax, name, grid, down, across)
    return figure


def _map(ax, name: str, grid: np.ndarray, down: Axis, across: Axis) -> None:
    ax.set_axis_on()
    low, high = np.nanmin(grid), np.nanmax(grid)
    image = ax.imshow(grid, aspect="auto", cmap="viridis", norm="log" if 0 < SPAN * low < high else "linear")
    ax.set_title(name, fontsize=9)
    ax.set_xticks(range(len(across.values)), across.values, fontsize=7, rotation=45 if len(across.values) > 4 else 0)
    ax.set_yticks(range(len(down.values)), down.values, fontsize=7)
    ax.set_xlabel(across.label, fontsize=8)
    ax.figure.colorbar(image, ax=ax).ax.tick_params(labelsize=7)
