"""Checkpoints of before hyperparameters were a dict by config key: written here in their old form, and read."""

import jax
import jax.numpy as jnp
import pytest
from helpers.toys import assert_same_bits

from gan_jax import recipe
from gan_jax.parallel.devices import mesh
from gan_jax.runs.checkpoints import Checkpoints, fingerprint
from gan_jax.utils.errors import InputError

# The order in which the old state had its numbers, on which its fingerprint depends (commit 9afd216).
OLD = {
    "generator_learning_rate": "generator.optimizer.learning_rate",
    "generator_b1": "generator.optimizer.b1",
    "generator_b2": "generator.optimizer.b2",
    "discriminator_learning_rate": "discriminator.optimizer.learning_rate",
    "discriminator_b1": "discriminator.optimizer.b1",
    "discriminator_b2": "discriminator.optimizer.b2",
    "penalty_weight": "penalty.weight",
    "label_smoothing": None,  # off, and there
    "ema_decay": "generator.ema_decay",
    "feature_matching": None,  # off, and None, as the others without a key
    "instance_noise": None,
    "penalty_weight_to": None,
    "generator_b2_to": None,
    "discriminator_b2_to": None,
    "ema_half_life": None,
    "augment_probability": "augment.probability",
    "ada_target": "augment.ada_target",
    "lecam": "discriminator.lecam",
    "consistency": None,
    "fake_consistency": None,
    "objective": None,
}
CHANGES = {
    "augment.policy": "color",
    "augment.ada_target": 0.5,
    "discriminator.lecam": 0.1,
    "penalty.name": "r1",
    "penalty.weight": 2.0,
}


def write_old(folder, state, flipped=False):
    """Saves the state as 9afd216 did; `flipped`: with another bit than its fingerprint knows."""
    import orbax.checkpoint as ocp

    numbers = {name: state.hyperparameters[key] if key else None for name, key in OLD.items()}
    numbers["label_smoothing"] = jnp.float32(0)
    in_order = [number for number in numbers.values() if number is not None]
    players = state.generator, state.discriminator, state.ema
    known = fingerprint([state.step, state.key, in_order, *players, state.regularizers])
    step = state.step + 1 if flipped else state.step
    old = {"step": step, "key": state.key, "hyperparameters": numbers, "memory": state.regularizers}
    old |= {"generator": state.generator, "discriminator": state.discriminator, "ema": state.ema}
    with ocp.CheckpointManager(folder.resolve()) as manager:
        payload = {"state": old, "fingerprint": known}
        manager.save(int(state.step), args=ocp.args.Composite(payload=ocp.args.StandardSave(payload)))


@pytest.fixture(scope="module")
def setup(shrunk):
    return recipe.build(shrunk("digits", None, CHANGES), mesh(jax.devices()[:1]))


def test_a_checkpoint_of_before_gives_its_state_to_the_bit(setup, tmp_path):
    assert "augment.probability" in setup.hyperparameters
    state = recipe.initial_state(setup).replace(step=jnp.int32(7))
    write_old(tmp_path, state)
    restored = Checkpoints(tmp_path).restore(recipe.abstract_state(setup), numbers=setup.hyperparameters)
    assert_same_bits(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_another_config_than_that_of_a_checkpoint_of_before_is_named(setup, tmp_path, shrunk):
    write_old(tmp_path, recipe.initial_state(setup))
    for changes, words in (
        ({"discriminator.lecam": 0.0}, r"\(discriminator\.lecam is 0\.1 there, off here\)"),
        ({"penalty.weight": 3.0}, r"\(penalty\.weight is 2 there, 3 here\)"),
        ({"generator.width": 16}, r"of another config \(.* is .* there, .* here"),
    ):
        other = recipe.build(shrunk("digits", None, CHANGES | changes), mesh(jax.devices()[:1]))
        with pytest.raises(InputError, match=words):
            Checkpoints(tmp_path).restore(recipe.abstract_state(other), numbers=other.hyperparameters)


def test_a_torn_checkpoint_of_before_is_found_out(setup, tmp_path):
    write_old(tmp_path, recipe.initial_state(setup).replace(step=jnp.int32(7)), flipped=True)
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole .*its content is not what was saved"):
        Checkpoints(tmp_path).restore(recipe.abstract_state(setup))
