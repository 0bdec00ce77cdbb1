"""The report of a sweep: one HTML file that opens from disk, with everything in it, and a short one in Markdown."""

from collections import Counter
from html import escape
from pathlib import Path

from PIL import Image

from gan_jax.sweep import figures
from gan_jax.sweep.folders import PICTURE, POINTS, member_folder
from gan_jax.sweep.results import (
    FINISHED,
    LEVEL,
    NOT_FINISHED,
    Condition,
    Result,
    conditions,
    same_for_all,
    score_names,
    union,
)
from gan_jax.utils import html
from gan_jax.utils.files import write_atomically

REPORT, SUMMARY, MAPS = "report.html", "summary.md", "maps.png"
ABOUT = f"Mean across the seeds that finished, and its {LEVEL:.0%} interval by the bootstrap over them."
ABOUT_MAPS = "means across seeds; white: no seed finished, or no such members"
THUMBNAIL = 200  # pixels, the width of a member's picture
DRAWN = ("d_loss", "g_loss", "divergence")  # curves beside those of scores
MOVED = 12  # conditions of which there is an animation


def write_report(results: list[Result], workdir: Path, title: str) -> None:
    """Writes `report.html` in the sweep's folder."""
    groups = conditions(results)
    sections = {
        "Across seeds": f"<p>{ABOUT}{escape(same_for_all(results))} A click on a heading sorts.</p>"
        f"{html.table(*_across(results))}",
        "Maps": _maps(groups),
        "Learning curves": f"<p>The mean of the seeds that finished, and the range between them.</p>"
        f"{_curves(results, groups)}",
        "Samples over training": _animations(groups, workdir),
        "Members": _members(results, workdir),
    }
    write_atomically(workdir / REPORT, html.page(title, _ended(results), sections))


def write_summary(results: list[Result], workdir: Path, title: str, command: str) -> None:
    """Writes `summary.md` and, where two things vary, `maps.png`: small enough to be kept with code."""
    figure = figures.maps(conditions(results))
    parts = [f"# {title}", f"Made by `{command}`.", _ended(results).capitalize() + ".", summary(results)]
    (workdir / MAPS).unlink(missing_ok=True)
    if figure is not None:
        picture = figures.drawn(figure).quantize(128, dither=Image.Dither.NONE)
        write_atomically(workdir / MAPS, html.saved(picture.save, format="png", optimize=True))
        parts.append(f"![{ABOUT_MAPS}]({MAPS})")
    write_atomically(workdir / SUMMARY, ("\n\n".join(parts) + "\n").encode())


def summary(results: list[Result]) -> str:
    """Markdown: a row for each condition, its scores across seeds with their intervals."""
    header, rows = _across(results)
    lines = [header, ["---"] * len(header), *([text for text, _ in row] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{ABOUT}{same_for_all(results)}\n\n{table}"


def _ended(results: list[Result]) -> str:
    """How many members finished, diverged and have not finished, in words."""
    count = Counter(result.status.partition(",")[0] for result in results)
    return ", ".join(f"{count[word]} {word}" for word in (FINISHED, "diverged", NOT_FINISHED) if count[word])


def _across(results: list[Result]) -> tuple[list[str], list[list[html.Cell]]]:
    """The header and the rows of the table across seeds."""
    names, rows = score_names(results), []
    for group in conditions(results):
        spreads, finished = group.spreads, len(group.finished)
        scores = [(spreads[name].text, spreads[name].mean) if name in spreads else ("", None) for name in names]
        rows.append([(group.label, None), (f"{finished} of {len(group.results)}", finished), *scores])
    return ["", "finished", *names], rows


def _members(results: list[Result], workdir: Path) -> str:
    keys, names, rows = union(result.member.overrides for result in results), score_names(results), []
    for result in results:
        words = [result.member.overrides.get(key, "") for key in keys]
        numbers = [result.seconds, *map(result.scores.get, names)]
        cells = [(str(word), None) for word in (*words, result.status, ", ".join(result.health))]
        cells += [("" if number is None else f"{number:.4g}", number) for number in numbers]
        rows.append([(str(result.member.number), None), _picture(result, workdir), *cells])
    return html.table(["member", "samples", *keys, "status", "health", "seconds", *names], rows)


def _picture(result: Result, workdir: Path) -> str:
    path = member_folder(workdir, result.member) / PICTURE
    if not path.exists():
        return ""
    image = Image.open(path)
    image.thumbnail((THUMBNAIL, 10 * THUMBNAIL))
    return html.embedded("image/png", "samples", image.quantize(64).save, format="png", optimize=True)


def _maps(groups: list[Condition]) -> str:
    figure = figures.maps(groups)
    return html.figure("image/png", "", ABOUT_MAPS, figure.savefig, format="png") if figure is not None else ""


def _curves(results: list[Result], groups: list[Condition]) -> str:
    shown = {*DRAWN, *score_names(results)}
    names = dict.fromkeys(name for result in results for name in result.curves if name in shown)
    saves = {name: figures.curve(groups, name).savefig for name in names}
    return "\n".join(html.figure("image/svg+xml", name, "", save, format="svg") for name, save in saves.items())


def _animations(groups: list[Condition], workdir: Path) -> str:
    """Of data in the plane, the samples over training of each condition's first run that finished."""
    shown = []
    for group in groups[:MOVED]:
        folders = [member_folder(workdir, result.member) / POINTS for result in group.finished]
        if paths := sorted(folders[0].glob("*.npy")) if folders else []:
            first, *others = figures.frames(paths)
            options = {"format": "gif", "save_all": True, "append_images": others, "duration": 300, "loop": 0}
            shown.append(html.figure("image/gif", "samples over training", group.label, first.save, **options))
    return "\n".join(shown)
