"""Which methods converge on the Dirac-GAN: every objective, without and with each stabiliser.

    python -m experiments.studies.dirac_gan

Reproduces what Mescheder et al. (arXiv:1801.04406) say of this game: without regularisation no objective converges at
a linear rate, WGAN with clipping and WGAN-GP do not converge, also with several critic steps, zero-centred gradient
penalties (R1, R2) do, and so does instance noise, where the loss has curvature for it to act on. Their consensus
optimisation is a way to move, not a stabiliser: see docs/moves.md. Three minutes on 2 CPU cores.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from experiments.studies import report
from gan_jax.objectives import OBJECTIVES
from gan_jax.theory import dirac
from gan_jax.theory.dirac import Game

RATE = 0.1  # learning rate of both players
START = (0.6, 0.6)
STEPS = (500, 5_000, 50_000)  # after which the distance from the equilibrium is looked at
WINDOW = 200  # steps before that over which the largest distance counts: a circle need not be round
WEIGHT = 0.3  # of every penalty: R1 then is under-damped for all objectives, so that one sees it spiral in
STABILISERS = {
    "none": {},
    "5 critic steps": {"steps": 5},
    "clip 0.5": {"clip": 0.5},
    "wgan_gp": {"penalty": "wgan_gp", "weight": WEIGHT},
    "wgan_gp_one_sided": {"penalty": "wgan_gp_one_sided", "weight": WEIGHT},
    "dragan": {"penalty": "dragan", "weight": WEIGHT},
    "instance noise 0.7": {"noise": 0.7},
    "r1": {"penalty": "r1", "weight": WEIGHT},
    "r2": {"penalty": "r2", "weight": WEIGHT},
    "r1_r2": {"penalty": "r1_r2", "weight": WEIGHT},
}
KINKED = ("wgan_gp", "dragan")  # |psi| has no derivative at the equilibrium
SHOWN = (
    *((name, "none") for name in OBJECTIVES),
    *(("wgan", name) for name in ("clip 0.5", "wgan_gp", "instance noise 0.7", "r1")),
    *(("non_saturating", name) for name in ("wgan_gp", "instance noise 0.7", "r1", "r1_r2")),
)
UPDATES = {
    "gradient flow": dirac.flow,
    "alternating gradient descent": dirac.alternating,
    "simultaneous gradient descent": dirac.simultaneous,
}
LEGEND = """`converges`: within 0.001 of the equilibrium after 5,000 steps. `creeps`: not so, but nearer after 50,000
steps than after 5,000, by a factor below 0.7. `circles`: neither. `leaves`: more than twice as far as at the start, or
not finite. The flow is that of 5,000 steps of time 0.1 and so on; critic steps mean something only where the players
alternate."""


def verdict(distances: list[float]) -> str:
    """What became of a run, from its distances to the equilibrium at the start and after each of STEPS; see LEGEND."""
    start, _, middle, late = distances
    if not np.all(np.isfinite(distances)) or max(distances) > 2 * start:
        return "leaves"
    if middle < 1e-3:
        return "converges"
    return "creeps" if late < 0.7 * middle else "circles"


def distances(points: np.ndarray) -> list[float]:
    """The largest distance from the equilibrium in the window before step 0 and each of STEPS; points [n, 2]."""
    radii = np.linalg.norm(points, axis=1)
    return [float(np.max(radii[max(0, i - WINDOW) : i + 1])) for i in (0, *STEPS)]


def run(update: Callable, game: Game) -> np.ndarray:
    """The trajectory of an update (game, rate, point) -> point from START, [STEPS[-1] + 1, 2]."""
    update = partial(update, game, RATE)
    return np.asarray(jax.jit(lambda start: dirac.trajectory(update, start, STEPS[-1]))(np.float32(START)))


def moduli(game: Game) -> list[float]:
    """The largest modulus of an eigenvalue of the simultaneous and of the alternating update."""
    updates = (partial(update, game, RATE) for update in (dirac.simultaneous, dirac.alternating))
    return [float(np.max(np.abs(dirac.eigenvalues(update)))) for update in updates]


def _eigenvalues(game: Game) -> str:
    if game.penalty in KINKED:
        return "kink"
    first, second = sorted(np.asarray(dirac.eigenvalues(partial(dirac.vector_field, game))), key=lambda x: x.imag)
    if abs(second.imag) < 1e-6:
        return f"{first.real:.2f}, {second.real:.2f}"
    return (f"{second.real:.2f} " if abs(second.real) > 1e-6 else "") + f"±{second.imag:.2f}i"


def _draw(runs: dict) -> report.Figure:
    drawn, axes = report.figure(4, 5, 11, 8.6)
    for each, (objective, stabiliser) in zip(axes.flat, SHOWN, strict=True):
        points = runs[objective, stabiliser][:1500]
        points = points[np.all(np.abs(points) < 4, axis=1)]
        each.plot(*points.T, linewidth=0.6, color="tab:blue")
        each.plot(*START, "o", color="tab:green", markersize=4)
        each.plot(0, 0, "+", color="tab:red", markersize=9)
        each.set_title(objective if stabiliser == "none" else f"{objective}, {stabiliser}", fontsize=8)
        each.set(xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
        each.tick_params(labelsize=6)
    drawn.supxlabel("generator θ", fontsize=9)
    drawn.supylabel("discriminator ψ", fontsize=9)
    drawn.suptitle(f"The Dirac-GAN, alternating gradient descent, rate {RATE}, 1,500 steps from the dot", fontsize=10)
    return drawn


def _verdicts(update: Callable, games: dict, objectives: list[str]) -> str:
    rows = [[o, *(verdict(distances(run(update, games[o, s]))) for s in STABILISERS)] for o in objectives]
    return report.table(["objective", *STABILISERS], rows)


def main() -> None:
    """Runs every combination and writes the report."""
    games = {(o, s): Game(o, **options) for o in OBJECTIVES for s, options in STABILISERS.items()}
    spectra = [[o, *(_eigenvalues(games[o, s]) for s in STABILISERS)] for o in OBJECTIVES]
    pairs = [(o, s) for s in ("none", "r1") for o in OBJECTIVES]
    updates = [[*pair, *(f"{modulus:.4f}" for modulus in moduli(games[pair]))] for pair in pairs]
    parts = [f"Rate {RATE}, start {START}, penalty weight {WEIGHT}.", LEGEND]
    for name, update in UPDATES.items():
        parts += [f"## What became of {name}", _verdicts(update, games, list(OBJECTIVES))]
    parts += [
        "## Eigenvalues of the vector field's Jacobian at the equilibrium",
        report.table(["objective", *STABILISERS], spectra),
        "`kink`: the penalty has no derivative there.",
        f"## The largest modulus of the update's eigenvalues at rate {RATE}",
        report.table(["objective", "stabiliser", "simultaneous", "alternating"], updates),
    ]
    shown = {pair: run(dirac.alternating, games[pair]) for pair in SHOWN}
    report.write("dirac_gan", "Which methods converge on the Dirac-GAN", parts, _draw(shown))


if __name__ == "__main__":
    main()
