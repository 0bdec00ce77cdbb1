"""The training step of both players, as pure functions of (recipe, devices, state, data).

How the players move is the recipe's `move`: by default `alternating`, algorithm 1 of arXiv:1406.2661: k discriminator
updates on k fresh minibatches with fresh noise, then one generator update with fresh noise. The player who does not
move does not move at all: neither parameters nor running statistics.
All randomness is folded from (state.key, state.step) and the example's slot in the global batch, and no key serves
twice, so that a step can be repeated exactly, on one device or on many.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gan_jax import order, overfitting
from gan_jax.devices import Devices, example_keys, example_slots
from gan_jax.state import Average, Hyperparameters, Player, TrainState

COPIED = 64  # examples of which copies are in memory at a time


class Recipe(NamedTuple):
    """What is being trained: static, made of functions. What depends on hyperparameters is a function of them."""

    generator: Any  # a Network: .init(key, z) and .apply(params, stats, z, train); labels follow where conditional
    discriminator: Any  # a Network, x -> logits
    objective: Callable  # Hyperparameters -> Objective
    penalty: Callable  # (critic, keys [n], real, fake) -> [n]
    schedule: Callable  # (Hyperparameters, step) -> Hyperparameters as they are in this step
    penalty_every: int  # steps from one in which D pays the penalty, so many times over, to the next
    generator_tx: Callable  # Hyperparameters -> optax.GradientTransformation
    discriminator_tx: Callable  # Hyperparameters -> optax.GradientTransformation
    prior: Callable  # keys [n] -> latents [n, d]
    augment: Callable  # (TrainState, keys [n], x [n, ...]) -> what D sees of x
    transform: Callable  # (keys [n], x [n, ...]) -> what D should see as it sees x: of consistency
    remember: Callable  # (Hyperparameters, Memory, metrics of an update of D) -> the Memory after it
    batch_size: int  # examples of a minibatch, over all devices
    accumulate: int  # micro-batches of a minibatch: their gradients are taken one after another, and averaged
    discriminator_steps: int  # k
    packing: int  # examples that are one input of D
    together: int  # examples that D needs at once, neighbours in the batch: a pack, or all packs that it compares
    move: Callable  # (recipe, devices, state, batch) -> (state, metrics): how both players take a step
    one_pass: bool  # whether D sees real and fake as one batch (and normalises over both)
    conditional: bool  # whether both players see the labels
    unroll: bool  # whether loops are written out: XLA runs a convolution inside a loop slowly on a CPU


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
    packs = _packed(recipe, jnp.zeros((2 * recipe.together, *shape)))
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


@jax.named_scope("discriminator_loss")  # a name that traces and profiles show
def discriminator_loss(recipe: Recipe, state: TrainState, params, real, latent_keys, penalty_keys):
    """What D descends in its `params`, the rest of `state` held constant, on the batch `real` {"image": [n, ...]}.

    Args:
      latent_keys, penalty_keys: [n], one of either for each example.

    Returns: (the mean of objective.discriminator(a, b) + penalty_weight * penalty + the weighted terms of
      `overfitting.regularisers`, over this part of the batch; where the penalty is lazy, that with penalty_every times
      the weight in every such step and 0 in the others, (new running statistics, metrics, the largest |logit|)). G's
      statistics of this pass are dropped.
    """
    real, labels, hyperparameters = real["image"], labels_of(recipe, real), state.hyperparameters
    objective, old_stats = recipe.objective(hyperparameters), state.discriminator.stats
    latents = recipe.prior(latent_keys)
    fake, _ = recipe.generator.apply(state.generator.params, state.generator.stats, latents, True, *labels)
    critic = _critic(recipe, params, old_stats, labels)
    again = _seen_again(recipe, critic, latent_keys, real, fake)
    real, fake = _seen(recipe, state, latent_keys, real, fake)
    real_logits, fake_logits, stats = _logits(recipe, recipe.discriminator.apply, params, old_stats, real, fake, labels)
    penalty, weight = _penalty(recipe, state, critic, _one_a_pack(recipe, penalty_keys), real, fake)
    loss = jnp.mean(objective.discriminator(real_logits, fake_logits))
    metrics = {"d_loss": loss, "penalty": penalty} | _told_by(objective, real_logits, fake_logits)
    if state.memory is not None and state.memory.adaptive is not None:
        metrics["augment_probability"] = overfitting.probability(state)
    total = loss + weight * penalty
    for name, (weight, value) in overfitting.regularisers(state, real_logits, fake_logits, *again).items():
        total, metrics[name] = total + weight * value, value
    return total, (stats, metrics, _largest(real_logits, fake_logits))


def _told_by(objective, real_logits, fake_logits) -> dict:
    """What D's logits say of the game."""
    return {
        "d_real": jnp.mean(real_logits),
        "d_fake": jnp.mean(fake_logits),
        "divergence": jnp.mean(objective.divergence(real_logits, fake_logits)),
        "d_accuracy_real": jnp.mean(real_logits > objective.undecided),
        "d_accuracy_fake": jnp.mean(fake_logits < objective.undecided),
    }


@jax.named_scope("generator_loss")
def generator_loss(recipe: Recipe, devices: Devices, state: TrainState, params, real, latent_keys):
    """What G descends in its `params`, the rest of `state` held constant, at the latents of these keys [n].

    `real` {"image": [n, ...]} gives the batch's size, and the real logits where an objective compares with them
    (elsewhere XLA drops the pass that makes them, unless `one_pass` normalises over both).

    Returns: (the mean of objective.generator(b, a) over this part of the batch + feature_matching * the distance of
      `_feature_distance` over all of it, (new running statistics, metrics, the largest |logit| of a fake)). D's
      statistics of this pass are dropped.
    """
    real, labels, discriminator = real["image"], labels_of(recipe, real), state.discriminator
    fake, stats = recipe.generator.apply(params, state.generator.stats, recipe.prior(latent_keys), True, *labels)
    real, fake = _seen(recipe, state, latent_keys, real, fake)
    objective, weight = recipe.objective(state.hyperparameters), state.hyperparameters.feature_matching
    network, inputs = recipe.discriminator, (discriminator.params, discriminator.stats, real, fake, labels)
    if weight is None:
        real_logits, fake_logits, _ = _logits(recipe, network.apply, *inputs)
        loss = jnp.mean(objective.generator(fake_logits, real_logits))
        return loss, (stats, {"g_loss": loss}, _largest(fake_logits))
    (real_logits, real_features), (fake_logits, fake_features), _ = _logits(recipe, network.features, *inputs)
    loss = jnp.mean(objective.generator(fake_logits, real_logits))
    distance = _feature_distance(devices, real_features, fake_features)
    return loss + weight * distance, (stats, {"g_loss": loss, "feature_matching": distance}, _largest(fake_logits))


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
    player = _update(recipe.discriminator_tx(_now(recipe, state)), player, gradients, stats)
    if memory is not None:
        memory = recipe.remember(state.hyperparameters, memory, metrics)
    return state.replace(discriminator=player, memory=memory)


def move_generator(recipe: Recipe, state: TrainState, gradients, stats) -> TrainState:
    """The same of G, and of its moving average."""
    numbers = _now(recipe, state)
    player = _update(recipe.generator_tx(numbers), state.generator, gradients, stats)
    return state.replace(generator=player, ema=_averaged(state.ema, player, numbers.ema_decay))


def _now(recipe: Recipe, state: TrainState) -> Hyperparameters:
    return recipe.schedule(state.hyperparameters, state.step)


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
    key, n = step_keys(state).data, recipe.batch_size // devices.parts
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
        packs = _packed(recipe, jnp.broadcast_to(example, (recipe.together, *example.shape)))
        return recipe.discriminator.apply(player.params, player.stats, packs, False)[0][0]

    return jax.lax.map(of_copies, x, batch_size=COPIED)


def judge(recipe: Recipe, player: Player, x, *labels):
    """D's logits at x [n, ...], in packs and groups of neighbours as in training, with its running statistics.

    Returns: [n / packing]; n must be whole packs and groups, `together` examples each. A conditional one is given
      `labels`, int32 [n], too.
    """
    return recipe.discriminator.apply(player.params, player.stats, _packed(recipe, x), False, *labels)[0]


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


def labels_of(recipe: Recipe, batch) -> tuple:
    """What both networks are called with beside their input: the batch's labels [n], real and fake ones alike."""
    return (batch["label"],) if recipe.conditional else ()


def _seen(recipe, state, latent_keys, real, fake):
    """What D sees of real and fake: augmented, each example by a key of its own, and packed."""
    keys, augment = _keys_of_both(latent_keys, 2**32 - 1), partial(recipe.augment, state)
    return _packed(recipe, augment(keys[:, 0], real)), _packed(recipe, augment(keys[:, 1], fake))


def _seen_again(recipe, critic, latent_keys, real, fake):
    """Two functions () -> D's logits, of the real and of the fake examples, transformed by keys of their own."""

    def logits(which, x):
        keys = _keys_of_both(latent_keys, 2**32 - 2)[:, which]
        return critic(_packed(recipe, recipe.transform(keys, x)))

    return partial(logits, 0, real), partial(logits, 1, fake)


def _keys_of_both(latent_keys, number: int):
    """[n, 2]: for each real and for each fake example a key. Latents are drawn at smaller numbers of theirs."""
    return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(latent_keys)


def _packed(recipe, x):
    """x [n, ..., c] as packs (arXiv:1712.04086): [n / m, ..., m c], each of m neighbours, so of one device."""
    if recipe.packing == 1:
        return x
    packs = jnp.moveaxis(x.reshape(-1, recipe.packing, *x.shape[1:]), 1, -2)
    return packs.reshape(*packs.shape[:-2], -1)


def _one_a_pack(recipe, keys):
    """Of keys [n], one an example, one a pack."""
    return keys if recipe.packing == 1 else keys.reshape(-1, recipe.packing)[:, 0]


def _logits(recipe, apply, params, stats, real, fake, labels):
    """What D's `apply` makes of real and of fake, with its new statistics: two passes, or one over both."""
    if recipe.one_pass:
        labels = [_in_turn(each, each) for each in labels]
        outputs, stats = apply(params, stats, _in_turn(real, fake), True, *labels)
        return *(jax.tree.map(lambda x: x[first::2], outputs) for first in (0, 1)), stats  # noqa: B023
    of_real, stats = apply(params, stats, real, True, *labels)
    of_fake, stats = apply(params, stats, fake, True, *labels)
    return of_real, of_fake, stats


def _feature_distance(devices, real, fake):
    """|E f(x) - E f(G(z))|^2 of features [n, d], with means over the whole batch (arXiv:1606.03498, section 3.1).

    It is no mean over examples: the parts of a batch are averaged before the square. The derivative of their mean goes
    back to each part whole, so that, as of any other loss, the gradient is the mean over the parts.
    """
    real, fake = devices.mean((jnp.mean(real, axis=0), jnp.mean(fake, axis=0)))
    return jnp.sum(jnp.square(real - fake))


def _in_turn(real, fake):
    """Both [n, ...] as one batch [2 n, ...], a fake after each real one: each stays on the device that has it."""
    return jnp.stack([real, fake], axis=1).reshape(-1, *real.shape[1:])


def _critic(recipe, params, stats, labels):
    return lambda x: recipe.discriminator.apply(params, stats, x, True, *labels)[0]


def _penalty(recipe, state, critic, *points):
    """(the mean penalty over this part of the batch, its weight): lazy, it is 0, and not computed, in most steps."""
    weight, every = _now(recipe, state).penalty_weight, recipe.penalty_every
    mean = partial(_mean_penalty, recipe, critic)
    if every == 1:
        return mean(*points), weight
    due = (state.step + 1) % every == 0
    return jax.lax.cond(due, mean, lambda *_: jnp.float32(0), *points), weight * every


def _mean_penalty(recipe, critic, *points):
    return jnp.mean(recipe.penalty(critic, *points))


def _largest(*logits):
    return jnp.max(jnp.stack([jnp.max(jnp.abs(each)) for each in logits]))


@jax.named_scope("update")
def _update(tx, player: Player, gradients, stats) -> Player:
    updates, opt_state = tx.update(gradients, player.opt_state, player.params)
    return Player(optax.apply_updates(player.params, updates), stats, opt_state)


@jax.named_scope("average")
def _averaged(ema: Average, player: Player, decay) -> Average:
    return optax.incremental_update(Average(player.params, player.stats), ema, 1 - decay)
