"""What a generator feels of a discriminator that is trained against it for long, where the supports do not meet.

    python -m experiments.studies.vanishing_gradient

The generator keeps its initial weights (its learning rate is set to 0 in the state, so that the shipped step runs as it
is) and the metric `g_grad_norm` is followed while D learns: the experiment of arXiv:1701.04862, figure 2, on data where
one sees that no example of one side comes near the other. Three seeds; three minutes on 2 CPU cores.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import known, report
from gan_jax import recipe
from gan_jax.config.build import Setup
from gan_jax.data import Source, independent
from gan_jax.data.mixture import mixture
from gan_jax.step.state import TrainState

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
    hyperparameters = state.hyperparameters | {"generator.optimizer.learning_rate": jnp.float32(0)}
    return setup, state.replace(hyperparameters=hyperparameters)


def gap(setup: Setup, state: TrainState) -> float:
    """The distance of the nearest two of EXAMPLES real and as many generated examples, on the line."""
    keys = jax.random.split(jax.random.key(0), EXAMPLES)
    real = independent(setup.source, keys)["image"]
    fake, _ = setup.recipe.generator.apply(
        state.generator.params, state.generator.stats, setup.recipe.prior(keys), False
    )
    return float(jnp.min(real) - jnp.max(fake))


class Factors(NamedTuple):
    """What the generator's gradient is made of, at generated examples, besides its own Jacobian."""

    push: float  # mean |g'(b)|, g the generator's loss
    slope: float  # mean |grad_x D(x)|, per unit of the data


def factors(setup: Setup, state: TrainState, examples: int = 2_000) -> Factors:
    """The two at `examples` of the generator."""
    keys = jax.random.split(jax.random.key(1), examples)
    generator, discriminator = state.generator, state.discriminator
    fake, _ = setup.recipe.generator.apply(generator.params, generator.stats, setup.recipe.prior(keys), False)

    def total(x):
        logits, _ = setup.recipe.discriminator.apply(discriminator.params, discriminator.stats, x, False)
        return jnp.sum(logits), logits

    slopes, logits = jax.grad(total, has_aux=True)(fake)
    loss = setup.recipe.objective(state.hyperparameters).generator
    pushes = jax.grad(lambda b: jnp.sum(loss(b, jnp.zeros_like(b))))(logits)
    return Factors(float(jnp.mean(jnp.abs(pushes))), float(jnp.mean(jnp.linalg.norm(slopes, axis=-1))))


class Run(NamedTuple):
    """One discriminator's training."""

    norms: np.ndarray  # of the generator's gradient at each step, [STEPS]
    gap: float
    factors: Factors  # after it


def run(method: str, seed: int) -> Run:
    """Trains a discriminator against the initial generator."""
    setup, state = fixed(METHODS[method] | {"seed": seed}, REAL)
    distance = gap(setup, state)
    state, metrics = known.trainer(setup, STEPS)(state)
    return Run(np.asarray(metrics["g_grad_norm"]), distance, factors(setup, state))


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


def _row(method: str, runs: list[Run]) -> list[str]:
    norms = np.stack([run.norms for run in runs])
    columns = [np.median(norms[:, updates - 1]) for updates in LOOKED_AT]
    columns += np.median([run.factors for run in runs], axis=0).tolist()
    return [method, *(f"{value:.2g}" for value in columns)]


def main() -> None:
    """Trains every discriminator and writes the report."""
    runs = {method: [run(method, seed) for seed in SEEDS] for method in METHODS}
    smallest = min(run.gap for each in runs.values() for run in each)
    header = ["objective", *(f"after {updates:,}" for updates in LOOKED_AT), "mean |g'(b)|", "mean |grad D|"]
    parts = [
        report.table(header, [_row(method, each) for method, each in runs.items()]),
        f"""The norm of the generator's gradient after so many updates of D, and at the end the two factors that D
gives to it at generated examples: medians over {len(SEEDS)} seeds (in the picture with the smallest and the
largest). G stays as it was initialised, its examples near 0; real ones are N(6, 0.5^2), and of {EXAMPLES:,} of
each the nearest two are {smallest:.2f} apart in the worst seed.""",
        """The slopes sigma(b) of minimax and exp(b) of MLE-GAN vanish together as D rejects the fakes: MLE-GAN follows
KL(p_data || p_g), but not from where p_g has no mass near the data. The non-saturating slope stays near 1, times
whatever slope D has there. Only the critic with the gradient penalty has a slope of a known size; the scale of a
clipped one, and of this gradient with it, is arbitrary.""",
    ]
    drawn = _draw({method: np.stack([run.norms for run in each]) for method, each in runs.items()})
    report.write("vanishing_gradient", "The generator's gradient while D is trained", parts, drawn)


if __name__ == "__main__":
    main()
