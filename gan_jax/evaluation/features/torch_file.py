"""Tensors from the files of `torch.save`, without PyTorch and without running anything that such a file names.

A file is a pickle of how tensors lie in storages, and the storages' bytes. Since PyTorch 1.6 it is a zip archive of
both (an entry `data.pkl`, and one for each storage); before, they follow one another. A pickle may call whatever it can
name; here it can name nothing but the entries of two small tables.
"""

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gan_jax.data.readers import arrays
from gan_jax.data.readers.records import one_line, reason
from gan_jax.utils.errors import InputError

ZIP_START = b"PK\x03\x04"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a file before PyTorch 1.6
STORAGES = {  # NumPy's names; a string, for a pickle can change no string
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
# What reading raises at a file that is damaged or was made to do harm.
DAMAGE = (*arrays.DAMAGE, pickle.UnpicklingError, struct.error, LookupError, AttributeError)


class Storage(NamedTuple):
    """Where the bytes of tensors are: values of one dtype, under a key of the file."""

    key: str
    dtype: str


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors by name that `torch.save(module.state_dict(), path)` wrote, read-only, of their shapes and dtypes.

    Raises InputError, one line, where the file is missing or damaged, or holds anything but a dict of dense tensors.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
            file.seek(0)
            tensors, storages = _read_zip(file) if is_zip else _read_legacy(file)
            return {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except DAMAGE as error:
        raise InputError(
            f"{one_line(path)} cannot be read as a state dict of torch.save: {reason(error)}; fetch it again, or save "
            "it as torch.save(module.state_dict(), FILE)"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Makes descriptions of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        # A pickle can set attributes, but a bound method and a built-in class take none.
        callables = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        if (module, name) not in callables:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor, and nothing of it was run")
        return callables[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, key, _, _, *view = pid
        if dtype not in STORAGES.values() or view not in ([], [None]):  # PyTorch wrote views of storages before 0.4
            raise pickle.UnpicklingError("a storage is described as none that is known")
        return Storage(key, dtype)

    def _tensor(self, storage, offset, size, stride, *_) -> Tensor:
        """What follows the strides matters to gradients only."""
        counts = (offset, *size, *stride)
        if not isinstance(storage, Storage) or not all(type(count) is int and count >= 0 for count in counts):
            raise pickle.UnpicklingError("a tensor is described as none that is dense")
        return Tensor(storage, offset, tuple(size), tuple(stride))

    def _parameter(self, tensor, *_) -> Tensor:
        return tensor


def _load_tensors(file: BinaryIO) -> dict[str, Tensor]:
    content = _Unpickler(file).load()
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, and a dict of tensors is needed")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"its entry {name} is no tensor with a name")
    return content


def _read_zip(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("an archive without the one entry data.pkl")
        with archive.open(pickles[0]) as entry:
            tensors = _load_tensors(entry)
        keys, folder = {tensor.storage.key for tensor in tensors.values()}, pickles[0].removesuffix(".pkl")
        return tensors, {key: archive.read(f"{folder}/{key}") for key in keys}


def _read_legacy(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != VERSION:
        raise ValueError("it does not begin as one")
    _Unpickler(file).load()  # facts of the machine that wrote it
    tensors, storages = _load_tensors(file), {}
    dtypes = {tensor.storage.key: np.dtype(tensor.storage.dtype) for tensor in tensors.values()}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        storages[key] = file.read(count * dtypes[key].itemsize)
    return tensors, storages


def _array(tensor: Tensor, storages: dict[str, bytes]) -> np.ndarray:
    values = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    size, stride = tensor.size, tensor.stride
    last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(values) or (0 not in size and last >= len(values)):
        raise ValueError(f"a tensor {list(size)} reaches over its storage of {len(values)} values")
    strides = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], size, strides, writeable=False)
