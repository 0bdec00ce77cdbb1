"""Which modes a generator covers that cannot cover all: maximum likelihood, MLE-GAN and every other objective.

    python -m experiments.studies.mode_covering

The data has two modes, the generator is one Gaussian z -> mean + scale z. First the rest points of the generator's own
gradient at the *optimal* discriminator of each objective, exact on a grid, from three starts, with the value there of
the divergence that is followed; then what the shipped step reaches with a trained discriminator, three seeds. Ten
minutes on 2 CPU cores.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies import known, report
from gan_jax import theory
from gan_jax.data.mixture import mixture
from gan_jax.objectives import OBJECTIVES
from gan_jax.theory.identities import FOLLOWED

CENTERS, SIGMA = (-2.0, 2.0), 0.5
STARTS = {"on one mode": (1.8, 0.6), "between": (0.5, 1.0), "broad": (0.5, 2.5)}  # mean and scale
TRAINED_FROM = "between"
POINTS = np.linspace(-12, 12, 481)
SPACING = float(POINTS[1] - POINTS[0])
EXACT_STEPS = 10_000
STEPS = 2_000
SEEDS = range(3)
COVERED = 0.25  # of the data's mass within 2 sigma of a mode that a generator must have there to cover it
CHANGES = {
    "num_steps": STEPS,
    "batch_size": 256,
    "latent.dim": 1,
    "generator.depth": 0,
    "generator.optimizer.learning_rate": 5e-3,
    "generator.optimizer.decay_to": 0.05,
    "discriminator.width": 64,
    "discriminator.activation": "silu",
    "discriminator.steps": 5,
    "discriminator.optimizer.learning_rate": 2e-3,
    "discriminator.optimizer.decay_to": 0.05,
}
LIKELIHOOD = "maximum likelihood"


def probabilities(parameters):
    """Of the generator with parameters (mean, log scale) on POINTS, [m]."""
    return known.gaussians(POINTS, parameters[:1], jnp.exp(parameters[1]))


def data():
    """The data's probabilities on POINTS, [m]."""
    return known.gaussians(POINTS, CENTERS, SIGMA)


def followed(name: str, parameters):
    """The divergence whose gradient the generator follows, at (mean, log scale); KL for maximum likelihood."""
    if name == "wgan":
        return theory.wasserstein_1(data(), probabilities(parameters), SPACING)
    divergence = FOLLOWED["mle" if name == LIKELIHOOD else name][1]
    return divergence(data(), probabilities(parameters))


def at_optimal_critic(name: str, parameters):
    """The generator's loss at (mean, log scale) with the critic held at the optimum for them."""
    critic, q = _critic(name), probabilities(parameters)
    logits = critic(data(), jax.lax.stop_gradient(q))
    return theory.generator_loss(OBJECTIVES[name], logits, data(), q)


def _critic(name: str):
    return partial(theory.optimal_critic, spacing=SPACING) if name == "wgan" else FOLLOWED[name][0]


def descend(loss, start: tuple[float, float]) -> tuple[float, float]:
    """(mean, scale) where Adam at a falling rate ends on loss(mean, log scale), in float64."""
    tx = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(1e-2, EXACT_STEPS)))

    def body(carry, _):
        parameters, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(parameters), opt_state)
        return (optax.apply_updates(parameters, updates), opt_state), None

    parameters = jnp.array([start[0], np.log(start[1])])
    (parameters, _), _ = jax.jit(partial(jax.lax.scan, body, length=EXACT_STEPS))((parameters, tx.init(parameters)))
    return float(parameters[0]), float(jnp.exp(parameters[1]))


def trained(name: str, seed: int, steps: int = STEPS) -> tuple[float, float]:
    """(mean, scale) of the averaged generator that the shipped step trains; NaN where it diverged."""
    changes = CHANGES | {"objective.name": name, "seed": seed, "num_steps": steps}
    setup = known.setup_on(
        mixture(np.array(CENTERS)[:, None], SIGMA), changes | (known.LIPSCHITZ if name == "wgan" else {})
    )
    state, _ = known.trainer(setup, steps)(known.affine_generator(setup, *STARTS[TRAINED_FROM]))
    return known.mean_and_scale(state.ema.params)


def modes_covered(mean: float, scale: float) -> int:
    """How many of the modes have COVERED of the data's mass around them."""
    p, q = np.asarray(data()), np.asarray(probabilities(_parameters(mean, scale)))
    near = np.abs(POINTS[:, None] - np.array(CENTERS)) < 2 * SIGMA
    return int(np.sum(q @ near >= COVERED * (p @ near)))


def rest_points(name: str) -> dict[str, tuple[float, float]]:
    """(mean, scale) where each of STARTS leads."""
    loss = partial(followed if name == LIKELIHOOD else at_optimal_critic, name)
    return {start: descend(loss, begin) for start, begin in STARTS.items()}


def lowest(name: str, rests: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """The rest point at which the followed divergence is smallest."""
    return min(rests.values(), key=lambda end: float(followed(name, _parameters(*end))))


def _parameters(mean: float, scale: float):
    return jnp.array([mean, np.log(scale)])


def _end(mean: float, scale: float) -> str:
    return f"{mean:.2f} ± {scale:.2f} ({modes_covered(mean, scale)})".replace("-0.00", "0.00")


def _row(name: str, rests: dict, runs: list[tuple[float, float]]) -> list[str]:
    exact = [f"{_end(*end)}, {float(followed(name, _parameters(*end))):.3f}" for end in rests.values()]
    return [name, *exact, str(modes_covered(*lowest(name, rests))), "; ".join(_end(*end) for end in runs)]


def _draw(rests: dict, runs: dict) -> report.Figure:
    drawn, axes = report.figure(3, 5, 12, 6.5)
    for each, (name, ends) in zip(axes.flat, rests.items(), strict=False):
        each.fill_between(POINTS, np.asarray(data()) / SPACING, color="tab:blue", alpha=0.3, label="data")
        curves = [(lowest(name, ends), "black", 2, "lowest rest point")]
        curves += [(end, "tab:red", 0.8, "" if i else "trained") for i, end in enumerate(runs.get(name, []))]
        for end, color, width, label in curves:
            curve = probabilities(_parameters(*end)) / SPACING
            each.plot(POINTS, curve, color=color, linewidth=width, label=label)
        each.set(xlim=(-6, 6), ylim=(0, 1))
        each.set_title(name, fontsize=9)
        each.tick_params(labelsize=6)
    for each in axes.flat[len(rests) :]:
        each.axis("off")
    axes[0, 1].legend(fontsize=6)
    return drawn


def main() -> None:
    """Descends, trains, and writes the report."""
    with jax.enable_x64(True):
        rests = {name: rest_points(name) for name in (LIKELIHOOD, *OBJECTIVES)}
    runs = {name: [trained(name, seed) for seed in SEEDS] for name in OBJECTIVES}
    with jax.enable_x64(True):
        rows = [_row(name, ends, runs.get(name, [])) for name, ends in rests.items()]
        drawn = _draw(rests, runs)
    header = ["objective", *(f"exact, from {start}" for start in STARTS), "modes at the lowest", "trained, each seed"]
    parts = [
        report.table(header, rows),
        f"""Ends are `mean ± scale (modes covered)`; the data is two Gaussians at ±2, sigma {SIGMA}. "exact" is where
the generator's gradient at the optimal discriminator leads, and the followed divergence there. The starts are
{", ".join(f"{mean} ± {scale} ({name})" for name, (mean, scale) in STARTS.items())}; training starts {TRAINED_FROM}.
A mode is covered where the generator has {COVERED:.0%} of the data's mass within 2 sigma of it.""",
    ]
    report.write("mode_covering", "Which modes a generator covers that cannot cover all", parts, drawn)


if __name__ == "__main__":
    main()
