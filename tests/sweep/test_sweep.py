"""Sweeps: what is planned, that an interrupted sweep goes on exactly, and what its report says."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import ROOT
from helpers import commands
from numpy.testing import assert_allclose

from gan_jax import recipe
from gan_jax.parallel.devices import mesh
from gan_jax.runs import workdirs
from gan_jax.sweep import figures, folders, plan, population, report, results
from gan_jax.sweep.plan import Member
from gan_jax.sweep.run import AUTO, HOW, build, layout_for
from gan_jax.utils.errors import InputError

SWEEP = """
def sweep():
    for name in ("non_saturating", "wgan"):
        for seed in range(2):
            yield {"objective.name": name, "seed": seed}
    yield {"generator.width": 16}
    yield {"seed": 7, "generator.optimizer.learning_rate": 1e30, "discriminator.optimizer.learning_rate": 1e30}
"""
SHORT = (
    "--config=configs/mixture.py:ring8",
    "--config.num_steps=20",
    "--config.batch_size=8",
    "--config.steps_per_call=5",
    "--config.log_every=5",
    "--config.sample_every=10",
    "--config.checkpoint_every=5",
    "--config.evaluate_every=10",
    "--config.evaluation.num_samples=100",
    "--config.penalty.name=none",
    "--config.penalty.weight=0",
    *(f"--config.{player}.{key}" for player in ("generator", "discriminator") for key in ("width=8", "depth=1")),
)
CONVOLVES = [
    "--config.data.name=digits",
    *(f"--config.{player}.network=dcgan" for player in ("generator", "discriminator")),
]


# The plan.


def test_runs_that_differ_in_numbers_seed_and_objective_are_one_program(shrunk):
    changes = [
        {"seed": 1},
        {"objective.name": "wgan", "penalty.weight": 3},
        {"generator.width": 16},
        {"generator.width": 16, "discriminator.optimizer.b2": 0.5},
        {"penalty.name": "r1"},
    ]
    found = plan.members(shrunk("mixture", "ring8"), changes)
    assert [[member.number for member in group] for group in plan.programs(found)] == [[0, 1], [2, 3], [4]]
    assert found[1].config.penalty.weight == 3.0
    text = plan.describe(plan.programs(found))
    assert "5 members in 3 programs" in text
    assert "generator.width=16" in text
    assert "penalty.name=r1" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([{"objective.nam": "wgan"}], "did you mean objective.name"),
        ([{"objective.name": "wgann"}], "it must be one of"),
        ([{"seed": 1.5}], "an integer"),
        ([{"objective": {"name": "wgan"}}], "unknown config key objective"),
        ([{"seed": 1}, {"seed": 2}, {"seed": 1}], "members 0 and 2 are the same run"),
    ],
)
def test_a_member_that_makes_no_sense_is_named(shrunk, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        plan.members(shrunk("mixture", "ring8"), changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no function sweep"),
        ("def sweep():\n    return []", "yields nothing"),
        ("def sweep():\n    yield 3", "member 0 is 3"),
        ("def sweep():\n    yield {}\n    1 / 0", "line 3: ZeroDivisionError"),
        ("def sweep(:", "line 1: SyntaxError"),
        ("import nothing_of_that_name", "line 1: ModuleNotFoundError"),
    ],
)
def test_a_sweep_file_that_fails_is_one_line(tmp_path, text, words):
    path = tmp_path / "sweep.py"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        plan.read_sweep(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="there is no sweep file"):
        plan.read_sweep(tmp_path / "none.py")


def test_numbers_of_numpy_are_numbers(shrunk):
    changes = [{"seed": seed, "penalty.weight": np.float32(0.5)} for seed in np.arange(2)]
    found = plan.members(shrunk("mixture", "ring8"), changes)
    assert [member.config.seed for member in found] == [0, 1]
    assert {type(value) for member in found for value in member.overrides.values()} == {int, float}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_a_shipped_sweep_makes_sense(shrunk, path):
    base = {"few_data": ("digits",), "attention": ("dcgan",)}.get(path.stem, ("mixture", "ring8"))
    found = plan.members(shrunk(*base), plan.read_sweep(path))
    assert len(plan.programs(found)) < len(found)


# From end to end.


def run(*arguments):
    return commands.run("gan_jax.sweep", *arguments)


@pytest.fixture(scope="module", autouse=True)
def _server():
    yield
    commands.end_server()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(the sweep's file, its finished folder), by the command itself."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.py").write_text(SWEEP)
    arguments = [*SHORT, f"--sweep={folder / 'sweep.py'}", f"--workdir={folder / 'run'}"]
    command = [sys.executable, "-m", "gan_jax.sweep", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "member 5 diverged" in done.stderr
    return folder / "sweep.py", folder / "run"


def files(folder):
    """What must be the same however often a sweep was interrupted."""
    names = ("metrics.jsonl", "evaluation.json", "samples.png", "config.json")
    paths = [path for path in folder.rglob("*") if path.name in names or path.suffix == ".npy"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_each_member_leaves_what_a_run_leaves(swept):
    _, folder = swept
    members = folder / "members"
    assert sorted(path.name for path in members.iterdir()) == [f"{i:04d}" for i in range(6)]
    for i in range(5):
        lines = [json.loads(line) for line in (members / f"{i:04d}" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "d_loss" in line] == [5, 10, 15, 20]
        assert [line["step"] for line in lines if "modes" in line] == [10, 20]
        evaluation = json.loads((members / f"{i:04d}" / "evaluation.json").read_text())
        scores = [line for line in lines if "modes" in line][-1]
        assert {name: evaluation[name] for name in scores} == scores
        assert [line["step"] for line in lines if "clusters" in line] == [20]
    assert (members / "0005" / "metrics.jsonl").read_text() == ""
    assert "diverged" in json.loads((members / "0005" / "member.json").read_text())["status"]


def test_a_member_can_be_read_as_a_run(swept, tmp_path):
    member = tmp_path / "member"
    shutil.copytree(swept[1] / "members" / "0002", member)
    expected = json.loads((member / "evaluation.json").read_text())
    done = commands.run("gan_jax.main", "--mode=evaluate", f"--workdir={member}")
    assert done.returncode == 0, done.stderr
    found = json.loads((member / "evaluation.json").read_text())
    assert found["step"] == 20
    for name in ("high_quality", "sliced_wasserstein"):
        assert_allclose(found[name], expected[name], rtol=1e-5)


def test_a_finished_sweep_is_not_run_again(swept):
    file, folder = swept
    before = {path: path.stat().st_mtime_ns for path in (folder / "members").rglob("*")}
    again = run(*SHORT, f"--sweep={file}", f"--workdir={folder}")
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "members").rglob("*")} == before


def test_a_sweep_that_was_ended_goes_on_exactly(swept, tmp_path):
    """Ended by a kill once it has saved its first checkpoint, and asked to stop once it has saved a second."""
    file, finished = swept
    arguments = [*SHORT, f"--sweep={file}", f"--workdir={tmp_path}"]
    for number, step, status in ((signal.SIGKILL, 5, -signal.SIGKILL), (signal.SIGTERM, 10, 0)):
        command, deadline = commands.Command("gan_jax.sweep", *arguments), time.monotonic() + 300
        while not list(tmp_path.glob(f"programs/*/checkpoints/{step}")) and command.running:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        command.send(number)
        assert command.wait().returncode == status
        assert not (tmp_path / "results.csv").exists()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == files(finished)


def test_a_program_whose_member_another_one_has_trained_does_not_go_on(shrunk, tmp_path):
    found = plan.members(shrunk("mixture", "ring8"), [{"seed": seed} for seed in range(3)])
    whole, single = (folders.program_folder(tmp_path, each) for each in (found, found[2:]))

    def begin(members):
        folders.discard_stale(tmp_path, members)
        folder = folders.program_folder(tmp_path, members)
        (folder / folders.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        for member in members:
            folders.begin(tmp_path, member, folder.name, anew=True)

    assert folders.unfinished(tmp_path, found) == found
    begin(found)
    assert folders.unfinished(tmp_path, found) == found
    begin(found[2:])
    assert folders.unfinished(tmp_path, found) == found
    (folders.member_folder(tmp_path, found[2]) / folders.END).write_text('{"status": "finished"}')
    assert folders.unfinished(tmp_path, found) == found[:2]
    assert folders.unfinished(tmp_path, found[2:]) == []
    folders.discard_stale(tmp_path, found)
    assert not whole.exists()
    folders.discard_stale(tmp_path, found[2:])
    assert single.exists()


def test_a_program_that_began_before_a_key_existed_goes_on(shrunk, tmp_path):
    found = plan.members(shrunk("mixture", "ring8"), [{"seed": seed} for seed in range(2)])
    for member in found:
        values = member.config.to_dict()
        del values["init"], values["augment"]["instance_noise_steps"]
        folder = folders.member_folder(tmp_path, member)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(values))
    begun = folders.program_folder(tmp_path, found)
    assert begun != folders.program_folder(tmp_path / "other", found)
    for _ in range(2):
        folders.require_same(tmp_path, found)
        for member in found:
            folders.begin(tmp_path, member, begun.name, anew=True)
        assert folders.program_folder(tmp_path, found) == begun
    longer = plan.members(shrunk("mixture", "ring8", {"num_steps": 8}), [{"seed": seed} for seed in range(2)])
    assert folders.program_folder(tmp_path, longer) != begun


def test_processes_share_a_sweep(swept, tmp_path):
    file, finished = swept
    arguments = [*SHORT, f"--sweep={file}", f"--workdir={tmp_path}", "--num_processes=2"]
    started = [commands.Command("gan_jax.sweep", *arguments, f"--process_id={i}") for i in range(2)]
    done = [command.wait(600) for command in started]
    assert [process.returncode for process in done] == [0, 0]
    assert any("wrote" in process.stdout for process in done)
    rows, expected = (list(csv.DictReader((folder / "results.csv").open())) for folder in (tmp_path, finished))
    assert len(rows) == len(expected) == 6
    for row, other in zip(rows, expected, strict=True):
        assert row["status"].split(",")[0] == other["status"].split(",")[0]
        if row["status"] == "finished":
            assert_allclose(float(row["d_loss"]), float(other["d_loss"]), rtol=1e-3)
    together = [json.loads(path.read_text())["together"] for path in sorted(tmp_path.glob("members/*/member.json"))]
    assert together == [3, 2, 3, 2, 1, 3]
    assert "process_id" not in (tmp_path / "summary.md").read_text()


def test_a_folder_in_use_is_not_shared_unasked(tmp_path):
    for first, second in [(True, False), (False, True), (False, False)]:
        with workdirs.locked(tmp_path, first), pytest.raises(InputError, match="in use"):
            workdirs.locked(tmp_path, second).__enter__()
    with workdirs.locked(tmp_path, shared=True), workdirs.locked(tmp_path, shared=True):
        pass


def test_processes_that_differ_in_their_number_do_not_share(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    arguments = [*SHORT, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'run'}"]
    (tmp_path / "run" / "processes").mkdir(parents=True)
    (tmp_path / "run" / "processes" / "plan.json").write_text('{"processes": 2, "only": ["1", "2"]}')
    with workdirs.locked(tmp_path / "run", shared=True):
        done = run(*arguments, "--num_processes=3", "--process_id=0")
    assert done.returncode == 2
    assert "--num_processes=2 and --only=1,2" in done.stderr


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for arguments, words in [
        ([], "--config is missing"),
        (["--config=configs/mixture.py:ring8"], "--sweep is missing"),
        (["--config=configs/mixture.py:ring8", f"--sweep={tmp_path / 'sweep.py'}"], "--workdir is missing"),
        (["--config=configs/mixture.py:ring8", f"--sweep={tmp_path / 'sweep.py'}", "--list", "--only=9"], "0 to 5"),
        (
            [*SHORT, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path}", "--devices_per_member=3"],
            "the 4 devices",
        ),
        ([*SHORT, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'run'}"], "holds a run"),
        (
            [*SHORT, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'new'}", "--how=map", *CONVOLVES],
            "--how",
        ),
        (
            [*SHORT, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'new'}", "--process_id=1"],
            "go together",
        ),
    ]:
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def setups_of(shrunk, count, changes=None):
    configs = [shrunk("mixture", "ring8", {"seed": seed} | (changes or {})) for seed in range(count)]
    return [recipe.build(config, mesh(jax.devices()[:1])) for config in configs]


@pytest.mark.parametrize(
    ("name", "variant", "changes", "on_cpu", "elsewhere"),
    [
        ("mixture", "ring8", {}, "vmap", "vmap"),
        ("mixture", "ring8", {"discriminator.width": 128}, "map", "vmap"),
        ("dcgan", None, {}, "unroll", "map"),
    ],
)
def test_how_members_take_a_step_follows_from_networks_and_backend(
    shrunk, monkeypatch, name, variant, changes, on_cpu, elsewhere
):
    setup = recipe.build(shrunk(name, variant, changes), mesh(jax.devices()[:1]))
    assert population.rule(setup) == on_cpu
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert population.rule(setup) == elsewhere


def test_a_program_goes_on_as_it_was_begun(shrunk, tmp_path):
    setups = setups_of(shrunk, 5)
    for how in ("map", AUTO):
        assert layout_for(setups, how, 1, tmp_path).count == jax.device_count()
    assert json.loads((tmp_path / HOW).read_text())["how"] == "map"
    with pytest.raises(InputError, match="begun with how map, which is vmap here"):
        layout_for(setups, "vmap", 1, tmp_path)
    layout_for(setups, AUTO, 1, tmp_path / "new")
    assert json.loads((tmp_path / "new" / HOW).read_text())["how"] == "vmap"


def test_no_more_devices_are_taken_than_there_is_work_for(shrunk, tmp_path):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    setups = setups_of(shrunk, 1)
    assert layout_for(setups, "vmap", 1, tmp_path / "1").count == 1
    spread = layout_for(setups, "vmap", 2, tmp_path / "2")
    assert (spread.count, spread.within.count) == (1, 2)
    with pytest.raises(InputError, match="begun with devices 1, which is 2 here"):
        layout_for(setups, "vmap", 2, tmp_path / "1")


def test_a_config_that_cannot_be_built_is_named_before_anything_trains(shrunk):
    found = plan.members(shrunk("mixture", "ring8"), [{}, {"seed": 1, "conditional": True}])
    with pytest.raises(InputError, match=r"member 1 .*conditional"):
        build(found, 1)
    found = plan.members(shrunk("mixture", "ring8", {"evaluate_every": 2}), [{"evaluation.best": "modes"}])
    with pytest.raises(InputError, match=r"member 0 .*runs by themselves"):
        build(found, 1)


def test_a_member_run_alone_is_not_run_again_with_the_others(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    arguments = [*SHORT, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'run'}"]
    arguments += ["--config.num_steps=5", "--config.evaluate_every=0", "--config.health_every=0"]
    alone = run(*arguments, "--only=1")
    assert alone.returncode == 0, alone.stderr
    folder = tmp_path / "run" / "members" / "0001"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    both = run(*arguments, "--only=0,1")
    assert both.returncode == 0, both.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert json.loads((tmp_path / "run" / "members" / "0000" / "member.json").read_text())["together"] == 1


def test_another_sweep_does_not_take_a_folder(swept, tmp_path):
    (tmp_path / "sweep.py").write_text("def sweep():\n    yield {'seed': 11}\n")
    before = files(swept[1])
    done = run(*SHORT, f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={swept[1]}")
    assert done.returncode == 2
    assert "seed is 0 there, 11 here" in done.stderr
    assert files(swept[1]) == before


# Results.


def test_the_table_has_a_row_for_each_member(swept):
    rows = list(csv.DictReader((swept[1] / "results.csv").open()))
    assert [row["member"] for row in rows] == list("012345")
    assert [row["objective.name"] for row in rows[:4]] == ["non_saturating"] * 2 + ["wgan"] * 2
    assert float(rows[0]["best_modes"]) >= float(rows[0]["modes"])
    assert rows[5]["status"].startswith("diverged")
    assert rows[5]["modes"] == ""


def test_the_report_stands_by_itself(swept):
    page = (swept[1] / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("<tr>") == 2 + 4 + 6  # headings, conditions, members
    assert "data:image/gif" in page
    assert page.count("data:image/svg+xml") >= 3
    assert "5 finished, 1 diverged" in page


def made(number, overrides, **scores):
    return results.Result(Member(number, overrides, None), "finished", 1.0, scores, {})


def test_scores_are_averaged_over_seeds():
    found = [made(i, {"objective.name": "wgan", "seed": i}, modes=float(i)) for i in range(5)]
    found.append(made(5, {"objective.name": "mle", "seed": 0}, modes=7.0))
    first, second = results.conditions(found)
    assert first.overrides == {"objective.name": "wgan"}
    spread = first.spreads["modes"]
    assert (spread.mean, spread.count) == (2.0, 5)
    assert 0 <= spread.low < 1 < 3 < spread.high <= 4
    assert np.isnan(second.spreads["modes"].low)


def test_what_varies_together_is_one_axis_of_a_map(tmp_path):
    """Two players' rates; one cell without a seed that finished."""
    found = []
    for name in ("wgan", "mle"):
        for rate in (1e-3, 2e-3, 4e-3):
            rates = {f"{player}.optimizer.learning_rate": rate for player in ("generator", "discriminator")}
            for seed in range(2):
                overrides = {"objective.name": name} | rates | {"seed": seed}
                found.append(made(len(found), overrides, modes=1000 * rate + seed))
    found[-2:] = [each._replace(status="diverged, step 3", scores={}) for each in found[-2:]]
    groups = results.conditions(found)
    down, across = figures.axes(groups)
    assert (down.label, down.values) == ("objective", ["wgan", "mle"])
    assert (across.label, across.values) == ("learning_rate", ["0.001", "0.002", "0.004"])
    grids = figures.grids(groups, down, across)
    np.testing.assert_allclose(grids["modes"], [[1.5, 2.5, 4.5], [1.5, 2.5, np.nan]])
    np.testing.assert_array_equal(grids[figures.FINISHED], [[1, 1, 1], [1, 1, 0]])
    report.write_summary(found, tmp_path, "a title", "a command")
    text = (tmp_path / report.SUMMARY).read_text()
    assert "| objective=mle, learning_rate=0.002 | 2 of 2 | 2.5 [2, 3] |" in text
    assert (tmp_path / report.MAPS).stat().st_size < 100_000
    assert figures.maps(groups[:3]) is None  # one objective alone
    report.write_summary(found[:6], tmp_path, "a title", "a command")
    assert not (tmp_path / report.MAPS).exists()


def test_what_is_the_same_for_all_is_said_once():
    found = [made(i, {"seed": i}, modes=float(i), modes_total=8.0) for i in range(3)]
    assert results.in_common(found) == ({}, {"modes_total": 8.0})
    text = report.summary(found)
    assert "The same for all: modes_total 8." in text
    assert "|  | finished | modes |" in text


def test_keys_that_all_members_have_are_said_once():
    common = {"num_steps": 6, "penalty.weight": 0.0}
    found = [made(i, common | {"seed": i, "discriminator.packing": 2 + i // 2}, modes=1.0) for i in range(4)]
    found.append(made(4, common | {"seed": 4}, modes=1.0))
    assert [group.label for group in results.conditions(found)] == ["packing=2", "packing=3", "base"]
    assert "All with num_steps=6, weight=0.0." in report.summary(found)
    assert "All with" not in report.summary([made(0, {"seed": 0}, modes=1.0), made(1, common, modes=1.0)])


def test_text_of_a_user_is_not_markup(tmp_path):
    found = [made(0, {"data.dir": "<script>alert(1)</script>"}, modes=1.0)]
    report.write_report(found, tmp_path, "a <b> title")
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in page
    assert "a &lt;b&gt; title" in page
