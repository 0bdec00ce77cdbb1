"""Which modes a generator covers that cannot cover all: maximum likelihood, MLE-GAN and every other objective.

    python -m experiments.studies.mode_covering

The data has two modes, the generator is one Gaussian z -> mean + scale z. First the rest point of the generator's own
gradient at the *optimal* discriminator of each objective, exact on a grid; then what the shipped step reaches with a
trained one, three seeds. Ten minutes on 2 CPU cores.
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
START = (0.5, 1.0)  # mean and scale: a little nearer to the right mode
POINTS = np.linspace(-8, 8, 401)
SPACING = 0.04
EXACT_STEPS = 20_000
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
LIPSCHITZ = {"penalty.name": "wgan_gp_one_sided", "penalty.weight": 10.0}  # for wgan, whose critic needs a bound


def probabilities(parameters):
    """Of the generator with parameters (mean, log scale) on POINTS, [m]."""
    return known.gaussians(POINTS, parameters[:1], jnp.exp(parameters[1]))


def data():
    """The data's probabilities on POINTS, [m]."""
    return known.gaussians(POINTS, CENTERS, SIGMA)


def at_optimal_critic(name: str, parameters):
    """The generator's loss at (mean, log scale) with the critic held at the optimum for them."""
    critic, q = _critic(name), probabilities(parameters)
    logits = critic(data(), jax.lax.stop_gradient(q))
    return theory.generator_loss(OBJECTIVES[name], logits, data(), q)


def _critic(name: str):
    return partial(theory.optimal_critic, spacing=SPACING) if name == "wgan" else FOLLOWED[name][0]


def descend(loss, start: tuple[float, float] = START) -> tuple[float, float]:
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
    setup = known.setup_on(mixture(np.array(CENTERS)[:, None], SIGMA), changes | (LIPSCHITZ if name == "wgan" else {}))
    state, _ = known.trainer(setup, steps)(known.affine_generator(setup, *START))
    return known.mean_and_scale(state.ema.params)


def modes_covered(mean: float, scale: float) -> int:
    """How many of the modes have COVERED of the data's mass around them."""
    p, q = np.asarray(data()), np.asarray(probabilities(jnp.array([mean, np.log(scale)])))
    near = np.abs(POINTS[:, None] - np.array(CENTERS)) < 2 * SIGMA
    return int(np.sum(q @ near >= COVERED * (p @ near)))


def _maximum_likelihood(parameters):
    return theory.kl(data(), probabilities(parameters))


def _row(name: str, exact: tuple[float, float], runs: list[tuple[float, float]]) -> list[str]:
    q = probabilities(jnp.array([exact[0], np.log(exact[1])]))
    divergences = [f"{float(theory.kl(*pair)):.3g}" for pair in ((data(), q), (q, data()))]
    ends = [f"{mean:.2f} ± {scale:.2f} ({modes_covered(mean, scale)})" for mean, scale in runs]
    covered = str(modes_covered(*exact))
    return [name, f"{exact[0]:.2f} ± {exact[1]:.2f}", covered, *divergences, "; ".join(ends) or "closed form"]


def _draw(ends: dict, runs: dict) -> report.Figure:
    drawn, axes = report.figure(3, 5, 12, 6.5)
    for each, (name, exact) in zip(axes.flat, ends.items(), strict=False):
        each.fill_between(POINTS, np.asarray(data()) / SPACING, color="tab:blue", alpha=0.3, label="data")
        each.plot(
            POINTS, probabilities(jnp.array([exact[0], np.log(exact[1])])) / SPACING, color="black", label="exact"
        )
        for i, (mean, scale) in enumerate(runs.get(name, [])):
            curve = probabilities(jnp.array([mean, np.log(scale)])) / SPACING
            each.plot(POINTS, curve, color="tab:red", linewidth=0.8, label="" if i else "trained, 3 seeds")
        each.set(xlim=(-6, 6), ylim=(0, 1))
        each.set_title(name, fontsize=9)
        each.tick_params(labelsize=6)
    for each in axes.flat[len(ends) :]:
        each.axis("off")
    axes[0, 1].legend(fontsize=6)
    return drawn


def main() -> None:
    """Descends, trains, and writes the report."""
    with jax.enable_x64(True):
        ends = {"maximum likelihood": descend(_maximum_likelihood)}
        ends |= {name: descend(partial(at_optimal_critic, name)) for name in OBJECTIVES}
    runs = {name: [trained(name, seed) for seed in SEEDS] for name in OBJECTIVES}
    with jax.enable_x64(True):
        rows = [_row(name, exact, runs.get(name, [])) for name, exact in ends.items()]
        drawn = _draw(ends, runs)
    header = ["objective", "exact", "modes", "KL(p_data || p_g)", "KL(p_g || p_data)", "trained, each seed (modes)"]
    parts = [
        report.table(header, rows),
        f"""`mean ± scale` of the generator; it starts at {START[0]} ± {START[1]}. The data is two Gaussians at ±2 with
sigma {SIGMA}. "exact" is where the generator's gradient at the optimal discriminator leads, and the divergences are
those of that point. A mode is covered where the generator has {COVERED:.0%} of the data's mass within 2 sigma of it.""",
    ]
    report.write("mode_covering", "Which modes a generator covers that cannot cover all", parts, drawn)


if __name__ == "__main__":
    main()
