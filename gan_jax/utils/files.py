"""Files written whole or not at all, so that a kill at any moment leaves none half written."""

import json
import os
import tempfile
from pathlib import Path

from gan_jax.utils.errors import InputError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


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
