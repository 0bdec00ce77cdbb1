"""The report of a sweep: one HTML file that opens from disk, with everything in it, and a short one in Markdown."""

import base64
import io
from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from gan_jax.sweep import figures
from gan_jax.sweep.folders import PICTURE, POINTS, member_folder
from gan_jax.sweep.results import (
    FINISHED,
    LEVEL,
    NOT_FINISHED,
    Condition,
    Result,
    across_seeds,
    conditions,
    override_keys,
    same_for_all,
    score_names,
)
from gan_jax.utils.files import write_atomically

REPORT, SUMMARY, MAPS = "report.html", "summary.md", "maps.png"
THUMBNAIL = 200  # pixels, the width of a member's picture
DRAWN = ("d_loss", "g_loss", "divergence")  # curves beside those of scores
MOVED = 12  # conditions of which there is an animation
# In the script: numbers sort as numbers; an empty cell goes last in either direction.
PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: 0.3em 0.7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
td:first-child, th:first-child, td.text, th.text { text-align: left }
th { background: #f4f4f4; position: sticky; top: 0 }
table.sortable th { cursor: pointer }
figure { display: inline-block; margin: 0.5em }
</style>
<body>
<h1>$title</h1>
<p>$ended</p>
<h2>Across seeds</h2>
<p>Mean, and its $level interval by the bootstrap over seeds.$same</p>
<p>A click on a heading sorts.</p>
$across
$maps
<h2>Learning curves</h2>
<p>The mean of the seeds that finished, and the range between them.</p>
$curves
$animations
<h2>Members</h2>
$members
<script>
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.tHead.addEventListener("click", ({ target }) => {
    const heading = target.closest("th"), column = heading.cellIndex;
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const cell of heading.parentNode.cells) cell.removeAttribute("aria-sort");
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
</script>
</body>
</html>
""")


def write_report(results: list[Result], workdir: Path, title: str) -> None:
    """Writes `report.html` in the sweep's folder."""
    groups = conditions(results)
    page = PAGE.substitute(
        title=escape(title),
        ended=_ended(results),
        level=f"{LEVEL:.0%}",
        same=escape(same_for_all(results)),
        across=_across(results),
        maps=_maps(groups),
        curves=_curves(results, groups),
        animations=_animations(groups, workdir),
        members=_members(results, workdir),
    )
    write_atomically(workdir / REPORT, page.encode())


def write_summary(results: list[Result], workdir: Path, title: str, command: str) -> None:
    """Writes `summary.md` and, where two things vary, `maps.png`: small enough to be kept with code."""
    figure = figures.maps(conditions(results))
    parts = [f"# {title}", f"Made by `{command}`.", _ended(results).capitalize() + ".", summary(results)]
    (workdir / MAPS).unlink(missing_ok=True)
    if figure is not None:
        picture = figures.drawn(figure).quantize(128, dither=Image.Dither.NONE)
        write_atomically(workdir / MAPS, _saved(picture.save, format="png", optimize=True))
        parts.append(f"![means across seeds; white: no seed finished, or no such members]({MAPS})")
    write_atomically(workdir / SUMMARY, ("\n\n".join(parts) + "\n").encode())


def summary(results: list[Result]) -> str:
    """Markdown: a row for each condition, its scores across seeds with their intervals."""
    names = score_names(results)
    lines = [["", "finished", *names], ["---"] * (2 + len(names))]
    for group in conditions(results):
        spreads = across_seeds(group)
        lines.append([group.label, group.ended, *(spreads[name].text if name in spreads else "" for name in names)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    about = f"Mean across the seeds that finished, and its {LEVEL:.0%} interval by the bootstrap over them."
    return f"{about}{same_for_all(results)}\n\n{table}"


def _ended(results: list[Result]) -> str:
    """How many members finished, diverged and have not finished, in words."""
    count = Counter(result.status.partition(",")[0] for result in results)
    return ", ".join(f"{count[word]} {word}" for word in (FINISHED, "diverged", NOT_FINISHED) if count[word])


def _across(results: list[Result]) -> str:
    names, rows = score_names(results), []
    for group in conditions(results):
        spreads = across_seeds(group)
        cells = [_cell(spreads[name].text, spreads[name].mean) if name in spreads else _cell("") for name in names]
        rows.append([_cell(group.label), _cell(group.ended, len(group.finished)), *cells])
    return _table(["", "finished", *names], rows)


def _members(results: list[Result], workdir: Path) -> str:
    keys, names, rows = override_keys(results), score_names(results), []
    for result in results:
        words = [result.member.overrides.get(key, "") for key in keys]
        cells = [_cell(str(word)) for word in (*words, result.status, ", ".join(result.health))]
        numbers = [result.seconds, *map(result.scores.get, names)]
        cells += [_cell("" if number is None else f"{number:.4g}", number) for number in numbers]
        rows.append([_cell(str(result.member.number)), f"<td>{_picture(result, workdir)}</td>", *cells])
    return _table(["member", "samples", *keys, "status", "health", "seconds", *names], rows)


def _cell(content: str, value: float | None = None) -> str:
    """A cell that sorts by its value where it has one, else by its text."""
    attribute = 'class="text"' if value is None else f'data-value="{value!r}"'
    return f"<td {attribute}>{escape(content)}</td>"


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _picture(result: Result, workdir: Path) -> str:
    path = member_folder(workdir, result.member) / PICTURE
    if not path.exists():
        return ""
    image = Image.open(path)
    image.thumbnail((THUMBNAIL, 10 * THUMBNAIL))
    return _embedded("image/png", "samples", image.quantize(64).save, format="png", optimize=True)


def _maps(groups: list[Condition]) -> str:
    figure = figures.maps(groups)
    if figure is None:
        return ""
    picture = _embedded("image/png", "means across seeds", figure.savefig, format="png")
    about = "<p>Means across seeds; white: no seed finished, or no such members.</p>"
    return f"<h2>Maps</h2>\n{about}\n<figure>{picture}</figure>"


def _curves(results: list[Result], groups: list[Condition]) -> str:
    shown = {*DRAWN, *score_names(results)}
    names = [name for name in dict.fromkeys(name for result in results for name in result.curves) if name in shown]
    saves = {name: figures.curve(groups, name).savefig for name in names}
    pictures = [_embedded("image/svg+xml", name, save, format="svg") for name, save in saves.items()]
    return "\n".join(f"<figure>{picture}</figure>" for picture in pictures)


def _animations(groups: list[Condition], workdir: Path) -> str:
    """Of data in the plane, the samples over training of each condition's first run that finished."""
    shown = []
    for group in groups[:MOVED]:
        folders = [member_folder(workdir, result.member) / POINTS for result in group.finished]
        if paths := sorted(folders[0].glob("*.npy")) if folders else []:
            first, *others = figures.frames(paths)
            options = {"format": "gif", "save_all": True, "append_images": others, "duration": 300, "loop": 0}
            picture = _embedded("image/gif", "samples over training", first.save, **options)
            shown.append(f"<figure>{picture}<figcaption>{escape(group.label)}</figcaption></figure>")
    return "\n".join(["<h2>Samples over training</h2>", *shown]) if shown else ""


def _embedded(kind: str, alt: str, save: Callable, **options) -> str:
    data = base64.b64encode(_saved(save, **options)).decode()
    return f'<img alt="{escape(alt)}" src="data:{kind};base64,{data}">'


def _saved(save: Callable, **options) -> bytes:
    """What `save` writes into a file."""
    buffer = io.BytesIO()
    save(buffer, **options)
    return buffer.getvalue()
