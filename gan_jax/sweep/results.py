"""What a sweep found: a row for each member, and the same across seeds with intervals."""

import csv
import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gan_jax.config.schema import flatten
from gan_jax.evaluation.metrics.bootstrap import mean_interval
from gan_jax.sweep.folders import METRICS, SCORES, end_of, member_folder
from gan_jax.sweep.plan import Member
from gan_jax.training.health.detectors import Watch
from gan_jax.training.writers import read_metrics
from gan_jax.utils.files import read_json, write_atomically

TABLE = "results.csv"
FINISHED, NOT_FINISHED = "finished", "not finished"  # other members have diverged, and their status says how
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


def result_of(member: Member, workdir: Path) -> Result:
    """What a member's folder says of it so far."""
    end, folder = end_of(workdir, member), member_folder(workdir, member)
    if end is None:
        return Result(member, NOT_FINISHED, None, {}, {})
    written = read_json(folder / SCORES, {}) if end["status"] == FINISHED else {}
    scores = {
        name: value
        for name, value in written.items()
        if isinstance(value, int | float) and name not in ("step", "num_samples")
    }
    points, config = list(read_metrics(folder / METRICS)), flatten(member.config.to_dict())
    curves = {
        name: np.array([(step, values[name]) for step, values in points if name in values], np.float64)
        for name in union(values for _, values in points)
    }
    health = tuple(Watch(config, points).present) if config["health_every"] else ()
    return Result(member, end["status"], end["seconds"], scores, curves, health)


def union(mappings: Iterable[Iterable[str]]) -> list[str]:
    """The names in any of the mappings, in the order in which they first appear."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def write_table(results: list[Result], better: dict[str, int], path: Path) -> None:
    """`results.csv`: a row for each member with its overrides, how it ended, its last and its best numbers.

    `better`: score -> whether higher (1) or lower (-1) values are better; of these, `best_NAME` too, where a run was
    scored while it trained.
    """
    rows, keys = [], union(result.member.overrides for result in results)
    for result in results:
        row = {"member": result.member.number, "status": result.status, "seconds": result.seconds}
        row["health"] = " ".join(result.health)
        row |= {key: result.member.overrides.get(key, "") for key in keys}
        row |= {name: points[-1, 1] for name, points in result.curves.items()} | result.scores
        for name, sign in better.items():
            if name in result.curves:
                row[f"best_{name}"] = sign * (sign * result.curves[name][:, 1]).max()
        rows.append(row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, union(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue().encode())


def score_names(results: list[Result]) -> list[str]:
    """The scores that some member has, but for those that are the same for every member."""
    _, same = in_common(results)
    return [name for name in union(result.scores for result in results) if name not in same]


def short(key: str) -> str:
    """A key's last word that tells something: `objective` of objective.name, `weight` of penalty.weight."""
    return key.removesuffix(".name").rpartition(".")[2]


def in_words(overrides: dict) -> str:
    """`objective=wgan, learning_rate=0.001`: two players' equal rates once."""
    return ", ".join(dict.fromkeys(f"{short(key)}={value}" for key, value in overrides.items()))


class Spread(NamedTuple):
    """A score across seeds."""

    mean: float
    low: float  # of the bootstrap interval of the mean, at LEVEL; NaN of one run
    high: float
    count: int  # of runs that have it

    @property
    def text(self) -> str:
        """In words, with the interval where there is one."""
        return f"{self.mean:.4g}" + (f" [{self.low:.4g}, {self.high:.4g}]" if self.count > 1 else "")


@cache  # the summary and the report ask for the same ones
def _spread(scores: tuple[float, ...]) -> Spread:
    several = len(scores) > 1
    bounds = mean_interval(np.array(scores), RESAMPLES, LEVEL, 0) if several else (np.nan, np.nan)
    return Spread(float(np.mean(scores)), *bounds, len(scores))


class Condition(NamedTuple):
    """The members that differ in their seeds alone."""

    overrides: dict  # but for the seed, and for what is the same for all conditions
    results: list[Result]

    @property
    def label(self) -> str:
        """In words."""
        return in_words(self.overrides) or "base"

    @property
    def finished(self) -> list[Result]:
        """The results of the members that finished."""
        return [result for result in self.results if result.status == FINISHED]

    @property
    def spreads(self) -> dict[str, Spread]:
        """Each score across the members that have it."""
        scores = [result.scores for result in self.results]
        return {name: _spread(tuple(own[name] for own in scores if name in own)) for name in union(scores)}


def conditions(results: list[Result]) -> list[Condition]:
    """The results in groups that differ in their seeds alone, in the order of the members."""
    groups: dict[frozenset, Condition] = {}
    same, _ = in_common(results)
    for result in results:
        overrides = {key: value for key, value in result.member.overrides.items() if key not in (SEED, *same)}
        groups.setdefault(frozenset(overrides.items()), Condition(overrides, [])).results.append(result)
    return list(groups.values())


def in_common(results: list[Result]) -> tuple[dict, dict[str, float]]:
    """What every member has, said once and in no table: (overrides but for the seed, scores such as a ceiling)."""
    overrides = _common([result.member.overrides for result in results])
    overrides.pop(SEED, None)
    scores = [result.scores for result in results if result.scores]
    return overrides, _common(scores) if len(scores) > 1 else {}


def _common(mappings: list[dict]) -> dict:
    return {key: value for key, value in mappings[0].items() if all((key, value) in x.items() for x in mappings)}


def same_for_all(results: list[Result]) -> str:
    """Sentences, with a space before each, on what is the same for every member; "" where nothing is."""
    overrides, numbers = in_common(results)
    scores = f" The same for all: {', '.join(f'{name} {value:.4g}' for name, value in numbers.items())}."
    return (scores if numbers else "") + (f" All with {in_words(overrides)}." if overrides else "")
