"""The bar of what may take a while beside training."""

from collections.abc import Sequence

from tqdm import tqdm

from gan_jax import agreement

PATIENCE = 1.0  # seconds without a bar


def progress(items: Sequence, what: str) -> tqdm:
    """The items, with a bar on a terminal once they take longer than PATIENCE; it goes when all are done.

    Of several processes the first one shows it.
    """
    disable = None if agreement.is_first() else True  # None: without a terminal
    return tqdm(items, desc=what, delay=PATIENCE, leave=False, dynamic_ncols=True, disable=disable)
