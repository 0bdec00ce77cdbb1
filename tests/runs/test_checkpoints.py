"""Checkpoints: what is restored is what was saved, bit for bit, and what is torn is passed over and named."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from numpy.testing import assert_array_equal

from gan_jax import recipe, step
from gan_jax.parallel.devices import mesh
from gan_jax.runs.checkpoints import Checkpoints, fingerprint
from gan_jax.step.optimizers import optimistic_sgd
from gan_jax.step.state import TrainState
from gan_jax.utils.errors import InputError


class Run(NamedTuple):
    """A small run: its setup, its compiled step and its states after 0, 1, 2, ... steps, no two of the same content."""

    setup: recipe.Setup
    advance: Callable  # state, which is donated -> the next state
    states: list[TrainState]


@pytest.fixture(scope="module")
def run(shrunk):
    setup = recipe.build(
        shrunk("mixture", "ring8", {f"{player}.width": 64 for player in ("generator", "discriminator")})
    )
    function = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)
    compiled = setup.devices.compile(function, recipe.abstract_state(setup), ())

    def advance(state, steps=1):
        for _ in range(steps):
            state, _ = compiled(state, ())
        return state

    return Run(setup, advance, [advance(recipe.initial_state(setup), steps) for steps in range(5)])


def raw(tree):
    """A copy of the tree on the host, with its PRNG keys as numbers."""

    def as_numbers(x):
        return np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(as_numbers, tree)


def assert_same(actual, expected):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = (raw(x).view(np.uint32) if raw(x).ndim else raw(x).reshape(1).view(np.uint32) for x in (a, b))
        assert_array_equal(a, b)


def save(folder, *states, kept=3):
    with closing(Checkpoints(folder, kept)) as checkpoints:
        for state in states:
            checkpoints.save(state)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """`saved(folder, *steps)`: copies of the checkpoints of these steps, of 1, 2 and 3."""
    originals = tmp_path_factory.mktemp("saved")
    save(originals, *run.states[1:4])

    def copy(folder, *steps):
        for number in steps:
            shutil.copytree(originals / str(number), folder / str(number))

    return copy


def restore(folder, template):
    with closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.restore(template)


def largest_file(folder, number):
    """The largest file of a checkpoint: one of arrays, for networks larger than their description."""
    largest = max(files(folder, number), key=lambda path: path.stat().st_size)
    assert largest.parent.name == "d"
    return largest


def files(folder, number):
    return sorted(path for path in (folder / str(number)).rglob("*") if path.is_file())


def flip_bit(path, share=0.5):
    """Turns over one bit at this share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 0x10
    path.write_bytes(content)


def flip_bits(path, share=0.5):
    """Turns over bits all along a quarter of the file from this share on: of a single one it may be that nobody reads
    the place, since a file has parts that were written over."""
    content = bytearray(path.read_bytes())
    for i in range(int(share * len(content)), int((share + 0.25) * len(content)), 64):
        content[i] ^= 0x10
    path.write_bytes(content)


def truncate(path, share=0.5):
    """Leaves only this share of the file, from its beginning."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


# --- what comes back --------------------------------------------------------------------------------------------


def test_the_newest_state_comes_back_bit_for_bit(run, tmp_path):
    save(tmp_path, run.states[1], run.states[3])
    restored = restore(tmp_path, run.states[0])
    assert_same(restored, run.states[3])
    assert int(restored.step) == 3
    assert restored.key.dtype == run.states[3].key.dtype  # a typed key, not its numbers
    assert_array_equal(jax.random.bits(restored.key, (4,)), jax.random.bits(run.states[3].key, (4,)))
    with pytest.raises(AssertionError):
        assert_same(restored, run.states[2])


def test_the_key_is_the_saved_one_and_not_the_templates(run, saved, tmp_path):
    saved(tmp_path, 1)
    template = run.states[0].replace(key=run.setup.devices.place(jax.random.key(987)))
    assert_same(restore(tmp_path, template), run.states[1])


def test_numbers_that_are_not_finite_come_back_too(run, tmp_path):
    rate = run.setup.devices.place(jnp.float32(np.nan))
    odd = run.states[1].replace(hyperparameters=run.states[1].hyperparameters | {"generator.ema_decay": rate})
    save(tmp_path, odd)
    assert_same(restore(tmp_path, run.states[0]), odd)


def test_a_state_saved_by_four_devices_is_restored_by_one(run, saved, tmp_path):
    if jax.device_count() < 2:
        pytest.skip("needs more than one device")
    assert len(run.states[1].step.sharding.device_set) == jax.device_count()
    saved(tmp_path, 1)
    restored = restore(tmp_path, mesh(jax.devices()[:1]).place(run.states[0]))
    assert {device for leaf in jax.tree.leaves(restored) for device in leaf.devices()} == {jax.devices()[0]}
    assert_same(restored, run.states[1])


def test_a_state_may_be_donated_as_soon_as_save_returns(run, tmp_path):
    state = run.advance(recipe.initial_state(run.setup))
    with closing(Checkpoints(tmp_path, 3)) as checkpoints:
        checkpoints.save(state)
        for _ in range(5):
            donated, state = state, run.advance(state)
        jax.block_until_ready(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
    # Against the same state of another run: a copy of this one could have kept its buffers from being used again.
    assert_same(restore(tmp_path, run.states[0]), run.states[1])


def test_only_the_newest_are_kept(run, tmp_path):
    save(tmp_path, *run.states, kept=2)
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4"}
    assert_same(restore(tmp_path, run.states[0]), run.states[4])


def test_a_folder_that_is_missing_or_empty_restores_nothing(run, tmp_path):
    missing = tmp_path / "missing"
    assert restore(missing, run.states[0]) is None
    assert not missing.exists()  # opened for reading, it makes none
    with closing(Checkpoints(missing, 3)) as checkpoints:
        assert checkpoints.restore(run.states[0]) is None
        assert checkpoints.latest_step() is None


def test_latest_step_is_that_of_the_newest(run, tmp_path):
    with closing(Checkpoints(tmp_path, 3)) as checkpoints:
        for state in run.states[1:3]:
            checkpoints.save(state)
            checkpoints.wait()
            assert checkpoints.latest_step() == int(state.step)


# --- what is torn -----------------------------------------------------------------------------------------------


DAMAGES = {
    "bits_flipped_early": partial(flip_bits, share=0.1),
    "bits_flipped_midway": partial(flip_bits, share=0.4),
    "bits_flipped_late": partial(flip_bits, share=0.7),
    "cut_in_half": truncate,
    "empty": partial(truncate, share=0.0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(run, saved, tmp_path, capsys, damage):
    saved(tmp_path, 1, 2, 3)
    DAMAGES[damage](largest_file(tmp_path, 3))
    assert_same(restore(tmp_path, run.states[0]), run.states[2])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("checkpoint ")]
    assert len(lines) == 1
    assert lines[0].startswith("checkpoint 3 is corrupt (")
    assert lines[0].endswith("going back to 2")


def test_a_bit_flipped_in_a_file_never_goes_unnoticed(run, saved, tmp_path, capsys):
    saved(tmp_path, 1, 2)
    passed_over = 0
    for path in {*files(tmp_path, 2)[::4], largest_file(tmp_path, 2)}:  # there are dozens of one kind
        content = path.read_bytes()
        flip_bit(path)
        restored = restore(tmp_path, run.states[0])
        path.write_bytes(content)
        went_back = "checkpoint 2 is corrupt" in capsys.readouterr().err
        assert_same(restored, run.states[1 if went_back else 2])  # a bit that nobody reads does no harm
        passed_over += went_back
    assert passed_over  # the largest file, if no other: some are left over from the writing


def test_each_of_two_damaged_checkpoints_is_named(run, saved, tmp_path, capsys):
    saved(tmp_path, 1, 2, 3)
    flip_bits(largest_file(tmp_path, 3))
    truncate(largest_file(tmp_path, 2))
    assert_same(restore(tmp_path, run.states[0]), run.states[1])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("checkpoint ")]
    assert [line.partition(" is corrupt (")[0] for line in lines] == ["checkpoint 3", "checkpoint 2"]


def test_a_whole_checkpoint_is_restored_without_a_word(run, saved, tmp_path, capsys):
    saved(tmp_path, 1, 2)
    flip_bits(largest_file(tmp_path, 1))  # not the newest: nobody looks
    assert_same(restore(tmp_path, run.states[0]), run.states[2])
    assert "corrupt" not in capsys.readouterr().err


def test_content_that_can_be_read_but_is_not_what_was_saved_is_passed_over(run, saved, tmp_path, capsys, monkeypatch):
    saved(tmp_path, 1)
    with monkeypatch.context() as patch:  # saves one state under another's fingerprint: a bad sector, as seen by Orbax
        patch.setattr("gan_jax.runs.checkpoints.fingerprint", lambda tree: fingerprint(tree) ^ jnp.uint32(1))
        save(tmp_path, run.states[2])
    assert_same(restore(tmp_path, run.states[0]), run.states[1])
    assert "checkpoint 2 is corrupt (its content is not what was saved); going back to 1" in capsys.readouterr().err


def test_nothing_but_damage_is_an_error_of_one_line(run, saved, tmp_path):
    saved(tmp_path, 1, 2)
    for number in (1, 2):
        flip_bits(largest_file(tmp_path, number))
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole") as caught:
        restore(tmp_path, run.states[0])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_network_is_an_error_of_one_line(run, saved, shrunk, tmp_path):
    saved(tmp_path, 1)
    wider = recipe.initial_state(recipe.build(shrunk("mixture", "ring8", {"generator.width": 9})))
    with pytest.raises(InputError, match=r"^checkpoint 1 in .* of another config \(.* is .* there, .* here") as caught:
        restore(tmp_path, wider)
    assert "\n" not in str(caught.value)
    assert "corrupt" not in str(caught.value)


def test_a_checkpoint_of_another_run_is_passed_over_where_an_older_one_fits(run, saved, shrunk, tmp_path, capsys):
    wider = recipe.initial_state(recipe.build(shrunk("mixture", "ring8", {"generator.width": 9})))
    save(tmp_path, wider.replace(step=run.states[2].step))
    saved(tmp_path, 1)
    assert_same(restore(tmp_path, run.states[0]), run.states[1])
    assert "checkpoint 2 has other arrays than those of this run; going back to 1" in capsys.readouterr().err


def test_what_orbax_says_of_a_torn_checkpoint_does_not_reach_a_script(run, saved, tmp_path):
    saved(tmp_path, 1, 2)
    flip_bits(largest_file(tmp_path, 2))
    script = f"""
from tests.conftest import shrunk_config
from gan_jax import recipe
from gan_jax.runs.checkpoints import Checkpoints
widths = {{f"{{player}}.width": 64 for player in ("generator", "discriminator")}}
template = recipe.abstract_state(recipe.build(shrunk_config("mixture", "ring8", widths)))
assert int(Checkpoints(__import__("pathlib").Path({str(tmp_path)!r})).restore(template).step) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"checkpoint 2 is corrupt \(.*\); going back to 1\n", done.stderr)


def test_a_run_saves_again_where_it_passed_a_checkpoint_over(run, saved, tmp_path):
    saved(tmp_path, 1, 2, 3)
    flip_bits(largest_file(tmp_path, 3))
    for corrupt in (["corrupt-3"], ["corrupt-3", "corrupt-3-1"]):
        with closing(Checkpoints(tmp_path, 3)) as checkpoints:
            restored = checkpoints.restore(run.states[0])
            assert_same(restored, run.states[2])
            checkpoints.discard_after(int(restored.step))
            assert checkpoints.latest_step() == 2
            assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", *corrupt]
            checkpoints.save(run.states[3])
        assert_same(restore(tmp_path, run.states[0]), run.states[3])
        flip_bits(largest_file(tmp_path, 3))


def test_discarding_nothing_moves_nothing(run, saved, tmp_path):
    saved(tmp_path, 1, 2)
    with closing(Checkpoints(tmp_path, 3)) as checkpoints:
        checkpoints.discard_after(2)
        assert checkpoints.latest_step() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


# --- the fingerprint --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers(run):
    """(the leaves of a trained state as arrays on the host, their fingerprint compiled)."""
    leaves = jax.tree.leaves(raw(run.states[4]))
    return leaves, jax.jit(fingerprint)


def test_equal_states_have_equal_fingerprints(run, numbers):
    leaves, compiled = numbers
    expected = int(compiled(leaves))
    assert int(compiled(jax.tree.map(np.copy, leaves))) == expected
    assert int(fingerprint(run.states[4])) == expected  # with a typed key, outside jit, on many devices
    assert len({int(compiled(jax.tree.leaves(raw(state)))) for state in run.states}) == len(run.states)


def test_any_flipped_bit_changes_the_fingerprint(numbers):
    leaves, compiled = jax.device_put(numbers[0]), numbers[1]
    expected, random = int(compiled(leaves)), np.random.default_rng(0)
    for i, leaf in enumerate(leaves):
        for bit in range(32):
            flipped = np.array(leaf)
            flipped.reshape(-1).view(np.uint32)[random.integers(leaf.size)] ^= np.uint32(1 << bit)
            assert int(compiled([*leaves[:i], flipped, *leaves[i + 1 :]])) != expected, (i, bit)


def test_the_state_of_an_optimistic_optimiser_has_a_fingerprint():
    """It holds a truth value."""
    state = optimistic_sgd(0.5).init({"w": jnp.ones(3)})
    turned = jax.tree.map(lambda x: ~x if x.dtype == bool else x, state)
    assert any(leaf.dtype == bool for leaf in jax.tree.leaves(state))
    assert int(fingerprint(state)) != int(fingerprint(turned))


def test_two_leaves_that_trade_places_change_the_fingerprint(numbers):
    leaves, compiled = numbers
    expected, traded = int(compiled(leaves)), 0
    for i, first in enumerate(leaves):
        for j, second in enumerate(leaves[:i]):
            if first.shape == second.shape and first.dtype == second.dtype and np.any(first != second):
                swapped = list(leaves)
                swapped[i], swapped[j] = second, first
                assert int(compiled(swapped)) != expected, (i, j)
                traded += 1
    assert traded > 10


def test_numbers_that_trade_places_change_the_fingerprint(numbers):
    leaves, compiled = numbers
    expected = int(compiled(leaves))
    for i, leaf in enumerate(leaves):
        if leaf.size > 1 and np.any(leaf != np.flip(leaf)):
            assert int(compiled([*leaves[:i], np.flip(leaf), *leaves[i + 1 :]])) != expected, i
