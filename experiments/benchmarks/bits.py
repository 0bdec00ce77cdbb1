"""Hashes of what 20 steps make of a run, for every objective: whether a change of the code left the bits as they were.

    python experiments/benchmarks/bits.py > after.txt        # in the checkout that is looked at, on one device
    diff before.txt after.txt

A line is a network and an objective: sha256 of G's and D's parameters, statistics and optimiser state and of the
average, then the mean of |parameters|, which says how far two runs are apart if their bits differ. It also runs at
commit 9afd216, with the same lines for all objectives.
"""

import hashlib
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path.cwd()))
STEPS = 20


def small(name: str, objective: str):
    """The config of a small run on the eight Gaussians (mlp) or the digits (dcgan)."""
    from configs import base, dcgan

    config = base.get_config() if name == "mlp" else dcgan.get_config()
    config.objective.name, config.batch_size = objective, 32
    config.generator.width = config.discriminator.width = 16
    return config


def trained(config):
    """The state after STEPS calls of one step."""
    from gan_jax import recipe, step

    setup = recipe.build(config)
    state, data = recipe.initial_state(setup), setup.devices.place(setup.source.data)
    one_step = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    program = setup.devices.compile(one_step, state, data)
    for _ in range(STEPS):
        state, _ = program(state, data)
    return state


def main() -> None:
    """Prints a line for each network and objective."""
    from gan_jax.objectives import OBJECTIVES

    for name in ("mlp", "dcgan"):
        for objective in OBJECTIVES:
            state, digest = trained(small(name, objective)), hashlib.sha256()
            for leaf in jax.tree.leaves((state.generator, state.discriminator, state.ema)):
                digest.update(np.ascontiguousarray(leaf).tobytes())
            params = jax.tree.leaves((state.generator.params, state.discriminator.params))
            size = np.mean(np.concatenate([np.abs(np.float64(leaf)).ravel() for leaf in params]))
            print(f"{name:6s} {objective:20s} {digest.hexdigest()[:16]} {size:.12f}", flush=True)


if __name__ == "__main__":
    main()
