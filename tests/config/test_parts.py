"""One of each part is added, by one entry in its registry; config, checks, step and populations then know it.

What is written here is all that a new part takes: where the entry stands, a file of the package is touched, and where
the part has a file of its own, a second one.
"""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers.toys import one_device, raw
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import data, networks, objectives, penalties, recipe
from gan_jax.config import schema
from gan_jax.data.mixture import mixture
from gan_jax.evaluation import data_scores
from gan_jax.evaluation.metrics import comparison
from gan_jax.networks.layers import Width
from gan_jax.objectives import parametrised, separable, softplus
from gan_jax.step import optimizers, step
from gan_jax.step.state import Move
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import COUNT, NON_NEGATIVE, POSITIVE, SCHEDULED, TRACED, keys_of, union


def built(shrunk, changes):
    return recipe.build(shrunk("mixture", "ring8", changes), one_device())


def trained(setup, steps=2):
    """(state, metrics of the last step) after a few steps."""
    state = recipe.initial_state(setup)
    run = jax.jit(partial(step.train_steps, setup.recipe, setup.devices, setup.source, steps))
    state, metrics = run(state, setup.source.data)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(raw((state.generator, state.discriminator))))
    return state, jax.tree.map(lambda x: x[-1], metrics)


def refusal(shrunk, changes):
    with pytest.raises(InputError) as raised:
        built(shrunk, changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- an objective with a parameter, which a sweep may vary ---------------------------------------------------------


def soft_hinge(
    margin: Annotated[float, POSITIVE, "logit at which an example costs nothing", TRACED] = 1.0,
) -> objectives.Objective:
    """softplus(m - a) + softplus(m + b): a hinge whose corner is round."""
    return separable(
        real=lambda a: softplus(margin - a),
        fake=lambda b: softplus(margin + b),
        generator=lambda b: -b,
        divergence=lambda loss: 2 * softplus(margin) - loss,
    )


@pytest.fixture
def with_soft_hinge(monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "soft_hinge", parametrised(soft_hinge))


@pytest.mark.usefixtures("with_soft_hinge")
def test_an_objective_with_a_parameter(shrunk):
    assert schema.default_config().objective.margin == 1.0
    assert "objective.margin" in schema.varying()
    setup = built(shrunk, {"objective.name": "soft_hinge", "objective.margin": 0.5})
    state, metrics = trained(setup)
    assert state.hyperparameters["objective.margin"] == 0.5
    objective = setup.recipe.objective(state.hyperparameters)
    assert_allclose(objective.discriminator(jnp.float32(2), jnp.float32(-3)), np.log1p(np.exp([-1.5, -2.5])).sum())
    assert metrics["divergence"] < 2 * np.log1p(np.exp(0.5))
    assert "config key objective.margin is -1.0; it must be a number greater than 0" in refusal(
        shrunk, {"objective.name": "soft_hinge", "objective.margin": -1.0}
    )
    assert "margin is 0.5, but rpgan has no margin; set it to 1.0, or objective.name to one of soft_hinge" in refusal(
        shrunk, {"objective.margin": 0.5}
    )


@pytest.mark.usefixtures("with_soft_hinge")
def test_runs_of_one_program_have_margins_and_objectives_of_their_own(shrunk):
    changes = [
        {"objective.name": "soft_hinge", "objective.margin": 0.5},
        {"objective.name": "soft_hinge", "objective.margin": 2.0},
        {"objective.name": "wgan"},
    ]
    merged, numbers = recipe.merge_setups([built(shrunk, change) for change in changes])
    assert_array_equal(numbers["objective.margin"], [0.5, 2.0, 1.0])
    assert "objective.margin" not in built(shrunk, changes[2]).hyperparameters  # nor in the checkpoints of such runs
    a, b = jnp.float32(2), jnp.float32(-3)
    losses = jax.vmap(lambda numbers: merged.recipe.objective(numbers).discriminator(a, b))(numbers)
    expected = [np.log1p(np.exp([margin - 2, margin - 3])).sum() for margin in (0.5, 2.0)]
    assert_allclose(losses, [*expected, -5], rtol=1e-6)


# --- a penalty, an optimiser of optax, a move ----------------------------------------------------------------------


def centred_penalty(
    critic, keys, real, fake, target: Annotated[float, NON_NEGATIVE, "slope that costs nothing", TRACED] = 0.0
):
    """(|grad D(x)| - target)^2 at the real examples."""
    gradients = jax.grad(lambda x: jnp.sum(critic(x)))(real)
    return jnp.square(jnp.sqrt(jnp.sum(gradients.reshape(len(real), -1) ** 2, axis=1) + 1e-12) - target)


def test_a_penalty_with_a_parameter(shrunk, monkeypatch):
    monkeypatch.setitem(penalties.PENALTIES, "centred", centred_penalty)
    costs = []
    for target in (0.0, 3.0):
        changes = {"penalty.name": "centred", "penalty.weight": 1.0, "penalty.target": target, "num_steps": 1}
        costs.append(float(trained(built(shrunk, changes), 1)[1]["penalty"]))
    slope = np.sqrt(costs[0])
    assert 0 < slope < 3
    assert costs[1] > (3 - slope) ** 2 * 0.5  # of slopes around this one
    assert "penalty.target is 2.0, but r1_r2 has no target" in refusal(shrunk, {"penalty.target": 2.0})


def test_an_optimiser_of_optax(shrunk, monkeypatch):
    def lion(
        b1: optimizers.Momentum = 0.5,
        b2: optimizers.SquareDecay = 0.999,
        dither: Annotated[int, COUNT, "unused"] = 0,
    ):
        return optax.scale_by_lion(b1, b2)

    monkeypatch.setitem(optimizers.OPTIMIZERS, "lion", lion)
    rate = {"generator.optimizer.learning_rate": 0.25, "generator.optimizer.decay_to": 1.0}
    setup = built(shrunk, {"generator.optimizer.name": "lion"} | rate)
    before = recipe.initial_state(setup)
    after, _ = trained(setup, 1)
    moved = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.abs(x - y), after.generator.params, before.generator.params))
    sizes = np.unique(np.concatenate([x.ravel() for x in moved]).round(4))
    assert_allclose(sizes, [0, 0.25])  # Lion moves by the sign of the gradient, which a dead ReLU has not


def test_a_move(shrunk, monkeypatch):
    def generator_first(recipe, devices, numbers, keys, state, batch, twice: Annotated[int, COUNT, "G moves"] = 1):
        real = jax.tree.map(lambda x: x[0], batch)
        for i in range(twice):
            state, of_g = step.generator_step(
                recipe, devices, state, real, jax.random.fold_in(keys.generator, i), numbers
            )
        state, of_d = step.discriminator_step(recipe, devices, state, real, keys.discriminator, numbers)
        return state, of_d | of_g

    monkeypatch.setitem(step.MOVES, "generator_first", Move(generator_first))
    assert schema.default_config().generator_first.twice == 1
    setup = built(shrunk, {"moves": "generator_first", "generator_first.twice": 2})
    state, _ = trained(setup, 3)
    counts = [leaf for leaf in jax.tree.leaves(state.generator.opt_state) if leaf.dtype == jnp.int32]
    assert {int(count) for count in counts} == {6}  # two updates of G a step
    assert int(state.step) == 3


# --- a network family, a data set, a score -------------------------------------------------------------------------


class Linear(nn.Module):
    """Latents or examples -> an affine map of them; `bias_scale` multiplies its shift."""

    shape: tuple[int, ...] = ()
    width: Width = 128
    bias_scale: Annotated[float, NON_NEGATIVE, "of the shift"] = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        """x [n, d] -> [n, *shape]."""
        size = int(np.prod(self.shape))
        y = x.reshape(len(x), -1) @ self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], size))
        return (y + self.bias_scale * self.param("bias", nn.initializers.ones, (size,))).reshape(len(x), *self.shape)


def test_a_network_family(shrunk, monkeypatch):
    family = networks.Family(Linear, Linear)
    monkeypatch.setitem(networks.FAMILIES, "linear", family)
    setup = built(shrunk, {"generator.network": "linear", "generator.bias_scale": 3.0})
    state, _ = trained(setup)
    assert set(state.generator.params) == {"kernel", "bias"}
    zero = setup.recipe.generator.apply(recipe.initial_state(setup).generator.params, {}, jnp.zeros((4, 2)), False)[0]
    assert_array_equal(zero, np.full((4, 2), 3.0))
    message = refusal(shrunk, {"generator.network": "linear", "generator.normalization": "batch"})
    assert (
        "normalization is 'batch', but linear has no normalization; set it to 'none', or generator.network" in message
    )
    assert "which has no use for labels" in refusal(
        shrunk, {"generator.network": "linear", "conditional": True, "data.name": "digits"}
    )


def triangle(radius: Annotated[float, POSITIVE, "of the triangle"] = 1.0):
    """Three Gaussians on a circle."""
    angles = 2 * np.pi * np.arange(3) / 3
    return mixture(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), 0.01)


def test_a_data_set(shrunk, monkeypatch):
    monkeypatch.setitem(data.SOURCES, "triangle", triangle)
    setup = built(shrunk, {"data.name": "triangle", "data.radius": 5.0})
    assert_allclose(np.linalg.norm(setup.source.modes.centers, axis=1), 5)
    trained(setup)
    assert "data.radius is 2.0, but ring8 has no radius" in refusal(shrunk, {"data.radius": 2.0})


def test_a_score(shrunk, monkeypatch):
    spread = comparison.Metric(comparison.Need.SAMPLES, comparison.LOWER, lambda x: float(np.std(x.samples)))
    monkeypatch.setitem(comparison.SCORES, "spread", spread)
    source = mixture(np.zeros((1, 2)), 1.0)
    samples = np.float32([[1, 1], [-1, -1]] * 8)
    assert data_scores(source, samples, jax.random.key(0))["spread"] == 1.0
    assert comparison.better("none", source)["spread"] == comparison.LOWER
    setup = built(shrunk, {"evaluation.best": "spread", "evaluate_every": 2})
    assert setup.config.evaluation.best == "spread"


# --- keys ----------------------------------------------------------------------------------------------------------


def test_keys_are_the_annotated_parameters_with_their_ends():
    def part(x, a: Annotated[float, POSITIVE, "of a", SCHEDULED] = 2.0, b: Annotated[int, COUNT] = 0, c: int = 3):
        return x

    keys = keys_of(part)
    assert list(keys) == ["a", "a_to", "b"]
    assert [key.default for key in keys.values()] == [2.0, 0.0, 0]
    assert [key.traced for key in keys.values()] == [True, True, False]
    assert keys["a"].text == "of a"

    def without(a: Annotated[float, POSITIVE]):
        return a

    with pytest.raises(TypeError, match=r"the config key a of .*without has no default"):
        keys_of(without)

    def other(a: Annotated[float, POSITIVE] = 1.0):
        return a

    with pytest.raises(TypeError, match=r"other has another default, range or mark of a than the parts before it"):
        union({"part": part, "other": other})


def test_a_scheduled_number_has_its_course(shrunk, monkeypatch):
    def scaled(critic, keys, real, fake, target: Annotated[float, NON_NEGATIVE, "", SCHEDULED] = 1.0):
        return jnp.full(len(real), target)

    monkeypatch.setitem(penalties.PENALTIES, "scaled", scaled)
    changes = {"penalty.name": "scaled", "penalty.target": 2.0, "penalty.target_to": 6.0, "num_steps": 4, "burn_in": 4}
    setup = built(shrunk, changes)
    state, paid = recipe.initial_state(setup), []
    run = jax.jit(partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1))
    for _ in range(4):
        state, metrics = run(state, setup.source.data)
        paid.append(float(metrics["penalty"][0]))
    share = (1 - np.cos(np.pi * np.arange(4) / 4)) / 2
    assert_allclose(paid, 2 + 4 * share, rtol=1e-5)


def test_a_config_of_before_is_completed(shrunk, monkeypatch):
    old = shrunk("mixture", "ring8").to_dict()
    del old["discriminator"]["lecam"], old["augment"], old["moves"]
    assert schema.completed(old).to_dict() == shrunk("mixture", "ring8").to_dict()
    monkeypatch.setitem(schema.AS_IT_WAS, "moves", "simultaneous")
    monkeypatch.setitem(schema.RENAMED, "penalty.strength", "penalty.weight")
    old["penalty"]["strength"] = old["penalty"].pop("weight")
    assert schema.completed(old).moves == "simultaneous"
    assert schema.completed(old).penalty.weight == shrunk("mixture", "ring8").penalty.weight
    with pytest.raises(InputError, match=r"unknown config key penalty.weigth; did you mean penalty.weight\?"):
        schema.completed(old | {"penalty": {"weigth": 1.0}})


def test_a_key_that_a_run_lacks_has_the_default_that_it_had_then():
    """defaults.json: those of commit 9afd216, when configs/base.py had them, with all keys of the versions before it.

    A later key is off in its runs. One without health_every is from before health was measured.
    """
    then = json.loads((Path(__file__).parent / "defaults.json").read_text())
    now = schema.flatten(schema.completed({}).to_dict())
    assert {key: now[key] for key in then} == then | {"health_every": 0}
    assert schema.completed(schema.nested(then).to_dict()).health_every == then["health_every"] == 500
