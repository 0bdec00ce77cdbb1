"""Tensors from the files of `torch.save`, without PyTorch and without running anything that such a file names.

A file is a pickle of how tensors lie in storages, and the storages' bytes. Since PyTorch 1.6 it is a zip archive of
both (an entry `data.pkl`, and one for each storage); before, they follow one another. A pickle may call whatever it can
name, so that here it can name nothing but the entries of three small tables.
"""

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gan_jax.data.readers import arrays
from gan_jax.utils.errors import InputError, one_line, reason

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
    """Where the bytes of tensors are: `numel` values of one dtype, under a key of the file."""

    key: str
    dtype: str
    numel: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """The tensors by name that `torch.save(module.state_dict(), path)` wrote, with their shapes and dtypes.

    Raises InputError, one line, where the file is missing or damaged, or holds anything but a dict of dense tensors.
    """
    if not path.is_file():
        raise InputError(f"no file {one_line(path)}; a .pth file of tensors, as torch.save writes it, is needed")
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP_START)) == ZIP_START
            file.seek(0)
            named, storages = _read_zip(file) if is_zip else _read_legacy(file)
            return {name: _array(tensor, storages) for name, tensor in named.items()}
    except DAMAGE as error:
        raise InputError(
            f"{one_line(path)} cannot be read as a state dict of torch.save: {reason(error)}; fetch it again, or save "
            "it as torch.save(module.state_dict(), FILE)"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Makes descriptions of tensors; `storages` has those that it met."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        # Bound methods, and the one class is built in: a pickle can set attributes, but none of these takes any.
        self._callables = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in self._callables:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor, and nothing of it was run")
        return self._callables[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, numel, *view = pid
        if kind != "storage" or dtype not in STORAGES.values() or not isinstance(key, str) or not _is_count(numel):
            raise pickle.UnpicklingError("a storage is described as none that is known")
        if view not in ([], [None]):
            raise pickle.UnpicklingError("it has views of storages, as PyTorch wrote before 0.4")
        storage = Storage(key, dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key} is described in two ways")
        return storage

    def _tensor(self, storage, offset, size, stride, *_) -> Tensor:
        """A tensor that lies within its storage; what follows the strides matters to gradients only."""
        counts = (offset, *size, *stride)
        if not isinstance(storage, Storage) or len(size) != len(stride) or not all(map(_is_count, counts)):
            raise pickle.UnpicklingError("a tensor is described as none that is dense")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > storage.numel or (0 not in size and last >= storage.numel):
            raise pickle.UnpicklingError(f"a tensor {list(size)} reaches over its storage of {storage.numel} values")
        return Tensor(storage, offset, tuple(size), tuple(stride))

    def _parameter(self, tensor, *_) -> Tensor:
        return tensor


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _read_zip(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("an archive without the one entry data.pkl")
        # torch.save compresses nothing: an entry that is may be far larger than the file.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its entries are compressed")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "byteorder" in archive.namelist():
            _check_order(archive.read(folder + "byteorder") == b"little")
        with archive.open(pickles[0]) as entry:
            unpickler = _Unpickler(entry)
            named = _checked(unpickler.load())
        storages = unpickler.storages.items()
        return named, {key: _values(storage, archive.read(f"{folder}data/{key}")) for key, storage in storages}


def _read_legacy(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != VERSION:
        raise ValueError("it does not begin as one")
    _check_order(_Unpickler(file).load()["little_endian"] is True)
    unpickler, file_size = _Unpickler(file), os.fstat(file.fileno()).st_size
    named, storages = _checked(unpickler.load()), {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel:
            raise ValueError(f"storage {key} has {numel} values, and {storage.numel} are described")
        length = numel * np.dtype(storage.dtype).itemsize
        storages[key] = _values(storage, file.read(min(length, file_size)))  # which allocates what it is asked for
    return named, storages


def _check_order(is_little: bool) -> None:
    if not is_little:
        raise ValueError("it was written on a big-endian machine")


def _checked(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, and a dict of tensors is needed")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"its entry {name} is no tensor with a name")
    return content


def _values(storage: Storage, content: bytes) -> np.ndarray:
    values = np.frombuffer(content, storage.dtype)
    if len(values) != storage.numel:
        raise ValueError(f"truncated: storage {storage.key} has {len(values)} of {storage.numel} values")
    return values


def _array(tensor: Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    """A read-only view; that it lies within its storage is known."""
    values = storages[tensor.storage.key]
    strides = [step * values.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.size, strides, writeable=False)
