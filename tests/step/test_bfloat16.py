"""Training in bfloat16: what stays float32, and how near it stays to training in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import small
from helpers.rounding import DESCENT, norm

from gan_jax import recipe, step
from gan_jax.networks import FAMILIES, from_linen
from gan_jax.parallel.devices import mesh

STEPS = 4
NEAR = 0.1  # of the move of a player's parameters, relative to its size; bfloat16 rounds at 0.004
BOTH = ("generator", "discriminator")
MINIBATCH = {
    "discriminator.minibatch_stddev": 2,
    "discriminator.minibatch_discrimination": 3,
    "discriminator.minibatch_group": 4,
}
SPECTRAL = {f"{player}.spectral_norm": True for player in BOTH}
ATTENTION = {f"{player}.attention": 4 for player in BOTH}
PENALTY = {"penalty.name": "r1_r2", "penalty.weight": 0.1}
CONDITIONAL = {"conditional": True}


def normalised(generator, discriminator):
    return {"generator.normalization": generator, "discriminator.normalization": discriminator}


# Between them every network, normalisation and option. All descend plainly, with momentum, whose state is a gradient's:
# Adam's first step is the sign of a gradient, however small.
CASES = {
    "mlp": ("digits", normalised("batch", "layer") | MINIBATCH | CONDITIONAL | {"objective.feature_matching": 0.1}),
    "mlp, packs": ("digits", normalised("layer", "group") | PENALTY | {"discriminator.packing": 2}),
    "dcgan": ("dcgan", normalised("group", "batch") | ATTENTION | SPECTRAL),
    "dcgan, plain": ("dcgan", normalised("none", "none") | {"accumulate": 2, "batch_size": 16}),
    "r3gan": ("r3gan", CONDITIONAL | {f"{player}.optimizer.b2_to": 0.0 for player in BOTH}),
    "resnet": ("sngan", normalised("batch", "layer") | ATTENTION | CONDITIONAL),
}
# Of a seed with which what the examples say of G does not nearly cancel: else the little that is left is all rounding.
SEED = 2
# Learning rates so small that a step is lost where parameters are rounded to bfloat16, and not in float32: those of a
# dcgan are near 0.02. The others would only take longer to compile.
TRAINED = {"mlp": 3e-4, "dcgan": 3e-5}


def build(shrunk, case, precision):
    name, changes = CASES[case]
    rates = {f"{player}.optimizer.learning_rate": TRAINED.get(case, 0.1) for player in BOTH}
    rates |= {"discriminator.steps": 1, "steps_per_call": 1, "seed": SEED}
    changes = DESCENT | rates | changes | {"precision": precision}
    return recipe.build(shrunk(name, None, changes), mesh(jax.devices()[:1]))


def of_a_step(setup):
    return partial(step.train_steps, setup.recipe, setup.devices, setup.source, 1)


def kinds(tree):
    """The dtypes of what is a number with a fraction in it."""
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize("case", CASES)
def test_parameters_statistics_optimisers_and_losses_are_float32(shrunk, case):
    setup = build(shrunk, case, "bfloat16")
    state = recipe.abstract_state(setup)
    program, (after, metrics) = jax.make_jaxpr(of_a_step(setup), return_shape=True)(state, setup.source.data)
    assert kinds(state) == kinds(after) == kinds(metrics) == {"float32"}
    assert "bf16" in str(program)  # or nothing is computed in it


def compiled(setup):
    """(a state to begin with, the data, the program of a step that leaves its state alone)."""
    state = recipe.initial_state(setup)
    # The first samples are so alike that bfloat16 hardly tells them apart, which minibatch layers are there to do.
    state = state.replace(generator=scaled(state.generator, 4))
    return state, setup.source.data, jax.jit(of_a_step(setup))


def train(state, data, program, rounded=False):
    """What STEPS steps of training move, of each player; `rounded`: parameters are rounded to bfloat16 after each."""
    before = parameters(state)
    for _ in range(STEPS):
        state, metrics = program(state, data)
        if rounded:
            players = {player: coarse(getattr(state, player)) for player in BOTH}
            state = state.replace(**players)
    assert all(np.isfinite(value).all() for value in metrics.values())
    return jax.tree.map(np.subtract, parameters(state), before)


def scaled(player, factor):
    """The player with so many times its parameters."""
    return player.replace(params=jax.tree.map(lambda x: factor * x, player.params))


def coarse(player):
    """The player with parameters that bfloat16 has."""
    return player.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), player.params))


def parameters(state):
    return jax.tree.map(np.array, {player: getattr(state, player).params for player in BOTH})


def errors(actual, expected):
    """Of each player's move, relative to its size."""
    return [
        norm(jax.tree.map(np.subtract, actual[player], expected[player])) / norm(expected[player]) for player in BOTH
    ]


@pytest.mark.parametrize("case", TRAINED)
def test_training_follows_float32(shrunk, case):
    """And would not, if its parameters were of bfloat16 too: most of each step is then rounded away."""
    expected, coarser = train(*compiled(build(shrunk, case, "float32"))), compiled(build(shrunk, case, "bfloat16"))
    near, far = errors(train(*coarser), expected), errors(train(*coarser, rounded=True), expected)
    assert min(near) > 1e-5  # or nothing was computed in bfloat16
    assert max(near) < NEAR
    assert min(far) > 2 * NEAR


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_not_rounded_to_bfloat16(family):
    """Or the difference of two logits near 10, which a relativistic loss sees, would be right to 0.06 at best."""
    network = from_linen(small(FAMILIES[family].discriminator, depth=1, dtype=jnp.bfloat16, classes=3), "default")
    label = np.arange(8) % 3
    x = np.random.default_rng(0).standard_normal((8, 8, 8, 1)).astype(np.float32)
    rng, shapes = np.random.default_rng(1), jax.eval_shape(network.init, jax.random.key(0), x, label)
    params, stats = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    logits = jax.jit(network.apply, static_argnums=3)(params, stats, x, True, label)[0]
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))
