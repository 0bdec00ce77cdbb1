"""A set that fits on the device: decoded once, kept on disk, read back in a moment."""

import json
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from gan_jax.data.readers.records import Reader
from gan_jax.utils.runtime import cache_folder

CHUNK = 1024  # examples that wait for a thread to decode them
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
    folder = cache_folder() / "data" / reader.identity
    if loaded := _read(folder):
        if loaded.skipped:
            print(f"without {loaded.skipped:,} corrupt examples, skipped when the set was decoded", file=sys.stderr)
        return loaded
    loaded = _decode(reader, workers)
    try:
        _write(loaded, folder)
    except OSError as error:
        print(f"the decoded set is not kept: {folder}: {error.strerror or error}", file=sys.stderr)
    return _read(folder) or loaded


def _read(folder: Path) -> Loaded | None:
    """What is there; None where it is not whole."""
    try:
        about = json.loads((folder / "about.json").read_text())
        data = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
        return Loaded(data, about["std"], about["skipped"])
    except Exception:  # noqa: BLE001  whatever NumPy and json raise where a file is missing or torn
        return None


def _decode(reader: Reader, workers: int) -> Loaded:
    """The good examples in order, with a progress bar."""
    count, good = len(reader), 0
    data = {"image": np.empty((count, *reader.shape), np.uint8)}
    if reader.classes:
        data["label"] = np.empty(count, np.int32)
    with ThreadPoolExecutor(workers) as pool, tqdm(total=count, unit="image", desc="decoding") as bar:
        for start in range(0, count, CHUNK):
            for example in pool.map(reader.example, range(start, min(start + CHUNK, count))):
                if example is not None:
                    for name, array in data.items():
                        array[good] = example[name]
                    good += 1
                bar.update()
    return Loaded({name: array[:good] for name, array in data.items()}, reader.std, count - good)


def _write(loaded: Loaded, folder: Path) -> None:
    """Writes the set to `folder`, whole or not at all, unless another process was there first."""
    parent = folder.parent
    if not parent.is_absolute():
        raise OSError("there is no home folder")
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for partial in parent.glob("partial-*"):  # of a process that was killed
        if time.time() - partial.stat().st_mtime > ABANDONED:
            shutil.rmtree(partial, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=parent) as partial:
        new = Path(partial, "new")
        new.mkdir()
        for name, array in loaded.data.items():
            with (new / f"{name}.npy").open("wb") as file:  # np.save does not always notice that the disk is full
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                file.write(array)
        about = {"arrays": list(loaded.data), "skipped": loaded.skipped, "std": loaded.std}
        (new / "about.json").write_text(json.dumps(about))
        with suppress(OSError):  # another process has just put its own there
            if folder.exists() and _read(folder) is None:  # torn, by a machine that went down
                folder.rename(Path(partial, "torn"))
            new.rename(folder)
