"""What each compiled call is given to train on: the resident set, or minibatches that the host reads ahead."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice

import jax
import numpy as np

from gan_jax.data import Source, shuffle
from gan_jax.parallel.devices import Devices


class Loader:
    """The data of the compiled calls of a run of `num_steps` steps.

    Resident and endless data is the same for all calls. A streamed set is met in the order of a resident one, which
    the step alone decides, so that nothing need be saved: Grain decodes minibatches ahead in threads; one more thread
    stacks and sends the next call's to the device. A set with an order of its own is met in that order, from the place
    that follows from the step; each process reads all of it.
    """

    def __init__(
        self,
        source: Source,
        devices: Devices,
        words: np.ndarray | None,  # uint32 [2], on which the order of a streamed set depends: `step.order_words`
        *,
        batch_size: int,  # over all devices and processes
        discriminator_steps: int,  # minibatches of a step
        num_steps: int,
        workers: int,  # threads that decode
        following: Callable[[int], int] | None,  # step at which a call begins -> ends; None: nothing is read ahead
    ):
        """What streams starts at the first call."""
        self._source, self._devices, self._words, self._batch_size = source, devices, words, batch_size
        self._per_step, self._count = discriminator_steps, num_steps * discriminator_steps  # minibatches
        self._workers, self._following = workers, following
        self._slots = process_slots(batch_size, jax.process_index(), jax.process_count())
        self._resident = None if source.streamed else devices.place(source.data)
        self._closed, self._iterator = False, None
        self._sender = ThreadPoolExecutor(1)
        self._sent: tuple[tuple[int, int] | None, Future | None] = (None, None)  # (now, after), its data
        self.waited = 0.0  # seconds for which calls had to wait for their data

    def call(self, now: int, after: int):
        """The `data` of the compiled call from step `now` to step `after`; of a streamed set [steps, k, n, ...]."""
        if not self._source.streamed:
            return self._resident
        start = time.perf_counter()
        expected, future = self._sent
        if expected != (now, after):
            future = self._sender.submit(self._go_to, now, after)
        data = future.result()
        self.waited += time.perf_counter() - start
        if self._following is not None and after * self._per_step < self._count:
            expected = (after, self._following(after))
            self._sent = expected, self._sender.submit(self._send, *expected)
        return data

    def close(self) -> None:
        """Ends the threads, after the minibatch at hand; what was read ahead is dropped."""
        self._closed = True
        self._sender.shutdown(cancel_futures=True)
        self._iterator = None

    def _go_to(self, now: int, after: int):
        if self._source.items is not None:
            self._iterator = self._in_order(now * self._per_step)
            return self._send(now, after)
        import grain  # a second, which only those who stream need to spend

        ahead = max(2 * self._workers, (after - now) * self._per_step)
        options = grain.ReadOptions(num_threads=self._workers, prefetch_buffer_size=ahead)
        minibatches = grain.MapDataset.range(now * self._per_step, self._count).map(self._rows)
        self._iterator = iter(minibatches.to_iter_dataset(options))
        return self._send(now, after)

    def _in_order(self, minibatch: int) -> Iterator[dict[str, np.ndarray]]:
        """This process's shares of the minibatches from this one on."""
        examples = self._source.items(minibatch * self._batch_size)
        while not self._closed:
            batch = list(islice(examples, self._batch_size))
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *(batch[slot] for slot in self._slots))

    def _rows(self, minibatch: int) -> dict[str, np.ndarray]:
        """This process's share of a minibatch."""
        size = self._source.size
        return self._source.rows(shuffle.examples(self._words, size, self._batch_size, minibatch, self._slots))

    def _send(self, now: int, after: int):
        minibatches = []
        for _ in range((after - now) * self._per_step):
            if self._closed:
                raise CancelledError
            minibatches.append(next(self._iterator))
        leading = (after - now, self._per_step)
        stacked = jax.tree.map(lambda *rows: np.stack(rows).reshape(*leading, *rows[0].shape), *minibatches)
        return jax.block_until_ready(self._devices.spread(stacked))


def process_slots(batch_size: int, process: int, count: int) -> np.ndarray:
    """The slots of the global batch that one of `count` processes reads: uint32, a contiguous range."""
    return np.arange(process * batch_size // count, (process + 1) * batch_size // count, dtype=np.uint32)


def call_shapes(source: Source, devices: Devices, steps: int, discriminator_steps: int, batch_size: int):
    """The shapes, dtypes and placement of what a compiled call of so many steps is given, without its arrays."""
    if not source.streamed:
        return devices.placed_shapes(source.data)
    row = source.rows(np.zeros(1, np.int64))
    leading = (steps, discriminator_steps, batch_size)
    return devices.spread_shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype), row))
