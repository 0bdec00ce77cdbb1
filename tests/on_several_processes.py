"""What the processes of one run do together, for `test_processes.py`, which starts this file once for each of them.

`python tests/on_several_processes.py COORDINATOR COUNT INDEX FOLDER`: process 0 writes what it saw into FOLDER.
"""

import json
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import numpy as np
from conftest import shrunk_config
from rounding import DESCENT

from gan_jax import processes, recipe
from gan_jax.errors import AgreedError, InputError
from gan_jax.generate import Generate
from gan_jax.train import compiled_call, open_loader

STEPS = 3
RUNS = {
    "generated": ("mixture", "ring8", {}),  # pairs of examples, a penalty
    "mapped": ("mixture", "ring8", {"parallel": "pmap"}),
    "normalised": ("dcgan", None, {}),  # over the whole batch
    "streamed": ("digits", None, {"data.name": "arrays", "data.placement": "stream", "conditional": True}),
    "streamed_mapped": ("digits", None, {"data.name": "arrays", "data.placement": "stream", "parallel": "pmap"}),
}


def results(name: str, arrays: Path) -> dict[str, np.ndarray]:
    """The metrics of a few steps, where they took each player, and samples: by name, on the host."""
    base, variant, changes = RUNS[name]
    changes = changes | ({"data.dir": str(arrays)} if "data.name" in changes else {})
    setup = recipe.build(shrunk_config(base, variant, DESCENT | changes | {"num_steps": STEPS, "steps_per_call": 1}))
    state = recipe.initial_state(setup)
    found = {}
    with closing(open_loader(setup, state, lambda now: now + 1)) as data:
        program = compiled_call(setup, 1, state, data.call(0, 1))
        for now in range(STEPS):
            state, metrics = program(state, data.call(now, now + 1))
            found[f"metrics/{now}"] = np.asarray(metrics.values[:, 0])
    for player in ("generator", "discriminator"):
        leaves = jax.tree.leaves((getattr(state, player).params, getattr(state, player).stats))
        found[player] = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in leaves])
    found["samples"] = Generate(setup).examples(state.ema, setup.keys.pictures, 20)
    return found


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

    asked = processes.together(lambda: own == 1)
    return {
        "several": processes.several(),
        "first": processes.is_first(),
        "all well": processes.all_or_none(lambda: own),
        "one fails": said(lambda: processes.all_or_none(partial(fail_in, 1))),
        "first fails": said(lambda: processes.by_first(partial(fail_in, 0))),
        "from first": processes.from_first([own, "é"]),
        "by first": processes.by_first(lambda: {"index": own}),
        "equal": said(lambda: processes.require_equal("key", {"a": [1, 2], "b": "x"})),
        "unequal": said(lambda: processes.require_equal("key", {"a": [1, 2], "b": own})),
        "missing": said(lambda: processes.require_equal("key", {"a": 1} | ({"c": 2} if own else {}))),
        "together": [asked(), asked()],
    }


def main(coordinator: str, count: str, index: str, folder: str) -> None:
    """Writes `agreements-INDEX.json`, and of each run `NAME.npz`."""
    processes.join(coordinator, int(count), int(index))
    folder = Path(folder)
    (folder / f"agreements-{index}.json").write_text(json.dumps(_agreements()))
    for name in RUNS:
        found = results(name, folder / "arrays.npz")
        if processes.is_first():
            np.savez(folder / f"{name}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
