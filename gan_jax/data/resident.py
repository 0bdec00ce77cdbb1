"""A set that fits on the device: decoded once, kept on disk, read back in a moment."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gan_jax.data.reading import Reader
from gan_jax.data.source import stored_std
from gan_jax.runtime import cache_folder

FORMAT = 1  # of the files on disk
CHUNK = 1024  # examples decoded before they are written
ABANDONED = 24 * 3600  # seconds after which what was begun is not being written any more


class Loaded(NamedTuple):
    """All examples of a set."""

    data: dict[str, np.ndarray]  # image: uint8 [n, h, w, c]; label: int32 [n], where there are labels
    std: float  # of the pixels, scaled to [-1, 1]
    skipped: int  # corrupt examples that are not among them


def load(reader: Reader, workers: int) -> Loaded:
    """The decoded set, from the cache if it is there; else decoded with a progress bar, and put there.

    Where the cache cannot be written, a line on stderr says so, and the set is held in memory.
    """
    folder = cache_folder() / "data" / _key(reader)
    loaded = _read(folder)
    if loaded is None:
        try:
            _decode(reader, workers, folder)
            loaded = _read(folder)
        except OSError as error:
            print(f"the decoded set is not kept: {folder}: {error.strerror or error}", file=sys.stderr)
    elif loaded.skipped:
        print(f"without {loaded.skipped:,} corrupt examples, skipped when the set was decoded", file=sys.stderr)
    return loaded or _in_memory(reader, workers)


def _decode(reader: Reader, workers: int, folder: Path) -> None:
    """Writes the decoded set to `folder`, whole or not at all."""
    parent = folder.parent
    if not parent.is_absolute():
        raise OSError("there is no home folder")
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for torn in parent.glob("partial-*"):  # of a process that was killed
        if time.time() - torn.stat().st_mtime > ABANDONED:
            shutil.rmtree(torn, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=parent) as partial:
        _write(reader, workers, Path(partial))
        _move(Path(partial), folder)


def _key(reader: Reader) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *reader.identity]).encode()).hexdigest()[:32]


def _read(folder: Path) -> Loaded | None:
    """What is there; None where it is not whole."""
    try:
        about = json.loads((folder / "about.json").read_text())
        data = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
        return Loaded(data, about["std"], about["skipped"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(reader: Reader, workers: int, folder: Path) -> None:
    arrays = {}
    for name, (shape, dtype) in _arrays(reader).items():
        arrays[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, shape)
    good = _fill(reader, workers, arrays)
    if good < len(reader):
        arrays = {name: _shortened(folder / f"{name}.npy", good) for name in arrays}
    about = {"arrays": list(arrays), "skipped": len(reader) - good, "std": stored_std(arrays["image"], top=255)}
    for array in arrays.values():
        array.flush()
    (folder / "about.json").write_text(json.dumps(about))


def _in_memory(reader: Reader, workers: int) -> Loaded:
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in _arrays(reader).items()}
    good = _fill(reader, workers, arrays)
    arrays = {name: array[:good] for name, array in arrays.items()}
    return Loaded(arrays, stored_std(arrays["image"], top=255), len(reader) - good)


def _arrays(reader: Reader) -> dict:
    n = len(reader)
    label = {"label": ((n,), np.int32)} if reader.classes else {}
    return {"image": ((n, *reader.shape), np.uint8)} | label


def _fill(reader: Reader, workers: int, arrays: dict) -> int:
    """Writes the good examples into the front of the arrays; returns how many."""
    good = 0
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(reader), unit="image", desc="decoding") as bar:
        for start in range(0, len(reader), CHUNK):
            chunk = range(start, min(start + CHUNK, len(reader)))
            for example in pool.map(reader.example, chunk):
                if example is not None:
                    for name, array in arrays.items():
                        array[good] = example[name]
                    good += 1
            bar.update(len(chunk))
    return good


def _shortened(path: Path, length: int) -> np.ndarray:
    """The array file, with only its first examples."""
    whole = np.load(path, mmap_mode="r")
    new = path.with_suffix(".short")
    short = np.lib.format.open_memmap(new, "w+", whole.dtype, (length, *whole.shape[1:]))
    for start in range(0, length, CHUNK):
        short[start : start + CHUNK] = whole[start : min(start + CHUNK, length)]
    os.replace(new, path)
    return short


def _move(new: Path, folder: Path) -> None:
    """Puts a finished folder in its place, unless another process was there first."""
    try:
        new.rename(folder)
    except OSError:
        if _read(folder) is None:  # torn, by a machine that went down
            shutil.rmtree(folder)
            new.rename(folder)
    new.mkdir(exist_ok=True)  # for the one who made it, to remove
