"""What each compiled call is given to train on: the resident set, or minibatches that the host reads ahead."""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import jax
import numpy as np

from gan_jax import order, step
from gan_jax.recipe import Setup
from gan_jax.state import TrainState


class Resident:
    """Data that lies on the device, or needs none."""

    waited = 0.0  # seconds

    def __init__(self, setup: Setup):
        self._data = setup.devices.place(setup.source.data)

    def call(self, now: int, after: int):
        """The `data` of the compiled call from step `now` to step `after`."""
        return self._data

    def close(self) -> None:
        """Nothing is to be released."""


class Streamed:
    """Minibatches that the host reads, decodes and sends ahead, in the order in which a resident set is met.

    A function of (state.key, step): a run that goes on, or goes back, asks for another step, and nothing need be saved.
    Grain decodes in threads, some minibatches ahead; one more thread stacks and sends the next call's to the device.
    """

    def __init__(self, setup: Setup, state: TrainState, following: Callable | None):
        """`following`: step at which a call begins -> step at which it ends; None: nothing is read ahead of a call."""
        self._setup, self._following = setup, following
        self._k, self._end = setup.recipe.discriminator_steps, setup.config.num_steps
        self._closed = False
        self._minibatches = _Minibatches(setup, np.asarray(step.order_words(state.key)))
        self._sender = ThreadPoolExecutor(1)
        self._iterator = None
        self._sent: tuple[tuple[int, int] | None, Future | None] = (None, None)  # (now, after), its data
        self.waited = 0.0  # seconds for which calls had to wait for their data

    def call(self, now: int, after: int):
        """The `data` of the compiled call from step `now` to step `after`, [steps, k, n, ...] on the devices."""
        start = time.perf_counter()
        expected, future = self._sent
        if expected != (now, after):
            future = self._sender.submit(self._go_to, now, after)
        data = future.result()
        self.waited += time.perf_counter() - start
        if self._following is not None and after < self._end:
            expected = (after, self._following(after))
            self._sent = expected, self._sender.submit(self._send, *expected)
        return data

    def close(self) -> None:
        """Ends the threads, after the minibatch at hand; what was read ahead is dropped."""
        self._closed = True
        self._sender.shutdown(cancel_futures=True)
        self._iterator = None

    def _go_to(self, now: int, after: int):
        import grain  # a second, which only those who stream need to spend

        config = self._setup.config
        ahead = max(2 * config.data.workers, self._k * config.steps_per_call)
        options = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=ahead)
        from_now = grain.MapDataset.source(self._minibatches)[now * self._k :]
        self._iterator = iter(from_now.to_iter_dataset(options))
        return self._send(now, after)

    def _send(self, now: int, after: int):
        minibatches = []
        for _ in range((after - now) * self._k):
            if self._closed:
                raise CancelledError
            minibatches.append(next(self._iterator))
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *minibatches)
        stacked = jax.tree.map(lambda x: x.reshape(after - now, self._k, *x.shape[1:]), stacked)
        return jax.block_until_ready(self._setup.devices.spread(stacked))


class _Minibatches:
    """This process's part of every minibatch of a run, by number: random access, as Grain reads it."""

    def __init__(self, setup: Setup, words: np.ndarray):
        self._words, self._source = words, setup.source
        self._batch_size = setup.recipe.batch_size
        self._count = setup.config.num_steps * setup.recipe.discriminator_steps
        self._slots = process_slots(self._batch_size, jax.process_index(), jax.process_count())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, minibatch: int) -> dict[str, np.ndarray]:
        indices = order.examples(self._words, self._source.size, self._batch_size, minibatch, self._slots)
        return self._source.rows(indices)


def process_slots(batch_size: int, process: int, count: int) -> np.ndarray:
    """The slots of the global batch that one of `count` processes reads: uint32, a contiguous part."""
    return np.arange(process * batch_size // count, (process + 1) * batch_size // count, dtype=np.uint32)


def call_shapes(setup: Setup, steps: int):
    """The shapes, dtypes and placement of what a compiled call of so many steps is given, without its arrays."""
    if not setup.source.streamed:
        return setup.devices.placed_shapes(setup.source.data)
    leading = (steps, setup.recipe.discriminator_steps, setup.recipe.batch_size)
    row = setup.source.rows(np.zeros(1, np.int64))
    minibatches = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype), row)
    return setup.devices.spread_shapes(minibatches)


Feed = Resident | Streamed


def feed(setup: Setup, state: TrainState, following: Callable | None) -> Feed:
    """The feed of a run from `state` on; see `Streamed` for `following`."""
    return Streamed(setup, state, following) if setup.source.streamed else Resident(setup)
