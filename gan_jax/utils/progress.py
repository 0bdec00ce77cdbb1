"""The bar of what may take a while beside training."""

from collections.abc import Collection

import jax
from tqdm import tqdm

PATIENCE = 1.0  # seconds without a bar


def progress(items: Collection, what: str) -> tqdm:
    """The items, with a bar on a terminal once they take longer than PATIENCE; it goes when all are done.

    Of several processes the first one shows it.
    """
    others = jax.distributed.is_initialized() and jax.process_index() > 0
    disable = others or None  # None: without a terminal
    return tqdm(items, desc=what, delay=PATIENCE, leave=False, dynamic_ncols=True, disable=disable)
