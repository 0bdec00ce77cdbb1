"""Taking arrays by path and shape; and layers of D that stay as they are, bit for bit, under every rule of the step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import small
from numpy.testing import assert_array_equal

from gan_jax import recipe, step
from gan_jax.networks import FAMILIES, from_linen
from gan_jax.networks.network import layers
from gan_jax.parallel.devices import mesh
from gan_jax.step.transfer import by_module, transferred
from gan_jax.utils.errors import InputError


def test_arrays_are_taken_by_path_shape_and_dtype():
    new = {"a": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "b": [jnp.zeros(4), jnp.zeros(5, jnp.int32)]}
    old = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(2)}, "b": [jnp.ones(4), jnp.ones(5)], "c": jnp.ones(7)}
    tree, rows = transferred(new, old)
    expected = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "b": [jnp.ones(4), jnp.zeros(5, jnp.int32)]}
    jax.tree.map(assert_array_equal, tree, expected)
    assert {"/".join(row.path) for row in rows if row.taken} == {"a/kernel", "b/0"}
    assert str(rows[-1]) == "c is missing here, float32[7] there"
    table = by_module(row._replace(path=("params", *row.path)) for row in rows)
    assert [(line["module"], line["taken"], line["of"]) for line in table] == [("a", 6, 9), ("b", 4, 9), ("c", 0, 0)]
    assert "bias is float32[3] here, float32[2] there" in table[0]["why"]
    assert by_module(transferred({"params": jnp.zeros(2)}, {"params": jnp.ones(2)})[1])[0]["taken"] == 2


# Of each family the modules of D by layer, where `small` has two hidden layers or halvings.
LAYERS = {
    "mlp": ["Hidden_0/Dense_0 Hidden_0/Normalize_0", "Hidden_0/Dense_1 Hidden_0/Normalize_1", "Dense_0 Projection_0"],
    "dcgan": ["StridedConv_0", "StridedConv_1 Normalize_1", "Dense_0 Projection_0"],
    "resnet": ["Block_0", "Block_1", "Block_2", "Block_3", "Dense_0 Projection_0"],
    "r3gan": ["Conv_0", "Block_0", "Block_1", "Block_2", "kernel", "Dense_0 Projection_0"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_numbered_from_the_image_on(name):
    network = from_linen(small(FAMILIES[name].discriminator, normalization="layer", classes=3), "default")
    numbers = layers(network, jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32))
    by_layer = [[] for _ in range(max(numbers.values()) + 1)]
    for module, number in numbers.items():
        by_layer[number].append("/".join(module))
    assert [" ".join(modules) for modules in by_layer] == LAYERS[name]


DECAYED = {"discriminator.optimizer.name": "adamw", "discriminator.optimizer.weight_decay": 0.1, "accumulate": 3}
MLP = DECAYED | {"discriminator.network": "mlp", "discriminator.normalization": "batch", "discriminator.clip": 0.05}
CASES = {
    move: MLP | {"moves": move, "discriminator.clip": clip}
    for move, clip in {"alternating": 0.05, "extragradient": 0.0}.items()
}
CASES["consensus"] = MLP | {"moves": "consensus", "consensus.weight": 0.1, "accumulate": 1}
CASES["pmap"] = CASES["alternating"] | {"parallel": "pmap"}
CASES["spectral"] = DECAYED | {"discriminator.network": "dcgan", "discriminator.spectral_norm": True}
FROZEN = {"mlp": "Hidden_0/Dense_0 Hidden_0/Normalize_0", "dcgan": "StridedConv_0"}


@pytest.mark.parametrize("case", CASES)
def test_frozen_layers_keep_their_bits_and_the_others_move(shrunk, case):
    """Under weight decay, clipping, batch statistics averaged over three micro-batches, and vectors of the norm."""
    changes = {"batch_size": 12, "steps_per_call": 2, "discriminator.depth": 2, "discriminator.freeze": 1}
    config = shrunk("digits", None, changes | CASES[case])
    setup = recipe.build(config, None if case == "pmap" else mesh(jax.devices()[:1]))
    state = recipe.initial_state(setup)
    before = of_player(state.discriminator)
    advance = setup.devices.compile(
        partial(step.train_steps, setup.recipe, setup.devices, setup.source, 2), state, setup.source.data
    )
    after = of_player(advance(state, setup.source.data)[0].discriminator)
    names = FROZEN[config.discriminator.network].split()
    frozen = {path for path in before if any(f"/{name}/" in path for name in names)}
    assert {path.split("/")[0] for path in frozen} == {"params", "stats"}
    before.pop("stats/vectors/Dense_0/kernel", None)  # a unit vector of one number
    for path in before:
        assert np.array_equal(after[path], before[path]) == (path in frozen), path


def of_player(player):
    return by_path({"params": player.params, "stats": player.stats})


def by_path(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def test_the_gradient_that_is_clipped_and_reported_is_of_what_moves(shrunk):
    """|grad|^2 over all of D is that over what moves, and the rest."""
    norms = {}
    for freeze in (0, 1):
        config = shrunk("digits", None, {"discriminator.freeze": freeze})
        setup = recipe.build(config, mesh(jax.devices()[:1]))
        state = recipe.initial_state(setup)
        batch = step.draw_batches(setup.recipe, setup.devices, setup.source, state, setup.source.data)
        real = jax.tree.map(lambda x: x[0], batch)
        gradient, _ = step.discriminator_gradient(
            setup.recipe, setup.devices, setup.recipe.schedule(state.hyperparameters, 0), state, real, jax.random.key(0)
        )
        norms[freeze] = {path: np.linalg.norm(x) for path, x in by_path(gradient).items()}
    for path, norm in norms[1].items():
        assert norm == (0 if path.startswith("Hidden_0/Dense_0/") else pytest.approx(norms[0][path], rel=1e-5)), path


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"discriminator.freeze": 3}, "mlp has 3 layers here, and the last one moves; set it to 2 or less"),
        (
            {"data.name": "ring8", "discriminator.network": "helpers.own_parts:NoisyDiscriminator"},
            "is no Linen module, whose layers have an order; set it to 0",
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused(shrunk, changes, line):
    with pytest.raises(InputError, match=f"discriminator.freeze is .*{line}"):
        recipe.build(shrunk("digits", None, {"discriminator.freeze": 1} | changes))
