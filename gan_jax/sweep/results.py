"""What a sweep found: a row for each member, and the same across seeds with intervals."""

import csv
import io
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gan_jax.evaluation.bootstrap import interval
from gan_jax.files import write_atomically
from gan_jax.health import Watch
from gan_jax.schema import flatten
from gan_jax.sweep.folders import METRICS, SCORES, about, member_folder
from gan_jax.sweep.plan import Member
from gan_jax.writers import read_metrics

TABLE = "results.csv"
LEVEL, RESAMPLES = 0.95, 2_000  # of the intervals across seeds
SEED = "seed"  # the key over which one averages


class Result(NamedTuple):
    """A member that has come to its end, or not yet."""

    member: Member
    status: str
    seconds: float | None  # its share of the wall time of its program
    scores: dict[str, float]  # of evaluation.json; {} where it diverged
    curves: dict[str, np.ndarray]  # of metrics.jsonl: name -> [points, 2], step and value
    health: tuple[str, ...] = ()  # what was wrong with it at its end, of `health.CONDITIONS`


def collect(found: list[Member], workdir: Path) -> list[Result]:
    """The results so far, in the order of the members."""
    return [_result(member, workdir) for member in found]


def _result(member: Member, workdir: Path) -> Result:
    told, folder = about(workdir, member), member_folder(workdir, member)
    if told is None:
        return Result(member, "not finished", None, {}, {})
    scores = {}
    if told["status"] == "finished":
        written = json.loads((folder / SCORES).read_text())
        numbers = {name: value for name, value in written.items() if isinstance(value, int | float)}
        scores = {name: value for name, value in numbers.items() if name not in ("step", "num_samples")}
    curves = _curves(folder / METRICS)
    return Result(member, told["status"], told["seconds"], scores, curves, _health(member, folder / METRICS))


def _health(member: Member, path: Path) -> tuple[str, ...]:
    config = flatten(member.config.to_dict())
    return tuple(Watch(config, read_metrics(path)).present) if config["health_every"] else ()


def _curves(path: Path) -> dict[str, np.ndarray]:
    points: dict[str, list] = {}
    for line in path.read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            points.setdefault(name, []).append((step, value))
    return {name: np.array(each, np.float64) for name, each in points.items()}


def write_table(results: list[Result], better: dict[str, int], path: Path) -> None:
    """`results.csv`: a row for each member with its overrides, how it ended, its last and its best numbers.

    `better`: score -> whether higher (1) or lower (-1) values are better; of these, `best_NAME` too, where a run was
    scored while it trained.
    """
    keys = list(dict.fromkeys(key for result in results for key in result.member.overrides))
    rows = [_row(result, keys, better) for result in results]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def _row(result: Result, keys: list[str], better: dict[str, int]) -> dict:
    row = {"member": result.member.number, "status": result.status, "seconds": result.seconds}
    row["health"] = " ".join(result.health)
    row |= {key: result.member.overrides.get(key, "") for key in keys}
    row |= {name: points[-1, 1] for name, points in result.curves.items()} | result.scores
    scored = [name for name in better if name in result.curves]
    return row | {f"best_{name}": better[name] * (better[name] * result.curves[name][:, 1]).max() for name in scored}


def short(key: str) -> str:
    """A key's last word that tells something: `objective` of objective.name, `weight` of penalty.weight."""
    return key.removesuffix(".name").rpartition(".")[2]


def in_words(overrides: dict) -> str:
    """`objective=wgan, learning_rate=0.001`: two players' equal rates once."""
    return ", ".join(dict.fromkeys(f"{short(key)}={value}" for key, value in overrides.items()))


class Condition(NamedTuple):
    """The members that differ in their seeds alone."""

    overrides: dict  # but for the seed, and for what is the same for all conditions
    results: list[Result]

    @property
    def label(self) -> str:
        """In words."""
        return in_words(self.overrides) or "base"

    @property
    def finished(self) -> int:
        """How many did."""
        return sum(result.status == "finished" for result in self.results)


def conditions(results: list[Result]) -> list[Condition]:
    """The results in groups that differ in their seeds alone, in the order of the members."""
    groups: dict[frozenset, Condition] = {}
    same = shared(results)
    for result in results:
        overrides = {key: value for key, value in result.member.overrides.items() if key not in (SEED, *same)}
        groups.setdefault(frozenset(overrides.items()), Condition(overrides, [])).results.append(result)
    return list(groups.values())


def shared(results: list[Result]) -> dict:
    """The overrides that every member has: said once, and in no condition."""
    first, *others = [result.member.overrides for result in results]
    missing = object()
    every = {key: value for key, value in first.items() if all(each.get(key, missing) == value for each in others)}
    return {key: value for key, value in every.items() if key != SEED}


class Spread(NamedTuple):
    """A score across seeds."""

    mean: float
    low: float  # of the bootstrap interval of the mean, at LEVEL
    high: float
    count: int  # of runs that have it

    @property
    def text(self) -> str:
        """In words, with the interval where there is one."""
        return f"{self.mean:.4g}" + (f" [{self.low:.4g}, {self.high:.4g}]" if self.count > 1 else "")


def scores_of(condition: Condition) -> dict[str, np.ndarray]:
    """Each score of the members that finished: [members]."""
    names = list(dict.fromkeys(name for result in condition.results for name in result.scores))
    return {
        name: np.array([result.scores[name] for result in condition.results if name in result.scores]) for name in names
    }


def across_seeds(condition: Condition) -> dict[str, Spread]:
    """Each score of the members that finished: its mean, and the interval of that where there are two or more."""
    return {name: _spread(tuple(values)) for name, values in scores_of(condition).items()}


@cache  # the summary and the report ask for the same ones
def _spread(scores: tuple[float, ...]) -> Spread:
    values, low, high = np.array(scores), np.nan, np.nan
    if len(values) > 1:
        low, high = interval(np.mean, (values,), RESAMPLES, LEVEL, 0)
    return Spread(float(values.mean()), low, high, len(values))


def references(results: list[Result]) -> dict[str, float]:
    """The scores that are the same for every member, such as a ceiling: said once, and in no table."""
    scored = [result.scores for result in results if result.scores]
    names = scored[0] if len(scored) > 1 else {}
    return {name: names[name] for name in names if all(each.get(name) == names[name] for each in scored)}


def summary(results: list[Result]) -> str:
    """Markdown: a row for each condition, its scores across seeds with their intervals."""
    groups, same = conditions(results), references(results)
    spreads = [across_seeds(group) for group in groups]
    names = [name for name in dict.fromkeys(name for spread in spreads for name in spread) if name not in same]
    lines = [["", "finished", *names], ["---"] * (2 + len(names))]
    for group, spread in zip(groups, spreads, strict=True):
        cells = [spread[name].text if name in spread else "" for name in names]
        lines.append([group.label, f"{group.finished} of {len(group.results)}", *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    about = f"Mean across the seeds that finished, and its {LEVEL:.0%} interval by the bootstrap over them."
    return f"{about}{told(results)}\n\n{table}"


def told(results: list[Result]) -> str:
    """Sentences, with a space before each, on what is the same for every member; "" where nothing is."""
    numbers, overrides = references(results), in_words(shared(results))
    scores = f" The same for all: {', '.join(f'{name} {value:.4g}' for name, value in numbers.items())}."
    return (scores if numbers else "") + (f" All with {overrides}." if overrides else "")
