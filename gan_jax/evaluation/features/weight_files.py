"""Weights in `.npz` files: float arrays by path, and for those of the package a JSON text on how they were made."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gan_jax.data.readers.arrays import DAMAGE
from gan_jax.utils.errors import InputError, one_line, reason
from gan_jax.utils.files import write_atomically

ABOUT = "about"  # the JSON text among the arrays


def pack(variables: Any) -> dict[str, np.ndarray]:
    """A nested dict of float arrays as float16 ones by path, "params/Dense_0/kernel"."""
    return {name: np.asarray(x, np.float16) for name, x in flatten_dict(variables, sep="/").items()}


def unpack(arrays: dict[str, np.ndarray]) -> Any:
    """The nested dict of arrays by path, in float32."""
    return unflatten_dict({name: x.astype(np.float32) for name, x in arrays.items()}, sep="/")


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes and bytes, in the order of the names: the first 16 hex characters."""
    sha = hashlib.sha256()
    for name, x in sorted(arrays.items()):
        sha.update(f"{name} {x.shape} ".encode() + x.tobytes())
    return sha.hexdigest()[:16]


def write_npz(path: Path, arrays: dict[str, np.ndarray], save: Callable = np.savez) -> None:
    """Writes an .npz file by `save`, whole or not at all."""
    buffer = io.BytesIO()
    save(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def load(path: Path, required: dict[str, tuple[int, ...]], network: str, remedy: str) -> tuple[Any, str]:
    """The weights of a network from a file, and their digest. Raises InputError where they are not of these shapes.

    `remedy` ends the message: what the user can do about it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files if name != ABOUT}
    except DAMAGE as error:
        raise InputError(f"cannot read the weights in {one_line(path)}: {reason(error)}; {remedy}") from error
    check_shapes(arrays, required, path, network, remedy)
    return unpack(arrays), digest(arrays)


def shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of a nested dict of arrays, by path."""
    return {name: x.shape for name, x in flatten_dict(variables, sep="/").items()}


def check_shapes(
    arrays: dict[str, np.ndarray], required: dict[str, tuple[int, ...]], path: Path, network: str, remedy: str
) -> None:
    """Raises InputError unless the arrays of a file are floats of these shapes, no more and no less."""
    actual = {name: f"{'floats' if x.dtype.kind == 'f' else x.dtype} {list(x.shape)}" for name, x in arrays.items()}
    expected = {name: f"floats {list(shape)}" for name, shape in required.items()}
    for name in sorted(actual.keys() | expected.keys()):
        if actual.get(name) != expected.get(name):
            raise InputError(
                f"the weights in {one_line(path)} are not those of {network}: {one_line(name)} is "
                f"{actual.get(name, 'missing')} and should be {expected.get(name, 'absent')}; {remedy}"
            )
