"""The studies' own computations on small budgets, and the shipped step's metric `divergence` on known densities."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments.studies import (
    dirac_gan,
    estimated_divergence,
    known,
    mode_covering,
    optimal_discriminator,
    report,
    vanishing_gradient,
    wasserstein_critic,
)
from gan_jax import step, theory
from gan_jax.data.mixture import mixture
from gan_jax.networks import Network
from gan_jax.theory.identities import OPTIMA

optimized = pytest.mark.usefixtures("optimized")  # where running is most of the time

CENTERS, SIGMA = ((-0.35,), (0.35,)), (0.9, 0.9)  # of the data and of the generator
EXAMPLES = 40_000
CRITICS = {name: critic for name, (critic, *_) in OPTIMA.items() if name != "wgan"}
CRITICS |= dict.fromkeys(("non_saturating", "mle"), theory.optimal_logit)
CRITICS["wgan"] = lambda p, q: jnp.log(jnp.maximum(p, 1e-30))


@cache
def shipped_step(name):
    """The shipped discriminator step on known densities, as (parameters of D) -> metrics.

    D is `scale` times the objective's optimal critic, plus `shift`: its parameters.
    """
    real, fake = (mixture(np.array([[c]]), s) for (c,), s in zip(CENTERS, SIGMA, strict=True))
    setup = known.against(known.setup_on(real, {"objective.name": name, "batch_size": EXAMPLES}), fake)

    def logits(params, stats, x, train):
        return params["scale"] * CRITICS[name](real.density(x), fake.density(x)) + params["shift"], stats

    optimum = {"scale": jnp.float32(1), "shift": jnp.float32(0)}
    network = Network(init=lambda key, x: (optimum, {}), apply=logits, convolves=False)
    made = setup.recipe._replace(discriminator=network)
    state = step.init_state(made, setup.hyperparameters, jax.random.key(0), (1,))
    batch = jax.jit(real.draw)((), None, jax.random.split(jax.random.key(1), EXAMPLES))

    @jax.jit
    def metrics(params):
        start = state.replace(discriminator=state.discriminator.replace(params=params))
        return step.discriminator_step(made, setup.devices, start, batch, jax.random.key(2))[1]

    return metrics


def divergence(name, scale=1.0, shift=0.0):
    """What the metric says of a D that is so far from the optimal one."""
    return shipped_step(name)({"scale": jnp.float32(scale), "shift": jnp.float32(shift)})["divergence"]


def truth(name):
    with jax.enable_x64(True):
        points = np.linspace(-8, 8, 801)
        p, q = (known.gaussians(points, c, s) for c, s in zip(CENTERS, SIGMA, strict=True))
        return float(OPTIMA[name][1](p, q))


@pytest.mark.parametrize("name", [name for name in OPTIMA if name != "wgan"])
def test_metric_is_the_true_divergence_at_the_optimal_discriminator(name):
    """Within the error of a mean over 40,000 examples, 1 to 2 % of these divergences."""
    assert_allclose(divergence(name), truth(name), rtol=0.05)


@pytest.mark.parametrize("name", ["non_saturating", "mle"])
def test_metric_of_the_logistic_family_is_js(name):
    assert_allclose(divergence(name), truth("minimax"), rtol=0.04)


def test_metric_of_wgan_is_the_difference_of_means_of_the_critic():
    """With f = log p, p = N(-0.35, 0.9^2) the data, q = N(0.35, 0.9^2): E_p f - E_q f = KL(q || p)."""
    assert_allclose(divergence("wgan"), theory.gaussian_kl(0.35, 0.9, -0.35, 0.9), rtol=0.04)


def test_metric_is_below_the_truth_at_any_other_discriminator():
    for name in ("minimax", "rpgan", "lsgan", "fgan_kl", "hinge"):
        assert divergence(name, scale=0.5, shift=0.2) < truth(name)


@optimized
def test_trained_discriminator_approaches_the_optimal_one():
    case = optimal_discriminator.cases()["plane"]
    early, late = (
        optimal_discriminator.score(case, logits)
        for logits in optimal_discriminator.trained(case, (20, 600), {"batch_size": 256})
    )
    assert -1e-4 < late.gap < 0.02
    assert late.distance < 0.05
    assert late.gap < early.gap / 4


def test_score_of_the_optimal_discriminator_and_of_an_undecided_one():
    case = optimal_discriminator.cases()["line"]
    p, q = case.grid.probabilities(case.real), case.grid.probabilities(case.fake)
    best = optimal_discriminator.score(case, jnp.log(p + 1e-30) - jnp.log(q + 1e-30))
    assert_allclose((best.gap, best.distance), 0, atol=1e-5)
    undecided = optimal_discriminator.score(case, jnp.zeros(len(p)))
    assert_allclose(undecided.gap, 2 * theory.js(p, q), rtol=1e-4)
    assert_allclose(undecided.distance, theory.total_variation(p, q) / 2, rtol=1e-3)


def test_grid_integrates_densities_to_one():
    for case in optimal_discriminator.cases().values():
        for source in (case.real, case.fake):
            assert_allclose(np.sum(source.density(case.grid.points)) * case.grid.volume, 1, rtol=1e-3)


@optimized
def test_critic_under_a_gradient_penalty_estimates_w1(monkeypatch):
    monkeypatch.setitem(wasserstein_critic.CHANGES, "batch_size", 256)
    case = wasserstein_critic.CASES["mixtures"]
    method = wasserstein_critic.METHODS["wgan_gp_one_sided, weight 10"]
    outcome = wasserstein_critic.trained(case, method, 0, updates=900)
    assert_allclose(outcome.estimate, outcome.exact, rtol=0.05)
    assert_allclose(outcome.estimate, outcome.predicted, rtol=0.03)


def test_prediction_for_a_shift():
    """H and rho are nearly proportional where p and q overlap: about W1 (1 + W1 / (2 weight))."""
    case = wasserstein_critic.CASES["shift by 0.5"]
    assert_allclose(wasserstein_critic.excess(case) / 10, 0.5 * 0.0272, rtol=0.01)


def test_density_of_interpolates_is_one():
    case = wasserstein_critic.CASES["mixtures"]
    density = wasserstein_critic.interpolate_density(case)
    assert_allclose(np.sum(density) * wasserstein_critic.GRID.volume, 1, rtol=1e-3)
    mean = np.sum(density * wasserstein_critic.GRID.points[:, 0]) * wasserstein_critic.GRID.volume
    assert_allclose(mean, (case.real.modes.centers.mean() + case.fake.modes.centers.mean()) / 2, atol=1e-3)


def test_excess_of_two_narrow_distributions():
    """Far apart H is 1 and the interpolates' density 1/W between them: the penalty's excess is W^2 / 2."""
    case = wasserstein_critic.Case(mixture(np.array([[2.0]]), 0.05), mixture(np.array([[-2.0]]), 0.05))
    assert_allclose(wasserstein_critic.excess(case), 8, rtol=0.01)


@optimized
def test_gradient_vanishes_for_the_value_function_and_mle_and_not_for_the_others(monkeypatch):
    monkeypatch.setitem(vanishing_gradient.CHANGES, "batch_size", 64)
    monkeypatch.setattr(vanishing_gradient, "EXAMPLES", 20_000)
    last = {}
    for method in ("minimax", "mle", "non_saturating"):
        setup, state = vanishing_gradient.fixed(vanishing_gradient.METHODS[method], vanishing_gradient.REAL)
        assert vanishing_gradient.gap(setup, state) > 1
        before = jax.tree.map(np.asarray, state.generator.params)
        state, metrics = known.trainer(setup, 300)(state)
        jax.tree.map(np.testing.assert_array_equal, state.generator.params, before)
        last[method] = float(np.median(metrics["g_grad_norm"][-20:]))
        if method != "non_saturating":
            assert last[method] < 0.05 * float(np.max(metrics["g_grad_norm"]))
            assert vanishing_gradient.factors(setup, state).push < 0.02
    assert last["non_saturating"] > 100 * max(last["minimax"], last["mle"])
    factors = vanishing_gradient.factors(setup, state)
    assert factors.push > 0.99
    assert factors.slope > 1


BOTH, ONE = (0.0, np.sqrt(4 + 0.25)), (2.0, 0.5)  # the moments of the data; one of its modes


@optimized
@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("maximum likelihood", "on one mode", BOTH),
        ("mle", "on one mode", BOTH),
        ("mle", "broad", BOTH),
        ("fgan_kl", "on one mode", BOTH),
        ("non_saturating", "between", ONE),
        ("fgan_reverse_kl", "between", ONE),
    ],
)
def test_covering_and_seeking_at_the_optimal_critic(name, start, end):
    with jax.enable_x64(True):
        loss = mode_covering.followed if name == "maximum likelihood" else mode_covering.at_optimal_critic
        assert_allclose(mode_covering.descend(partial(loss, name), mode_covering.STARTS[start]), end, atol=2e-3)


@pytest.mark.parametrize(("name", "end"), [("non_saturating", ONE), ("fgan_reverse_kl", ONE), ("minimax", BOTH)])
def test_lowest_of_two_rest_points(name, end):
    with jax.enable_x64(True):
        assert mode_covering.lowest(name, {"both": BOTH, "one": ONE}) == end
        assert [mode_covering.modes_covered(*each) for each in (BOTH, ONE, (20.0, 0.5))] == [2, 1, 0]


@optimized
def test_estimate_along_a_run_follows_the_truth(monkeypatch):
    monkeypatch.setitem(estimated_divergence.CHANGES, "batch_size", 256)
    values = estimated_divergence.run("fgan_hellinger", steps=400)[5:]
    estimate, truth = values[values[:, 1] > 0.05].T
    assert len(truth) > 10
    assert truth.max() > 1.15 * truth.min()  # it moves
    assert_allclose(estimate, truth, rtol=0.25)
    assert_allclose(estimate.mean(), truth.mean(), rtol=0.06)


def test_true_divergence_in_closed_form():
    """N(4, 0.5^2) from N(3, 1): W1 of a shift, and KL by its formula."""
    assert_allclose(estimated_divergence.true_divergence("wgan", 3.0, 0.5), 1, rtol=1e-3)
    assert_allclose(
        estimated_divergence.true_divergence("fgan_kl", 3.0, 1.0), np.log(2) + (0.25 + 1) / 2 - 0.5, rtol=1e-3
    )
    assert_allclose(estimated_divergence.true_divergence("mle", 4.0, 0.5), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("distances", "word"),
    [
        ((1, 0.5, 1e-4, 1e-9), "converges"),
        ((1, 0.5, 0.2, 0.1), "creeps"),
        ((1, 1, 1, 1), "circles"),
        ((1, 5, 1, 1), "leaves"),
        ((1, 1, np.nan, np.nan), "leaves"),
    ],
)
def test_verdicts(distances, word):
    assert dirac_gan.verdict(list(distances)) == word


def test_affine_generator_is_where_it_is_put():
    setup = known.setup_on(mixture(np.zeros((1, 1)), 1.0), {"generator.depth": 0, "latent.dim": 1, "batch_size": 8})
    state = known.affine_generator(setup, 0.5, 2.0)
    made = step.sample(setup.recipe, state.ema, jnp.array([[0.0], [1.0]]))
    assert_allclose(made, [[0.5], [2.5]])
    assert known.mean_and_scale(state.generator.params) == (0.5, 2.0)
    deep = known.setup_on(mixture(np.zeros((1, 1)), 1.0), {"batch_size": 8})
    with pytest.raises(ValueError, match="not an affine map"):
        known.affine_generator(deep, 0.5, 2.0)


def test_report_is_a_table_and_a_small_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    drawn, axes = report.figure(1, 1, 4, 3)
    axes[0, 0].plot([0, 1], [0, 1])
    report.write("name", "A title", [report.table(["a", "KL(p || q)"], [["1", "2"]])], drawn)
    text = (tmp_path / "name.md").read_text()
    assert "| a | KL(p \\|\\| q) |\n| --- | --- |\n| 1 | 2 |" in text
    assert "python -m experiments.studies.name" in text
    assert (tmp_path / "name.png").stat().st_size < 300_000


STUDIES = sorted(
    path.stem for path in report.RESULTS.parent.glob("studies/*.py") if path.stem not in ("known", "report", "runs")
)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_committed_result(name):
    text = (report.RESULTS / f"{name}.md").read_text()
    assert f"Made by `python -m experiments.studies.{name}`" in text
    assert (report.RESULTS / f"{name}.png").stat().st_size < 300_000
    for table in (block.splitlines() for block in text.split("\n\n") if block.startswith("|")):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1  # each row has its header's cells
    assert f"({name}.png)" in text
    documents = (report.RESULTS.parents[1] / "docs").glob("*.md")
    assert any(f"experiments/results/{name}.md" in path.read_text() for path in documents)


def test_links_within_the_documents_lead_somewhere():
    root = report.RESULTS.parents[1]
    for path in (root / "README.md", *(root / "docs").glob("*.md"), *report.RESULTS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
