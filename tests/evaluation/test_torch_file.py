"""The reader of `torch.save` files: what it reads is what was saved, and nothing that a file names is run."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from gan_jax.evaluation.features.torch_file import MAGIC, VERSION, read_state_dict
from gan_jax.utils.errors import InputError

VALUES = np.arange(12, dtype=np.float32)
BYTES = VALUES.tobytes()
BYTES = (BYTES,)
SYSTEM = {"little_endian": True, "protocol_version": VERSION, "type_sizes": {}}


def body(value):
    """The opcodes that push `value`."""
    return pickle.dumps(value, 0)[:-1]


def tensor(size, stride, offset=0, kind="FloatStorage", numel=12, key="0", view=b""):
    """The opcodes of one tensor, as torch.save writes them."""
    pid = b"(" + body("storage") + f"ctorch\n{kind}\n".encode() + b"".join(map(body, (key, "cpu", numel))) + view
    counts = b"".join(map(body, (offset, size, stride, False)))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"tQ" + counts + b"ccollections\nOrderedDict\n)RtR"


def named(opcodes, name="w"):
    return b"}" + body(name) + opcodes + b"s."


def write_zip(path, pickled, storages=BYTES, order=b"little", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", order)
        for key, content in enumerate(storages):
            archive.writestr(f"archive/data/{key}", content)
    return path


def write_legacy(path, pickled, storages=BYTES, numel=12, system=SYSTEM):
    with path.open("wb") as file:
        for value in (MAGIC, VERSION, system):
            pickle.dump(value, file, 2)
        file.write(pickled)
        pickle.dump([str(key) for key in range(len(storages))], file, 2)
        for content in storages:
            file.write(struct.pack("<q", numel) + content)
    return path


BOTH = pytest.mark.parametrize("write", [write_zip, write_legacy], ids=["zip", "legacy"])


def refused(path):
    """The line of the error, without its remedy."""
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{path} ")
    assert "torch.save(module.state_dict(), FILE)" in line
    return line.split("torch.save: ")[1].split("; fetch")[0]


@BOTH
def test_tensors_are_views_of_their_storage(write, tmp_path):
    for size, stride, offset, expected in [
        ((3, 4), (4, 1), 0, VALUES.reshape(3, 4)),
        ((4, 3), (1, 4), 0, VALUES.reshape(3, 4).T),
        ((2, 2), (4, 2), 1, [[1, 3], [5, 7]]),
        ((), (), 11, 11),
        ((0, 5), (5, 1), 12, np.zeros((0, 5))),
    ]:
        found = read_state_dict(write(tmp_path / "w.pth", named(tensor(size, stride, offset))))
        assert list(found) == ["w"]
        assert found["w"].dtype == np.float32
        np.testing.assert_array_equal(found["w"], expected)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("DoubleStorage", "<f8"), ("HalfStorage", "<f2"), ("LongStorage", "<i8"), ("BoolStorage", "?")]
)
def test_dtypes(kind, dtype, tmp_path):
    values = np.array([0, 1, 3], dtype)
    path = write_zip(tmp_path / "w.pth", named(tensor((3,), (1,), 0, kind, 3)), [values.tobytes()])
    assert read_state_dict(path)["w"].dtype == values.dtype
    np.testing.assert_array_equal(read_state_dict(path)["w"], values)


class Run:
    """What its pickle asks to run."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@BOTH
@pytest.mark.parametrize("protocol", range(5))
def test_nothing_that_a_file_names_is_run(write, protocol, tmp_path):
    marker = tmp_path / "marker"
    write(tmp_path / "w.pth", pickle.dumps({"w": Run(os.system, f"touch {marker}")}, protocol))
    assert refused(tmp_path / "w.pth").startswith(f"it names {os.system.__module__}.system, which is no tensor")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Run(os.system, f"touch {marker}"), protocol))
    assert marker.exists()  # the test would have noticed


@pytest.mark.parametrize("place", range(5))
def test_no_pickle_of_the_old_format_is_trusted(place, tmp_path):
    marker = tmp_path / "marker"
    pickles = [pickle.dumps(value, 2) for value in (MAGIC, VERSION, SYSTEM)] + [named(tensor((12,), (1,)))]
    pickles = [*pickles, pickle.dumps(["0"], 2)]
    pickles[place] = pickle.dumps(Run(os.system, f"touch {marker}"), 2)
    (tmp_path / "w.pth").write_bytes(b"".join(pickles) + struct.pack("<q", 12) + VALUES.tobytes())
    assert "which is no tensor" in refused(tmp_path / "w.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins\neval", "torch.storage\n_load_from_bytes", "torch\nload", "torch\nFloatStorage.x", "numpy\nload"]
)
def test_names_beside_the_tables_are_refused(name, tmp_path):
    module, _, attribute = name.partition("\n")
    path = write_zip(tmp_path / "w.pth", f"c{name}\n.".encode())
    assert refused(path).startswith(f"it names {module}.{attribute}, which is no tensor")


@BOTH
@pytest.mark.parametrize(
    "opcodes",
    [
        tensor((13,), (1,)),
        tensor((12,), (1,), 1),
        tensor((3, 4), (5, 1)),
        tensor((10**9, 10**9), (0, 0)),
        tensor((2,), (1,), 2**70),
    ],
)
def test_a_tensor_does_not_reach_over_its_storage(write, opcodes, tmp_path):
    assert "reaches over its storage of 12 values" in refused(write(tmp_path / "w.pth", named(opcodes)))


@pytest.mark.parametrize(
    ("opcodes", "why"),
    [
        (tensor((2,), (-1,), 3), "described as none that is dense"),
        (tensor((2, 3), (1,)), "described as none that is dense"),
        (tensor((2.0,), (1,)), "described as none that is dense"),
        (tensor((12,), (1,), numel=-12), "described as none that is known"),
        (tensor((12,), (1,), key=5), "described as none that is known"),
        (tensor((12,), (1,), view=body(("1", 0, 12))), "views of storages"),
        (tensor((12,), (1,), numel=13), "12 of 13 values"),
        (tensor((12,), (1,), key="7"), "archive/data/7"),
        (body([1.0]), "its entry w is no tensor"),
    ],
)
def test_what_is_no_dense_tensor(opcodes, why, tmp_path):
    assert why in refused(write_zip(tmp_path / "w.pth", named(opcodes)))


def test_a_storage_has_one_description(tmp_path):
    pickled = named(tensor((12,), (1,)))[:-1] + named(tensor((6,), (1,), kind="DoubleStorage", numel=6), "v")[1:]
    assert "storage 0 is described in two ways" in refused(write_zip(tmp_path / "w.pth", pickled))


def test_files_that_are_none(tmp_path):
    path, good = tmp_path / "w.pth", named(tensor((12,), (1,)))
    for write in (write_zip, write_legacy):
        whole = write(path, good).read_bytes()
        for length in [*range(0, len(whole) - 1, 7), len(whole) - 1]:
            path.write_bytes(whole[:length])
            assert refused(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert refused(path)
    assert "big-endian" in refused(write_zip(path, good, order=b"big"))
    assert "big-endian" in refused(write_legacy(path, good, system=SYSTEM | {"little_endian": False}))
    assert "compressed" in refused(write_zip(path, good, compression=zipfile.ZIP_DEFLATED))
    assert "has 13 values, and 12 are described" in refused(write_legacy(path, good, numel=13))
    assert "a dict of tensors is needed" in refused(write_zip(path, tensor((12,), (1,)) + b"."))
    huge = write_legacy(path, named(tensor((12,), (1,), numel=2**60)), numel=2**60)
    assert f"12 of {2**60} values" in refused(huge)
    np.savez(tmp_path / "w.npz", w=VALUES)
    assert "without the one entry data.pkl" in refused(tmp_path / "w.npz")
    with pytest.raises(InputError, match=r"no file .*gone.pth; a .pth file"):
        read_state_dict(tmp_path / "gone.pth")


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_what_pytorch_saves(is_zip, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch, which would write the files, is not installed")
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 5), torch.nn.BatchNorm2d(3))
    shared = torch.arange(24, dtype=torch.float64)
    state = module.state_dict()  # an OrderedDict with an attribute
    state |= {"view": shared[3:15].reshape(3, 4).T, "same": shared, "parameter": torch.nn.Parameter(torch.ones(2))}
    state |= {name: torch.ones(3).to(getattr(torch, name)) for name in ("half", "int32", "int16", "int8", "bool")}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(state)
    for name, expected in state.items():
        np.testing.assert_array_equal(found[name], expected.detach().numpy(), strict=True)
    torch.save(module, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    assert "which is no tensor" in refused(tmp_path / "w.pth")
    torch.save({"epoch": 1, "model": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
    assert "its entry epoch is no tensor" in refused(tmp_path / "w.pth")


def test_reading_leaves_no_trace_of_a_pickle_that_sets_attributes(tmp_path):
    for function in ("torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage", "collections\nOrderedDict"):
        for state in (b"}" + body("mark") + body(1) + b"s", b"N}" + body("__call__") + body(1) + b"s\x86"):
            write_zip(tmp_path / "w.pth", f"c{function}\n".encode() + state + b"b.")
            assert refused(tmp_path / "w.pth")
    good = write_zip(tmp_path / "w.pth", named(tensor((12,), (1,))))
    np.testing.assert_array_equal(read_state_dict(good)["w"], VALUES)
    assert isinstance(pickle.load(io.BytesIO(b"ccollections\nOrderedDict\n)R.")), dict)
