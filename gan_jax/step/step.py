"""The training step of both players, as pure functions of (recipe, devices, state, data).

`train_step` takes one step by the recipe's move. By default that is `alternating`, algorithm 1 of arXiv:1406.2661: k
discriminator updates on k fresh minibatches with fresh noise, then one generator update with fresh noise. The player
who does not move does not move at all: neither parameters nor running statistics.

With v = (gradient of G's loss in G, gradient of D's loss in D) at both players' parameters w, and plain descent at the
rate h in the place of the players' optimisers, the other moves are

    simultaneous   w - h v(w)
    extragradient  w - h v(w - h v(w))
    consensus      w - h (v(w) + weight * grad 1/2 |v(w)|^2)

and take one minibatch a step, on which D and G have noise of their own, as where they alternate.

All randomness is folded from (state.key, state.step) and the example's slot in the global batch, and no key serves
twice, so that a step can be repeated exactly, on one device or on many.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax.data import shuffle
from gan_jax.parallel.devices import Devices, example_keys, example_slots
from gan_jax.step import regularizers
from gan_jax.step.losses import OF_G, discriminator_loss, generator_loss, is_paid, joined, labels_of, packed
from gan_jax.step.state import Average, Hyperparameters, Move, Player, Recipe, TrainState
from gan_jax.step.transfer import held, held_constant
from gan_jax.utils.keys import NON_NEGATIVE, Registry, function

ConsensusWeight = Annotated[
    float,
    NON_NEGATIVE,
    "of half the squared norm of both gradients, which consensus descends",
]


class StepKeys(NamedTuple):
    """The three streams of randomness of one step."""

    data: jax.Array
    discriminator: jax.Array
    generator: jax.Array


def step_keys(state: TrainState) -> StepKeys:
    """The keys of the step that `state` is about to take."""
    return StepKeys(*jax.random.split(jax.random.fold_in(state.key, state.step), 3))


def train_steps(recipe: Recipe, devices: Devices, source, steps: int, state: TrainState, data):
    """`steps` train steps with their minibatches drawn on the device: (state, metrics {name: [steps]}).

    Args:
      source: how minibatches come out of `data`: a `gan_jax.data.Source`, or what has its `draw`, `size`, `streamed`.
      data: what `draw` draws from, a pytree of arrays, empty for generated data; of a streamed set the call's own
        minibatches, [steps, k, n, ...].
    """

    def body(state, rows):
        batch = draw_batches(recipe, devices, source, state, rows if source.streamed else data)
        return train_step(recipe, devices, state, batch)

    return _loop(body, state, data if source.streamed else None, steps, recipe.unroll)


def train_step(recipe: Recipe, devices: Devices, state: TrainState, batch):
    """One step of both players, by the recipe's move, on `batch` {"image": [k, n, ...]}: (state, metrics)."""
    numbers = recipe.schedule(state.hyperparameters, state.step)
    state, metrics = recipe.move.take(recipe, devices, numbers, step_keys(state), state, batch)
    return state.replace(step=state.step + 1), metrics


def alternating(recipe: Recipe, devices: Devices, numbers: Mapping, keys: StepKeys, state: TrainState, batch):
    """k updates of D, one on each minibatch, then one of G, who sees the moved D.

    D's metrics are those of its last update; `max_logit` is the largest |logit| that either met.
    """
    update_keys = jax.random.split(keys.discriminator, recipe.discriminator_steps)

    def one_update(state, minibatch_and_key):
        return discriminator_step(recipe, devices, state, *minibatch_and_key, numbers)

    state, metrics = _loop(one_update, state, (batch, update_keys), recipe.discriminator_steps, recipe.unroll)
    last_batch, last_metrics = jax.tree.map(lambda x: x[-1], (batch, metrics))
    state, generator_metrics = generator_step(recipe, devices, state, last_batch, keys.generator, numbers)
    return state, _of_both(last_metrics | {"max_logit": jnp.nanmax(metrics["max_logit"])}, generator_metrics)


def _of_both(metrics: dict, generator_metrics: dict) -> dict:
    """The metrics of D's update and of G's."""
    # Of the two, a NaN gives way to a number: when a run diverges, the last finite logit is what explains it.
    largest = jnp.fmax(metrics["max_logit"], generator_metrics["max_logit"])
    rest = {name: value for name, value in metrics.items() if name != "max_logit"}
    return joined(rest, generator_metrics) | {"max_logit": largest}


def discriminator_step(recipe: Recipe, devices: Devices, state: TrainState, real, key, numbers: Mapping | None = None):
    """One update of D on the batch `real` {"image": [n, ...]}: (state, metrics of float32 scalars).

    `numbers` of the step are those of the recipe's schedule, if they are not passed.
    """
    numbers = recipe.schedule(state.hyperparameters, state.step) if numbers is None else numbers
    gradient = discriminator_gradient(recipe, devices, numbers, state, real, key)
    gradients, stats, metrics = mean_over_devices(devices, "d_grad_norm", *gradient)
    return update_discriminator(recipe, numbers, state, gradients, stats, metrics), metrics


def generator_step(recipe: Recipe, devices: Devices, state: TrainState, real, key, numbers: Mapping | None = None):
    """One update of G, with noise of `real`'s size, and of its moving average; as `discriminator_step`."""
    numbers = recipe.schedule(state.hyperparameters, state.step) if numbers is None else numbers
    gradient = generator_gradient(recipe, devices, numbers, state, real, key)
    gradients, stats, metrics = mean_over_devices(devices, "g_grad_norm", *gradient)
    return update_generator(recipe, numbers, state, gradients, stats, metrics), metrics


def discriminator_gradient(recipe: Recipe, devices: Devices, numbers: Mapping, state: TrainState, real, key):
    """The gradient of D's loss in its parameters, on this shard of the batch `real` {"image": [n, ...]}.

    Returns: (the gradient, (new running statistics, metrics, the largest |logit|)).
    """
    loss = partial(discriminator_loss, recipe, numbers, state)
    examples = real, *discriminator_keys(devices, key, len(real["image"]))
    return _gradient(recipe, devices, loss, state.discriminator, examples)


def generator_gradient(recipe: Recipe, devices: Devices, numbers: Mapping, state: TrainState, real, key):
    """The gradient of G's loss, with noise of `real`'s size; returns as `discriminator_gradient` does."""
    loss = partial(generator_loss, recipe, devices, numbers, state)
    examples = real, example_keys(devices, key, len(real["image"]))
    return _gradient(recipe, devices, loss, state.generator, examples)


def discriminator_keys(devices: Devices, key, n: int):
    """(keys of the latents, keys of the penalty), [n] each, of an update of D on n examples of this shard."""
    latent_key, penalty_key = jax.random.split(key)
    return example_keys(devices, latent_key, n), example_keys(devices, penalty_key, n)


def mean_over_devices(devices: Devices, norm: str, gradients, reported):
    """From a shard's gradient to that of the whole batch: (gradients, statistics, metrics), their norm as `norm`.

    Under jit the shard is the whole batch, and XLA has reduced in the backward pass: the means are identities.
    """
    stats, metrics, largest = reported
    gradients, stats, metrics = devices.mean((gradients, stats, metrics))
    own = {norm: optax.tree.norm(gradients), "max_logit": devices.maximum(largest)}
    return gradients, stats, joined(metrics, own)


def update_discriminator(recipe: Recipe, numbers: Mapping, state: TrainState, gradients, stats, metrics) -> TrainState:
    """The state after D's optimiser was given these gradients, with its new running statistics.

    `metrics` of the update, over all devices, move the state of D's regularisers.
    """
    player = _update(recipe.discriminator_tx(numbers), state.discriminator, gradients, stats)
    if recipe.frozen is not None:
        player = held(recipe.frozen, player, state.discriminator)
    state = _own_updated(recipe, "penalty", state, metrics)
    if state.regularizers is None:
        return state.replace(discriminator=player)
    return state.replace(
        discriminator=player, regularizers=recipe.update_regularizers(numbers, state.regularizers, metrics)
    )


def update_generator(recipe: Recipe, numbers: Mapping, state: TrainState, gradients, stats, metrics) -> TrainState:
    """The same of G, and of its moving average."""
    player = _update(recipe.generator_tx(numbers), state.generator, gradients, stats)
    state = _own_updated(recipe, OF_G, state, metrics)
    return state.replace(generator=player, ema=_averaged(state.ema, player, numbers["generator.ema_decay"]))


def _own_updated(recipe: Recipe, name: str, state: TrainState, metrics) -> TrainState:
    """The state after the part of that group, if there is one that keeps something, has seen its player's metrics."""
    if name not in recipe.own:
        return state
    own, old = recipe.own[name], state.own[name]
    due = is_paid(own.every, state.step)
    new = jax.tree.map(lambda new, old: jnp.where(due, new, old), own.update(old, metrics), old)
    return state.replace(own=state.own | {name: new})


@jax.named_scope("update")
def _update(tx, player: Player, gradients, stats) -> Player:
    updates, opt_state = tx.update(gradients, player.opt_state, player.params)
    return Player(optax.apply_updates(player.params, updates), stats, opt_state)


@jax.named_scope("average")
def _averaged(ema: Average, player: Player, decay) -> Average:
    return optax.incremental_update(Average(player.params, player.stats), ema, 1 - decay)


def _gradient(recipe: Recipe, devices: Devices, loss: Callable, player: Player, examples):
    """(the gradient of `loss` in `player.params`, (statistics, metrics, the largest |logit|)) over this shard.

    Args:
      examples: what follows the parameters in the arguments of `loss`, each leaf [n, ...].

    Micro-batch j is every `accumulate`-th example (or group that D needs together) from the j-th on, and so has an
    equal share of what lies on each device: none is sent to another. All but the largest logit is a mean over the
    micro-batches.
    """
    gradient, count = jax.grad(loss, has_aux=True), recipe.accumulate
    if count == 1:
        return gradient(player.params, *examples)
    examples = jax.tree.map(lambda x: x.reshape(-1, count, recipe.group_size, *x.shape[1:]), examples)

    def add(total, j):
        j = _after(total, j) if recipe.unroll else j
        micro_batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, j, axis=1, keepdims=False), examples)
        micro_batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), micro_batch)
        gradients, (stats, *reported) = gradient(player.params, *jax.tree.map(devices.shard, micro_batch))
        return jax.tree.map(jnp.add, total, (gradients, stats)), reported

    zeros = jax.tree.map(jnp.zeros_like, (player.params, player.stats))
    total, (metrics, largest) = _loop(add, zeros, jnp.arange(count), count, recipe.unroll)
    gradients, stats = jax.tree.map(lambda x: x / count, total)
    return gradients, (stats, jax.tree.map(jnp.mean, metrics), jnp.max(largest))


def _after(tree, j):
    """The integer j, but not before `tree` is there: what needs it is then not in memory together with what made that.

    On a CPU XLA drops an `optimization_barrier` before it decides what is computed when. It does not know that no
    number is above infinity.
    """
    above = [jnp.ravel(leaf)[0] > jnp.inf for leaf in jax.tree.leaves(tree)]
    return j + jnp.any(jnp.stack(above)).astype(j.dtype)


def _loop(body: Callable, state, xs, length: int, unroll: bool):
    """`lax.scan`, or the same written out: scan's own unroll=True still hides convolutions in a called computation."""
    if not unroll:
        return jax.lax.scan(body, state, xs, length=length)
    outputs, body = [], jax.jit(body)  # traced once
    for i in range(length):
        state, output = body(state, jax.tree.map(lambda x: x[i], xs))  # noqa: B023
        outputs.append(output)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def simultaneous(recipe: Recipe, devices: Devices, numbers: Mapping, keys: StepKeys, state: TrainState, batch):
    """Both players move from the same point: G's gradient is that at the old D."""
    return _both_updated(recipe, numbers, state, *_field(recipe, devices, numbers, keys, state, batch))


def extragradient(recipe: Recipe, devices: Devices, numbers: Mapping, keys: StepKeys, state: TrainState, batch):
    """Both move from where they are by the gradients at a look-ahead (algorithm 4 of arXiv:1802.10551, extrapolation).

    The look-ahead is a simultaneous step by the optimisers, whose states go on through it and the move, as the paper's
    Extra-Adam: each counts two updates a step. Its running statistics are dropped. Both gradients are of the same
    minibatch, noise and random points, so that a step is that of one game (arXiv:1905.11373; the paper draws a second
    minibatch). The metrics are those at the look-ahead.
    """
    ahead, _ = simultaneous(recipe, devices, numbers, keys, state, batch)
    point = _at(state, ahead.generator.params, ahead.discriminator.params)
    field = _field(recipe, devices, numbers, keys, point, batch)
    start = state.replace(
        generator=state.generator.replace(opt_state=ahead.generator.opt_state),
        discriminator=state.discriminator.replace(opt_state=ahead.discriminator.opt_state),
    )
    return _both_updated(recipe, numbers, start, *field)


def consensus(
    recipe: Recipe,
    devices: Devices,
    numbers: Mapping,
    keys: StepKeys,
    state: TrainState,
    batch,
    weight: ConsensusWeight = 0.0,
):
    """A simultaneous step in which both also descend weight / 2 * |v|^2 (algorithm 2 of arXiv:1705.10461).

    v is the mean over the whole minibatch, with D's penalty. The norms reported are of what the optimisers are given.
    """

    def field_of(players):
        if recipe.frozen is not None:
            players = players[0], held_constant(recipe.frozen, players[1])
        gradients = _shard_field(recipe, devices, numbers, keys, _at(state, *players), batch)
        (of_generator, g_reported), (of_discriminator, d_reported) = gradients
        return (of_generator, of_discriminator), (g_reported, d_reported)

    players = state.generator.params, state.discriminator.params
    field, pull_back, reported = jax.vjp(field_of, players, has_aux=True)
    # J^T v of the global v, by each shard's own J: the mean of these over the shards is the gradient of 1/2 |v|^2.
    (slope,) = pull_back(devices.mean(field))
    steered = jax.tree.map(lambda v, c: v + weight * c, field, slope)
    return _both_updated(recipe, numbers, state, *_over_devices(devices, *zip(steered, reported, strict=True)))


def _at(state: TrainState, generator, discriminator) -> TrainState:
    """The state with these parameters."""
    return state.replace(
        generator=state.generator.replace(params=generator),
        discriminator=state.discriminator.replace(params=discriminator),
    )


def _shard_field(recipe: Recipe, devices: Devices, numbers: Mapping, keys: StepKeys, state: TrainState, batch):
    """`generator_gradient` and `discriminator_gradient` at this state, with the keys of an alternating step, k = 1."""
    real = jax.tree.map(lambda x: x[0], batch)
    discriminator_key = jax.random.split(keys.discriminator, 1)[0]
    return (
        generator_gradient(recipe, devices, numbers, state, real, keys.generator),
        discriminator_gradient(recipe, devices, numbers, state, real, discriminator_key),
    )


def _over_devices(devices: Devices, of_generator, of_discriminator):
    return (
        mean_over_devices(devices, "g_grad_norm", *of_generator),
        mean_over_devices(devices, "d_grad_norm", *of_discriminator),
    )


def _field(recipe: Recipe, devices: Devices, numbers: Mapping, keys: StepKeys, state: TrainState, batch):
    """((gradients, statistics, metrics) of G, the same of D) at this state, over all devices."""
    return _over_devices(devices, *_shard_field(recipe, devices, numbers, keys, state, batch))


def _both_updated(recipe: Recipe, numbers: Mapping, state: TrainState, of_generator, of_discriminator):
    """(the state after both have moved by these, metrics)."""
    state = update_discriminator(recipe, numbers, state, *of_discriminator)
    state = update_generator(recipe, numbers, state, *of_generator)
    return state, _of_both(of_discriminator[-1], of_generator[-1])


MOVES = Registry(
    {
        "alternating": Move(alternating),
        "simultaneous": Move(simultaneous),
        "extragradient": Move(extragradient, updates_per_step=2, gradients_per_update=2),
        "consensus": Move(consensus, gradients_per_update=2),
    },
    lambda part: part if isinstance(part, Move) else Move(function(part)),
)


@jax.named_scope("draw_batches")
def draw_batches(recipe: Recipe, devices: Devices, source, state: TrainState, data):
    """The k minibatches of the step that `state` is about to take: {"image": [k, n, ...]}, n examples of this shard.

    A finite set is met in the order of `shuffle.examples`, each example once an epoch; other data is drawn by keys.
    """
    key, n = step_keys(state).data, recipe.batch_size // devices.num_shards
    batches = []
    for j in range(recipe.discriminator_steps):
        indices, rows = None, data
        if source.streamed:
            rows = jax.tree.map(lambda x: x[j], data)  # noqa: B023
        elif source.size:
            minibatch = state.step.astype(jnp.uint32) * recipe.discriminator_steps + j
            met = partial(shuffle.examples, order_words(state.key), source.size, recipe.batch_size, minibatch)
            indices = devices.apart(met, example_slots(devices, n))
        batches.append(source.draw(rows, indices, example_keys(devices, jax.random.fold_in(key, j), n)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def order_words(key) -> jax.Array:
    """What the order of a run's examples depends on, uint32 [2]. `key` is state.key; steps fold in smaller numbers."""
    return jax.random.bits(jax.random.fold_in(key, 2**32 - 1), (2,), jnp.uint32)


def init_state(recipe: Recipe, hyperparameters: Hyperparameters, key, shape: tuple[int, ...]) -> TrainState:
    """The state before the first step; `shape` is that of one example. Each network has a key of its own."""
    generator_key, discriminator_key, latent_key, step_key = jax.random.split(key, 4)
    of_generator, of_discriminator = network_inputs(recipe, latent_key, shape)
    generator = _init_player(recipe.generator, recipe.generator_tx(hyperparameters), generator_key, *of_generator)
    tx = recipe.discriminator_tx(hyperparameters)
    discriminator = _init_player(recipe.discriminator, tx, discriminator_key, *of_discriminator)
    # Copies, not aliases: the whole state is donated to the next step, and a buffer can be donated only once.
    ema = jax.tree.map(jnp.copy, Average(generator.params, generator.stats))
    regularizer_state = regularizers.initial(hyperparameters)
    own = {name: jax.tree.map(jnp.array, part.initial()) for name, part in recipe.own.items()} or None
    return TrainState(jnp.int32(0), step_key, hyperparameters, generator, discriminator, ema, regularizer_state, own)


def network_inputs(recipe: Recipe, key, shape: tuple[int, ...]):
    """What two examples of this shape are to the networks: ((latents, *labels) of G, (packs, *labels) of D)."""

    def labels(n: int) -> tuple:
        none = jnp.zeros((n, recipe.label_size)) if recipe.label_size else jnp.zeros(n, jnp.int32)
        return labels_of(recipe, {"label": none})

    packs = packed(recipe, jnp.zeros((2 * recipe.group_size, *shape)))
    return (recipe.prior(jax.random.split(key, 2)), *labels(2)), (packs, *labels(len(packs)))


def _init_player(network, tx, key, *inputs) -> Player:
    params, stats = network.init(key, *inputs)
    return Player(params, stats, tx.init(params))
