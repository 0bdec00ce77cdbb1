"""`gan_jax.load`: what it gives is what the run's functions give, from the folder alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gan_jax
from gan_jax import recipe, step
from gan_jax.step.state import Average

ROOT = Path(__file__).resolve().parents[2]
PSI = 0.25


@pytest.fixture(scope="module")
def conditional(shrunk, tmp_path_factory):
    """The folder of a run conditional on classes, moved after it ended; its data is gone."""
    folder = tmp_path_factory.mktemp("conditional")
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(30) % 3)
    changes = {"data.name": "arrays", "data.dir": str(folder / "data.npz"), "conditional": True, "data.image_size": 8}
    config = shrunk("digits", None, changes | {"evaluate_every": 2, "evaluation.best": "sliced_wasserstein"})
    assert gan_jax.train(recipe.build(config), folder / "run")
    (folder / "data.npz").unlink()
    return (folder / "run").rename(folder / "elsewhere")


@pytest.fixture(scope="module")
def run(conditional):
    return gan_jax.load(conditional)


def test_loading_reads_the_folder_alone_and_says_nothing(conditional, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = gan_jax.load(conditional)
    assert (run.step, run.classes, run.config.conditional) == (4, ("0", "1", "2"), True)
    assert run.sample(2).dtype == np.float32
    assert capfd.readouterr() == ("", "")


def test_samples_are_those_of_the_step(run):
    z, labels = run.latents(3, 5), np.arange(5, dtype=np.int32) % 3
    expected = step.sample(run.setup.recipe, Average(run.generator_params, run.state.ema.stats), z, labels)
    assert_allclose(run.generate(z, labels), expected, atol=1e-6)
    assert_allclose(run.sample(5, seed=3), expected, atol=1e-6)
    assert_allclose(run.sample(3, seed=3, start=2), expected[2:], atol=1e-6)
    assert_allclose(run.sample(300, seed=3)[:5], expected, atol=1e-6)
    assert_array_equal(run.latents(3, 9, start=1)[:4], z[1:])
    assert np.abs(run.latents(4, 5) - z).min() > 0
    logits = step.judge(run.setup.recipe, run.state.discriminator, expected, labels)
    assert_allclose(run.discriminate(expected, labels), logits, atol=1e-5)


def test_a_label_is_a_number_or_a_name_and_several_are_taken_in_turn(run):
    z = run.latents(0, 4)
    assert_array_equal(run.sample(4, label="2"), run.generate(z, 2))
    assert_array_equal(run.sample(4, label=["1", 0]), run.generate(z, np.array([1, 0, 1, 0])))
    assert_array_equal(run.sample(4), run.generate(z, [0, 1, 2, 0]))


def test_truncation_scales_latents_about_the_mean(run):
    assert_allclose(run.sample(4, label=1, truncation=PSI), run.generate(PSI * run.latents(0, 4), 1), atol=1e-6)
    assert len(np.unique(run.sample(4, label=1, truncation=0.0).round(5), axis=0)) == 1


def test_generate_has_gradients_that_differences_agree_with(run):
    z, direction = run.latents(0, 1), run.latents(1, 1)

    def mean(z):
        return run.generate(z, 2).mean()

    slope = (jax.grad(mean)(z) * direction).sum()
    difference = float(mean(z + 0.01 * direction)) - float(mean(z - 0.01 * direction))
    assert_allclose(slope, difference / 0.02, rtol=0.02)


def test_without_the_average_it_is_the_generator_itself(conditional, run):
    own = gan_jax.load(conditional, averaged=False)
    jax.tree.map(assert_array_equal, own.generator_params, run.state.generator.params)
    assert np.abs(own.sample(2) - run.sample(2)).max() > 0


def test_checkpoints_by_step_and_the_best(conditional):
    assert gan_jax.load(conditional, checkpoint=2).step == 2
    assert gan_jax.load(conditional, checkpoint="best").step in (2, 4)
    with pytest.raises(ValueError, match=r"has no checkpoint 3; it has newest, best, 2, 4$"):
        gan_jax.load(conditional, checkpoint=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run.sample(2, label=99), r"no label 99; it must be a number from 0 to 2, or one of 0, 1, 2$"),
        (lambda run: run.sample(2, label="three"), r"no label 'three'; it must be"),
        (lambda run: run.sample(2, label=1.0), r"no label 1\.0; it must be"),
        (lambda run: run.generate(run.latents(0, 3)), r"conditional; give a label, one for all or 3$"),
        (lambda run: run.generate(run.latents(0, 3), [0, 1]), r"there are 2 labels for 3 examples"),
        (lambda run: run.generate(run.latents(0, 3)[:, :2], 0), r"shape \[3, 2\]; they must be \[n, 4\]"),
        (lambda run: run.generate(np.zeros((2, 4), int), 0), r"latents are int64; they must be floats"),
        (lambda run: run.generate(np.full((2, 4), np.nan), 0), r"latents are not all finite"),
        (lambda run: run.discriminate(np.zeros((2, 8, 8, 3)), 0), r"\[2, 8, 8, 3\]; they must be \[n, 8, 8, 1\]"),
        (lambda run: run.sample(2, truncation=-0.5), r"truncation is -0\.5; it must be"),
        (lambda run: run.sample(2, seed=-1), r"seed is -1; it must be an integer"),
        (lambda run: run.sample(1.5), r"n is 1\.5; it must be an integer"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(call, message, run):
    with pytest.raises(ValueError, match=message) as caught:
        call(run)
    assert "\n" not in str(caught.value)


def test_points_and_runs_without_labels(shrunk, tmp_path):
    assert gan_jax.train(recipe.build(shrunk("mixture", "ring8")), tmp_path)
    run = gan_jax.load(str(tmp_path))
    assert (run.classes, run.sample(0 + 3).shape) == ((), (3, 2))
    logits = step.discriminate(run.setup.recipe, run.state.discriminator, run.sample(3))
    assert_allclose(run.discriminate(run.sample(3)), logits, atol=1e-5)
    with pytest.raises(ValueError, match="to_uint8 is for images"):
        run.to_uint8(run.sample(1))
    with pytest.raises(ValueError, match="not conditional; leave the label out"):
        run.sample(1, label=0)


def five(keys):
    return 5 + jax.vmap(jax.random.normal)(keys)[:, None]


def test_the_mean_of_a_prior_of_ones_own_is_found_by_drawing(shrunk, tmp_path):
    setup = recipe.build(shrunk("mixture", "ring8"), prior=five)
    assert gan_jax.train(setup, tmp_path)
    run = gan_jax.load(tmp_path)
    assert_allclose(run.truncated(run.latents(0, 4), 0.0), 5, atol=0.05)


def test_parts_by_hand_are_handed_over_again_and_the_data_is_not(tmp_path):
    code = """
import sys, jax, numpy as np, gan_jax
from gan_jax.config import default_config
prior = lambda keys: jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
if sys.argv[1:] == ["train"]:
    config = default_config()
    config.update(num_steps=1, batch_size=8, steps_per_call=1, health_every=0, sample_every=0)
    points = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    gan_jax.train(gan_jax.build(config, source=points, prior=prior), "run")
else:
    try:
        gan_jax.load("run")
    except ValueError as error:
        print(error)
    print(gan_jax.load("run", prior=prior).sample(2).shape)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    subprocess.run([*command, "train"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert re.fullmatch(r".*by_hand\.prior.*gan_jax\.load\(workdir, prior=\.\.\.\)\n\(2, 2\)\n", result.stdout)


def test_importing_the_package_starts_no_jax():
    code = "import sys, gan_jax; print(gan_jax.__version__, 'jax' in sys.modules, 'load' in dir(gan_jax))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert re.fullmatch(r"\d+\.\d+\.\S+ False True\n", result.stdout)
