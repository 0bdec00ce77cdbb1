"""Discriminators that the shipped step trains against a fixed generator, beside the optimum that theory gives.

    python -m experiments.studies.optimal_discriminator

On a mixture on the line and one in the plane: how far D is from D* = p_data / (p_data + p_g), and the value V from its
maximum -log 4 + 2 JS (arXiv:1406.2661, theorem 1); then, for every objective whose divergence is known in closed form,
the bound that its trained discriminator reaches. Three minutes on 2 CPU cores.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import known, report
from experiments.studies.known import Grid
from gan_jax import recipe, theory
from gan_jax.data import Source
from gan_jax.data.mixture import mixture
from gan_jax.objectives import LOG_2, OBJECTIVES
from gan_jax.theory.identities import OPTIMA

UPDATES = (100, 400, 2_000)  # of the discriminator, after which the table looks
BOUNDED = tuple(name for name in OPTIMA if name != "wgan")  # that one needs a Lipschitz bound: wasserstein_critic.py
CHANGES = {
    "objective.name": "minimax",
    "num_steps": UPDATES[-1],
    "batch_size": 512,
    "discriminator.width": 64,
    "discriminator.activation": "silu",
    "discriminator.optimizer.learning_rate": 2e-3,
    "discriminator.optimizer.b1": 0.9,
    "discriminator.optimizer.decay_to": 0.01,
}


class Case(NamedTuple):
    """Two distributions, and a grid that covers both."""

    real: Source
    fake: Source
    grid: Grid


class Score(NamedTuple):
    """How far a discriminator is from the optimal one."""

    distance: float  # sum of m |D - D*|, m = (p_data + p_g) / 2
    value: float  # V(D, G), nats
    gap: float  # -log 4 + 2 JS - V, nats


def cases() -> dict[str, Case]:
    """The mixtures, by name."""
    angles = 2 * np.pi * np.arange(5) / 5
    pentagon = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    on_line = mixture(np.array([[-2.0], [0.0], [2.5]]), 0.5), mixture(np.array([[-1.0], [1.5]]), 0.7)
    in_plane = mixture(pentagon, 0.4), mixture(np.array([[0.0, 0.0], [1.0, 1.0]]), 0.8)
    return {
        "line": Case(*on_line, known.grid(-6, 6, 4000, 1)),
        "plane": Case(*in_plane, known.grid(-5, 5, 400, 2)),
    }


def score(case: Case, logits) -> Score:
    """The distance of a discriminator with these logits on the case's grid from the optimal one."""
    p, q = case.grid.probabilities(case.real), case.grid.probabilities(case.fake)
    m = (p + q) / 2
    optimal = jnp.where(m > 0, theory.optimal_discriminator(p, q), 0.5)
    # V term by term, since the grid has too many points for all pairs.
    value = float(jnp.sum(p * jax.nn.log_sigmoid(logits) + q * jax.nn.log_sigmoid(-logits)))
    distance = float(jnp.sum(m * jnp.abs(jax.nn.sigmoid(logits) - optimal)))
    return Score(distance, value, float(-2 * LOG_2 + 2 * theory.js(p, q)) - value)


def trained(case: Case, updates: tuple[int, ...], changes: dict) -> list:
    """The logits on the case's grid, [m], of one discriminator after each of `updates`."""
    setup = known.against(known.setup_on(case.real, CHANGES | {"num_steps": updates[-1]} | changes), case.fake)
    state, logits = recipe.initial_state(setup), []
    for steps in np.diff([0, *updates]):
        state, _ = known.trainer(setup, int(steps))(state)
        logits.append(known.logits(setup, state, case.grid.points))
    return logits


def bound(case: Case, name: str) -> tuple[float, float]:
    """(what a trained discriminator of this objective estimates, what the objective says that it bounds)."""
    p, q = case.grid.probabilities(case.real), case.grid.probabilities(case.fake)
    logits = trained(case, UPDATES[-1:], {"objective.name": name})[0]
    return float(theory.divergence(OBJECTIVES[name], logits, p, q)), float(OPTIMA[name][1](p, q))


def _draw(case: dict[str, Case], logits: dict) -> report.Figure:
    drawn, axes = report.figure(1, 3, 11, 3.4)
    line, points = case["line"], case["line"].grid.points[:, 0]
    p, q = line.grid.probabilities(line.real), line.grid.probabilities(line.fake)
    axes[0, 0].plot(points, p / p.max(), color="tab:blue", linewidth=0.7, label="p_data (scaled)")
    axes[0, 0].plot(points, q / p.max(), color="tab:red", linewidth=0.7, label="p_g (scaled)")
    axes[0, 0].plot(points, theory.optimal_discriminator(p, q), color="black", label="D*")
    for updates, values in zip(UPDATES, logits["line"], strict=True):
        axes[0, 0].plot(points, jax.nn.sigmoid(values), "--", linewidth=1, label=f"D, {updates:,} updates")
    axes[0, 0].set(xlim=(-4.5, 5), title="line")
    axes[0, 0].legend(fontsize=6)
    plane = case["plane"]
    p, q = plane.grid.probabilities(plane.real), plane.grid.probabilities(plane.fake)
    maps = {"plane: D*": theory.optimal_discriminator(p, q), "plane: D": jax.nn.sigmoid(logits["plane"][-1])}
    for each, (title, values) in zip(axes[0, 1:], maps.items(), strict=True):
        seen = jnp.where(p + q > 1e-9, values, jnp.nan).reshape(400, 400).T
        shown = each.imshow(seen, origin="lower", extent=(-5, 5, -5, 5), vmin=0, vmax=1, cmap="viridis")
        each.set(title=title, xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
        drawn.colorbar(shown, ax=each)
    return drawn


def main() -> None:
    """Trains, and writes the report."""
    both = cases()
    logits = {name: trained(case, UPDATES, {}) for name, case in both.items()}
    rows = []
    for name, case in both.items():
        for updates, values in zip(UPDATES, logits[name], strict=True):
            scored = score(case, values)
            rows.append([name, f"{updates:,}", *(f"{x:.4f}" for x in (scored.distance, scored.value, scored.gap))])
    bounds = []
    for name in BOUNDED:
        words, (estimate, exact) = OPTIMA[name][2], bound(both["line"], name)
        bounds.append([name, words, f"{estimate:.4f}", f"{exact:.4f}", f"{estimate / exact - 1:+.1%}"])
    parts = [
        "## The discriminator of minimax, non_saturating and mle",
        report.table(["case", "updates of D", "L1 distance of D and D*", "V", "gap"], rows),
        "The L1 distance is under (p_data + p_g) / 2; the gap is -log 4 + 2 JS - V, in nats.",
        f"## What each objective's discriminator estimates on the line after {UPDATES[-1]:,} updates",
        report.table(["objective", "a lower bound on", "estimate", "exact", "difference"], bounds),
    ]
    report.write("optimal_discriminator", "Trained discriminators and the optimal ones", parts, _draw(both, logits))


if __name__ == "__main__":
    main()
