"""The training step of both players, as pure functions of (recipe, devices, state, data).

How the players move is the recipe's `move`: by default `alternating`, algorithm 1 of arXiv:1406.2661: k discriminator
updates on k fresh minibatches with fresh noise, then one generator update with fresh noise. The player who does not
move does not move at all: neither parameters nor running statistics.
All randomness is folded from (state.key, state.step) and the example's slot in the global batch, and no key serves
twice, so that a step can be repeated exactly, on one device or on many.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax import order, overfitting
from gan_jax.devices import Devices, example_keys, example_slots
from gan_jax.losses import discriminator_loss, generator_loss, labels_of, packed
from gan_jax.state import Average, Hyperparameters, Player, Recipe, TrainState, numbers_now

COPIED = 64  # examples of which copies, or what D makes of them, are in memory at a time


class StepKeys(NamedTuple):
    """The three streams of randomness of one step."""

    data: jax.Array
    discriminator: jax.Array
    generator: jax.Array


def step_keys(state: TrainState) -> StepKeys:
    """The keys of the step that `state` is about to take."""
    return StepKeys(*jax.random.split(jax.random.fold_in(state.key, state.step), 3))


def init_state(recipe: Recipe, hyperparameters: Hyperparameters, key, shape: tuple[int, ...]) -> TrainState:
    """The state before the first step; `shape` is that of one example. Each network has a key of its own."""
    generator_key, discriminator_key, latent_key, step_key = jax.random.split(key, 4)
    inputs = recipe.prior(jax.random.split(latent_key, 2)), *labels_of(recipe, {"label": jnp.zeros(2, jnp.int32)})
    generator = _init_player(recipe.generator, recipe.generator_tx(hyperparameters), generator_key, *inputs)
    packs = packed(recipe, jnp.zeros((2 * recipe.together, *shape)))
    inputs = packs, *labels_of(recipe, {"label": jnp.zeros(len(packs), jnp.int32)})
    discriminator = _init_player(
        recipe.discriminator, recipe.discriminator_tx(hyperparameters), discriminator_key, *inputs
    )
    # Copies, not aliases: the whole state is donated to the next step, and a buffer can be donated only once.
    ema = jax.tree.map(jnp.copy, Average(generator.params, generator.stats))
    memory = overfitting.initial(hyperparameters)
    return TrainState(jnp.int32(0), step_key, hyperparameters, generator, discriminator, ema, memory)


def _init_player(network, tx, key, *inputs) -> Player:
    params, stats = network.init(key, *inputs)
    return Player(params, stats, tx.init(params))


def discriminator_keys(devices: Devices, key, n: int):
    """(the keys of the latents, the keys of the penalty), each [n], of an update of D on n examples of this part."""
    latent_key, penalty_key = jax.random.split(key)
    return example_keys(devices, latent_key, n), example_keys(devices, penalty_key, n)


def discriminator_step(recipe: Recipe, devices: Devices, state: TrainState, real, key):
    """One update of D on the batch `real` {"image": [n, ...]}: (state, metrics of float32 scalars)."""
    pull = discriminator_pull(recipe, devices, state, real, key)
    gradients, stats, metrics = over_devices(devices, "d_grad_norm", *pull)
    return move_discriminator(recipe, state, gradients, stats, metrics), metrics


def generator_step(recipe: Recipe, devices: Devices, state: TrainState, real, key):
    """One update of G, with noise of `real`'s size, and of its moving average: (state, metrics of float32 scalars)."""
    pull = generator_pull(recipe, devices, state, real, key)
    gradients, stats, metrics = over_devices(devices, "g_grad_norm", *pull)
    return move_generator(recipe, state, gradients, stats), metrics


def discriminator_pull(recipe: Recipe, devices: Devices, state: TrainState, real, key):
    """Where D is pulled from `state`, on this part of the batch `real` {"image": [n, ...]}.

    Returns: (the gradient of its loss, (new running statistics, metrics, the largest |logit|)).
    """
    loss = partial(discriminator_loss, recipe, state)
    examples = real, *discriminator_keys(devices, key, len(real["image"]))
    return _gradients(recipe, devices, loss, state.discriminator, examples)


def generator_pull(recipe: Recipe, devices: Devices, state: TrainState, real, key):
    """Where G is pulled from `state`, with noise of `real`'s size; returns as `discriminator_pull` does."""
    loss = partial(generator_loss, recipe, devices, state)
    examples = real, example_keys(devices, key, len(real["image"]))
    return _gradients(recipe, devices, loss, state.generator, examples)


def over_devices(devices: Devices, norm: str, gradients, reported):
    """What a pull is over all parts: (gradients, statistics, metrics), the gradients' norm among these as `norm`."""
    stats, metrics, largest = reported
    gradients, stats, metrics = devices.mean((gradients, stats, metrics))
    metrics |= {norm: optax.tree.norm(gradients), "max_logit": devices.maximum(largest)}
    return gradients, stats, metrics


def move_discriminator(recipe: Recipe, state: TrainState, gradients, stats, metrics) -> TrainState:
    """The state after D's optimiser was given these gradients, with its new running statistics.

    `metrics` of the update, over all devices, move what is remembered of it.
    """
    player, memory = state.discriminator, state.memory
    player = _update(recipe.discriminator_tx(numbers_now(recipe, state)), player, gradients, stats)
    if memory is not None:
        memory = recipe.remember(state.hyperparameters, memory, metrics)
    return state.replace(discriminator=player, memory=memory)


def move_generator(recipe: Recipe, state: TrainState, gradients, stats) -> TrainState:
    """The same of G, and of its moving average."""
    numbers = numbers_now(recipe, state)
    player = _update(recipe.generator_tx(numbers), state.generator, gradients, stats)
    return state.replace(generator=player, ema=_averaged(state.ema, player, numbers.ema_decay))


def alternating(recipe: Recipe, devices: Devices, state: TrainState, batch):
    """k discriminator steps on `batch` {"image": [k, n, ...]}, then one generator step: (state, metrics).

    The discriminator's metrics are those of its last update; `max_logit` is the largest |logit| that either met.
    """
    keys = step_keys(state)
    update_keys = jax.random.split(keys.discriminator, recipe.discriminator_steps)

    def body(state, real_and_key):
        return discriminator_step(recipe, devices, state, *real_and_key)

    state, metrics = _loop(body, state, (batch, update_keys), recipe.discriminator_steps, recipe.unroll)
    last = jax.tree.map(lambda x: x[-1], (batch, metrics))
    state, generator_metrics = generator_step(recipe, devices, state, last[0], keys.generator)
    # Of the two, a NaN gives way to a number: when a run diverges, the last finite logit is what explains it.
    largest = jnp.fmax(jnp.nanmax(metrics["max_logit"]), generator_metrics["max_logit"])
    return state.replace(step=state.step + 1), last[1] | generator_metrics | {"max_logit": largest}


def train_step(recipe: Recipe, devices: Devices, state: TrainState, batch):
    """One step of both players, as the recipe moves them, on `batch` {"image": [k, n, ...]}: (state, metrics)."""
    return recipe.move(recipe, devices, state, batch)


def train_steps(recipe: Recipe, devices: Devices, source, steps: int, state: TrainState, data):
    """`steps` train steps with their minibatches drawn on the device: (state, metrics, each [steps]).

    Args:
      source: how minibatches come out of `data`: a `gan_jax.data.Source`, or what has its `draw`, `size`, `streamed`.
      data: what `draw` draws from, a pytree of arrays, empty for generated data; of a streamed set the call's own
        minibatches, [steps, k, n, ...].
    """

    def body(state, rows):
        batch = draw_batches(recipe, devices, source, state, rows if source.streamed else data)
        return train_step(recipe, devices, state, batch)

    return _loop(body, state, data if source.streamed else None, steps, recipe.unroll)


@jax.named_scope("draw_batches")
def draw_batches(recipe: Recipe, devices: Devices, source, state: TrainState, data):
    """The k minibatches of the step that `state` is about to take: {"image": [k, n, ...]}, n examples of this part.

    A finite set is met in the order of `order.examples`, each example once an epoch; other data is drawn by keys alone.
    """
    key, n = step_keys(state).data, recipe.batch_size // devices.num_shards
    batches = []
    for j in range(recipe.discriminator_steps):
        indices, rows = None, data
        if source.streamed:
            rows = jax.tree.map(lambda x: x[j], data)  # noqa: B023
        elif source.size:
            minibatch = state.step.astype(jnp.uint32) * recipe.discriminator_steps + j
            met = partial(order.examples, order_words(state.key), source.size, recipe.batch_size, minibatch)
            indices = devices.apart(met, example_slots(devices, n))
        batches.append(source.draw(rows, indices, example_keys(devices, jax.random.fold_in(key, j), n)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def order_words(key) -> jax.Array:
    """What the order of a run's examples depends on, uint32 [2]. `key` is state.key; steps fold in smaller numbers."""
    return jax.random.bits(jax.random.fold_in(key, 2**32 - 1), (2,), jnp.uint32)


def sample(recipe: Recipe, average: Average, latents, *labels):
    """The averaged generator at `latents` [n, d], with its running statistics: [n, ...]. Deterministic.

    A conditional one is given `labels`, int32 [n], too.
    """
    return recipe.generator.apply(average.params, average.stats, latents, False, *labels)[0]


def discriminate(recipe: Recipe, player: Player, x):
    """An unconditional D's logits at x [n, ...], with its running statistics: [n].

    A D that needs several examples at once is shown each of x by itself, as often as it takes.
    """
    if recipe.together == 1:
        return recipe.discriminator.apply(player.params, player.stats, x, False)[0]

    def of_copies(example):
        packs = packed(recipe, jnp.broadcast_to(example, (recipe.together, *example.shape)))
        return recipe.discriminator.apply(player.params, player.stats, packs, False)[0][0]

    return jax.lax.map(of_copies, x, batch_size=COPIED)


def judge(recipe: Recipe, player: Player | Average, x, *labels):
    """D's logits at x [n, ...], in packs and groups of neighbours as in training, with its running statistics.

    Returns: [n / packing]; n must be whole packs and groups, `together` examples each. A conditional one is given
      `labels`, int32 [n], too.
    """
    return recipe.discriminator.apply(player.params, player.stats, packed(recipe, x), False, *labels)[0]


def _loop(body: Callable, state, xs, length: int, unroll: bool):
    """`lax.scan`, or the same written out: scan's own unroll=True still hides convolutions in a called computation."""
    if not unroll:
        return jax.lax.scan(body, state, xs, length=length)
    outputs, body = [], jax.jit(body)  # traced once
    for i in range(length):
        state, output = body(state, jax.tree.map(lambda x: x[i], xs))  # noqa: B023
        outputs.append(output)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _gradients(recipe: Recipe, devices: Devices, loss: Callable, player: Player, examples):
    """(the gradient of `loss` in `player.params`, (statistics, metrics, the largest |logit|)) over this part.

    Args:
      examples: what follows the parameters in the arguments of `loss`, each leaf [n, ...].

    Micro-batch j is every `accumulate`-th example (or those that D needs together) from the j-th on, and so has an
    equal share of what lies on each device: none is sent to another. All but the largest logit is a mean over the
    micro-batches.
    """
    gradient, count, block = jax.grad(loss, has_aux=True), recipe.accumulate, recipe.together
    if count == 1:
        return gradient(player.params, *examples)
    examples = jax.tree.map(lambda x: x.reshape(-1, count, block, *x.shape[1:]), examples)

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


@jax.named_scope("update")
def _update(tx, player: Player, gradients, stats) -> Player:
    updates, opt_state = tx.update(gradients, player.opt_state, player.params)
    return Player(optax.apply_updates(player.params, updates), stats, opt_state)


@jax.named_scope("average")
def _averaged(ema: Average, player: Player, decay) -> Average:
    return optax.incremental_update(Average(player.params, player.stats), ema, 1 - decay)
