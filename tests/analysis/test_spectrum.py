"""The game's field and its spectrum: against dense Jacobians, closed forms, and the training step itself."""

import json
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.toys import numbers, toy_recipe, toy_state
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose
from PIL import Image
from scipy.sparse.linalg import LinearOperator

from gan_jax import penalties, recipe, step
from gan_jax.analysis import spectrum
from gan_jax.analysis.spectrum import spectrum_of_run, summary
from gan_jax.data import independent
from gan_jax.networks import Network
from gan_jax.parallel.devices import example_keys, mesh
from gan_jax.step.state import TrainState
from gan_jax.theory.dirac import Game as DiracGame
from gan_jax.theory.dirac import vector_field as dirac_field
from gan_jax.utils.errors import InputError
from gan_jax.utils.plots import spectrum as draw_spectrum

M = 2  # minibatches


class Game(NamedTuple):
    """A run's field at its first state."""

    setup: recipe.Setup
    state: TrainState
    batches: dict
    field: object
    players: tuple


def game(config, m=M):
    setup = recipe.build(config, mesh(jax.devices()[:1]))
    state = recipe.initial_state(setup)
    keys = example_keys(setup.devices, setup.keys.reference, m * config.batch_size)
    real = independent(setup.source, keys)["image"]
    batches = {"image": real.reshape(m, config.batch_size, *setup.source.shape)}
    field = spectrum.vector_field(setup.recipe, setup.devices, state, batches, jax.random.key(5))
    return Game(setup, state, batches, field, (state.generator.params, state.discriminator.params))


PLAYERS = "generator", "discriminator"
SMALL = {f"{player}.depth": 1 for player in PLAYERS}  # few layers compile in a fraction of the time
PLAIN = SMALL | {"penalty.name": "none", "penalty.weight": 0.0}


@pytest.fixture(scope="module")
def played(shrunk):
    """A small game without a penalty, of as many parameters as Arnoldi's method needs."""
    return game(shrunk("mixture", "ring8", PLAIN | {f"{player}.width": 16 for player in PLAYERS}))


@pytest.fixture(scope="module")
def written(played, tmp_path_factory):
    """(the scalars of that game's spectrum, over 20 examples, and the folder with its files)."""
    folder = tmp_path_factory.mktemp("spectrum")
    return spectrum_of_run(played.setup, played.state, folder, 20), folder


@pytest.fixture(scope="module")
def convolutional(shrunk):
    return game(shrunk("dcgan"))


def activation(name):
    return {f"{player}.activation": name for player in PLAYERS}


def dense(field, players, differentiate):
    """The Jacobian [n, n] of the field over flat players."""
    flat, unravel = ravel_pytree(players)
    return np.asarray(jax.jit(differentiate(lambda x: ravel_pytree(field(unravel(x)))[0]))(flat), np.float64)


# --- the spectrum of networks


@pytest.mark.parametrize(
    "changes",
    [
        activation("tanh") | {"penalty.name": "none", "penalty.weight": 0.0},
        activation("leaky_relu") | {"objective.name": "non_saturating", "penalty.name": "r1", "penalty.weight": 0.5},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_arnoldi_finds_the_ends_of_the_dense_spectrum(changes, shrunk):
    """In float32 a product is right to about 1e-6 of |J|, and an eigenvalue to that times its condition number."""
    played = game(shrunk("mixture", "ring8", SMALL | {f"{player}.width": 16 for player in PLAYERS} | changes))
    jacobian = dense(played.field, played.players, jax.jacfwd)  # the mode that the product does not use
    size = np.linalg.norm(jacobian, 2)
    if changes.get("penalty.name") == "r1":  # once is enough: it takes seconds to compile
        assert_allclose(dense(played.field, played.players, jax.jacrev), jacobian, atol=2e-6 * size)
    value, transposed = spectrum.linearise(played.field, played.players)
    assert len(jacobian) > spectrum.DENSE  # so that this is Arnoldi's method
    assert_allclose(value, ravel_pytree(jax.jit(played.field)(played.players))[0], atol=1e-5)
    everything = np.linalg.eigvals(jacobian)
    for which, height in spectrum.HEIGHTS.items():
        found = spectrum.leading_eigenvalues(transposed, which, 6)
        assert len(found.values) > 0
        assert found.residuals.max() < 2e-4 * size  # the tolerance, and as much again
        for value in found.values:
            assert np.abs(everything - value).min() < 1e-3 * size
        expected = np.sort(height(everything))[::-1][: len(found.values)]
        assert_allclose(height(found.values), expected, atol=1e-3 * size)


def test_arnoldi_on_known_matrices():
    """A normal matrix, whose eigenvalues are right to their residuals; a second call gives the same bits."""
    rng = np.random.default_rng(1)
    blocks = np.zeros((160, 160))
    known = rng.uniform(-2, 1, 80) + 1j * rng.uniform(0, 3, 80)
    for i, value in enumerate(known):
        blocks[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[value.real, value.imag], [-value.imag, value.real]]
    rotation = np.linalg.qr(rng.standard_normal(blocks.shape))[0]
    matrix = rotation @ blocks @ rotation.T
    operator = LinearOperator(matrix.shape, matvec=matrix.__matmul__, dtype=float)
    everything = np.concatenate([known, known.conj()])
    for which, height in spectrum.HEIGHTS.items():
        found, again = (spectrum.leading_eigenvalues(operator, which, 4) for _ in range(2))
        assert_allclose(height(found.values[0]), height(everything).max(), rtol=1e-3)  # the rest may have gaps
        assert all(np.abs(everything - value).min() < 2 * spectrum.TOLERANCE * abs(value) for value in found.values)
        np.testing.assert_array_equal(found.values, again.values)


def test_a_second_call_repeats_the_vectors_drawn_where_a_subspace_is_invariant():
    """Of rank two: Arnoldi's method meets an invariant subspace, and goes on from a random vector."""
    diagonal = np.r_[1.0, 2.0, np.zeros(158)]
    operator = LinearOperator((160, 160), matvec=lambda u: diagonal * u.ravel(), dtype=float)
    first, second = (spectrum.leading_eigenvalues(operator, "LR", 6) for _ in range(2))
    assert_allclose(first.values[:2], [2, 1])
    np.testing.assert_array_equal(first.values, second.values)


def test_what_has_not_converged_is_left_out(monkeypatch):
    monkeypatch.setattr(spectrum, "RESTARTS", 1)
    crowd = np.linspace(0, 1, 4000)
    operator = LinearOperator((4000, 4000), matvec=lambda u: crowd * u.ravel(), dtype=float)
    found = spectrum.leading_eigenvalues(operator, "LR", 6)
    assert len(found.values) == len(found.residuals) < 6


def test_a_convolutional_game(convolutional):
    assert convolutional.setup.recipe.unroll  # as on a CPU
    _, transposed = spectrum.linearise(convolutional.field, convolutional.players)
    found = spectrum.leading_eigenvalues(transposed, "LM", 4)
    assert len(found.values) == 4
    assert np.all(found.residuals < 2 * spectrum.TOLERANCE * np.abs(found.values))


def test_written_out_or_scanned_the_field_is_the_same(played):
    unrolled = played.setup.recipe._replace(unroll=True)
    other = spectrum.vector_field(unrolled, played.setup.devices, played.state, played.batches, jax.random.key(5))
    first, second = (ravel_pytree(jax.jit(field)(played.players))[0] for field in (played.field, other))
    assert_allclose(first, second, rtol=1e-5, atol=1e-6)


# --- closed forms


def dirac(objective, penalty, weight, theta=0.3, psi=-0.2):
    """(field, players) of the Dirac-GAN (arXiv:1801.04406, section 2): G is a point, D(x) = psi x, data at 0."""
    made = toy_recipe(
        objective,
        penalties.PENALTIES[penalty],
        generator=Network(
            convolves=False,
            init=lambda key, z: ({"theta": jnp.float32(theta)}, {}),
            apply=lambda params, stats, z, train: (0 * z + params["theta"], stats),
        ),
        discriminator=Network(
            convolves=False,
            init=lambda key, x: ({"psi": jnp.float32(psi)}, {}),
            apply=lambda params, stats, x, train: (params["psi"] * x[:, 0], stats),
        ),
        prior=lambda keys: jnp.zeros((len(keys), 1)),
    )
    state = toy_state(made, numbers(penalty_weight=weight))
    batches = {"image": jnp.zeros((2, 4, 1))}
    field = spectrum.vector_field(made, mesh(jax.devices()[:1]), state, batches, jax.random.key(1))
    return field, (state.generator.params, state.discriminator.params)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("which", spectrum.HEIGHTS)
def test_dirac_gan(weight, which):
    """v = (psi, -theta - 2 w psi): eigenvalues -w +- sqrt(w^2 - 1)."""
    field, players = dirac("wgan", "r1" if weight else "none", weight)
    value, transposed = spectrum.linearise(field, players)
    assert_allclose(value, [-0.2, -0.3 + 2 * weight * 0.2], rtol=1e-6)
    found = spectrum.leading_eigenvalues(transposed, which, 2)
    root = np.sqrt(complex(weight**2 - 1))
    for expected in (-weight + root, -weight - root):
        assert np.abs(found.values - expected).min() < 1e-5
    assert found.residuals.max() < 1e-6
    stable = {0.0: 0.0, 0.5: 1.0, 2.0: 2 / (2 + np.sqrt(3))}[weight]
    numbers = summary(dict.fromkeys(spectrum.HEIGHTS, found.values))
    assert_allclose(numbers["stable_learning_rate_at_most"], stable, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("objective", "penalty"), [("minimax", "r2"), ("mle", "none"), ("rpgan", "r1_r2")])
def test_the_dirac_gan_of_theory_is_that_of_the_step(objective, penalty):
    value, _ = spectrum.linearise(*dirac(objective, penalty, 0.5))
    expected = dirac_field(DiracGame(objective, penalty, 0.5), jnp.array([0.3, -0.2]))
    assert_allclose(value, expected, rtol=1e-5)


def test_dirac_gan_at_rest_turns_at_half_the_speed_of_wgan():
    """softplus' = 1/2 at a logit of 0 (arXiv:1801.04406, section 2: eigenvalues +- f'(0) i)."""
    _, transposed = spectrum.linearise(*dirac("non_saturating", "none", 0.0, theta=0.0, psi=0.0))
    found = spectrum.leading_eigenvalues(transposed, "LI", 2)
    assert_allclose(sorted(found.values.imag), [-0.5, 0.5], rtol=1e-5)
    assert_allclose(found.values.real, 0, atol=1e-6)


def test_players_of_a_zero_sum_game_pull_in_opposite_ways(shrunk):
    """On the same examples L_G = -L_D up to what G cannot move, so that J's two mixed blocks are -transposes."""
    changes = SMALL | activation("tanh") | {"objective.name": "minimax", "penalty.name": "r1"}
    played = game(shrunk("mixture", "ring8", changes))
    jacobian = dense(played.field, played.players, jax.jacrev)
    n = len(ravel_pytree(played.players[0])[0])
    assert np.abs(jacobian[:n, n:]).max() > 1e-3
    assert_allclose(jacobian[:n, n:], -jacobian[n:, :n].T, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "stable"),
    [
        ([-1.0, -2.0], 1.0),
        ([-1 + 1j, -1 - 1j], 1.0),
        ([-2.0, 1e-9], 1.0),  # 0 in float32: it rests
        ([-2.0, 0.1], 0.0),
        ([-100, -1 + 10j], 2 / 101),
    ],
)
def test_stable_learning_rate(values, stable):
    numbers = summary(dict.fromkeys(spectrum.HEIGHTS, np.array(values, complex)))
    assert_allclose(numbers["stable_learning_rate_at_most"], stable)
    assert_allclose(numbers["largest_real_part"], np.max(np.real(values)))


def test_an_end_that_did_not_converge_is_not_made_up_from_the_others():
    found = {"LM": np.array([-2 + 1j, -2 - 1j]), "LR": np.array([], complex), "LI": np.array([-2 + 1j])}
    assert summary(found) == {
        "largest_real_part": None,
        "largest_imaginary_part": 1.0,
        "stable_learning_rate_at_most": None,
    }
    assert summary(dict.fromkeys(found, np.zeros(3, complex)))["stable_learning_rate_at_most"] is None


def test_a_crowded_end_is_said_not_to_have_converged(shrunk, tmp_path):
    """Affine players: most of the field's Jacobian is 0, a crowd at the end of the largest real parts."""
    changes = {"generator.depth": 0, "discriminator.depth": 0, "latent.dim": 64, "penalty.name": "r1"}
    played = game(shrunk("mixture", "ring8", changes | {"penalty.weight": 0.5}))
    everything = np.linalg.eigvals(dense(played.field, played.players, jax.jacrev))
    numbers = spectrum_of_run(played.setup, played.state, tmp_path, 16)
    assert numbers["largest_real_part"] is None or numbers["largest_real_part"] > everything.real.max() - 1e-3


# --- the training step


@pytest.mark.parametrize("penalty", ["none", "r1"])
def test_the_field_is_a_step_of_gradient_descent(penalty, shrunk):
    descent = {"name": "sgd", "b1": 0.0, "learning_rate": 1.0, "decay_to": 1.0}
    changes = SMALL | {f"{player}.optimizer.{key}": value for player in PLAYERS for key, value in descent.items()}
    changes |= {"penalty.name": penalty, "penalty.weight": 0.5 if penalty == "r1" else 0.0}
    played = game(shrunk("mixture", "ring8", changes), m=1)
    batch = {"image": played.batches["image"][0]}
    key = jax.random.fold_in(jax.random.key(5), 0)
    arguments = played.setup.recipe, played.setup.devices, played.state, batch
    moved_d, _ = jax.jit(partial(step.discriminator_step, *arguments))(key)
    moved_g, _ = jax.jit(partial(step.generator_step, *arguments))(jax.random.split(key)[0])
    moved = moved_g.generator.params, moved_d.discriminator.params
    moves = ravel_pytree(jax.tree.map(jnp.subtract, moved, played.players))[0]
    field = jax.jit(played.field)(played.players)
    assert_allclose(ravel_pytree(field)[0], moves, atol=1e-6)  # a rounding of the parameters


# --- the verb


def test_the_verb_writes_both_files(played, written):
    scalars, folder = written
    assert sorted(path.name for path in folder.iterdir()) == ["spectrum.json", "spectrum.png"]
    written = json.loads((folder / "spectrum.json").read_text())
    assert written.items() >= scalars.items()
    assert (written["step"], written["examples"]) == (0, 24)  # three minibatches of 8
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in played.players]
    assert [written["generator_parameters"], written["discriminator_parameters"]] == sizes
    values = [complex(*pair) for end in written["ends"].values() for pair in end["eigenvalues"]]
    assert list(written["ends"]) == ["LM", "LR", "LI"]
    assert written["largest_real_part"] == max(value.real for value in values)
    assert written["largest_imaginary_part"] == max(abs(value.imag) for value in values)
    assert all(len(end["residuals"]) == len(end["eigenvalues"]) for end in written["ends"].values())
    with Image.open(folder / "spectrum.png") as image:
        assert np.asarray(image).std() > 0


def test_the_verb_repeats_itself_with_its_default_number_of_examples(played, written, tmp_path, monkeypatch):
    monkeypatch.setattr(spectrum, "EXAMPLES", 17)
    assert spectrum_of_run(played.setup, played.state, tmp_path, 0) == written[0]
    assert (tmp_path / "spectrum.json").read_bytes() == (written[1] / "spectrum.json").read_bytes()


def test_the_field_is_normalised_over_micro_batches_where_a_run_accumulates(shrunk, tmp_path):
    played = game(shrunk("mixture", "ring8", PLAIN | {"accumulate": 4}))
    assert spectrum_of_run(played.setup, played.state, tmp_path, 5)["examples"] == 6  # three of 8 / 4


def test_a_run_in_bfloat16_is_looked_at_in_float32(shrunk, played, written, tmp_path):
    config = played.setup.config.copy_and_resolve_references()
    with config.unlocked():
        config.precision = "bfloat16"
    coarse = recipe.build(config, played.setup.devices)
    assert spectrum_of_run(coarse, played.state, tmp_path, 20) == written[0]


def test_a_field_that_is_not_finite_is_one_line(played, tmp_path):
    broken = jax.tree.map(lambda x: x * np.nan, played.state.generator)
    with pytest.raises(InputError, match=r"has no spectrum at step 0: the vector field is not finite$") as raised:
        spectrum_of_run(played.setup, played.state.replace(generator=broken), tmp_path, 8)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_too_many_convolutions_to_write_out_are_one_line(convolutional, tmp_path):
    with pytest.raises(InputError, match=r"--num_samples makes 33 minibatches of 8, .*; ask for at most 256$"):
        spectrum_of_run(convolutional.setup, convolutional.state, tmp_path, 257)


def test_the_picture_shows_where_eigenvalues_are():
    empty = np.array([], complex)
    left, right = (draw_spectrum({"LM": np.array([x, -10, 10j, 10]), "LR": empty}, "") for x in (-5, 5))
    assert left.dtype == np.uint8
    differs = np.any(left != right, axis=-1)
    assert differs.any(axis=0)[: left.shape[1] // 2].any()
    assert differs.any(axis=0)[left.shape[1] // 2 :].any()
    draw_spectrum(dict.fromkeys(spectrum.HEIGHTS, np.array([1j])), "")  # the legend has a name for each end
