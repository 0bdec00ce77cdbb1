"""The Inception network of FID against an independent implementation, its quirks against slow NumPy, its files."""

import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gan_jax.evaluation.__main__ import main
from gan_jax.evaluation.features import inception, weight_files
from gan_jax.evaluation.features.inception import BLOCKS, SIDE, Inception, Mixed
from gan_jax.utils.errors import InputError

SOURCE = "pt_inception-2015-12-05-6726825d.pth of the release fid_weights of mseitzer/pytorch-fid"


def he(rng, shape):
    """Kernels that keep the mean square of activations; small biases."""
    if len(shape) == 1:
        return rng.normal(0, 0.1, shape).astype(np.float32)
    return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)


def random_params(module, image):
    shapes = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), image)["params"])
    rng = np.random.default_rng(0)
    return unflatten_dict({name: he(rng, array.shape) for name, array in shapes.items()})


@pytest.fixture(scope="module")
def params():
    return random_params(Inception(), jnp.zeros((1, SIDE, SIDE, 3)))


def photographs(height, width, channels=3):
    """uint8 images [4, h, w, c] that differ much: noise, dark noise, stripes, a gradient."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, channels))
    stripes = np.where(np.arange(width)[None, :, None] // 4 % 2, 255, 10) * np.ones_like(noise)
    gradient = np.linspace(0, 255, height)[:, None, None] * np.linspace(0.2, 1, channels) * np.ones_like(noise)
    return np.stack([noise, noise[::-1] // 8, stripes, gradient]).astype(np.uint8)


# --- Against PyTorch


def the_port():
    """torch_fidelity's module of the network. Its package imports torchvision, which not every build of torch can."""
    pytest.importorskip("torch", reason="PyTorch, in which the other implementation is, is not installed")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity, which has the other implementation, is not installed")
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torch_fidelity"}
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["torch_fidelity"] = package
    try:
        return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """(the other implementation with random weights, the file of them that it reads). Nothing is downloaded."""
    network = the_port().FeatureExtractorInceptionV3
    import torch

    class Blank(network):
        def load_state_dict(self, state):
            """Keeps the weights that the constructor drew."""

    folder = tmp_path_factory.mktemp("port")
    torch.save({}, folder / "none.pth")
    torch.manual_seed(0)
    model = Blank("blank", ["2048"], str(folder / "none.pth"))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d):
            for array, low, high in [
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ]:
                torch.nn.init.uniform_(array, low, high)
    torch.save(model.state_dict(), folder / "weights.pth")
    return network("port", ["2048", "logits_unbiased"], str(folder / "weights.pth")), folder / "weights.pth"


@pytest.fixture(scope="module")
def converted(port):
    return inception.convert(port[1])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (299, 299), (64, 48)])
def test_features_and_logits_are_those_of_the_port(height, width, port, converted):
    import torch

    images = photographs(height, width)
    expected = port[0](torch.from_numpy(images).permute(0, 3, 1, 2))
    for ours, theirs in zip(inception.forward(weight_files.unpack(converted), images), expected, strict=True):
        theirs = theirs.numpy()
        assert ours.dtype == jnp.float32
        spread = theirs.std(axis=0).mean()  # over images: what scores are made of
        assert spread > 0.1 * theirs.std()
        assert 0.1 < theirs.std() < 100
        assert np.abs(ours - theirs).max() < 1e-3 * spread
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.std())


def test_both_formats_of_a_file_give_the_same_parameters(port, converted, tmp_path):
    import torch

    torch.save(torch.load(port[1]), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert weight_files.digest(inception.convert(tmp_path / "old.pth")) == weight_files.digest(converted)


def test_the_command_converts(port, converted, tmp_path, capsys):
    out = tmp_path / "new" / "inception.npz"
    assert main(["convert", str(port[1]), f"--out={out}"]) == 0
    params, digest = inception.load(out)
    assert capsys.readouterr() == (f"{out} has the weights {digest}\n", "")
    jax.tree.map(np.testing.assert_array_equal, params, weight_files.unpack(converted))
    assert list(out.parent.iterdir()) == [out]


# --- Without PyTorch


def test_images_are_resized_on_the_old_grid():
    row = np.array([[0, 4], [8, 12]], np.uint8)[None, :, :, None]
    expected = [[0, 2, 4, 4], [4, 6, 8, 8], [8, 10, 12, 12], [8, 10, 12, 12]]  # with half a pixel more: 0, 1, 3, 4
    np.testing.assert_array_equal(inception.resize(row, 4)[0, :, :, 0], expected)
    ramp = np.arange(8, dtype=np.uint8)[None, None, :, None] * np.ones((1, 8, 1, 1), np.uint8)
    np.testing.assert_array_equal(inception.resize(ramp, 4)[0, 0, :, 0], [0, 2, 4, 6])  # not smoothed
    np.testing.assert_allclose(inception.resize(ramp, 3)[0, 0, :, 0], [0, 8 / 3, 16 / 3], rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (1, 1), (5, 700)])
def test_resizing_against_loops(height, width):
    images = photographs(height, width)
    resized = np.asarray(inception.resize(images, SIDE))
    assert resized.shape == (4, SIDE, SIDE, 3)
    if (height, width) == (SIDE, SIDE):
        np.testing.assert_array_equal(resized, images)
    rng = np.random.default_rng(1)
    for i, j in rng.integers(0, SIDE, (50, 2)):
        (y, dy), (x, dx) = divmod(i * height / SIDE, 1), divmod(j * width / SIDE, 1)
        rows = [int(y), min(int(y) + 1, height - 1)]
        columns = [int(x), min(int(x) + 1, width - 1)]
        corners = images[:, rows][:, :, columns].astype(np.float64)
        expected = np.einsum("nyxc,y,x->nc", corners, [1 - dy, dy], [1 - dx, dx])
        np.testing.assert_allclose(resized[:, i, j], expected, atol=0.02)


def pooled(x, function):
    """`function` of the pixels within 1 of each that lie in the image."""
    y = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            y[:, i, j] = function(x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2], axis=(1, 2))
    return y


@pytest.mark.parametrize(
    ("block", "features", "function"),
    [("Mixed_5c", 64, np.mean), ("Mixed_6d", 192, np.mean), ("Mixed_7b", 192, np.mean), ("Mixed_7c", 192, np.max)],
)
def test_the_pooling_branch(block, features, function):
    x = np.random.default_rng(2).normal(-1, 1, (2, 5, 4, 16)).astype(np.float32)  # where padding of 0 would be seen
    module = Mixed(BLOCKS[block])
    params = random_params(module, x)
    last = params["branch_pool"]
    expected = np.maximum(pooled(x, function) @ last["kernel"][0, 0] + last["bias"], 0)
    branch = module.apply({"params": params}, x)[..., -features:]
    np.testing.assert_allclose(branch, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", ["Mixed_6a", "Mixed_7a"])
def test_blocks_that_halve_keep_the_largest_pixels(block):
    x = np.random.default_rng(3).normal(-1, 1, (2, 7, 8, 6)).astype(np.float32)
    module = Mixed(BLOCKS[block])
    branch = module.apply({"params": random_params(module, x)}, x)[..., -6:]
    assert branch.shape == (2, 3, 3, 6)
    for i, j in np.ndindex(3, 3):
        np.testing.assert_array_equal(branch[:, i, j], x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2)))


def test_features_and_logits_have_their_shapes(params):
    features, logits = jax.jit(inception.forward)(params, photographs(32, 32, channels=1)[:2])
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    np.testing.assert_allclose(logits, features @ params["fc"]["kernel"], rtol=1e-3, atol=1e-3)


class Echo:
    """In the network's place: what it would see."""

    def apply(self, variables, x):
        return x


def test_a_grey_image_is_one_of_three_equal_channels(monkeypatch):
    monkeypatch.setattr(inception, "Inception", Echo)
    grey = photographs(32, 32, channels=1)
    network_input = inception.forward({}, grey)
    assert network_input.shape == (4, SIDE, SIDE, 3)
    np.testing.assert_array_equal(network_input, inception.forward({}, grey.repeat(3, axis=3)))


@pytest.mark.parametrize("images", [np.zeros((2, 32, 32, 3)), np.zeros((2, 32, 32, 4), "u1"), np.zeros((32, 32), "u1")])
def test_other_arrays_are_no_images(images, params):
    with pytest.raises(ValueError, match="uint8"):
        inception.forward(params, images)


# --- Files


def state_dict(params):
    """Arrays as the port's file has them, as views of nothing but their shapes."""
    shapes = {"fc.bias": (1008,)}
    for (*path, kind), array in flatten_dict(params).items():
        name = ".".join(path)
        if name == "fc":
            shapes["fc.weight"] = array.shape[::-1]
        elif kind == "kernel":
            height, width, inward, outward = array.shape
            shapes[f"{name}.conv.weight"] = (outward, inward, height, width)
        else:
            norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), array.shape)
            shapes |= {f"{name}.bn.{part}": shape for part, shape in norm.items()}
            shapes[f"{name}.bn.num_batches_tracked"] = ()
    return {name: np.broadcast_to(np.float32(0.5), shape) for name, shape in shapes.items()}


@pytest.fixture
def port_file(params, tmp_path, monkeypatch):
    """`port_file(changes)`: a path under which the reader finds a state dict with these changes; None: left out."""

    def port_file(changes):
        arrays = {name: array for name, array in (state_dict(params) | changes).items() if array is not None}
        monkeypatch.setattr(inception, "read_state_dict", lambda path: arrays)
        (tmp_path / "port.pth").touch()
        return tmp_path / "port.pth"

    return port_file


def line_of(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_normalisation_is_folded(port_file, params):
    path = port_file({"Mixed_5b.branch1x1.bn.running_var": np.full(64, 3.999)})
    converted = weight_files.unpack(inception.convert(path))
    assert jax.tree.map(np.shape, converted) == jax.tree.map(np.shape, params)
    layer = converted["Mixed_5b"]["branch1x1"]
    np.testing.assert_allclose(layer["kernel"], 0.5 * 0.5 / 2, rtol=1e-6)  # sqrt(3.999 + 0.001) = 2
    np.testing.assert_allclose(layer["bias"], 0.5 - 0.5 * 0.5 / 2, rtol=1e-6)
    np.testing.assert_allclose(converted["Mixed_7c"]["branch_pool"]["bias"], 0.5 - 0.25 / np.sqrt(0.501), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fc.weight": np.zeros((1000, 2048), "f4")}, "fc.weight is floats [1000, 2048] and should be floats [1008, "),
        ({"fc.weight": np.zeros((1008, 2048), "i4")}, "fc.weight is int32 [1008, 2048]"),
        ({"Mixed_6b.branch1x1.bn.bias": None}, "Mixed_6b.branch1x1.bn.bias is missing and should be floats [192];"),
        (
            {"AuxLogits.fc.weight": np.zeros(1), "x": np.zeros(1)},
            "AuxLogits.fc.weight is floats [1] and should be absent",
        ),
        ({"Mixed_5b.branch1x1.bn.running_var": np.full(64, -1.0)}, "weights that are not finite"),
    ],
)
def test_weights_of_another_network_are_refused(changes, why, port_file):
    line = line_of(inception.convert, port_file(changes))
    assert why in line
    assert SOURCE in line


def test_parameters_survive_their_file(params, tmp_path):
    path = tmp_path / "inception.npz"
    flat = flatten_dict(params, sep="/")
    weight_files.write_npz(path, flat)
    loaded, digest = inception.load(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    key = "Mixed_7c/branch_pool/bias"
    other = flat | {key: np.nextafter(flat[key], np.inf, where=np.arange(192) == 3, out=flat[key].copy())}
    assert weight_files.digest(flat) == digest != weight_files.digest(other)


def test_files_without_these_weights_are_refused(params, tmp_path):
    path, flat = tmp_path / "inception.npz", flatten_dict(params, sep="/")
    remedy = f"python -m gan_jax.evaluation convert FILE.pth --out={path} makes it of {SOURCE}"
    missing = f"cannot read the weights in {path}: No such file or directory; {remedy}"
    assert line_of(inception.load, path).startswith(missing)
    few = {"Mixed_5b/branch1x1/bias": np.zeros(64, np.float32)}
    wrong = {name: np.zeros(0, np.float32) for name in flat}
    for arrays, why in [
        (few, "Conv2d_1a_3x3/bias is missing and should be floats [32];"),
        (flat | {"x": np.zeros(1)}, "x is floats [1] and should be absent;"),
        (wrong, " is floats [0] and should be floats ["),
        ({"w": np.array([None])}, "Object arrays cannot be loaded"),
    ]:
        np.savez(path, **arrays)
        line = line_of(inception.load, path)
        assert why in line
        assert remedy in line
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], b"\x80\x02."):
        path.write_bytes(content)
        assert line_of(inception.load, path).startswith(f"cannot read the weights in {path}: ")
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert line_of(inception.load, tmp_path / "one.npy").startswith("cannot read the weights in ")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["convert", "gone.pth", "--out=a.npz"], f"no file gone.pth; the weights are {SOURCE}"),
        (["convert", "here.pth", "--out=a.npz"], "here.pth cannot be read as a state dict of torch.save: "),
        (["convert", "here.pth", "--out=a.zip"], "'a.zip' is to be a file named FILE.npz"),
        (["convert", "here.pth"], "the following arguments are required: --out"),
        ([], "the following arguments are required: {train,convert"),
        (["turn"], "invalid choice: 'turn'"),
    ],
)
def test_mistakes_on_the_command_line(argv, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.pth").write_bytes(b"nothing")
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert line in err
    assert [path.name for path in tmp_path.iterdir()] == ["here.pth"]
