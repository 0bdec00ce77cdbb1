"""`python -m gan_jax.compare`: what it says of runs, and that it needs neither their data nor a device."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import gan_jax
from gan_jax import compare, recipe
from gan_jax.training.evaluator import evaluate_run

SCORE = "high_quality"


@pytest.fixture(scope="module")
def runs(shrunk, tmp_path_factory):
    """Two folders of runs, `a` and `b`, of which the second is scored by more samples."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate, count in (("a", 1e-3, 60), ("b", 2e-3, 70)):
        changes = {"generator.optimizer.learning_rate": rate, "evaluate_every": 2, "evaluation.best": SCORE}
        setup = recipe.build(shrunk("mixture", "ring8", changes))
        assert gan_jax.train(setup, folder / name)
        evaluate_run(setup, recipe.initial_state(setup), folder / name, count)
    return folder / "a", folder / "b"


@pytest.fixture
def copies(runs, tmp_path):
    """The same, to be changed."""
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs]


@pytest.fixture(scope="module")
def written(runs):
    """(stdout, the page) of the command itself, on a machine without a device that JAX could start."""
    command = [sys.executable, "-m", "gan_jax.compare", *map(str, runs), f"--out={runs[0].parent / 'page.html'}"]
    env = os.environ | {"JAX_PLATFORMS": "none"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, (runs[0].parent / "page.html").read_text()


def rows(text, heading):
    """The rows of a table of the text, by name; columns are two spaces apart."""
    table = next(block for block in text.split("\n\n") if re.search(rf"^{heading}  ", block, re.M))
    lines = [re.split(r"  +", line) for line in table.splitlines() if "  " in line]
    return {name: cells for name, *cells in lines}


def read(*folders):
    """(the runs, their tables)."""
    found = list(map(compare.read_run, folders, compare.names_of(list(folders))))
    return found, compare.sections(found)


def said(*folders):
    """What is printed of these runs."""
    found, tables = read(*folders)
    return "\n\n".join(compare.as_text(table, [run.name for run in found], 1_000) for table in tables)


def captions(*folders):
    """What the page of these runs has below its pictures."""
    return re.findall(r"<figcaption>(.*?)<", compare.as_page(*read(*folders)).decode())


def test_only_the_keys_in_which_runs_differ_are_shown(written):
    expected = {"Keys that differ": ["a", "b"], "generator.optimizer.learning_rate": ["0.001", "0.002"]}
    assert rows(written[0], "Keys that differ") == expected


def test_metrics_and_scores_are_those_of_the_files(runs, written):
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    losses, scores = ([[line for line in of if name in line] for of in lines] for name in ("d_loss", SCORE))
    assert rows(written[0], "Progress")["step"] == ["4 of 4", "4 of 4"]
    assert rows(written[0], "Metrics, last")["d_loss"] == [f"{of[-1]['d_loss']:.4g}" for of in losses]
    in_training = rows(written[0], "Scores in training")
    assert in_training[f"{SCORE}, last"] == [f"{of[-1][SCORE]:.4g} at 4" for of in scores]
    best = [max(of, key=lambda line: line[SCORE]) for of in scores]
    assert in_training[f"{SCORE}, highest"] == [f"{line[SCORE]:.4g} at {line['step']}" for line in best]
    lowest = [min(line["reverse_kl"] for line in of) for of in scores]
    assert [cell.split(" at ")[0] for cell in in_training["reverse_kl, lowest"]] == [f"{x:.4g}" for x in lowest]
    assert in_training["checkpoint=best"][0] == f"{SCORE} {best[0][SCORE]:.4g} at {best[0]['step']}"
    assert rows(written[0], "Scores by evaluate")["num_samples"] == ["60", "70"]
    assert rows(written[0], "Scores by evaluate")["step"] == ["0", "0"]


def test_scores_that_were_made_otherwise_are_marked(written):
    warnings = re.findall(r"warning: not comparable: (.*)", written[0])
    assert len(warnings) == 1  # of evaluation.json; in training both were scored alike
    assert SCORE in warnings[0].split(": ")[0].split(", ")
    assert warnings[0].endswith("num_samples is 60 (a), 70 (b)")


def test_the_page_stands_by_itself_and_has_pictures_and_curves(runs, written):
    _, page = written
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert re.findall(r"<figcaption>(.*?)<", page) == ["a, step 4", "b, step 4"]
    assert page.count("data:image/png") == 2
    curves = re.findall(r'alt="(\w+)" src="data:image/svg', page)
    assert {"d_loss", "g_loss", SCORE} <= set(curves)
    assert "learning_rate" in page
    assert "warning: not comparable" in page


def test_pictures_are_of_the_newest_step_that_all_have(copies):
    (copies[0] / "samples" / "00000004.png").unlink()
    (copies[0] / "samples" / "mine-00000009.png").write_bytes(b"of a callback")
    assert captions(*copies) == ["a, step 2", "b, step 2"]
    for path in (copies[1] / "samples").glob("*2.png"):
        path.unlink()
    assert captions(*copies) == ["a, step 2", "b, step 4"]


def test_protocols_are_compared_key_by_key(copies):
    for run, split in zip(copies, ("train", "test"), strict=True):
        known = json.loads((run / "evaluation.json").read_text())
        known |= {"num_samples": 60, "fid_pixels": 3.0, "intervals": {"fid_pixels": [2.0, 4.0]}}
        known["protocol"] = {"split": split, "extractor": "pixels"}
        (run / "evaluation.json").write_text(json.dumps(known))
    text = said(*copies)
    assert "warning: not comparable: fid_pixels: split is train (a), test (b)" in text
    assert text.count("warning") == 1
    assert rows(text, "Scores by evaluate")["fid_pixels"] == ["3 [2, 4]"] * 2


def test_scores_on_other_data_are_marked_but_not_for_how_it_is_read(copies):
    for key, value, marked in (("workers", 3, False), ("scale", 5.0, True)):
        config = json.loads((copies[1] / "config.json").read_text())
        config["data"][key] = value
        (copies[1] / "config.json").write_text(json.dumps(config))
        trained = said(*copies).partition("Scores in training")[0]
        assert (f"data.{key} is " in trained) == marked


def test_a_run_under_way_and_one_without_scores(copies):
    a, b = copies
    lines = (a / "metrics.jsonl").read_text().splitlines(keepends=True)
    (a / "metrics.jsonl").write_text("".join(["not json\n", *lines[:2], lines[2][:9]]))
    shutil.rmtree(a / "checkpoints")
    for run in (a, b):
        (run / "evaluation.json").unlink()
        (run / "best.json").unlink()
    (b / "metrics.jsonl").unlink()
    text = said(a, b)
    assert rows(text, "Progress")["step"] == [f"{json.loads(lines[1])['step']} of 4", "4 of 4"]
    assert f"note: 1 lines of {a / 'metrics.jsonl'} cannot be read" in text
    assert "Scores by evaluate" not in text


def test_a_member_of_a_sweep_is_a_run(copies, tmp_path):
    folders = [tmp_path / "sweep" / "members" / f"{i:04d}" for i in range(2)]
    for run, folder in zip(copies, folders, strict=True):
        shutil.copytree(run, folder)
        shutil.move(folder / "samples" / "00000004.png", folder / "samples.png")
        shutil.rmtree(folder / "samples")
    (folders[1] / "member.json").write_text('{"status": "diverged, step 3: d_loss not finite"}')
    assert rows(said(*folders), "Progress") == {
        "Progress": ["0000", "0001"],
        "step": ["4 of 4", "4 of 4; diverged, step 3: d_loss not finite"],
    }
    assert captions(*folders) == ["0000", "0001"]


def test_runs_that_a_line_has_no_room_for_follow_below():
    section = compare.Section("step", {"x": [(str(i), None) for i in range(5)]}, [])
    assert (
        compare.as_text(section, list("abcde"), 12)
        == "step  a  b\nx     0  1\n\nstep  c  d\nx     2  3\n\nstep  e\nx     4"
    )


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    (tmp_path / "sweep" / "members").mkdir(parents=True)
    run = str(runs[0])
    for arguments, words in [
        ([run], "give two runs or more"),
        ([run, str(runs[1]), f"{run}/../{runs[0].name}"], "is given twice"),
        ([run, str(tmp_path)], "each RUN must be the folder of a run"),
        ([run, str(tmp_path / "sweep")], "holds a sweep; give its members"),
        ([run, str(runs[1]), "--out=page.pdf"], "is to be a file named FILE.html"),
    ]:
        assert compare.main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert words in captured.err
        assert captured.err.count("\n") == 1
