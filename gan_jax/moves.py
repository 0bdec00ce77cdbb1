"""How both players take a step, over the same losses: one function for each way, (recipe, devices, state, batch) ->
(state, metrics).

With v = (gradient of G's loss in G, gradient of D's loss in D) at both players' parameters w, and plain descent at the
rate h in the place of the players' optimisers:

    alternating    D first, k times, then G, who sees the moved D (`step.alternating`)
    simultaneous   w - h v(w)
    extragradient  w - h v(w - h v(w))
    consensus      w - h (v(w) + weight * grad 1/2 |v(w)|^2)

All but the first take one minibatch a step, on which D and G have noise of their own, as where they alternate.
"""

import jax
import jax.numpy as jnp

from gan_jax import step
from gan_jax.devices import Devices
from gan_jax.state import Recipe, TrainState


def simultaneous(recipe: Recipe, devices: Devices, state: TrainState, batch):
    """Both players move from the same point: G's gradient is that at the old D."""
    return _moved(recipe, state, *_field(recipe, devices, state, batch))


def extragradient(recipe: Recipe, devices: Devices, state: TrainState, batch):
    """Both move from where they are by the gradients at a look-ahead (algorithm 4 of arXiv:1802.10551, extrapolation).

    The look-ahead is a simultaneous step by the optimisers, whose states go on through it and the move, as the paper's
    Extra-Adam: each counts two updates a step. Its running statistics are dropped. Both gradients are of the same
    minibatch, noise and random points, so that a step is that of one game (arXiv:1905.11373; the paper draws a second
    minibatch). The metrics are those at the look-ahead.
    """
    ahead, _ = simultaneous(recipe, devices, state, batch)
    point = _at(state, ahead.generator.params, ahead.discriminator.params)
    field = _field(recipe, devices, point, batch)
    start = state.replace(
        generator=state.generator.replace(opt_state=ahead.generator.opt_state),
        discriminator=state.discriminator.replace(opt_state=ahead.discriminator.opt_state),
    )
    return _moved(recipe, start, *field)


def consensus(weight: float, recipe: Recipe, devices: Devices, state: TrainState, batch):
    """A simultaneous step in which both also descend weight / 2 * |v|^2 (algorithm 2 of arXiv:1705.10461).

    v is the mean over the whole minibatch, with D's penalty. The norms reported are of what the optimisers are given.
    """

    def pulls(players):
        of_generator, of_discriminator = _pulls(recipe, devices, _at(state, *players), batch)
        return (of_generator[0], of_discriminator[0]), (of_generator[1], of_discriminator[1])

    players = state.generator.params, state.discriminator.params
    field, pull_back, reported = jax.vjp(pulls, players, has_aux=True)
    # J^T v of the global v, by each part's own J: the mean of these over the parts is the gradient of 1/2 |v|^2.
    (slope,) = pull_back(devices.mean(field))
    steered = jax.tree.map(lambda v, c: v + weight * c, field, slope)
    return _moved(recipe, state, *_over_devices(devices, *zip(steered, reported, strict=True)))


def _at(state: TrainState, generator, discriminator) -> TrainState:
    """The state with these parameters."""
    return state.replace(
        generator=state.generator.replace(params=generator),
        discriminator=state.discriminator.replace(params=discriminator),
    )


def _pulls(recipe: Recipe, devices: Devices, state: TrainState, batch):
    """What `generator_pull` and `discriminator_pull` are at this state, with the keys of an alternating step, k = 1."""
    keys, real = step.step_keys(state), jax.tree.map(lambda x: x[0], batch)
    of_generator = step.generator_pull(recipe, devices, state, real, keys.generator)
    of_discriminator = step.discriminator_pull(recipe, devices, state, real, jax.random.split(keys.discriminator, 1)[0])
    return of_generator, of_discriminator


def _over_devices(devices: Devices, of_generator, of_discriminator):
    return (
        step.over_devices(devices, "g_grad_norm", *of_generator),
        step.over_devices(devices, "d_grad_norm", *of_discriminator),
    )


def _field(recipe: Recipe, devices: Devices, state: TrainState, batch):
    """((gradients, statistics, metrics) of G, the same of D) at this state, over all devices."""
    return _over_devices(devices, *_pulls(recipe, devices, state, batch))


def _moved(recipe: Recipe, state: TrainState, of_generator, of_discriminator):
    """(the state after both have moved by these, metrics)."""
    *generator, generator_metrics = of_generator
    *discriminator, metrics = of_discriminator
    state = step.move_generator(recipe, step.move_discriminator(recipe, state, *discriminator, metrics), *generator)
    largest = jnp.fmax(metrics["max_logit"], generator_metrics["max_logit"])
    return state.replace(step=state.step + 1), metrics | generator_metrics | {"max_logit": largest}


MOVES = {
    "alternating": step.alternating,
    "simultaneous": simultaneous,
    "extragradient": extragradient,
    "consensus": consensus,  # its first argument is its weight
}
