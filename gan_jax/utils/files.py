"""Files written whole or not at all, so that a kill at any moment leaves none half written."""

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from gan_jax.utils.errors import InputError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it into place."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path):
    """A file to write into, which becomes `path` when the block ends, and is removed where that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_json(path: Path, default=None):
    """What the file holds; `default` where there is none. Raises InputError where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; remove it to begin it anew") from error


def require_writable(folder: Path) -> None:
    """Raises OSError, naming the folder, where nothing can be written: before there is something to lose. Makes it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
