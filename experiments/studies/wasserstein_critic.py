"""What a WGAN's critic estimates on the line, under the gradient penalty and under weight clipping: beside exact W1.

    python -m experiments.studies.wasserstein_critic

With H the difference of the distribution functions (generator minus data) and rho the density of the interpolates, the
critic that the penalised loss wants has |f'| = 1 + |H| / (2 weight rho) and the sign of H: it estimates
W1 + integral of H^2 / (2 weight rho), more than W1. `predicted` is that, over W1. Clipped networks are some of the
K-Lipschitz functions: what they estimate is at most K W1, for a K that nobody knows, and no fixed multiple of W1. Three
seeds; ten minutes on 2 CPU cores.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.studies import known, report
from gan_jax import recipe, theory
from gan_jax.data import Source
from gan_jax.data.mixture import mixture

GRID = known.grid(-8, 8, 4000, 1)
UPDATES = 3_000  # of the critic, shared equally by a method's weights
SEEDS = range(3)
GROWING = (0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
CHANGES = {
    "objective.name": "wgan",
    "batch_size": 512,
    "discriminator.width": 64,
    "discriminator.optimizer.learning_rate": 1e-3,
    "discriminator.optimizer.decay_to": 0.05,
}


class Case(NamedTuple):
    """Two distributions on the line."""

    real: Source
    fake: Source


class Method(NamedTuple):
    """How the critic is kept from growing: the weights of a penalty, one after the other, or the bound of clipping."""

    penalty: str
    weights: tuple[float, ...]
    clip: float


class Outcome(NamedTuple):
    """What a trained critic says."""

    estimate: float  # E_pdata f - E_pg f on the grid, in units of the data
    exact: float  # W1
    predicted: float  # the estimate of the optimal penalised critic; NaN under clipping
    critic: np.ndarray  # f on GRID


CASES = {
    "shift by 0.5": Case(mixture(np.array([[0.25]]), 0.5), mixture(np.array([[-0.25]]), 0.5)),
    "mixtures": Case(mixture(np.array([[-2.0], [0.0], [2.5]]), 0.5), mixture(np.array([[-1.0], [1.5]]), 0.7)),
    "disjoint": Case(mixture(np.array([[2.0]]), 0.3), mixture(np.array([[-2.0]]), 0.3)),
}
METHODS = {
    "wgan_gp, weight 10": Method("wgan_gp", (10.0,), 0.0),
    "wgan_gp, weight 100": Method("wgan_gp", (100.0,), 0.0),
    "wgan_gp, weight growing to 10": Method("wgan_gp", GROWING, 0.0),
    "wgan_gp, weight growing to 100": Method("wgan_gp", (*GROWING, 20.0, 50.0, 100.0), 0.0),
    "wgan_gp_one_sided, weight 10": Method("wgan_gp_one_sided", (10.0,), 0.0),
    "wgan_gp_one_sided, weight 100": Method("wgan_gp_one_sided", (100.0,), 0.0),
    "clip 0.01": Method("none", (0.0,), 0.01),
    "clip 0.1": Method("none", (0.0,), 0.1),
}
SHOWN = ("wgan_gp, weight 10", "wgan_gp, weight growing to 10", "wgan_gp_one_sided, weight 10")


def probabilities(case: Case):
    """(p_data, p_g) on GRID."""
    return GRID.probabilities(case.real), GRID.probabilities(case.fake)


def excess(case: Case) -> float:
    """The integral of H^2 / (2 rho): what a penalty of weight 1 adds to the estimate, in units of the data."""
    p, q = probabilities(case)
    ahead = np.cumsum(np.asarray(q, np.float64) - np.asarray(p, np.float64))
    density = interpolate_density(case)
    covered = density > 1e-12
    return float(np.sum(np.square(ahead[covered]) / (2 * density[covered])) * GRID.volume)


def interpolate_density(case: Case, steps: int = 200) -> np.ndarray:
    """The density on GRID of u x + (1 - u) y with x real, y fake, u uniform: a Gaussian for each u and components."""
    real, fake = case.real.modes, case.fake.modes
    density = np.zeros(len(GRID.points))
    for u in (np.arange(steps) + 0.5) / steps:
        centers = (u * real.centers + (1 - u) * fake.centers.T).reshape(-1, 1)
        sigma = float(np.hypot(u * real.sigma, (1 - u) * fake.sigma))
        density += np.asarray(mixture(centers, sigma).density(GRID.points), np.float64) / steps
    return density


def trained(case: Case, method: Method, seed: int, updates: int = UPDATES) -> Outcome:
    """The critic after `updates`, as many with each of the method's weights."""
    changes = CHANGES | {"penalty.name": method.penalty, "discriminator.clip": method.clip}
    changes |= {"seed": seed, "num_steps": updates, "penalty.weight": method.weights[0]}
    setup = known.against(known.setup_on(case.real, changes), case.fake)
    state = recipe.initial_state(setup)
    advance = known.trainer(setup, updates // len(method.weights))
    for weight in method.weights:
        hyperparameters = state.hyperparameters | ({"penalty.weight": jnp.float32(weight)} if weight else {})
        state, _ = advance(state.replace(hyperparameters=hyperparameters))
    critic = known.logits(setup, state, GRID.points)
    p, q = probabilities(case)
    exact = float(theory.wasserstein_1(p, q, GRID.volume))
    predicted = np.nan if method.clip else exact + excess(case) / method.weights[-1]
    return Outcome(float(jnp.sum((p - q) * critic)), exact, predicted, np.asarray(critic))


def _draw(outcomes: dict) -> report.Figure:
    drawn, axes = report.figure(1, len(CASES), 11, 3.4)
    for each, (name, case) in zip(axes[0], CASES.items(), strict=True):
        p, q = probabilities(case)
        points = GRID.points[:, 0]
        left, right = points[np.asarray(p + q) > 1e-7][[0, -1]]
        shown = (points >= left) & (points <= right)
        curves = {"optimal critic": np.asarray(theory.optimal_critic(p, q, GRID.volume))}
        curves |= {method: outcomes[name, method][0].critic for method in SHOWN}
        for label, critic in curves.items():
            style = {"color": "black", "linewidth": 2} if label == "optimal critic" else {"linewidth": 1}
            each.plot(points[shown], critic[shown] - critic[shown].mean(), label=label, **style)
        each.set_title(f"{name}: W1 = {outcomes[name, SHOWN[0]][0].exact:.3f}", fontsize=9)
    axes[0, 0].legend(fontsize=6)
    return drawn


def main() -> None:
    """Trains every critic and writes the report."""
    outcomes = {
        (c, m): [trained(case, method, seed) for seed in SEEDS]
        for c, case in CASES.items()
        for m, method in METHODS.items()
    }
    rows = []
    for (case, method), seeds in outcomes.items():
        ratios = [f"{outcome.estimate / outcome.exact:.3g}" for outcome in seeds]
        predicted = "" if np.isnan(seeds[0].predicted) else f"{seeds[0].predicted / seeds[0].exact:.3f}"
        rows.append([case, method, f"{seeds[0].exact:.4f}", *ratios, predicted])
    header = ["case", "method", "W1", *(f"estimate / W1, seed {seed}" for seed in SEEDS), "predicted / W1"]
    parts = [
        report.table(header, rows),
        f"{UPDATES:,} updates of the critic, batch {CHANGES['batch_size']}, Adam.",
        """The two-sided penalty wants slope 1 *or* -1, and a critic whose slope has the wrong sign somewhere must pass
through slope 0, which costs more: it may stay there for good. A weight that grows from 0.3 lets the signs settle first;
no config does that, and the one-sided penalty needs no such thing. With it, or with a growing weight, all are within
5 % of W1, except "disjoint" at weight 10, which is where theory says, 20 % above. Under clipping the ratio
depends on the bound and on the pair of distributions: compare such estimates within a run.""",
    ]
    report.write("wasserstein_critic", "What a WGAN's critic estimates", parts, _draw(outcomes))


if __name__ == "__main__":
    main()
