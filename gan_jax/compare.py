"""`python -m gan_jax.compare RUN RUN ...`: in what runs differ and what came of it, as text and as one HTML file."""

import argparse
import os
import shutil
import sys
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gan_jax.cli.command_line import show
from gan_jax.config.schema import flatten
from gan_jax.evaluation.metrics.comparison import LOWER, Metric, Need, scores_of
from gan_jax.parallel.exit_status import Parser, exit_status
from gan_jax.runs import workdirs
from gan_jax.runs.checkpoints import ABOUT_BEST, saved_steps
from gan_jax.sweep.folders import CHECKPOINTS, END, METRICS, PICTURE, SCORES
from gan_jax.sweep.report import DRAWN
from gan_jax.sweep.results import FINISHED, union
from gan_jax.training.writers import read_metrics
from gan_jax.utils import html, plots
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import read_json, write_atomically

PROGRAM = "python -m gan_jax.compare"
WITH_DATA = (Need.SAMPLES, Need.MIXTURE, Need.COPIES)  # scores that depend on the very data that one trains on
WITHOUT_FEATURES = (Need.SAMPLES, Need.MIXTURE)
# Config keys of data and evaluation that decide no score, but for the number of samples, which is asked for apart; and
# those that decide none that is by features alone.
_OF_EVALUATION = ("best", "num_samples", "resamples", "scores")
NO_MATTER = ("data.placement", "data.workers", *(f"evaluation.{key}" for key in _OF_EVALUATION))
NOT_BY_FEATURES = ("data.split", "data.flip")
NAMED = 24  # runs in a column of a legend


class Run(NamedTuple):
    """What the folder of a run says."""

    name: str
    workdir: Path
    config: dict  # by dotted key, complete
    points: list[tuple[int, dict[str, float]]]  # of metrics.jsonl: step, values
    broken: int  # lines of it that cannot be read
    evaluation: dict  # evaluation.json; {} without it
    best: dict  # best.json; likewise
    ended: str  # how a member of a sweep ended, where it did not finish
    scores: dict[str, Metric]  # by name, those by which one can rank

    @property
    def step(self) -> int:
        """The newest step of which the folder has anything."""
        return max([0, *(step for step, _ in self.points), *saved_steps(self.workdir / CHECKPOINTS)])

    def curve(self, name: str) -> np.ndarray:
        """A metric over training: [n, 2], step and value, those that are finite."""
        points = [(step, values[name]) for step, values in self.points if name in values]
        return np.array([point for point in points if np.isfinite(point[1])], np.float64).reshape(-1, 2)


class Section(NamedTuple):
    """A table with a row for each name, and in it a cell for each run."""

    heading: str
    rows: dict[str, list[html.Cell]]
    notes: list[str]


def read_run(workdir: Path, name: str) -> Run:
    """The run in this folder, without its data or a checkpoint. Raises InputError where there is none."""
    if (workdir / "members").is_dir() and not (workdir / workdirs.CONFIG).exists():
        raise InputError(f"{workdir} holds a sweep; give its members, such as {workdir / 'members' / '*'}")
    config = workdirs.read_config(workdir, whole=False)
    path = workdir / METRICS
    points, lines = list(read_metrics(path)), path.read_bytes().count(b"\n") if path.exists() else 0
    evaluation, best, end = (_read_object(workdir / file) for file in (SCORES, ABOUT_BEST, END))
    extractors = {config.evaluation.extractor, evaluation.get("protocol", {}).get("extractor")} - {None}
    metrics = {key: metric for key, metric in scores_of(config.evaluation).items() if metric.better}
    scores = {key.format(extractor): metric for extractor in extractors for key, metric in metrics.items()}
    ended, flat = end.get("status", FINISHED), flatten(config.to_dict())
    broken = lines - len(points)
    return Run(name, workdir, flat, points, broken, evaluation, best, "" if ended == FINISHED else ended, scores)


def _read_object(path: Path) -> dict:
    value = read_json(path, {})
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; remove it to begin it anew")
    return value


def names_of(folders: list[Path]) -> list[str]:
    """What runs are called: their paths from the folder that has all of them."""
    paths = [folder.resolve() for folder in folders]
    above = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, above) for path in paths]


def sections(runs: list[Run]) -> list[Section]:
    """The tables, without those that are empty."""
    shown = [{key: str(value) or "''" for key, value in run.config.items()} for run in runs]
    values = {key: [config.get(key, "") for config in shown] for key in union(shown)}
    differing = {key: [(value, None) for value in row] for key, row in values.items() if len(set(row)) > 1}
    reached = [f"{run.step:,} of {run.config['num_steps']:,}" + ("; " + run.ended) * bool(run.ended) for run in runs]
    broken = [f"note: {run.broken} lines of {run.workdir / METRICS} cannot be read" for run in runs if run.broken]
    ranked = ranked_scores(runs)
    logged = union(values for run in runs for _, values in run.points)
    in_training, metrics = ([name for name in logged if (name in ranked) == is_score] for is_score in (True, False))
    written = [name for name in union(run.evaluation for run in runs) if name not in ("intervals", "protocol")]
    tables = [
        Section("Progress", {"step": [(text, None) for text in reached]}, broken),
        Section("Keys that differ", differing, [] if differing else ["The configs are the same."]),
        Section("Metrics, last", {name: [_last(run, name) for run in runs] for name in metrics}, []),
        Section("Scores in training", _in_training(runs, in_training, ranked), _warnings(runs, in_training, False)),
        Section("Scores by evaluate", _evaluated(runs, written), _warnings(runs, written, True)),
    ]
    return [section for section in tables if section.rows or section.notes]


def ranked_scores(runs: list[Run]) -> dict[str, Metric]:
    """The scores by which runs can be ranked, by name."""
    return {name: metric for run in runs for name, metric in run.scores.items()}


def _cell(value: float | None = None, more: str = "") -> html.Cell:
    if value is None:
        return "", None
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}") + more, float(value)


def _last(run: Run, name: str) -> html.Cell:
    return _cell(*run.curve(name)[-1:, 1])


def _at(curve: np.ndarray, index: int) -> html.Cell:
    return _cell(curve[index, 1], f" at {int(curve[index, 0]):,}") if len(curve) else _cell()


def _in_training(runs: list[Run], names: list[str], ranked: dict[str, Metric]) -> dict[str, list[html.Cell]]:
    """The last and the best of each score, of equals the earliest, and what `best/` has."""
    rows = {}
    for name in names:
        curves, sign = [run.curve(name) for run in runs], ranked[name].better
        rows[f"{name}, last"] = [_at(curve, -1) for curve in curves]
        best = [np.argmax(sign * curve[:, 1]) if len(curve) else 0 for curve in curves]
        rows[f"{name}, {'lowest' if sign == LOWER else 'highest'}"] = list(map(_at, curves, best))
    if any(run.best for run in runs):
        rows["checkpoint=best"] = [(_about_best(run), None) for run in runs]
    return rows


def _about_best(run: Run) -> str:
    numbers = {name: value for name, value in run.best.items() if name not in ("step", "protocol")}
    return "".join(f"{name} {value:.4g} at {run.best['step']:,}" for name, value in numbers.items())


def _evaluated(runs: list[Run], names: list[str]) -> dict[str, list[html.Cell]]:
    """What evaluation.json has, scores with their intervals."""
    rows = {name: [] for name in names}
    for name, run in ((name, run) for name in names for run in runs):
        interval = run.evaluation.get("intervals", {}).get(name)
        more = " [{:.4g}, {:.4g}]".format(*interval) if interval else ""
        rows[name].append(_cell(run.evaluation.get(name), more))
    return rows


def _warnings(runs: list[Run], names: list[str], evaluated: bool) -> list[str]:
    """A line for each set of scores that were not made alike, and so cannot be compared."""
    unlike: dict[str, list[str]] = {}
    for name in names:
        made = {run.name: _made_with(run, name, evaluated) for run in runs if _has(run, name, evaluated)}
        if why := _differences(made):
            unlike.setdefault(why, []).append(name)
    return [f"warning: not comparable: {', '.join(scores)}: {why}" for why, scores in unlike.items()]


def _differences(made: dict[str, dict]) -> str:
    """The settings in which runs, by name, differ: `num_samples is 500 (a), 2500 (b)`; empty: in none."""
    differing = []
    for key in union(made.values()):
        runs_of: dict[str, list[str]] = {}
        for name, settings in made.items():
            runs_of.setdefault(str(settings.get(key, "unknown")), []).append(name)
        if len(runs_of) > 1:
            differing.append(f"{key} is " + ", ".join(f"{value} ({', '.join(of)})" for value, of in runs_of.items()))
    return "; ".join(differing)


def _has(run: Run, name: str, evaluated: bool) -> bool:
    return name in run.scores and (name in run.evaluation if evaluated else len(run.curve(name)) > 0)


def _made_with(run: Run, name: str, evaluated: bool) -> dict:
    """What decides a score beside the samples themselves."""
    needs, evaluation = run.scores[name].needs, run.evaluation if evaluated else {}
    # A set of TFDS is the same wherever it lies; of images of one's own the folder says which they are.
    ignored = {*NO_MATTER, "data.dir"} if run.config["data.name"].startswith("tfds:") else {*NO_MATTER}
    data, scoring = (
        {key: value for key, value in run.config.items() if key.startswith(group) and key not in ignored}
        for group in ("data.", "evaluation.")
    )
    made = data if needs in WITH_DATA else {}
    if needs not in WITHOUT_FEATURES:
        by_config = {key: value for key, value in (data | scoring).items() if key not in NOT_BY_FEATURES}
        made = evaluation.get("protocol", by_config) | made
    return made | {"num_samples": evaluation.get("num_samples", run.config["evaluation.num_samples"])}


def as_text(section: Section, names: list[str], width: int) -> str:
    """The table in columns; the runs that a line of that width has no room for follow below."""
    lines = [[section.heading, *names], *([name, *(text for text, _ in row)] for name, row in section.rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    count = max((width - widths[0]) // (max(widths[1:]) + 2), 1)
    blocks = []
    for start in range(1, len(names) + 1, count):
        columns = [0, *range(start, min(start + count, len(names) + 1))]
        rows = ("  ".join(line[i].ljust(widths[i]) for i in columns) for line in lines)
        blocks.append("\n".join(map(str.rstrip, rows)))
    return "\n".join([*section.notes, "\n\n".join(blocks if section.rows else [])])


def as_page(runs: list[Run], tables: list[Section]) -> bytes:
    """One HTML file with the tables, the samples and the curves."""
    names = [run.name for run in runs]
    parts = {}
    for heading, rows, notes in tables:
        table = html.table(["", *names], [[(name, None), *row] for name, row in rows.items()]) if rows else ""
        parts[heading] = "".join(f"<p>{escape(note)}</p>" for note in notes) + table
    parts |= {"Samples": _samples(runs), "Curves": _curves(runs)}
    return html.page(f"{len(runs)} runs compared", ", ".join(escape(str(run.workdir)) for run in runs), parts)


def _curves(runs: list[Run]) -> str:
    """Of the losses, the divergence and the scores, those of all runs in one figure."""
    logged, shown = union(values for run in runs for _, values in run.points), {*DRAWN, *ranked_scores(runs)}
    figures = []
    for name in (name for name in logged if name in shown):
        points = [(run.name, *run.curve(name).T) for run in runs]  # one without any keeps its colour from the others
        figure, _ = plots.curves(name, points, -(-len(points) // NAMED), ("-", "--", ":"))
        figures.append(html.figure("image/svg+xml", name, "", figure.savefig, format="svg"))
    return "\n".join(figures)


def _samples(runs: list[Run]) -> str:
    """The pictures of the newest step of which all runs have one; else the newest of each."""
    pictures = [workdirs.pictures(run.workdir) for run in runs]
    shared = set.intersection(*map(set, pictures))
    shown = []
    for run, by_step in zip(runs, pictures, strict=True):
        step = max(shared or by_step, default=None)
        path = by_step.get(step, run.workdir / PICTURE)  # a member of a sweep has only that of its end
        if path.exists():
            caption = run.name if step is None else f"{run.name}, step {step:,}"
            shown.append(
                html.figure("image/png", "samples", caption, lambda file, path=path: file.write(path.read_bytes()))
            )
    return "\n".join(shown)


def main(argv: list[str]) -> int:
    """Compares the runs that `argv` names; returns the exit status, 2 after a mistake in one line."""
    return exit_status(partial(_compare, argv), lambda line: line.replace("--workdir must be", "each RUN must be"))


def _compare(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    folders = arguments.runs
    if len(folders) < 2:
        raise InputError(f"only {folders[0]} is given; give two runs or more")
    paths = [folder.resolve() for folder in folders]
    if twice := [folder for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]:
        raise InputError(f"{twice[-1]} is given twice; give it once")
    names = names_of(folders)
    runs = list(map(read_run, folders, names))
    tables = sections(runs)
    write_atomically(arguments.out, as_page(runs, tables))
    width = shutil.get_terminal_size((sys.maxsize, 0)).columns
    show("\n\n".join([*(as_text(table, names, width) for table in tables), f"wrote {arguments.out}"]))


def _parser() -> argparse.ArgumentParser:
    what = (
        "Prints in what runs differ and what came of it, and writes the same with curves and samples as one HTML file."
    )
    parser = Parser(prog=PROGRAM, description=what, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder; also SWEEP/members/0003")
    parser.add_argument(
        "--out", type=_page, default="compare.html", metavar="FILE.html", help="the page (compare.html)"
    )
    return parser


def _page(text: str) -> Path:
    if Path(text).suffix.lower() != ".html" or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is to be a file named FILE.html")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
