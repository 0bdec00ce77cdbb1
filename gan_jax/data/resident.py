"""A set that fits on the device: decoded once, kept on disk, read back in a moment."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gan_jax.data.readers.records import Reader
from gan_jax.utils.runtime import cache_folder

CHUNK = 1024  # examples decoded before they are written
ABANDONED = 24 * 3600  # seconds after which what was begun is not being written any more


class Loaded(NamedTuple):
    """All examples of a set."""

    data: dict[str, np.ndarray]  # image: uint8 [n, h, w, c]; label: int32 [n] or float32 [n, m], where there are labels
    std: float  # of the pixels, scaled to [-1, 1]
    skipped: int  # corrupt examples that are not among them


def load(reader: Reader, workers: int) -> Loaded:
    """The decoded set, from the cache if it is there; else decoded with a progress bar, and put there.

    Where the cache cannot be written, a line on stderr says so, and the set is held in memory; so is one that has no
    identity by which to find it again.
    """
    if not reader.identity:
        return _in_memory(reader, workers)
    folder = cache_folder() / "data" / reader.identity
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


def _read(folder: Path) -> Loaded | None:
    """What is there; None where it is not whole."""
    try:
        about = json.loads((folder / "about.json").read_text())
        data = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
        return Loaded(data, about["std"], about["skipped"])
    except Exception:  # noqa: BLE001  whatever NumPy and json raise where a file is missing or torn
        return None


def _write(reader: Reader, workers: int, folder: Path) -> None:
    """Writes the arrays chunk by chunk. Not through a mapping: where the disk is full, that would end the process."""
    forms, good = reader.forms, 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}.npy").open("wb")) for name in forms}
        for name, file in files.items():
            _write_header(file, len(reader), *forms[name])
        for chunk in _chunks(reader, workers):
            for name, file in files.items():
                file.write(chunk[name].tobytes())
            good += len(chunk["image"])
            os.utime(folder)  # it is not abandoned
        for name, file in files.items():
            file.seek(0)
            _write_header(file, good, *forms[name])
    about = {"arrays": list(forms), "skipped": len(reader) - good, "std": reader.std}
    (folder / "about.json").write_text(json.dumps(about))


def _write_header(file, count: int, shape: tuple[int, ...], dtype: type) -> None:
    # NumPy leaves room in it for another count.
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": (count, *shape)})


def _in_memory(reader: Reader, workers: int) -> Loaded:
    chunks = list(_chunks(reader, workers))
    data = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in reader.forms}
    return Loaded(data, reader.std, len(reader) - len(data["image"]))


def _chunks(reader: Reader, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """The good examples in order, some at a time, with a progress bar."""
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(reader), unit="image", desc="decoding") as bar:
        for start in range(0, len(reader), CHUNK):
            indices = range(start, min(start + CHUNK, len(reader)))
            examples = [example for example in pool.map(reader.example, indices) if example is not None]
            if examples:
                yield reader.stacked(examples)
            bar.update(len(indices))


def _move(new: Path, folder: Path) -> None:
    """Puts a finished folder in its place, unless another process was there first."""
    if folder.exists() and _read(folder) is None:  # torn, by a machine that went down
        torn = folder.rename(new.with_name(f"{new.name}-torn"))  # first: another process may be at it, too
        shutil.rmtree(torn)
    with suppress(OSError):  # another process has just put its own there
        new.rename(folder)
    new.mkdir(exist_ok=True)  # for the one who made it, to remove
