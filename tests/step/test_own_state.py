"""What parts of one's own add to a step: G's penalty, a state that is kept, metrics, and optimisers of optax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.own_parts import DECAY
from helpers.toys import numbers, one_device, toy_recipe, toy_state
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.config import schema
from gan_jax.penalties import mode_seeking
from gan_jax.step.optimizers import make_optimizer, note
from gan_jax.utils.errors import InputError

OWN = "helpers.own_parts:"
PAYS_FOR_D = {"generator__penalty__name": OWN + "pays_for_d", "generator__penalty__weight": 1.0}


def built(shrunk, **changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = shrunk("mixture", "ring8", {"penalty.name": "none", "penalty.weight": 0.0})
    config = schema.with_own_keys(config, changes).copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return recipe.build(config, one_device())


def trained(setup, steps):
    """(the last state, metrics {name: [steps]})."""
    train = partial(step.train_steps, setup.recipe, setup.devices, setup.source, steps)
    return jax.jit(train)(recipe.initial_state(setup), ())


def test_mode_seeking_is_the_inverse_of_how_far_images_move_with_their_latents():
    keys = jax.random.split(jax.random.key(0), 5)
    prior = jax.vmap(lambda key: jax.random.normal(key, (3,)))
    latents = jax.random.normal(jax.random.key(1), (5, 3))
    for scale in (0.5, 4.0):
        values = mode_seeking(lambda z, scale=scale: scale * z, keys, latents, scale * latents, prior, jnp.mean)
        assert_allclose(values, np.full(5, 1 / (scale + 1e-5)), rtol=1e-5)


def test_gs_penalty_is_a_term_of_gs_loss_alone():
    """G(z) = z + c, and a penalty c^2 of weight w: G descends 2 w c more, and D what it did."""

    def squared(generate, keys, latents, fake):
        return jnp.sum(jnp.square(generate(latents) - latents), axis=1)

    plain = toy_recipe()
    fined = plain._replace(generator_penalty=lambda numbers: squared)
    state = toy_state(plain, numbers())
    state = state.replace(generator=state.generator.replace(params={"c": jnp.array([0.5])}))
    batch = {"image": jnp.ones((1, 4, 1))}
    ends = {}
    for name, of in (("plain", plain), ("fined", fined)):
        start = state.replace(hyperparameters=state.hyperparameters | {"generator.penalty.weight": jnp.float32(3.0)})
        ends[name], metrics = step.train_step(of, one_device(), start, batch)
    rate = state.hyperparameters["generator.optimizer.learning_rate"]
    moved = ends["fined"].generator.params["c"] - ends["plain"].generator.params["c"]
    assert_allclose(moved, -rate * 3.0 * 2 * 0.5, rtol=1e-5)
    assert_allclose(metrics["g_penalty"], 0.25, rtol=1e-6)
    assert_array_equal(ends["fined"].discriminator.params["w"], ends["plain"].discriminator.params["w"])


@pytest.mark.parametrize("every", [1, 2])
def test_what_a_penalty_keeps_follows_what_it_reports(shrunk, every):
    setup = built(shrunk, penalty__name=OWN + "centred_r1", penalty__weight=0.1, penalty__every=every)
    state, metrics = trained(setup, 4)
    average, paid = 1.0, np.arange(1, 5) % every == 0
    for slope in np.asarray(metrics["slope"])[paid]:
        average = DECAY * average + (1 - DECAY) * slope
    assert_allclose(state.own["penalty"], average, rtol=1e-5)
    assert_array_equal(np.asarray(metrics["slope"]) > 0, paid)


def test_noise_goes_with_its_example_into_a_micro_batch(shrunk):
    """As in one batch, up to rounding: of an example its latent, its dropout and its penalty's points."""
    noisy = {"discriminator__network": OWN + "NoisyDiscriminator", "penalty__name": "wgan_gp", "penalty__weight": 1.0}
    (_, whole), (_, parts) = (trained(built(shrunk, **noisy, accumulate=count), 2) for count in (1, 2))
    for name in ("d_loss", "g_loss", "penalty"):
        assert_allclose(parts[name], whole[name], rtol=1e-4)


def test_a_move_keeps_a_state_of_its_own(shrunk):
    state, _ = trained(built(shrunk, moves=OWN + "counting"), 3)
    assert state.own["moves"] == 3


def test_runs_without_such_parts_have_no_such_state(shrunk):
    assert trained(built(shrunk), 1)[0].own is None


def test_an_objective_reports_metrics_also_beside_one_that_does_not(shrunk):
    names = [OWN + "reporting", "wgan"]
    alone, _ = (trained(built(shrunk, objective__name=name), 2)[1] for name in names)
    assert (alone["gap"] > 0).all()
    setup, population = recipe.merge_setups([built(shrunk, objective__name=name) for name in names])
    state = recipe.initial_state(setup)
    for i, expected in enumerate((alone["gap"], np.zeros(2))):
        own = state.replace(hyperparameters=jax.tree.map(lambda x, i=i: x[i], population))
        train = partial(step.train_steps, setup.recipe, setup.devices, setup.source, 2)
        assert_allclose(jax.jit(train)(own, ())[1]["gap"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"objective__name": OWN + "clashing"}, "g_loss"),
        ({"objective__name": OWN + "gaps"}, "gap"),
        (PAYS_FOR_D, "d_loss"),
        (PAYS_FOR_D | {"moves": "simultaneous"}, "d_loss"),
    ],
)
def test_a_metric_of_a_taken_name_is_refused(shrunk, changes, metric):
    with pytest.raises(InputError, match=f"reports the metric {metric}, which there is already"):
        built(shrunk, **changes)


def test_gs_penalty_sees_g_with_the_noise_of_its_images(shrunk):
    changes = {"generator__network": OWN + "NoisyGenerator", "generator__penalty__name": OWN + "moved"}
    _, metrics = trained(built(shrunk, generator__penalty__weight=1.0, **changes), 1)
    assert_allclose(metrics["g_penalty"], 0, atol=1e-5)


GRADIENTS = jax.random.normal(jax.random.key(1), (6, 30))


def followed(tx):
    """Where the parameters are after each of GRADIENTS: [6, 30]."""

    def body(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), params

    params = jnp.ones(30)
    return jax.lax.scan(body, (params, tx.init(params)), GRADIENTS)[1]


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("lion", {"b1": 0.9, "b2": 0.99}, lambda rate: optax.lion(rate, b1=0.9, b2=0.99, weight_decay=0.0)),
        ("adagrad", {"initial_accumulator_value": 0.3}, lambda rate: optax.adagrad(rate, 0.3)),
        ("nadam", {"b1": 0.9, "eps": 1e-3}, lambda rate: optax.nadam(rate, b1=0.9, eps=1e-3)),
        ("yogi", {"b1": 0.9}, lambda rate: optax.yogi(rate)),
        ("optax.contrib:ademamix", {"b1": 0.9, "alpha": 2.0}, lambda rate: optax.contrib.ademamix(rate, alpha=2.0)),
        ("adam", {"eps": 1e-2}, lambda rate: optax.adam(rate, b1=0.5, eps=1e-2)),
    ],
)
@pytest.mark.parametrize("decay_to", [1.0, 0.1])
def test_an_optimiser_of_optax_is_optaxs_with_traced_numbers(name, own, expected, decay_to):
    config = schema.with_own_keys(schema.default_config(), {"generator.optimizer.name": name}).generator.optimizer
    config.update(name=name, decay_to=decay_to, **own)
    of_numbers = make_optimizer("opt", config, 6, 1)

    @jax.jit
    def ours(traced):
        return followed(of_numbers({f"opt.{key}": value for key, value in traced.items()}))

    values = config.to_dict() | {"learning_rate": 1e-2}
    path = ours({key: values[key] for key in ("learning_rate", "b1", "b2", *own) if key != "eps"})
    rate = 1e-2 if decay_to == 1 else optax.cosine_decay_schedule(1e-2, 6, alpha=decay_to)
    assert_allclose(path, jax.jit(lambda: followed(expected(rate)))(), rtol=1e-4, atol=1e-5)


def test_an_optimiser_of_ones_own_has_its_keys_also_from_annotations_that_are_texts():
    rule = schema.table({"generator.optimizer.name": OWN + "annotated"})["generator.optimizer.decay"].rule
    assert rule.words == "a number from 0 to 1, 1 excluded"


def test_a_number_by_which_an_optimiser_decides_is_no_array(shrunk):
    setup = built(shrunk, **{"generator.optimizer.name": OWN + "deciding", "generator.optimizer.decay": 0.0})
    assert "generator.optimizer.decay" not in setup.hyperparameters
    assert "generator.optimizer.decay" not in schema.varying(schema.flatten(setup.config.to_dict()))


def test_the_keys_that_all_optimisers_share_have_one_default_and_a_line_says_so():
    config = schema.with_own_keys(schema.default_config(), {"generator.optimizer.name": "adan"}).generator.optimizer
    config.name = "adan"
    assert config.b1 == 0.5
    assert "adan has this project's b1 0.5 (0.98), b2 0.999 (0.92)" in note("generator.optimizer", config)
    assert note("generator.optimizer", schema.default_config().generator.optimizer) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "lbfgs"}, "lbfgs fails: TypeError: .*value_fn"),
        ({"name": "lyon"}, "it must be one of adam, .*any of optax"),
        ({"name": "Schedule"}, "it must be one of adam, .*any of optax"),
        ({"name": "noisy_sgd"}, "it must be one of adam, .*any of optax"),
        ({"name": "lion", "eps": 1e-3}, "lion has no eps"),
        ({"name": "sm3", "decay_to": 0.1}, "sm3 with a rate that changes, by decay_to or warmup, fails"),
    ],
)
def test_an_optimiser_that_cannot_be_is_one_line(shrunk, changes, words):
    with pytest.raises(InputError, match=words):
        recipe.initial_state(built(shrunk, **{f"generator.optimizer.{key}": value for key, value in changes.items()}))
