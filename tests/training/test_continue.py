"""A run that goes on: for longer, with other cadences; never with other numbers than its checkpoint has."""

import json
import shutil

import numpy as np
import pytest
from helpers.toys import assert_same_bits

import gan_jax
from gan_jax import recipe
from gan_jax.config import schema
from gan_jax.runs import workdirs

STEPS, MORE = 4, 8
SCHEDULED = {  # all that runs over the burn-in, or over the run
    "generator.optimizer.decay_to": 0.1,
    "penalty.weight_to": 0.5,
    "discriminator.optimizer.b2_to": 0.99,
    "augment.instance_noise": 0.3,
}
COURSE = {"burn_in": STEPS, "augment.instance_noise_steps": STEPS}


@pytest.fixture(scope="module")
def config(shrunk):
    """`config(changes)`: of a run of STEPS steps."""

    def changed(changes=None):
        return shrunk("mixture", "ring8", {"num_steps": STEPS} | SCHEDULED | (changes or {}))

    return changed


@pytest.fixture(scope="module")
def begun(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("begun")
    assert gan_jax.train(recipe.build(config()), workdir)
    return workdir


@pytest.fixture
def workdir(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_longer_run_takes_the_steps_that_the_longer_config_takes(config, workdir, tmp_path):
    longer = {"num_steps": MORE} | COURSE
    assert gan_jax.train(recipe.build(config(longer)), workdir)
    assert gan_jax.train(recipe.build(config(longer)), tmp_path / "at once")
    first, second = (gan_jax.load(folder) for folder in (workdir, tmp_path / "at once"))
    assert (first.step, second.step) == (MORE, MORE)
    assert_same_bits(first.state, second.state)
    assert (workdir / "metrics.jsonl").read_bytes() == (tmp_path / "at once" / "metrics.jsonl").read_bytes()
    noted = {key: [0 if key != "num_steps" else STEPS, longer[key]] for key in longer}
    assert json.loads((workdir / "changes.jsonl").read_text()) == {"step": STEPS} | noted
    assert workdirs.read_config(workdir).num_steps == MORE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 3}, r"num_steps is 4 in \S+, 3 here; it may only grow$"),
        ({"num_steps": 8}, r"4 in \S+, 8 here, .*; add --config\.burn_in=4 --config\.augment\.instance_noise_steps=4$"),
        ({"num_steps": 8} | COURSE | {"burn_in": 8}, r"penalty\.weight_to; add --config\.burn_in=4$"),
        ({"num_steps": 8, "burn_in": 4}, r"instance_noise; add --config\.augment\.instance_noise_steps=4$"),
        ({"num_steps": 8, "batch_size": 16}, r"of another config \(batch_size is 8 there, 16 here\)"),
        ({"burn_in": 4}, r"of another config \(burn_in is 0 there, 4 here\)"),
    ],
)
def test_what_would_be_another_run_is_refused(changes, message, config, workdir):
    before = content(workdir)
    with pytest.raises(ValueError, match=message):
        gan_jax.train(recipe.build(config(changes)), workdir)
    assert content(workdir) == before


def test_without_schedules_a_longer_run_needs_no_more(shrunk, tmp_path):
    plain = {"generator.optimizer.decay_to": 1.0, "discriminator.optimizer.decay_to": 1.0}
    for steps in (2, 4):
        assert gan_jax.train(recipe.build(shrunk("mixture", "ring8", plain | {"num_steps": steps})), tmp_path)
    assert gan_jax.load(tmp_path).step == 4


def test_cadences_and_rules_may_change(config, workdir):
    changes = {"log_every": 3, "sample_every": 1, "checkpoint_every": 3, "checkpoints_kept": 1, "steps_per_call": 1}
    changes |= {"health_every": 4, "evaluate_every": 4, "evaluation.best": "modes", "stop.patience": 5}
    longer = {"num_steps": MORE} | COURSE
    assert gan_jax.train(recipe.build(config(longer | changes)), workdir)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4, 6, 8]
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["8"]
    assert (workdir / "best.json").exists()
    assert set(json.loads((workdir / "changes.jsonl").read_text())) == {"step"} | changes.keys() | longer.keys()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("penalty.weight_to", 0.007, "is 0.5 there, 0.007 here"),
        ("penalty.weight_to", 0.0, "is 0.5 there, off here"),
        ("discriminator.lecam", 0.1, "is off there, 0.1 here"),
    ],
)
def test_an_edited_number_is_named_with_both_values(key, value, words, config, workdir, capfd):
    values = schema.flatten(workdirs.read_config(workdir).to_dict()) | {key: value}
    workdirs.write_config(workdir, schema.nested(values))
    before, edited = content(workdir), recipe.build(config({key: value, "log_every": 3}))
    for use in (lambda: gan_jax.load(workdir), lambda: gan_jax.train(edited, workdir)):
        with pytest.raises(ValueError, match=rf"^checkpoint 4 in .* other numbers .*\({key} {words}\); put them back"):
            use()
    assert content(workdir) == before  # nor does it note the cadence of a start that is refused
    assert "".join(capfd.readouterr()) == ""


def test_a_profile_of_a_run_leaves_its_config(config, workdir):
    with workdirs.claimed(workdir, config({"steps_per_call": 1})):
        pass
    assert workdirs.read_config(workdir).steps_per_call == config().steps_per_call
    assert not (workdir / "changes.jsonl").exists()


def test_a_member_of_an_unfinished_sweep_is_no_run_yet(config, workdir):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "program.json").write_text("0")
    before = content(workdir)
    with pytest.raises(ValueError, match="member of a sweep that has not come to its end; go on with the sweep"):
        gan_jax.train(recipe.build(config()), workdir)
    assert content(workdir) == before


def test_a_checkpoint_of_other_networks_is_not_called_corrupt(config, workdir, capfd):
    wider = config({"generator.width": 16})
    workdirs.write_config(workdir, wider)
    before = content(workdir)
    for use in (lambda: gan_jax.load(workdir), lambda: gan_jax.train(recipe.build(wider), workdir)):
        with pytest.raises(ValueError, match=r"another config \(.*Dense_0.*is \(8,\) there, \(16,\) here.*; put back"):
            use()
    assert content(workdir) == before
    assert "corrupt" not in "".join(capfd.readouterr())


def test_a_folder_of_before_some_keys_is_read_as_it_was(begun, workdir):
    values = json.loads((workdir / "config.json").read_text())
    del values["augment"]["instance_noise_steps"], values["stop"], values["generator"]["penalty"]
    (workdir / "config.json").write_text(json.dumps(values))
    np.testing.assert_array_equal(gan_jax.load(workdir).sample(4), gan_jax.load(begun).sample(4))
    assert workdirs.read_config(workdir).to_dict() == workdirs.read_config(begun).to_dict()
