"""The report of a sweep: one HTML file that opens from disk, with everything in it."""

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gan_jax.files import write_atomically
from gan_jax.sweep import maps
from gan_jax.sweep.folders import PICTURE, POINTS, member_folder
from gan_jax.sweep.results import LEVEL, Condition, Result, across_seeds, conditions, references, summary, told

REPORT, SUMMARY, MAPS = "report.html", "summary.md", "maps.png"
THUMBNAIL = 200  # pixels, the width of a member's picture
DRAWN = ("d_loss", "g_loss", "divergence")  # curves beside those of scores
FARTHEST = 1e6  # of points that decide on the extent of a picture
NAMED = 48  # conditions whose curves have a legend
MOVED = 12  # conditions of which there is an animation
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: 0.3em 0.7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text, th.text { text-align: left }
th { background: #f4f4f4; position: sticky; top: 0 }
table.sortable th { cursor: pointer }
figure { display: inline-block; margin: 0.5em }
"""
# Numbers sort as numbers; an empty cell goes last in either direction.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", ({ target }) => {
    const heading = target.closest("th"), column = heading.cellIndex;
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const each of heading.parentNode.cells) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = !isNaN(x) && !isNaN(y);
      return sign * (numbers ? x - y : x.localeCompare(y));
    };
    body.append(...[...body.rows].sort(compare));
  });
}
"""


def write_report(results: list[Result], workdir: Path, title: str) -> None:
    """Writes `report.html` in the sweep's folder."""
    groups, same = conditions(results), references(results)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{_ended(results)}</p>",
        "<h2>Across seeds</h2>",
        f"<p>Mean, and its {LEVEL:.0%} interval by the bootstrap over seeds.{html.escape(told(results))}</p>",
        "<p>A click on a heading sorts.</p>",
        _across(groups, same),
        *_maps(groups),
        "<h2>Learning curves</h2>",
        "<p>The mean of the seeds that finished, and the range between them.</p>",
        _curves(groups, same),
        *_animations(groups, workdir),
        "<h2>Members</h2>",
        _members(results, same, workdir),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
    write_atomically(workdir / REPORT, page.encode())


def write_summary(results: list[Result], workdir: Path, title: str, command: str) -> None:
    """Writes `summary.md` and, where two things vary, `maps.png`: small enough to be kept with code."""
    figure = maps.draw(conditions(results))
    parts = [f"# {title}", f"Made by `{command}`.", _ended(results).capitalize() + ".", summary(results)]
    (workdir / MAPS).unlink(missing_ok=True)
    if figure is not None:
        write_atomically(workdir / MAPS, _palette_png(figure))
        parts.append(f"![means across seeds; white: no seed finished, or no such members]({MAPS})")
    write_atomically(workdir / SUMMARY, ("\n\n".join(parts) + "\n").encode())


def _palette_png(figure: Figure) -> bytes:
    figure.canvas.draw()
    buffer = io.BytesIO()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _ended(results: list[Result]) -> str:
    count = {"finished": 0, "diverged": 0, "not finished": 0}
    for result in results:
        count[result.status if result.status in count else "diverged"] += 1
    return ", ".join(f"{number} {word}" for word, number in count.items() if number)


def _across(groups: list[Condition], same: dict) -> str:
    spreads = [across_seeds(group) for group in groups]
    names = [name for name in dict.fromkeys(name for spread in spreads for name in spread) if name not in same]
    rows = []
    for group, spread in zip(groups, spreads, strict=True):
        cells = [_cell(group.label, text=True), _cell(f"{group.finished} of {len(group.results)}")]
        for name in names:
            if name not in spread:
                cells.append(_cell(""))
                continue
            cells.append(_cell(spread[name].text, value=spread[name].mean))
        rows.append(cells)
    return _table(["", "finished", *names], rows)


def _members(results: list[Result], same: dict, workdir: Path) -> str:
    keys = list(dict.fromkeys(key for result in results for key in result.member.overrides))
    names = [name for name in dict.fromkeys(name for each in results for name in each.scores) if name not in same]
    rows = []
    for result in results:
        cells = [_cell(str(result.member.number)), _cell(_picture(result, workdir), raw=True)]
        cells += [_cell(str(result.member.overrides.get(key, "")), text=True) for key in keys]
        cells += [_cell(result.status, text=True), _cell(", ".join(result.health), text=True), _number(result.seconds)]
        rows.append(cells + [_number(result.scores.get(name)) for name in names])
    return _table(["member", "samples", *keys, "status", "health", "seconds", *names], rows)


def _number(value: float | None) -> str:
    return _cell("") if value is None else _cell(f"{value:.4g}", value=value)


def _cell(content: str, value: float | None = None, text: bool = False, raw: bool = False) -> str:
    attributes = ("" if value is None else f' data-value="{value!r}"') + (' class="text"' if text else "")
    return f"<td{attributes}>{content if raw else html.escape(content)}</td>"


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(each)}</th>" for each in header)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _picture(result: Result, workdir: Path) -> str:
    path = member_folder(workdir, result.member) / PICTURE
    if not path.exists():
        return ""
    image = Image.open(path)
    image.thumbnail((THUMBNAIL, 10 * THUMBNAIL))
    return _embedded(lambda file: image.quantize(64).save(file, "png", optimize=True), "image/png", "samples")


def _maps(groups: list[Condition]) -> list[str]:
    figure = maps.draw(groups)
    if figure is None:
        return []
    picture = _embedded(lambda file: figure.savefig(file, format="png"), "image/png", "means across seeds")
    return [
        "<h2>Maps</h2>",
        "<p>Means across seeds; white: no seed finished, or no such members.</p>",
        f"<figure>{picture}</figure>",
    ]


def _curves(groups: list[Condition], same: dict) -> str:
    names = list(dict.fromkeys(name for group in groups for result in group.results for name in result.curves))
    scores = {name for group in groups for result in group.results for name in result.scores}
    drawn = [name for name in names if name in DRAWN or (name in scores and name not in same)]
    return "\n".join(_curve(groups, name) for name in drawn)


def _curve(groups: list[Condition], name: str) -> str:
    figure, ax = _figure(6, 4)
    for group in groups:
        finished = [result for result in group.results if result.status == "finished"]
        points = [result.curves[name] for result in finished if name in result.curves]
        if not points:
            continue
        steps, values = points[0][:, 0], np.stack([each[:, 1] for each in points])
        (line,) = ax.plot(steps, values.mean(axis=0), label=group.label, linewidth=1.5)
        ax.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set(xlabel="step", title=name)
    if 1 < len(groups) <= NAMED:
        figure.legend(fontsize=6, loc="outside right", ncols=-(-len(groups) // 24))
    return f"<figure>{_embedded(lambda file: figure.savefig(file, format='svg'), 'image/svg+xml', name)}</figure>"


def _animations(groups: list[Condition], workdir: Path) -> list[str]:
    """Of data in the plane, the samples over training of each condition's first run that finished."""
    shown = []
    for group in groups[:MOVED]:
        folders = [member_folder(workdir, each.member) / POINTS for each in group.results if each.status == "finished"]
        frames = sorted(folders[0].glob("*.npy")) if folders else []
        if frames:
            caption = html.escape(group.label)
            shown.append(f"<figure>{_animation(frames)}<figcaption>{caption}</figcaption></figure>")
    return ["<h2>Samples over training</h2>", *shown] if shown else []


def _animation(paths: list[Path]) -> str:
    points = [np.load(path) for path in paths]
    late = np.abs(np.concatenate(points[len(points) // 2 :]))
    late = late[late < FARTHEST]  # none of NaN
    extent = 1.2 * float(np.quantile(late, 0.99)) if late.size else 1.0
    frames = []
    for path, each in zip(paths, points, strict=True):
        figure, ax = _figure(3, 3)
        ax.scatter(*each.T, s=3, alpha=0.5, linewidths=0)
        ax.set(xlim=(-extent, extent), ylim=(-extent, extent), title=f"step {int(path.stem):,}")
        figure.canvas.draw()
        frames.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).quantize(32))

    def save(file):
        frames[0].save(file, "gif", save_all=True, append_images=frames[1:], duration=300, loop=0)

    return _embedded(save, "image/gif", "samples over training")


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _embedded(save: Callable, kind: str, alt: str) -> str:
    buffer = io.BytesIO()
    save(buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{data}">'
