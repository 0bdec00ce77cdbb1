"""Checkpoints: a state saved while training goes on, restored to the same bits, and held to its own fingerprint."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from gan_jax.errors import InputError
from gan_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one run, `DIR/STEP/`, the newest `kept` of them; Orbax stays inside this module."""

    def __init__(self, directory: Path, kept: int | None = None):
        """`kept` None opens the folder for reading only."""
        self._directory = directory.resolve()
        self._fingerprint = jax.jit(fingerprint)
        options = ocp.CheckpointManagerOptions(max_to_keep=kept, create=kept is not None, read_only=kept is None)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState) -> None:
        """Saves in the background; the state may be donated as soon as this returns."""
        payload = {"state": state, "fingerprint": self._fingerprint(state)}
        self._manager.save(int(state.step), args=ocp.args.Composite(payload=ocp.args.StandardSave(payload)))

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, good or not; None without any."""
        return self._manager.latest_step()

    def restore(self, template: TrainState) -> TrainState | None:
        """The newest checkpoint that is whole, with the shapes and on the devices of `template`; None without any.

        One that cannot be read, or whose content is not what was saved, is passed over and named on stderr. Raises
        InputError where there are checkpoints and none is whole.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reasons = {}
        for step in steps:
            try:
                state = self._restore(step, template)
            except Exception as error:  # noqa: BLE001  Orbax and TensorStore raise whatever a torn file leads them to
                reasons[step] = str(error).partition("\n")[0][:200]
                continue
            for bad in reasons:
                print(f"checkpoint {bad} is corrupt ({reasons[bad]}); going back to {step}", file=sys.stderr)
            return state
        if steps:
            raise InputError(
                f"no checkpoint in {self._directory} is whole (newest, {steps[0]}: {reasons[steps[0]]}); "
                "put a good copy there, or start again in another workdir"
            )
        return None

    def discard_after(self, step: int) -> None:
        """Moves the checkpoints after `step`, which a run passed over, out of its way: STEP becomes corrupt-STEP."""
        for newer in [each for each in self._manager.all_steps() if each > step]:
            folder = self._directory / str(newer)
            folder.rename(_unused(self._directory / f"corrupt-{newer}"))
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the background threads."""
        self._manager.close()

    def _restore(self, step: int, template: TrainState) -> TrainState:
        payload = {"state": template, "fingerprint": self._fingerprint(template)}
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), payload)
        restored = self._manager.restore(step, args=ocp.args.Composite(payload=ocp.args.StandardRestore(abstract)))
        payload = restored["payload"]
        if int(payload["fingerprint"]) != int(self._fingerprint(payload["state"])):
            raise ValueError("its content is not what was saved")
        return payload["state"]


def fingerprint(tree) -> jax.Array:
    """A uint32 that depends on every bit of the tree's arrays and on their order: a flipped bit always changes it.

    Each 32-bit word is multiplied by an odd number of its own before they are summed modulo 2^32. Orbax checks no sums
    of array data: without this a bad sector goes unnoticed.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        odd = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
        total = 31 * total + jnp.sum(words * (odd * jnp.uint32(2654435761)), dtype=jnp.uint32)
    return total


def _unused(path: Path) -> Path:
    """`path`, or the first of path-1, path-2, ... that does not exist."""
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(1, 1000))]
    return next(each for each in candidates if not each.exists())
