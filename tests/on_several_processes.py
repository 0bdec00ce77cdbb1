"""What two processes of one run do, one thing after another, for `test_processes.py`, which starts this file in each.

`python tests/on_several_processes.py COORDINATOR COUNT INDEX FOLDER`: each writes what it saw into FOLDER.
"""

import io
import json
import shutil
import sys
from contextlib import closing, nullcontext, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import jax
import numpy as np
from absl.testing import flagsaver
from conftest import ROOT, shrunk_config
from helpers.rounding import DESCENT

import gan_jax
from configs import digits
from gan_jax import main, recipe
from gan_jax.parallel import agreement, launch
from gan_jax.runs.sampler import Generate
from gan_jax.training.loop import compiled_call, open_loader
from gan_jax.utils.errors import AgreedError, InputError

STEPS = 3
RUNS = {
    "generated": ("mixture", "ring8", {}),  # pairs of examples, a penalty
    "mapped": ("mixture", "ring8", {"parallel": "pmap"}),
    "normalised": ("dcgan", None, {}),  # over the whole batch
    "streamed": ("digits", None, {"data.name": "arrays", "data.placement": "stream", "conditional": True}),
    "streamed_mapped": ("digits", None, {"data.name": "arrays", "data.placement": "stream", "parallel": "pmap"}),
}
# Of a run by the command line: numbers that rounding does not blow up, and a step for every call: a signal is then
# heard of soon.
CHANGES = DESCENT | {
    "batch_size": 8,
    "steps_per_call": 1,
    "generator.width": 8,
    "discriminator.width": 8,
    "log_every": 1,
    "health_every": 0,
    "checkpoint_every": 10,
}
SCORED = {
    "num_steps": 20,
    "sample_every": 10,
    "evaluate_every": 10,
    "health_every": 10,
    "evaluation.best": "fid_pixels",
    "evaluation.extractor": "pixels",
    "evaluation.num_samples": 60,
    "evaluation.num_real": 50,
}
# Slowly: how many steps it takes before a signal is heard depends on the machine, and rounding grows with them.
SLOW = {f"{player}.optimizer.learning_rate": 0.01 for player in ("generator", "discriminator")}
ENDLESS = 100_000  # steps
IMAGES = 1200


def config_of(changes: dict):
    """The config of a run by the command line."""
    config = digits.get_config()
    config.update_from_flattened_dict(CHANGES | changes)
    return config.lock()


def results(name: str, arrays: Path) -> dict[str, np.ndarray]:
    """The metrics of a few steps, where they took each player, and samples: by name, on the host."""
    base, variant, changes = RUNS[name]
    changes = changes | ({"data.dir": str(arrays)} if "data.name" in changes else {})
    setup = recipe.build(shrunk_config(base, variant, DESCENT | changes | {"num_steps": STEPS, "steps_per_call": 1}))
    state = recipe.initial_state(setup)
    arrays_of = {}
    with closing(open_loader(setup, state, lambda now: now + 1)) as data:
        program = compiled_call(setup, 1, state, data.call(0, 1))
        for now in range(STEPS):
            state, metrics = program(state, data.call(now, now + 1))
            arrays_of[f"metrics/{now}"] = np.asarray(metrics.values[:, 0])
    for player in ("generator", "discriminator"):
        leaves = jax.tree.leaves((getattr(state, player).params, getattr(state, player).stats))
        arrays_of[player] = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves])
    arrays_of["samples"] = Generate(setup).examples(state.ema, setup.keys.pictures, 20)
    return arrays_of


def _agreements() -> dict:
    """What each way of agreeing gives where the processes differ."""
    own = jax.process_index()

    def fail_in(index):
        if own == index:
            raise InputError("no such file")
        return own

    def said(function):
        try:
            return function()
        except AgreedError as error:
            return str(error)

    asked = agreement.in_any_process(lambda: own == 1)
    return {
        "several": agreement.several(),
        "first": agreement.is_first(),
        "all well": agreement.all_or_none(lambda: own),
        "one fails": said(lambda: agreement.all_or_none(partial(fail_in, 1))),
        "first fails": said(lambda: agreement.by_first(partial(fail_in, 0))),
        "from first": agreement.from_first([own, "é"]),
        "by first": agreement.by_first(lambda: {"index": own}),
        "equal": said(lambda: agreement.require_equal("key", {"a": [1, 2], "b": "x"})),
        "unequal": said(lambda: agreement.require_equal("key", {"a": [1, 2], "b": own})),
        "missing": said(lambda: agreement.require_equal("key", {"a": 1} | ({"c": 2} if own else {}))),
        "in any process": [asked(), asked()],
    }


def _command(changes: dict, workdir: Path, captured: bool = True) -> dict:
    """How `gan_jax.main` ends in this process, which has joined the others: status, stdout, the last line of stderr."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        patch.object(main, "_CONFIG", SimpleNamespace(value=config_of(changes))),
        patch.object(launch, "join", lambda *place: None),
        flagsaver.flagsaver(runtime="plain", workdir=str(workdir)),
        redirect_stdout(out) if captured else nullcontext(),
        redirect_stderr(err) if captured else nullcontext(),
    ):
        try:
            main.main(["main"])
        except SystemExit as ended:
            status = ended.code
    return {"status": status, "stdout": out.getvalue(), "last": err.getvalue().rstrip().rpartition("\n")[2]}


def _other_code(folder: Path) -> dict:
    """How a run ends of which the second process has another version of the package."""
    if agreement.is_first():
        return _command({}, folder / "refused")
    package = folder / "other" / "gan_jax"
    shutil.copytree(ROOT / "gan_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "penalties.py").open("a") as file:
        file.write("# mended here\n")
    with patch.object(gan_jax, "__file__", str(package / "__init__.py")):
        return _command({}, folder / "refused")


def _commands(folder: Path, second: bool) -> dict[str, dict]:
    """How each of these runs ends in this process, by its name."""
    arrays = {"data.name": "arrays", "data.dir": str(folder / f"{'other' if second else 'one'}.npy")}
    images = {"data.name": "folder", "data.dir": str(folder / "images"), "data.placement": "stream"}
    return {
        "scored": _command(SCORED, folder / "two"),
        "other config": _command({"seed": 7, "batch_size": 16} if second else {}, folder / "refused"),
        "other code": _other_code(folder),
        "other data": _command(arrays, folder / "other-data"),
        "unreadable": _command(images | {"num_steps": IMAGES // 8 + 1}, folder / "unreadable"),
        "stopped": _command(SLOW | {"num_steps": 5000}, folder / "stopped"),
    }


def run(coordinator: str, count: str, index: str, folder: str) -> None:
    """Writes `agreements-INDEX.json`, of each run `NAME.npz`, and `commands-INDEX.json`; then trains without end."""
    launch.join(coordinator, int(count), int(index))
    folder = Path(folder)
    (folder / f"agreements-{index}.json").write_text(json.dumps(_agreements()))
    for name in RUNS:
        arrays_of = results(name, folder / "arrays.npz")
        if agreement.is_first():
            np.savez(folder / f"{name}.npz", **arrays_of)
    (folder / f"commands-{index}.json").write_text(json.dumps(_commands(folder, index == "1")))
    _command({"num_steps": ENDLESS}, folder / "killed", captured=False)


if __name__ == "__main__":
    run(*sys.argv[1:])
