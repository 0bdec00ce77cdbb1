"""What a generator feels of a discriminator that is trained to optimality against it, where the supports do not meet.

    python -m experiments.studies.vanishing_gradient

The generator keeps its initial weights (its learning rate is set to 0 in the state, so that the shipped step runs as it
is) and the metric `g_grad_norm` is followed while D learns: the experiment of arXiv:1701.04862, figure 2, on data where
one sees that no example of one side comes near the other. Three seeds; three minutes on 2 CPU cores.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import known, report
from gan_jax import recipe
from gan_jax.data import Source
from gan_jax.data.mixture import mixture
from gan_jax.recipe import Setup
from gan_jax.state import TrainState

STEPS = 2_000
LOOKED_AT = (1, 100, 500, 2_000)  # updates of D in the table
SEEDS = range(3)
REAL = mixture(np.array([[6.0]]), 0.5)
EXAMPLES = 100_000  # of each side, for the gap between them
CHANGES = {
    "num_steps": STEPS,
    "batch_size": 512,
    "generator.width": 64,
    "discriminator.width": 64,
    "discriminator.optimizer.learning_rate": 1e-3,
}
METHODS = {
    "minimax": {"objective.name": "minimax"},
    "mle": {"objective.name": "mle"},
    "non_saturating": {"objective.name": "non_saturating"},
    "wgan, wgan_gp": {"objective.name": "wgan", "penalty.name": "wgan_gp", "penalty.weight": 10.0},
    "wgan, clip 0.1": {"objective.name": "wgan", "discriminator.clip": 0.1},
}


def fixed(changes: dict, source: Source) -> tuple[Setup, TrainState]:
    """A run whose generator stays as it was initialised: (setup, state before the first step)."""
    setup = known.setup_on(source, CHANGES | changes)
    state = recipe.initial_state(setup)
    hyperparameters = state.hyperparameters.replace(generator_learning_rate=jnp.float32(0))
    return setup, state.replace(hyperparameters=hyperparameters)


def gap(setup: Setup, state: TrainState) -> float:
    """The distance of the nearest two of EXAMPLES real and as many generated examples, on the line."""
    keys = jax.random.split(jax.random.key(0), EXAMPLES)
    real = jax.jit(setup.source.draw)(setup.source.data, keys)["image"]
    fake, _ = setup.recipe.generator.apply(
        state.generator.params, state.generator.stats, setup.recipe.prior(keys), False
    )
    return float(jnp.min(real) - jnp.max(fake))


def norms(method: str, seed: int) -> tuple[np.ndarray, float]:
    """(the generator's gradient norm at each step [STEPS], the gap between the two sides)."""
    setup, state = fixed(METHODS[method] | {"seed": seed}, REAL)
    distance = gap(setup, state)
    _, metrics = known.trainer(setup, STEPS)(state)
    return np.asarray(metrics["g_grad_norm"]), distance


def _draw(series: dict[str, np.ndarray]) -> report.Figure:
    drawn, axes = report.figure(1, 1, 7.5, 4.2)
    steps = np.arange(1, STEPS + 1)
    for method, values in series.items():
        axes[0, 0].plot(steps, np.median(values, axis=0), linewidth=1, label=method)
        axes[0, 0].fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.15)
    axes[0, 0].set(xscale="log", yscale="log", xlabel="updates of D", ylabel="norm of the generator's gradient")
    axes[0, 0].legend(fontsize=8)
    axes[0, 0].grid(alpha=0.3)
    return drawn


def main() -> None:
    """Trains every discriminator and writes the report."""
    runs = {method: [norms(method, seed) for seed in SEEDS] for method in METHODS}
    series = {method: np.stack([values for values, _ in each]) for method, each in runs.items()}
    smallest = min(distance for each in runs.values() for _, distance in each)
    rows = [
        [method, *(f"{np.median(values[:, updates - 1]):.2g}" for updates in LOOKED_AT)]
        for method, values in series.items()
    ]
    parts = [
        report.table(["objective", *(f"{updates:,} updates of D" for updates in LOOKED_AT)], rows),
        f"""The norm of the generator's gradient: the median over {len(SEEDS)} seeds (in the picture with the smallest
and the largest). Real examples are N(6, 0.5^2); of {EXAMPLES:,} real and as many generated ones the nearest two are
{smallest:.2f} apart in the worst seed.""",
        """With the optimal D the minimax and the MLE-GAN losses have slopes sigma(b) and exp(b) at a logit b, which
vanish together as D rejects the fakes: MLE-GAN follows KL(p_data || p_g), but not from where p_g has no mass near the
data. The non-saturating loss keeps a slope of 1 there, times whatever slope D happens to have; the critic of WGAN-GP
keeps slope 1 in its input.""",
    ]
    report.write("vanishing_gradient", "The generator's gradient as D becomes optimal", parts, _draw(series))


if __name__ == "__main__":
    main()
