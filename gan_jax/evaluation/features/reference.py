"""The real examples that samples are compared with: their features, extracted once and kept."""

import contextlib
import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from gan_jax.data import Source, independent
from gan_jax.data.source import pick
from gan_jax.evaluation.features.extractors import BATCH, Extractor, Features, extract, join
from gan_jax.evaluation.features.weight_files import write_npz
from gan_jax.evaluation.metrics.comparison import LEAST
from gan_jax.parallel.devices import Devices
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import is_path
from gan_jax.utils.plots import to_uint8
from gan_jax.utils.runtime import cache_folder

FORMAT = 1  # of what is kept; another number makes all of it stale
SEED = 0  # of which examples are taken where not all are: the same for every run
HELD = 32 * BATCH  # real images held at once


class Reference(NamedTuple):
    """What samples are compared with."""

    features: Features
    protocol: dict[str, str | int]  # what decides these features: scores of different protocols are not comparable


def load_reference(source: Source, name: str, split: str, extractor: Extractor, devices: Devices, num_real: int):
    """The `Reference` of num_real examples of a source (0: all of a finite one), from the cache if it is there.

    Of a finite source no example is taken twice. `name` and `split` are what a config calls the data. Raises
    InputError for too few examples.
    """
    count = min(num_real or source.size, source.size) if source.size else num_real
    if count < LEAST:
        raise InputError(f"{name}, split {split}, has {count} images; scores by features need at least {LEAST}")
    facts = FORMAT, SEED, _identity(source), source.size, source.shape, count, extractor.name, extractor.weights
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    path = cache_folder() / "references" / f"{key}.npz"
    # The code of a part by import path may be another the next time, and nothing tells what an own stream holds.
    unknown = not source.identity and (is_path(name) or not jax.tree.leaves(source.data))
    own = is_path(extractor.name) or unknown
    kept = None if own else _kept(path)
    features, images_hash = kept or _extract(source, count, extractor, devices)
    if not own and kept is None:
        arrays = {name: array for name, array in features._asdict().items() if array is not None}
        with contextlib.suppress(OSError):  # it is then extracted again the next time
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_npz(path, arrays | {"images_hash": np.array(images_hash)})
    protocol = {
        "data": name,
        "split": split,
        "shape": "x".join(map(str, source.shape)),
        "num_real": count,
        "images_hash": images_hash,
        "extractor": extractor.name,
        "extractor_hash": extractor.weights,
        "resize": extractor.resize,
    }
    return Reference(features, protocol)


def _kept(path: Path) -> tuple[Features, str] | None:
    """What `_extract` gave at another time, if it is there."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return Features(arrays["values"], arrays.get("logits")), str(arrays["images_hash"])
    except Exception:  # noqa: BLE001  whatever NumPy and zipfile raise where it is missing or torn
        return None


def _extract(source: Source, count: int, extractor: Extractor, devices: Devices) -> tuple[Features, str]:
    """The features, and 16 hex digits that tell the 8-bit images, wherever they were read from."""
    batches, digest = [], hashlib.sha256()
    for start in range(0, count, HELD):
        images = to_uint8(_real(source, count, start, min(start + HELD, count)))
        digest.update(images)
        batches.append(extract(extractor, devices, images))
    return join(batches), digest.hexdigest()[:16]


def _real(source: Source, count: int, start: int, end: int) -> np.ndarray:
    """Images start ... end of the `count` that are taken, float32 in [-1, 1]."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(SEED), i))(np.arange(start, end))
    if source.size:
        chosen = np.sort(np.random.default_rng(SEED).permutation(source.size)[:count])[start:end]
        return np.asarray(pick(source, chosen, keys)["image"])
    return np.asarray(independent(source, keys)["image"])


def _identity(source: Source) -> str:
    """What tells a source's examples on this machine, known at once: of its files, else of its arrays."""
    digest = hashlib.sha256(source.identity.encode())
    if not source.identity:
        for leaf in jax.tree.leaves(source.data):
            digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()
