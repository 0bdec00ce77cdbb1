"""Parts handed to `gan_jax.build`: as good as named ones, and one line where they are not what they should be."""

import sys
from typing import Annotated

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import ROOT  # noqa: F401  sets up the devices before JAX starts
from flax import linen as nn
from flax import nnx
from helpers.toys import assert_all_moved, assert_close, one_device
from numpy.testing import assert_allclose

import gan_jax
from gan_jax import step
from gan_jax.config import schema
from gan_jax.config.build import initial_state
from gan_jax.objectives import OBJECTIVES, separable, softplus
from gan_jax.runs import workdirs
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import POSITIVE, TRACED


def soft_hinge(margin: Annotated[float, POSITIVE, "logit at which an example costs nothing", TRACED] = 1.0):
    return separable(lambda a: softplus(margin - a), lambda b: softplus(margin + b), lambda b: -b, lambda loss: -loss)


def built(shrunk, changes=None, **parts):
    """A small setup of adam and no penalty, but for `changes` {dotted key: value} and these parts."""
    rates = {f"{player}.optimizer.learning_rate": 2e-4 for player in ("generator", "discriminator")}
    decays = {f"{player}.optimizer.decay_to": 1.0 for player in ("generator", "discriminator")}
    plain = rates | decays | {"penalty.name": "none", "penalty.weight": 0.0}
    return gan_jax.build(shrunk("mixture", "ring8", plain | (changes or {})), one_device(), **parts)


def after(setup, steps=2):
    """The state after a few steps."""
    run = jax.jit(lambda state: step.train_steps(setup.recipe, setup.devices, setup.source, steps, state, ()))
    return run(initial_state(setup))[0]


def test_what_is_handed_over_takes_the_same_steps_as_what_is_named(shrunk):
    adam = optax.chain(optax.scale_by_adam(0.0, 0.99), optax.scale_by_learning_rate(2e-4))
    by_hand = built(
        shrunk,
        {"penalty.weight": 0.5},
        objective=OBJECTIVES["hinge"],
        penalty=lambda critic, keys, real, fake: gan_jax.penalties.r1(critic, keys, real, fake),
        generator_optimizer=adam,
        discriminator_optimizer=lambda: optax.scale_by_adam(0.0, 0.99),  # which the config's rate scales
        move=lambda *arguments: step.MOVES["alternating"].take(*arguments),
        prior=lambda keys: jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys),
    )
    named = built(shrunk, {"objective.name": "hinge", "penalty.name": "r1", "penalty.weight": 0.5})
    actual, expected = after(by_hand), after(named)
    for player in ("generator", "discriminator"):
        assert_close(getattr(actual, player).params, getattr(expected, player).params)


def test_a_part_that_can_be_imported_is_named_by_its_path(shrunk):
    by_hand, named = built(shrunk, objective=soft_hinge), built(shrunk, objective=f"{__name__}:soft_hinge")
    assert by_hand.config.objective.name == f"{__name__}:soft_hinge"
    assert by_hand.config.to_dict() == named.config.to_dict()
    again = gan_jax.build(by_hand.config, one_device())
    assert again.config.to_dict() == by_hand.config.to_dict()


def test_parts_that_differ_have_names_that_differ(shrunk):
    def at(value):
        return lambda keys: jnp.full((len(keys), 2), value)

    names = [built(shrunk, prior=at(value)).config.latent.prior for value in (0.0, 1.0, 0.0)]
    assert names[0] == names[2] != names[1]
    parts = [{"discriminator": Line(nnx.Rngs(seed))} for seed in (0, 1, 0)]
    names = [built(shrunk, {"objective.name": "hinge"}, **part).config.discriminator.network for part in parts]
    assert names[0] == names[2] != names[1]
    names = [built(shrunk, generator_optimizer=optax.sgd(rate)).config.generator.optimizer.name for rate in (0.1, 0.2)]
    assert names[0] != names[1]


def test_a_part_that_cannot_be_imported_has_its_keys(shrunk):
    def local(margin: Annotated[float, POSITIVE, "of a notebook", TRACED] = 3.0):
        return soft_hinge(margin)

    setup = built(shrunk, objective=local)
    assert setup.config.objective.margin == 3.0
    changed = setup.config.copy_and_resolve_references().unlock()
    changed.objective.margin = 0.5
    numbers = gan_jax.build(changed.lock(), one_device()).hyperparameters
    assert_allclose(numbers["objective.margin"], 0.5)


def test_a_run_with_a_part_that_lies_in_no_file_says_how_it_is_used(shrunk, tmp_path, monkeypatch):
    setup = built(shrunk, {"sample_every": 0}, prior=lambda keys: jnp.zeros((len(keys), 2)))
    assert gan_jax.train(setup, str(tmp_path))
    assert workdirs.read_config(tmp_path).to_dict() == setup.config.to_dict()
    module, _, name = setup.config.latent.prior.partition(":")
    monkeypatch.delattr(sys.modules[module], name)  # as in another process
    with pytest.raises(
        InputError, match=r"config.json: by_hand.prior:\w+ was handed over .*build\(config, prior=\.\.\."
    ):
        workdirs.read_config(tmp_path)


class Shift(nn.Module):
    """Latents, moved."""

    size: int = 2

    @nn.compact
    def __call__(self, z):
        return z[:, : self.size] + self.param("shift", nn.initializers.ones, (self.size,))


class Line(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(x)[:, 0]


def zeros(key, x):
    return {"w": jnp.zeros(2)}


@pytest.mark.parametrize(
    "parts",
    [
        {"generator": Shift(), "discriminator": Line},
        {"generator": Shift(2), "discriminator": Line(nnx.Rngs(0))},
        {"discriminator": (zeros, lambda params, x: x @ params["w"])},
    ],
    ids=["linen_and_class_of_nnx", "module_of_nnx", "pair"],
)
def test_networks_by_hand_learn(shrunk, parts):
    setup = built(shrunk, {"objective.name": "hinge"}, **parts)
    start, end = initial_state(setup), after(setup)
    for player in parts:
        assert_all_moved(getattr(end, player).params, getattr(start, player).params)
    names = [setup.config[player].network for player in parts]
    again = built(shrunk, {"objective.name": "hinge"}, **parts)
    assert [again.config[player].network for player in parts] == names


def test_a_network_by_hand_that_takes_labels_may_be_conditional(shrunk):
    by_label = (
        lambda key, x, label: {"w": jnp.ones(10)},
        lambda params, x, label: params["w"][label] * x.sum((1, 2, 3)),
    )
    config = shrunk("digits", None, {"conditional": True, "discriminator.normalization": "none"})
    parts = {"discriminator": by_label, "generator": "dcgan"}
    assert gan_jax.build(config, one_device(), **parts).recipe.conditional
    unlabelled = (zeros, lambda params, x: x.sum((1, 2, 3)))
    with pytest.raises(InputError, match=r"conditional is True .* one which has no use for labels"):
        gan_jax.build(config, one_device(), **parts | {"discriminator": unlabelled})


def failing_penalty(critic, keys, real, fake):
    return jnp.ones(3) + jnp.ones(4)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"objective": lambda: 3}, "is a function that returns a int, not an Objective"),
        (
            {"objective": OBJECTIVES["hinge"]._replace(discriminator=lambda a, b: a[:, None] - b)},
            r"objective.name is by_hand.objective:Objective_\w+: it gives \[2, 2\], and must give \[2\]",
        ),
        ({"prior": lambda keys: jnp.zeros(len(keys))}, r"latent.prior is .*: it gives \[2\], and must give \[2, d\]"),
        ({"penalty": failing_penalty}, r"penalty.name is .*: it fails: TypeError: .*\(test_by_hand.py, line \d+\)"),
        (
            {"generator": Shift(1)},
            r"generator.network is by_hand.generator:Shift_\w+: it gives \[2, 1\], and must give \[2, 2\]",
        ),
        (
            {"discriminator": (zeros, lambda params, x: x @ params["v"])},
            r"discriminator.network is .*:tuple_\w+: it fails: KeyError: 'v' \(test_by_hand.py, line",
        ),
        ({"generator": 3}, r"by_hand.generator:int_\w+ is a int, not a function or a class"),
        ({"penalty": 3}, "is a int, not a function or a class"),
        ({"move": lambda r, d, n, k, state, batch: (state, {"d_loss": jnp.zeros(())})}, "metrics lack g_loss, max_lo"),
        ({"generator_optimizer": lambda: 3}, "a step of this config fails: "),
    ],
)
def test_a_mistake_is_one_line(shrunk, parts, words):
    changes = {"penalty.weight": 1.0} if "penalty" in parts else {}
    with pytest.raises(InputError, match=words) as raised:
        built(shrunk, changes, **parts)
    assert "\n" not in str(raised.value)


def test_an_optimiser_with_its_rate_leaves_none_to_the_config(shrunk):
    with pytest.raises(
        InputError, match=r"learning_rate is 0\.01: it is a whole transformation, with a rate of its own"
    ):
        built(shrunk, {"generator.optimizer.learning_rate": 0.01}, generator_optimizer=optax.sgd(0.1))


def test_a_source_that_is_handed_over_is_named_as_such(shrunk):
    source = built(shrunk).source._replace(modes=None)
    setup = built(shrunk, source=source)
    assert setup.config.data.name == "by_hand.source:Source"
    assert setup.source is source
    assert schema.completed(setup.config.to_dict()).to_dict() == setup.config.to_dict()
