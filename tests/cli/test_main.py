"""The command line: a mistake is one line and exit status 2, and a run's folder gives samples and scores."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from helpers.commands import run
from ml_collections import ConfigDict, config_flags
from numpy.testing import assert_allclose

from gan_jax import main, recipe
from gan_jax.cli import command_line
from gan_jax.config import schema
from gan_jax.objectives import OBJECTIVES
from gan_jax.penalties import PENALTIES
from gan_jax.runs import workdirs
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.training.evaluator import evaluate_run
from gan_jax.training.loop import train
from gan_jax.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


class Run(NamedTuple):
    """A finished run."""

    setup: Any
    state: Any
    workdir: Path


@pytest.fixture(scope="module")
def runs(shrunk, tmp_path_factory):
    """One short run on pictures and one on points, by the name of their data."""

    def finished(*args):
        setup = recipe.build(shrunk(*args))
        workdir = tmp_path_factory.mktemp(setup.config.data.name)
        assert train(setup, workdir)
        return Run(setup, Checkpoints(workdir / "checkpoints").restore(recipe.initial_state(setup)), workdir)

    return {"digits": finished("digits"), "ring8": finished("mixture", "ring8")}


@pytest.fixture
def broken(runs, tmp_path):
    """`broken(damage)`: a copy of the run on points, with `damage(workdir)` done to it."""

    def copy(damage):
        workdir = tmp_path / "run"
        shutil.copytree(runs["ring8"].workdir, workdir)
        damage(workdir)
        return workdir

    return copy


def hashes(folder):
    """Every path below a folder, with the hash of what is in it."""
    content = {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}
    return {path: hashlib.sha256(data).hexdigest() for path, data in content.items()}


def error_line(stderr):
    """The message of stderr, which must be one line that begins with `error: `."""
    assert stderr.startswith("error: ")
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1
    return stderr.removeprefix("error: ").strip()


def rejected(capsys, monkeypatch, *argv, config=None, **values):
    """What `main` says to flags that it must refuse: it is given their values, and the arguments left over."""
    monkeypatch.setattr(main, "_CONFIG", SimpleNamespace(value=config))
    with flagsaver.flagsaver(runtime="plain", **values), pytest.raises(SystemExit) as ended:  # nothing for this process
        main.main(["main", *argv])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return error_line(err)


def processes(*commands):
    """The finished processes of `python -m gan_jax.main ...`, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda argv: run("gan_jax.main", *argv), commands))


# --- The command line's own words


def test_a_mistake_is_one_line_and_status_2():
    mistakes = {
        "--config=configs/digits.py --config.batch_size=abc": r"batch_size is 'abc'; it must be a positive integer$",
        "--config=configs/digits.py --config.batch_size=0": r"batch_size is 0; it must be a positive integer$",
        "--config=configs/nope.py": r"no config file configs/nope\.py; there are .*configs/digits\.py",
        "stray": r"unexpected argument 'stray'; flags are written --name=value$",
        "--mode=nonsense": r"--mode=nonsense: value .* <train\|sample\|.*\|plan>$",
        "--runtime=nonsense": r"--runtime=nonsense: value should be one of <fast\|plain>$",
        "": r"--config is missing; give one, such as --config=configs/dcgan\.py$",
    }
    ended = processes(*map(str.split, mistakes))
    command = [sys.executable, "-m", "gan_jax.main"]  # once as a user's shell starts it
    ended[-1] = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    for process, message in zip(ended, mistakes.values(), strict=True):
        assert process.returncode == 2, process.args
        assert process.stdout == "", process.args
        assert "Traceback" not in process.stderr, process.args
        assert re.search(message, error_line(process.stderr)), process.args


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("configs/nope.py", r"^there is no config file configs/nope\.py; there are .*configs/mixture\.py"),
        ("configs/dcgn.py", r"^there is no config file configs/dcgn\.py; did you mean configs/dcgan\.py\? there are "),
        ("nowhere/at_all.py", r"^there is no config file nowhere/at_all\.py; give one such as configs/dcgan\.py$"),
        ("configs", r"^there is no config file configs"),
        ("configs/mixture.py:ring9", r"unknown variant 'ring9'; valid variants: ring8, grid25, swiss_roll, gaussian"),
        ("configs/digits.py:ring8", r"^configs/digits\.py has no variants; leave out ':ring8'$"),
    ],
)
def test_config_that_is_not_there(argument, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        command_line.load_config(argument)


def test_shipped_configs_are_found_anywhere_after_ones_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert command_line.load_config("configs/wgan.py").objective.name == "wgan"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "base.py").write_text("1 / 0")
    (tmp_path / "configs" / "dcgan.py").write_text(
        "from gan_jax.config import default_config as get_config\n"  # of points, where the shipped one is of digits
    )
    assert command_line.load_config("configs/wgan.py").generator.network == "dcgan"
    assert command_line.load_config("configs/dcgan.py").data.name == "ring8"
    with pytest.raises(InputError, match=r"configs/wgn\.py; did you mean configs/wgan\.py\? there are .*configs/dcgan"):
        command_line.load_config("configs/wgn.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config():\n    config = 1\n    return confg\n", r", line 3: NameError: name 'confg' is not defined"),
        ("import nothing_of_the_kind\n", r", line 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("x = 1\ndef get_config(:\n", r"mine\.py: SyntaxError: .*line 2"),
        (
            "from configs import base\n\ndef get_config():\n    config = base.get_config()\n    config.seed = 'one'\n",
            r", line 5: TypeError: .*seed",
        ),
        ("def config():\n    return 1\n", r"AttributeError: .*get_config"),
    ],
    ids=["name", "import", "syntax", "type", "function"],
)
def test_config_with_a_bug_names_the_line(source, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(InputError, match=message) as raised:
        command_line.load_config(str(path))
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_config_elsewhere_finds_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = command_line.load_config(f"{ROOT / 'configs' / 'mixture.py'}:grid25")
    assert config.data.name == "grid25"


def parse(monkeypatch, *argv):
    """`command_line.parse` of a command line with --config alone defined; returns that config."""
    fresh = flags.FlagValues()
    argv = ["main", f"--config={ROOT / 'configs' / 'digits.py'}", *argv]
    monkeypatch.setattr(sys, "argv", argv)  # config_flags looks for its overrides there
    monkeypatch.setattr(flags, "FLAGS", fresh)
    config_flags.DEFINE_config_file("config", None, "", flag_values=fresh)
    command_line.parse(argv)
    return fresh.config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=abc", r"^config key batch_size is 'abc'; it must be a positive integer$"),
        ("seed=1.5", r"^config key seed is '1.5'; it must be an integer from 0 to 2\^32 - 1$"),
        (
            "generator.optimizer.learning_rate=fast",
            r"^config key generator\.optimizer\.learning_rate is 'fast'; it must be a number greater than 0$",
        ),
        ("discriminator.one_pass=maybe", r"^config key discriminator\.one_pass is 'maybe'; it must be True or False$"),
        (
            "bach_size=8",
            r"^unknown config key bach_size; did you mean batch_size\? valid keys: seed, num_steps, burn_in",
        ),
        ("generator.widht=8", r"^unknown config key generator\.widht; did you mean generator\.width\? valid keys: gen"),
        ("generater.width=8", r"^unknown config key generater\.width; did you mean generator\.width\?$"),
        ("zzz=8", r"^unknown config key zzz; valid keys: seed, "),
        (
            "generator.optimizer.lr=1",
            r"lr; did you mean generator\.optimizer\.learning_rate\? valid keys: generator\.opt",
        ),
        ("generator.optimizer.beta_1=0", r"did you mean generator\.optimizer\.b1\?"),
        ("discriminator.lr=1", r"lr; did you mean discriminator\.optimizer\.learning_rate\?$"),
        ("lr=1", r"lr; did you mean generator\.optimizer\.learning_rate\?$"),
        ("latent_dim=8", r"did you mean latent\.dim\?$"),
        ("optimiser=sgd", r"did you mean generator\.optimizer\.name\?$"),
        ("generator.ema=0", r"did you mean generator\.ema_decay\?"),
        ("data.path=photos", r"^unknown config key data\.path; valid keys: data\.name, "),
        (
            "data=ring8",
            r"^config key data is a group; set one of data\.name, data\.split, ",
        ),
        ("generator.optimizer=adam", r"^config key generator\.optimizer is a group; set one of .*optimizer\.b1"),
    ],
)
def test_override_that_cannot_be(override, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(monkeypatch, f"--config.{override}")
    assert ended.value.code == 2
    assert re.search(message, error_line(capsys.readouterr().err))


def test_overrides_change_the_config(monkeypatch):
    changes = ["--config.batch_size=8", "--config.generator.optimizer.learning_rate=1", "--config.objective.name=wgan"]
    config = parse(monkeypatch, *changes, "--config.discriminator.one_pass")
    assert (config.batch_size, config.generator.optimizer.learning_rate) == (8, 1.0)
    assert (config.objective.name, config.discriminator.one_pass) == ("wgan", True)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--config=configs/mixture.py:ring8"], "mixture-ring8"),
        (["--config", "configs/digits.py"], "digits"),
        (["--config.seed=1", "-config=/a/b/mine.py:x/y"], "mine-x-y"),
    ],
)
def test_name_of_a_run(argv, name, tmp_path, monkeypatch):
    assert command_line.config_name(["main", *argv]) == name
    monkeypatch.chdir(tmp_path)
    first = workdirs.fresh(name)
    assert re.fullmatch(rf"runs/{name}-\d{{8}}-\d{{6}}", str(first))


def test_print_config_says_where_values_come_from(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from gan_jax.configs import wgan\n\n\ndef get_config():\n    config = wgan.get_config()\n"
        "    config.burn_in = 0\n    config.objective.update(name='hinge')\n    return config\n"
    )
    flags = ["--config.seed=0", "--noconfig.conditional", f"--workdir={tmp_path / 'run'}"]
    printed = run("gan_jax.main", f"--config={own}", "--print_config", *flags)
    assert printed.returncode == 0, printed.stderr
    lines = dict(re.split(" +# ", line) for line in printed.stdout.splitlines())
    assert [line.split(" = ")[0] for line in lines] == list(schema.table())
    assert lines["seed = 0"] == "--config.seed"  # which is the default, as is the next one
    assert lines["burn_in = 0"] == f"{own}, line 6"
    assert lines["objective.name = 'hinge'"] == f"{own}, line 7"
    assert lines["conditional = False"] == "--config.conditional"
    assert re.fullmatch(r"configs/wgan\.py, line \d+", lines["discriminator.clip = 0.03"])
    assert re.fullmatch(r"configs/dcgan\.py, line \d+", lines["latent.dim = 64"])
    assert lines["accumulate = 1"] == "default"
    assert lines["generator.activation = 'relu'"] == "default of dcgan"
    assert not (tmp_path / "run").exists()
    refused = run("gan_jax.main", f"--config={own}", "--print_config", "--config.objective.name=wagn")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert error_line(refused.stderr).endswith("did you mean wgan?")


# --- What a config may say


def players(**changes):
    """The same changes for both players."""
    return {f"{player}.{key}": value for player in ("generator", "discriminator") for key, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.name": "gan"}, r"objective\.name is 'gan'; it must be one of minimax, non_saturating, mle, wgan"),
        ({"objective.name": "non_saturatin"}, r"must be one of .*, MODULE:NAME; did you mean non_saturating\?$"),
        ({"precision": "bfloat"}, r"it must be one of float32, bfloat16; did you mean bfloat16\?$"),
        ({"penalty.name": "r3"}, r"penalty\.name is 'r3'; it must be one of none, wgan_gp, "),
        ({"generator.network": "unet"}, r"generator\.network is 'unet'; it must be one of mlp, dcgan, resnet"),
        ({"data.name": "mnist"}, r"data\.name is 'mnist'; it must be one of digits, ring8, grid25, "),
        ({"data.split": "valid"}, r"data\.split is 'valid'; digits has train, test, all"),
        ({"data.dir": "/data"}, r"data\.dir is '/data', but digits has no dir; set it to '', or data\.name"),
        ({"generator.optimizer.name": "lyon"}, r"optimizer\.name is 'lyon'; it must be one of adam, .*, rmsprop, sgd"),
        ({"latent.prior": "cauchy"}, r"latent\.prior is 'cauchy'; it must be one of normal, uniform"),
        ({"parallel": "tpu"}, r"parallel is 'tpu'; it must be one of jit, pmap"),
        ({"precision": "float64"}, r"precision is 'float64'; it must be one of float32, bfloat16"),
        ({"generator.activation": "gelu"}, r"activation is 'gelu'; it must be one of relu, leaky_relu, "),
        ({"discriminator.normalization": "weight"}, r"normalization is 'weight'; it must be one of none, batch, layer"),
        ({"batch_size": 0}, r"batch_size is 0; it must be a positive integer"),
        ({"num_steps": -1}, r"num_steps is -1; it must be a positive integer"),
        ({"generator.width": 0}, r"generator\.width is 0; it must be a positive integer"),
        ({"latent.dim": 0}, r"latent\.dim is 0; it must be a positive integer"),
        ({"sample_every": -1}, r"sample_every is -1; it must be an integer, 0 or more"),
        ({"seed": -1}, r"seed is -1; it must be an integer from 0"),
        ({"generator.optimizer.learning_rate": 0.0}, r"learning_rate is 0\.0; it must be a number greater than 0"),
        ({"generator.optimizer.learning_rate": np.nan}, r"learning_rate is nan; it must be a number greater than 0"),
        ({"generator.optimizer.learning_rate": np.inf}, r"learning_rate is inf; it must be a number greater than 0"),
        ({"penalty.weight": -0.5}, r"penalty\.weight is -0\.5; it must be a number, 0 or more"),
        ({"generator.optimizer.learning_rate": 1e-50}, r"which is 0\.0 in float32, .* must be a number greater than 0"),
        ({"penalty.weight": 1e39}, r"weight is 1e\+39, which is inf in float32, .*; it must be a number, 0 or more"),
        ({"generator.ema_decay": 1 - 1e-9}, r"ema_decay is 0\.9{9}, which is 1\.0 in float32, .* 1, 1 excluded"),
        ({"generator.ema_decay": 1.0}, r"ema_decay is 1\.0; it must be a number from 0 to 1, 1 excluded"),
        (
            {"penalty.name": "r1", "discriminator.normalization": "batch"},
            r"penalty\.name is r1 and discriminator\.normalization is batch: .*set discriminator\.normalization to no",
        ),
        (
            {"objective.name": "wgan", "objective.label_smoothing": 0.1},
            r"label_smoothing is 0\.1, but wgan has no label_smoothing; set it to 0\.0, or objective\.name to",
        ),
        ({"data.name": "ring8", "generator.network": "dcgan"}, r"generator\.network is dcgan: .*ring8 .*; use mlp"),
        ({"data.name": "ring8", "discriminator.network": "dcgan"}, r"discriminator\.network is dcgan: .*use mlp"),
        (players(network="dcgan", depth=0), r"generator\.depth is 0: dcgan halves or doubles .*, or"),
        (
            players(network="dcgan", depth=4),
            r"generator\.depth is 4: dcgan .* 4 times, which 8x8",
        ),
        ({"discriminator.network": "dcgan", "discriminator.depth": 4}, r"discriminator\.depth is 4: .*8x8 \(digits\)"),
        ({"data.name": "ring8", "generator.network": "resnet"}, r"generator\.network is resnet: .*ring8 .*; use mlp"),
        (players(network="resnet", depth=0), r"generator\.depth is 0: resnet halves or doubles .*; give it"),
        ({"discriminator.network": "resnet", "discriminator.depth": 4}, r"resnet halves or .* 4 times, which 8x8"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_config_that_makes_no_sense(changes, message, shrunk):
    with pytest.raises(InputError, match=message) as raised:
        recipe.build(shrunk("digits", None, changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("batch_size", "8", r"batch_size is '8'; it must be a positive integer"),
        ("batch_size", 8.0, r"batch_size is 8\.0; it must be a positive integer"),
        ("num_steps", True, r"num_steps is True; it must be a positive integer"),
        ("seed", None, r"seed is None; it must be an integer"),
        ("parallel", 1, r"parallel is 1; it must be one of jit, pmap"),
        ("generator", 3, r"unknown config key generator; "),
        ("optimiser", "adam", r"unknown config key optimiser; "),
    ],
)
def test_values_of_another_type(key, value, message, shrunk):
    with pytest.raises(InputError, match=message):
        recipe.build(ConfigDict(shrunk("digits").to_dict() | {key: value}))


# --- A run's folder


def edit_config(workdir, change):
    """Does `change` to the dict of a run's config.json."""
    path = workdir / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def ruin_checkpoints(workdir):
    """Cuts short every file of array data."""
    files = [path for path in (workdir / "checkpoints").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("mode", ["sample", "evaluate", "spectrum"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (ruin_checkpoints, r"no checkpoint in \S+ is whole \(newest, 4: .+\); put a good copy there, or start again"),
        (lambda workdir: shutil.rmtree(workdir / "checkpoints"), r"^\S+ has no checkpoint yet; train it first$"),
        (lambda workdir: (workdir / "config.json").write_text("{"), r"config\.json is not JSON \(.+\); put back the c"),
        (lambda workdir: (workdir / "config.json").write_text("[1]"), r"config\.json holds no config; put back the c"),
        (lambda workdir: (workdir / "config.json").write_text('{"data": {"a.b": 1}}'), r"config\.json holds no config"),
        (lambda workdir: (workdir / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json is not JSON"),
        (lambda workdir: (workdir / "config.json").unlink(), r"cannot read \S+config\.json: No such file .* of a run$"),
        (
            lambda workdir: edit_config(workdir, lambda values: values["generator"].update(widht=8)),
            r"config\.json: unknown config key generator\.widht; did you mean generator\.width\?",
        ),
    ],
    ids=[
        "checkpoints cut",
        "no checkpoints",
        "half JSON",
        "a list",
        "a dot",
        "not text",
        "no config",
        "an unknown key",
    ],
)
def test_folder_that_is_no_run(mode, damage, message, broken, monkeypatch, capsys):
    workdir = broken(damage)
    before = hashes(workdir)
    said = rejected(capsys, monkeypatch, mode=mode, workdir=str(workdir))
    assert re.search(message, said)
    assert hashes(workdir) == before


@pytest.mark.parametrize("mode", ["sample", "evaluate", "spectrum"])
def test_reading_verbs_need_a_folder(mode, monkeypatch, capsys, tmp_path):
    said = rejected(capsys, monkeypatch, mode=mode)
    assert said == f"--workdir is missing; --mode={mode} needs the folder of a run"
    place = {"coordinator": "a:1", "num_processes": 2, "process_id": 1}
    said = rejected(capsys, monkeypatch, mode=mode, workdir=str(tmp_path), **place)
    assert said == f"--mode={mode} is for one process, and this is one of several; add --num_processes=1"
    said = rejected(capsys, monkeypatch, mode=mode, workdir=str(tmp_path / "nowhere"))
    assert re.search(r"cannot read \S+nowhere/config\.json: No such file .*--workdir must be the folder of a run", said)
    assert not list(tmp_path.iterdir())


def test_mistakes_leave_a_run_alone(runs, shrunk, monkeypatch, capsys):
    run = runs["ring8"]
    before = hashes(run.workdir)
    workdir = str(run.workdir)
    other = shrunk("mixture", "ring8", {"batch_size": 16, "penalty.weight": 2.0})
    differs = r"another config \(batch_size is 8 there, 16 here, penalty\.weight is 0\.05 there, 2\.0 here\); choose"
    for mode in ("train", "sample", "evaluate", "spectrum"):
        assert re.search(differs, rejected(capsys, monkeypatch, mode=mode, workdir=workdir, config=other))
        said = rejected(capsys, monkeypatch, mode=mode, workdir=workdir, num_samples=-1)
        assert said == "--num_samples is -1; it must be 0 or more"
        said = rejected(capsys, monkeypatch, "stray", mode=mode, workdir=workdir, config=run.setup.config)
        assert "unexpected argument 'stray'" in said
    assert "--config is missing" in rejected(capsys, monkeypatch, workdir=workdir)
    changes = {"batch_size": 0}
    said = rejected(capsys, monkeypatch, workdir=workdir, config=shrunk("mixture", "ring8", changes))
    assert said == "config key batch_size is 0; it must be a positive integer"
    assert hashes(run.workdir) == before


def claim(workdir, config):
    with workdirs.claimed(workdir, config):
        pass


def test_claim(shrunk, tmp_path):
    workdir = tmp_path / "a" / "b"
    config = shrunk("digits")
    claim(workdir, config)
    assert workdirs.read_config(workdir).to_dict() == config.to_dict()
    before = hashes(workdir)
    claim(workdir, config)
    changed = shrunk("digits", None, players(width=9) | {"seed": 1, "num_steps": 5, "log_every": 2})
    with pytest.raises(InputError, match=r"width is 8 there, 9 here, seed is 0 there, 1 here\); choose"):
        claim(workdir, changed)
    edit_config(workdir, lambda values: values.pop("seed"))
    claim(workdir, config)  # of before there were seeds: 0, the default
    assert hashes(workdir).keys() == before.keys()


def test_claim_of_a_workdir_in_use(shrunk, tmp_path):
    with workdirs.claimed(tmp_path, shrunk("digits")), pytest.raises(InputError, match="in use by another process"):
        claim(tmp_path, shrunk("digits"))
    claim(tmp_path, shrunk("digits"))  # the lock goes with its holder


def test_claim_of_a_run_that_lost_its_config(shrunk, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match=r"without its config\.json"):
        claim(tmp_path, shrunk("digits"))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_fresh_workdirs_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [workdirs.fresh("digits") for _ in range(3)]
    assert len(set(made)) == 3
    assert all(path.is_dir() for path in made)


@pytest.mark.parametrize("below", ["", "run"])
def test_folder_that_cannot_be_written(below, shrunk, tmp_path, monkeypatch, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    said = rejected(capsys, monkeypatch, config=shrunk("digits"), workdir=str(file / below))
    assert re.search(r"^cannot write to workdir \S+notes\.txt\S*: .+; choose another --workdir$", said)
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


# --- Scores


@pytest.mark.parametrize("name", ["digits", "ring8"])
def test_evaluation(name, runs, tmp_path):
    run = runs[name]
    scores = evaluate_run(run.setup, run.state, tmp_path, 60)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == scores
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]
    of_mixtures = {"modes", "modes_total", "high_quality", "high_quality_ceiling", "reverse_kl", "reverse_kl_floor"}
    of_all = {"step", "num_samples", "sliced_wasserstein", "sliced_wasserstein_floor"}
    assert set(scores) == of_all | (of_mixtures if name == "ring8" else set())
    assert (scores["step"], scores["num_samples"]) == (4, 60)
    assert all(np.isfinite(value) for value in scores.values())
    # Four steps of training are worth little.
    assert scores["sliced_wasserstein"] > scores["sliced_wasserstein_floor"] > 0
    if name == "ring8":
        assert scores["modes_total"] == 8
        assert 0 <= scores["modes"] <= 8
        assert_allclose(scores["high_quality_ceiling"], 1 - np.exp(-4.5), rtol=1e-6)  # within 3 of 2D sigmas
        assert 0 <= scores["high_quality"] < scores["high_quality_ceiling"]
        assert 0 < scores["reverse_kl_floor"] < scores["reverse_kl"]


def test_verbs_from_the_command_line(runs, tmp_path):
    ring8, digits = tmp_path / "ring8", tmp_path / "digits"
    shutil.copytree(runs["ring8"].workdir, ring8)
    shutil.copytree(runs["digits"].workdir, digits)

    process, other = processes(
        ["--mode=evaluate", f"--workdir={ring8}"], ["--mode=sample", "--num_samples=5", f"--workdir={digits}"]
    )
    assert process.returncode == 0, process.stderr
    scores = json.loads((ring8 / "evaluation.json").read_text())
    assert (scores["step"], scores["num_samples"], scores["modes_total"]) == (4, 60, 8)
    assert [line.split()[0] for line in process.stdout.splitlines()] == list(scores)
    assert re.search(r"^high_quality_ceiling +0\.98889", process.stdout, re.MULTILINE)

    assert other.returncode == 0, other.stderr
    assert other.stdout.splitlines() == [f"wrote {digits / name}" for name in ("samples.png", "samples.npz")]
    with np.load(digits / "samples.npz") as arrays:
        assert arrays["samples"].shape == (5, 8, 8, 1)


def test_config_flag_that_is_empty_or_given_twice():
    for process in processes(["--config="], ["--config=configs/digits.py", "--config=configs/nope.py"]):
        assert process.returncode == 2
        error_line(process.stderr)


def test_config_with_a_bug_names_the_line_of_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def get_config():\n    return confg\n")
    with pytest.raises(InputError, match="line 2"):
        command_line.load_config("mine.py")


def test_config_that_is_no_config_dict(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {'seed': 1}\n")
    with pytest.raises(InputError, match="ConfigDict"):
        recipe.build(command_line.load_config(str(path)))


def test_run_whose_config_has_dotted_keys(tmp_path):
    (tmp_path / "config.json").write_text('{"generator.width": 3}')
    with pytest.raises(InputError, match="config"):
        workdirs.read_config(tmp_path)


# --- The documentation


def first_column(document):
    """The names in code style in the first column of a document's tables."""
    cells = re.findall(r"^\| (\[?`.*?) \|", (ROOT / "docs" / document).read_text(), re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(.*?)`", cell)]


def test_the_table_of_keys_is_that_of_the_parts():
    page = (ROOT / "docs" / "configuration.md").read_text()
    table = page.partition("<!-- keys: python -m gan_jax.config -->")[2].partition("<!-- /keys -->")[0]
    assert table.strip() == schema.markdown()
    assert [name for name, key in schema.table().items() if not key.text] == []


def test_every_objective_and_penalty_is_documented():
    documented = set(first_column("objectives.md")) - {"objective.name", "penalty.name"}
    assert documented == set(OBJECTIVES) | set(PENALTIES)


def test_a_start_on_digits_imports_nothing_that_training_does_not_use():
    source = (
        "import sys; import gan_jax.main; from gan_jax.data.digits import digits; digits('train', False); "
        "print(sorted({'scipy.special', 'scipy.sparse.linalg', 'sklearn', 'matplotlib', 'orbax'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
