"""The metric `divergence` along a run, beside the true divergence of data and generator at the same step.

    python -m experiments.studies.estimated_divergence

The data is N(4, 0.5^2), the generator z -> mean + scale z from N(2, 1), so that both densities are known all along; the
rest is the shipped step with a network for a discriminator. Four minutes on 2 CPU cores.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import known, report
from gan_jax import theory
from gan_jax.data import mixture
from gan_jax.objectives import OBJECTIVES
from gan_jax.theory.identities import OPTIMA

POINTS = np.linspace(-6, 8, 501)
SPACING = float(POINTS[1] - POINTS[0])
START = (2.0, 1.0)  # mean and scale of the generator
STEPS, CHUNK = 2_000, 20  # the true divergence is computed, and the metric averaged, once a chunk
LOOKED_AT = (200, 600, 2_000)
CHANGES = {
    "num_steps": STEPS,
    "batch_size": 512,
    "latent.dim": 1,
    "generator.depth": 0,
    "generator.ema_decay": 0.0,
    "generator.optimizer.learning_rate": 3e-3,
    "generator.optimizer.decay_to": 0.05,
    "discriminator.width": 64,
    "discriminator.activation": "silu",
    "discriminator.steps": 3,
    "discriminator.optimizer.learning_rate": 2e-3,
    "discriminator.optimizer.decay_to": 0.05,
}


def true_divergence(name: str, mean: float, scale: float) -> float:
    """What the metric of this objective is a lower bound on, for a generator N(mean, scale^2), in float64."""
    with jax.enable_x64(True):
        p = known.gaussians(POINTS, [4.0], 0.5)
        q = known.gaussians(POINTS, [mean], scale)
        if name == "wgan":
            return float(theory.wasserstein_1(p, q, SPACING))
        return float(_estimated(name)[1](p, q))


def words(name: str) -> str:
    """That quantity's name."""
    return _estimated(name)[2]


def _estimated(name: str) -> tuple:
    # The logistic ones train one and the same discriminator, and estimate the same.
    return OPTIMA["minimax" if OBJECTIVES[name].logistic else name]


def run(name: str, steps: int = STEPS) -> np.ndarray:
    """[chunks, 2]: the mean of the metric over each chunk of a run, and the truth, the mean of both ends'."""
    changes = CHANGES | {"objective.name": name, "num_steps": steps} | (known.LIPSCHITZ if name == "wgan" else {})
    setup = known.setup_on(mixture.gaussian(), changes)
    advance, state = known.trainer(setup, CHUNK), known.affine_generator(setup, *START)
    rows, before = [], true_divergence(name, *START)
    for _ in range(steps // CHUNK):
        state, metrics = advance(state)
        after = true_divergence(name, *known.mean_and_scale(state.generator.params))
        rows.append((float(jnp.mean(metrics["divergence"])), (before + after) / 2))
        before = after
    return np.array(rows)


def _draw(runs: dict[str, np.ndarray]) -> report.Figure:
    drawn, axes = report.figure(3, 4, 12, 7)
    for each, (name, values) in zip(axes.flat, runs.items(), strict=True):
        steps = CHUNK * (np.arange(len(values)) + 0.5)
        each.plot(steps, values[:, 1], color="black", label="true")
        each.plot(steps, values[:, 0], color="tab:red", linewidth=1, label="metric")
        finite = values[np.isfinite(values)]
        each.set_yscale("symlog", linthresh=1) if finite.size and finite.max() > 20 else None
        each.set_title(f"{name}: {words(name)}", fontsize=8)
        each.tick_params(labelsize=6)
    axes[0, 0].legend(fontsize=7)
    drawn.supxlabel("step", fontsize=9)
    return drawn


def main() -> None:
    """Trains, and writes the report."""
    runs = {name: run(name) for name in OBJECTIVES}
    rows = []
    for name, values in runs.items():
        pairs = [values[steps // CHUNK - 1] for steps in LOOKED_AT]
        rows.append([name, words(name), *(f"{estimate:.3g} / {truth:.3g}" for estimate, truth in pairs)])
    header = ["objective", "a lower bound on", *(f"metric / true, step {steps:,}" for steps in LOOKED_AT)]
    parts = [
        report.table(header, rows),
        f"""Means over {CHUNK} steps, of a D that lags behind, on minibatches of {CHANGES["batch_size"]}: the
metric may exceed the truth by their noise, and by as much as D's constraint is loose (`wgan`, see
wasserstein_critic.md).""",
    ]
    report.write("estimated_divergence", "The estimated divergence along a run", parts, _draw(runs))


if __name__ == "__main__":
    main()
