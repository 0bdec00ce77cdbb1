"""A run that starts from another one: what it takes, what it begins anew, and that it soon needs that one no more."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gan_jax
from gan_jax import recipe
from gan_jax.parallel.devices import mesh
from gan_jax.parallel.population_layout import population
from gan_jax.runs import workdirs
from gan_jax.runs.checkpoints import Checkpoints
from gan_jax.runs.warm_start import other_state
from gan_jax.sweep.population import Population
from gan_jax.utils.errors import InputError


def arrays(part):
    return {"params": part.params, "stats": part.stats}


def assert_same(actual, expected):
    jax.tree.map(assert_array_equal, actual, expected)


@pytest.fixture(scope="module")
def make(shrunk):
    """A config of small networks with batch normalisation; `changes` by dotted key."""
    normalised = {f"{player}.normalization": "batch" for player in ("generator", "discriminator")}
    return lambda **changes: shrunk("digits", None, normalised | {"generator.ema_decay": 0.5} | changes)


@pytest.fixture(scope="module")
def folder(make, tmp_path_factory):
    """The folder of a run with checkpoints 2 and 4, whose name has a colon in it."""
    folder = tmp_path_factory.mktemp("other") / "run:of:a"
    assert gan_jax.train(recipe.build(make()), folder)
    return folder


@pytest.fixture(scope="module")
def other(folder):
    return gan_jax.load(folder).state


def start(setup, workdir):
    """The first state of a run in `workdir`."""
    workdirs.settle_start(workdir, setup.config.init.run)
    return recipe.initial_state(setup, other_state(setup, workdir))


def test_networks_and_average_are_taken_and_the_rest_begins_anew(make, folder, other, tmp_path, capsys):
    setup = recipe.build(make(**{"init.run": str(folder), "seed": 5, "init.strict": True}))
    state, fresh = start(setup, tmp_path), recipe.initial_state(setup)
    for name in ("generator", "discriminator", "ema"):
        assert_same(arrays(getattr(state, name)), arrays(getattr(other, name)))
    assert np.abs(state.ema.params["Dense_0"]["kernel"] - state.generator.params["Dense_0"]["kernel"]).max() > 0
    for name in ("generator", "discriminator"):
        assert_same(getattr(state, name).opt_state, getattr(fresh, name).opt_state)
    assert int(state.step) == 0
    assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(fresh.key))
    record = json.loads((tmp_path / "init.json").read_text())
    assert (record["folder"], record["step"]) == (str(folder), 4)
    assert all(row["taken"] == row["of"] and not row["why"] for row in record["taken"])
    sizes = [sum(x.size for x in jax.tree.leaves(arrays(player))) for player in (other.generator, other.discriminator)]
    assert sum(row["of"] for row in record["taken"]) == sum(sizes)
    assert f"starting from {folder}, step 4" in capsys.readouterr().err


def test_what_does_not_fit_begins_anew_and_is_named(make, folder, other, tmp_path, capsys):
    """A conditional run with a wider D: of G all but what sees the class."""
    setup = recipe.build(make(**{"init.run": f"{folder}:2", "conditional": True, "discriminator.width": 16}))
    state, fresh = start(setup, tmp_path), recipe.initial_state(setup)
    second = Checkpoints(folder / "checkpoints").restore(other, [2])
    for taken, mine, anew in (
        (second.generator, state.generator, fresh.generator),
        (second.ema, state.ema, fresh.ema),
    ):
        assert_same(mine.params["Hidden_0"]["Dense_1"], taken.params["Hidden_0"]["Dense_1"])
        assert_same(mine.params["BesideLatents_0"], anew.params["BesideLatents_0"])
        assert_same(mine.params["Hidden_0"]["Dense_0"], anew.params["Hidden_0"]["Dense_0"])
    assert_same(state.discriminator.params["Hidden_0"], fresh.discriminator.params["Hidden_0"])
    table = {(row["player"], row["module"]): row for row in json.loads((tmp_path / "init.json").read_text())["taken"]}
    assert table["generator", "BesideLatents_0"]["taken"] == 0
    assert "[8, 8] here, float32[4, 8] there" in table["generator", "Hidden_0"]["why"]
    assert "BesideLatents_0" in capsys.readouterr().err


def test_one_player_alone(make, folder, other, tmp_path):
    setup = recipe.build(make(**{"init.run": str(folder), "init.players": "discriminator", "seed": 5}))
    state, fresh = start(setup, tmp_path), recipe.initial_state(setup)
    assert_same(arrays(state.discriminator), arrays(other.discriminator))
    assert_same([arrays(state.generator), arrays(state.ema)], [arrays(fresh.generator), arrays(fresh.ema)])


def test_the_other_run_is_needed_only_to_begin(make, folder, tmp_path, monkeypatch):
    """Killed in its first call and gone on from without the other run, it ends in the bits of one that was not."""
    shutil.copytree(folder, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    setup = recipe.build(make(**{"init.run": "other:2"}))
    assert gan_jax.train(setup, "whole")

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gan_jax.training.loop, "compiled_call", kill)
        with pytest.raises(KeyboardInterrupt):
            gan_jax.train(setup, "cut")
    (tmp_path / "other").rename(tmp_path / "gone")
    assert gan_jax.train(setup, "cut")
    states = [gan_jax.load(workdir).state.replace(key=None) for workdir in ("whole", "cut")]
    assert_same(*states)
    assert int(states[0].step) == 4
    shutil.rmtree("cut/checkpoints")  # the run begins once more, from the checkpoint that it knows
    with pytest.raises(InputError, match=r"init.run: the run .*other is gone; put it back"):
        gan_jax.train(setup, "cut")
    (tmp_path / "gone").rename(tmp_path / "other")
    shutil.rmtree("other/checkpoints/2")
    with pytest.raises(InputError, match=r"other/checkpoints/2 is gone; put it back, or start again in another"):
        gan_jax.train(setup, "cut")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"init.run": "nowhere:3"}, r"init.run is 'nowhere:3', but there is no run in /\S+/nowhere; it must be FOLDER"),
        ({"init.run": "{}:3"}, "but that run has no checkpoint 3; it has 2, 4"),
        ({"init.run": "{}:best"}, "no checkpoint best; give a STEP, or train it with evaluation.best set"),
        (
            {"init.run": "{}", "init.strict": True, "generator.width": 4},
            "init.strict: .*params/Dense_0/kernel is float32.4, 64. here, float32.8, 64. there; .*and . more",
        ),
        (
            {
                "init.run": "{}",
                "init.players": "generator",
                "generator.network": "dcgan",
                "generator.depth": 1,
                "steps_per_call": 1,
                "latent.dim": 3,
            },
            "nothing of .* fits",
        ),
        (
            {"init.run": "{}", "discriminator.freeze": 1, "discriminator.width": 4},
            "discriminator.freeze: a layer would be kept that is not of .*Hidden_0/Dense_0",
        ),
        ({"init.strict": True}, "init.strict is True, but init.run is '', with which it does nothing"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(make, folder, tmp_path, monkeypatch, changes, line):
    monkeypatch.chdir(tmp_path)
    changes = {key: value.format(folder) if key == "init.run" else value for key, value in changes.items()}
    with pytest.raises(InputError, match=line) as raised:
        gan_jax.train(recipe.build(make(**changes)), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_members_of_a_sweep_start_as_runs_do(make, folder, tmp_path):
    one = mesh(jax.devices()[:1])
    setups = [
        recipe.build(make(**{"init.run": str(folder), "seed": seed, "conditional": True}), one) for seed in (1, 2)
    ]
    workdirs.settle_start(tmp_path, str(folder))
    other = other_state(setups[0], tmp_path)
    members = Population(setups, population("vmap", devices=jax.devices()[:1])).initial(other).members.state
    for i, setup in enumerate(setups):
        expected = recipe.initial_state(setup, other)
        for name in ("generator", "discriminator", "ema"):
            member = jax.tree.map(lambda x, i=i: x[i], getattr(members, name))
            jax.tree.map(partial(assert_allclose, rtol=1e-6), member, getattr(expected, name))
