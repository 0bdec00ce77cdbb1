"""Parts of one's own, named in a config by import path, without a line of the package changed."""

import json
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, with_devices
from helpers.toys import one_device
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.config import schema
from gan_jax.runs import workdirs
from gan_jax.sweep import folders, plan
from gan_jax.utils.errors import InputError

LAB = """
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gan_jax.data.mixture import mixture
from gan_jax.networks.latents import Dim
from gan_jax.objectives import WGAN, separable, softplus
from gan_jax.step import step
from gan_jax.utils.keys import COUNT, NON_NEGATIVE, POSITIVE, TRACED


def soft_hinge(margin: Annotated[float, POSITIVE, "logit at which an example costs nothing", TRACED] = 1.0):
    return separable(
        real=lambda a: softplus(margin - a),
        fake=lambda b: softplus(margin + b),
        generator=lambda b: -b,
        divergence=lambda loss: 2 * softplus(margin) - loss,
    )


plain = WGAN


def slope(critic, keys, real, fake, target: Annotated[float, NON_NEGATIVE, "slope that is free", TRACED] = 0.0):
    gradients = jax.grad(lambda x: jnp.sum(critic(x)))(real)
    return jnp.square(jnp.sqrt(jnp.sum(gradients**2, axis=1) + 1e-12) - target)


def lion(beta: Annotated[float, NON_NEGATIVE, "of both averages", TRACED] = 0.9):
    return optax.scale_by_lion(beta, beta)


class Unfinished(nn.Module):
    shape: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, z, train):
        return nn.Dense(2)(z) if train else z


class Affine(nn.Module):
    shape: tuple[int, ...] = ()
    shift: Annotated[float, NON_NEGATIVE, "that it starts from"] = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, train):
        return z @ self.param("kernel", nn.initializers.zeros, (z.shape[-1], 2)) + self.param(
            "bias", nn.initializers.constant(self.shift), (2,)
        )


def linear():
    return (lambda key, x: jnp.zeros(x.shape[1])), (lambda params, x: x @ params)


def triangle(radius: Annotated[float, POSITIVE, "of the triangle"] = 1.0):
    angles = 2 * np.pi * np.arange(3) / 3
    return mixture(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.01)


def cauchy(keys, dim: Dim = 2):
    return jax.vmap(lambda key: jax.random.cauchy(key, (dim,)))(keys)


def generator_first(recipe, devices, numbers, keys, state, batch, updates: Annotated[int, COUNT, "of G"] = 1):
    real = jax.tree.map(lambda x: x[0], batch)
    for i in range(updates):
        key = jax.random.fold_in(keys.generator, i)
        state, of_g = step.generator_step(recipe, devices, state, real, key, numbers)
    state, of_d = step.discriminator_step(recipe, devices, state, real, keys.discriminator, numbers)
    return state, of_d | of_g


def other_uniform(keys, dim: Annotated[int, COUNT, "numbers of a latent"] = 64):
    return jax.vmap(lambda key: jax.random.uniform(key, (dim,)))(keys)


def heavy(critic, keys, real, fake, weight: Annotated[float, NON_NEGATIVE, "taken by all penalties"] = 1.0):
    return jnp.zeros(len(real))


def failing() -> "Nothing":
    raise RuntimeError("two\\nlines")


def wide_hinge(margin: Annotated[float, POSITIVE, "of another default", TRACED] = 4.0):
    return soft_hinge(margin)


number = 3
"""
CONFIG = """
from gan_jax.config.schema import default_config


def get_config():
    config = default_config()
    config.objective.name = "my_lab:soft_hinge"
    config.num_steps, config.log_every, config.steps_per_call, config.batch_size = 4, 2, 2, 8
    return config
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The folder of `my_lab`, which can be imported."""
    (tmp_path / "my_lab.py").write_text(LAB)
    (tmp_path / "broken_lab.py").write_text("1 / 0")
    (tmp_path / "lacking_lab.py").write_text("import nothing_of_that_name")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_lab", "broken_lab", "lacking_lab"):
        sys.modules.pop(name, None)


def config_with(shrunk, **changes):
    """A small config with these values, of which the parts that they name have keys."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return plan.members(shrunk("mixture", "ring8"), [changes])[0].config


def trained(setup, steps=2):
    """(state, metrics of the last step)."""
    run = jax.jit(partial(step.train_steps, setup.recipe, setup.devices, setup.source, steps))
    state, metrics = run(recipe.initial_state(setup), setup.source.data)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.generator, state.discriminator)))
    return state, jax.tree.map(lambda x: x[-1], metrics)


def test_an_objective_of_ones_own_has_its_keys_and_its_numbers(shrunk, lab):
    setup = recipe.build(config_with(shrunk, objective__name="my_lab:soft_hinge", objective__margin=0.5), one_device())
    state, _ = trained(setup)
    assert state.hyperparameters["objective.margin"] == 0.5
    loss = setup.recipe.objective(state.hyperparameters).discriminator(jnp.float32(2), jnp.float32(-3))
    assert_allclose(loss, np.log1p(np.exp([-1.5, -2.5])).sum(), rtol=1e-6)
    assert "objective.margin" not in schema.table()  # of other configs


def test_a_config_that_names_a_part_has_the_defaults_of_its_keys(shrunk, lab):
    config = shrunk("mixture", "ring8").copy_and_resolve_references().unlock()
    config.objective.name = "my_lab:soft_hinge"
    assert recipe.build(config.lock(), one_device()).config.objective.margin == 1.0
    assert schema.completed({"objective": {"name": "my_lab:soft_hinge"}}).objective.margin == 1.0


def test_a_part_has_its_own_default_where_the_base_names_another(shrunk, lab):
    base = config_with(shrunk, objective__name="my_lab:soft_hinge")
    margins = [{}, {"objective.margin": 2.0}]
    members = plan.members(base, [{"objective.name": "my_lab:wide_hinge"} | margin for margin in margins])
    assert [member.config.objective.margin for member in members] == [4.0, 2.0]


def test_an_objective_without_parameters(shrunk, lab):
    setup = recipe.build(config_with(shrunk, objective__name="my_lab:plain"), one_device())
    assert setup.recipe.objective({}).discriminator(2.0, 3.0) == 1.0


def test_runs_of_one_program_have_objectives_and_margins_of_their_own(shrunk, lab):
    changes = [{"objective.name": "my_lab:soft_hinge", "objective.margin": margin} for margin in (0.5, 2.0)]
    members = plan.members(shrunk("mixture", "ring8"), [*changes, {"objective.name": "wgan"}])
    assert len(plan.programs(members)) == 1
    merged, numbers = recipe.merge_setups([recipe.build(member.config, one_device()) for member in members])
    assert_array_equal(numbers["objective.margin"], [0.5, 2.0, 1.0])
    losses = jax.vmap(lambda own: merged.recipe.objective(own).discriminator(jnp.float32(2), jnp.float32(-3)))(numbers)
    expected = [np.log1p(np.exp([margin - 2, margin - 3])).sum() for margin in (0.5, 2.0)]
    assert_allclose(losses, [*expected, -5], rtol=1e-6)


def test_one_of_each_other_part(shrunk, lab):
    setup = recipe.build(
        config_with(
            shrunk,
            penalty__name="my_lab:slope",
            penalty__weight=1.0,
            penalty__target=3.0,
            generator__network="my_lab:Affine",
            generator__shift=2.0,
            generator__optimizer__name="my_lab:lion",
            generator__optimizer__beta=0.5,
            generator__optimizer__learning_rate=0.25,
            generator__optimizer__decay_to=1.0,
            generator__optimizer__b2=0.999,
            generator__optimizer__b2_to=0.0,
            data__name="my_lab:triangle",
            data__radius=5.0,
            latent__prior="my_lab:cauchy",
            moves="my_lab:generator_first",
            generator_first__updates=2,
        ),
        one_device(),
    )
    start = recipe.initial_state(setup)
    assert_array_equal(start.generator.params["bias"], [2, 2])
    assert_allclose(np.linalg.norm(setup.source.modes.centers, axis=1), 5, rtol=1e-6)
    assert start.hyperparameters["penalty.target"] == 3.0
    assert np.abs(setup.recipe.prior(jax.random.split(jax.random.key(0), 1000))).max() > 30  # normal ones end at 5
    state, metrics = trained(setup, 1)
    assert metrics["penalty"] > 0
    moved = np.abs(state.generator.params["bias"] - start.generator.params["bias"])
    assert set(moved.round(4)) <= {0, 0.5}  # two updates of Lion, each by the sign


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"objective__name": "your_lab:soft_hinge"},
            "your_lab:soft_hinge: there is no module your_lab in .* start where it lies",
        ),
        (
            {"objective__name": "my_lab:hard_hinge"},
            r"my_lab \(.*my_lab.py\) has no hard_hinge; did you mean .*soft_hinge",
        ),
        ({"objective__name": "broken_lab:x"}, "broken_lab cannot be imported: ZeroDivisionError: division by zero"),
        ({"objective__name": "lacking_lab:x"}, "lacking_lab imports nothing_of_that_name, which is not installed"),
        ({"objective__name": "my_lab:triangle"}, "my_lab:triangle is a function that returns a Source, not an Obj"),
        ({"penalty__name": "my_lab.slope"}, "it must be one of .*; did you mean my_lab:slope?"),
        ({"penalty__name": "my_lab:number"}, "my_lab:number is a int, not a function or a class"),
        ({"generator__network": "my_lab:slope"}, "my_lab:slope fails: TypeError"),
        (
            {"generator__network": "my_lab:Unfinished", "latent__dim": 3},
            r"my_lab:Unfinished: it gives \[2, 3\], and must give \[2, 2\]",
        ),
        (
            {"discriminator__network": "my_lab:linear", "objective__feature_matching": 1.0},
            "feature_matching needs features of discriminator.network, which has none",
        ),
        ({"objective__name": "my_lab:soft_hinge", "objective__margin": -1.0}, "objective.margin is -1.0; it must be"),
        ({"objective__name": "my_lab:soft_hinge", "objective__margins": 1.0}, "did you mean objective.margin?"),
        (
            {"latent__prior": "my_lab:other_uniform"},
            "another default, range or mark of dim than .* give it another name",
        ),
        ({"penalty__name": "my_lab:heavy"}, "two parts have the config key penalty.weight"),
        ({"objective__name": "my_lab:failing"}, "my_lab:failing fails: RuntimeError: two lines"),
        ({"objective__name": "sys:nothing_of_that_name"}, r"sys \(built in\) has no nothing_of_that_name"),
        ({"objective__margin": 1.0}, "unknown config key objective.margin"),
    ],
)
def test_a_mistake_is_one_line(shrunk, lab, changes, words):
    with pytest.raises(InputError, match=words) as raised:
        recipe.build(config_with(shrunk, **changes))
    assert "\n" not in str(raised.value)


def test_the_command_line_finds_parts_beside_the_config_and_so_does_its_run(lab, tmp_path_factory):
    (lab / "own.py").write_text(CONFIG)
    main, elsewhere = [sys.executable, "-m", "gan_jax.main", "--runtime=plain"], tmp_path_factory.mktemp("elsewhere")

    def run(*arguments, status=0):
        environment = with_devices(1) | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*main, *arguments], cwd=elsewhere, capture_output=True, text=True, env=environment)
        assert done.returncode == status, done.stderr
        return done.stderr

    config = f"--config={lab / 'own.py'}"
    run(config, "--config.objective.margin=0.5", "--workdir=run")
    assert json.loads((elsewhere / "run" / "config.json").read_text())["objective"]["margin"] == 0.5
    run("--mode=sample", "--workdir=run", "--num_samples=3")
    assert np.load(elsewhere / "run" / "samples.npz")["samples"].shape == (3, 2)
    said = run(config, "--config.objective.name=wgan", "--config.objective.margin=0.5", status=2)
    assert said.startswith("error: unknown config key objective.margin")


def test_the_folder_of_a_sweeps_member_says_where_its_parts_lie(shrunk, lab, tmp_path_factory, monkeypatch):
    workdir = tmp_path_factory.mktemp("sweep")
    member = plan.members(shrunk("mixture", "ring8"), [{"objective.name": "my_lab:soft_hinge"}])[0]
    folders.begin(workdir, member, "program", anew=True)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(lab)])
    sys.modules.pop("my_lab")
    folder = folders.member_folder(workdir, member)
    assert workdirs.read_config(folder).objective.margin == 1.0
    sys.modules.pop("my_lab")
    (lab / "my_lab.py").unlink()
    with pytest.raises(
        InputError, match=rf"there is no module my_lab in .*{re.escape(str(lab))}.*, nor is it installed"
    ):
        workdirs.read_config(folder)
    (folder / workdirs.IMPORTS).write_text("3")
    with pytest.raises(InputError, match="does not list folders; remove it"):
        workdirs.read_config(folder)
