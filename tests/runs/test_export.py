"""What is exported gives the run's own samples without this package."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn
from numpy.testing import assert_allclose, assert_array_equal

from gan_jax import recipe, step
from gan_jax.config.build import make_generator
from gan_jax.networks.cpu.forms import CONVERTIBLE
from gan_jax.runs.trained import Trained

READER = """
import sys
sys.modules["gan_jax"] = None
import jax, numpy as np
with open(sys.argv[1], "rb") as file:
    generate = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
inputs = np.load(sys.argv[2])
for n in (1, 7, 300):
    shown = [np.resize(inputs[name], (n, *inputs[name].shape[1:])) for name in inputs.files]
    np.save(f"{sys.argv[2]}-{n}.npy", generate(*shown))
"""


class Noisy(nn.Module):
    """A generator with noise of its own."""

    @nn.compact
    def __call__(self, z):
        return nn.Dense(2)(z + jax.random.normal(self.make_rng("noise"), z.shape))


@pytest.fixture(scope="module")
def of(shrunk):
    """`of(family, changes)`: an untrained run of a shrunk config, whose parameters are not at their start."""

    def made(name, changes=None, **parts):
        config = shrunk(*name.split(":"), *([None] if ":" not in name else []), changes)
        setup = recipe.build(config, **parts)
        return Trained(setup, recipe.initial_state(setup))

    return made


def inputs_of(run, n=7):
    labels = run.labels(None, n)
    return {"z": run.latents(0, n), **({} if labels is None else {"label": labels})}


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("mixture:ring8", None, {}),
        ("mixture:ring8", None, {"generator": Noisy()}),
        ("dcgan", {"conditional": True, "generator.width": 64}, {}),  # wide enough for Winograd's algorithm
        ("resnet", None, {}),
        ("r3gan", None, {}),
    ],
)
def test_stablehlo_needs_jax_alone(name, changes, parts, of, tmp_path):
    run = of(name, changes, **parts)
    path, about = run.export(tmp_path / "g.stablehlo")
    inputs = inputs_of(run)
    np.savez(tmp_path / "inputs.npz", **inputs)
    subprocess.run([sys.executable, "-c", READER, path, tmp_path / "inputs.npz"], check=True, capture_output=True)
    for n in (1, 7, 300):
        shown = [np.resize(x, (n, *x.shape[1:])) for x in inputs.values()]
        assert_allclose(np.load(tmp_path / f"inputs.npz-{n}.npy"), run.generate(*shown), atol=1e-5)
    said = json.loads(about.read_text())
    assert [said["inputs"][name]["dtype"] for name in inputs] == [str(x.dtype) for x in inputs.values()]
    assert said["output"]["shape"] == ["n", *run.shape]
    assert said["config"] == run.config.to_dict()
    assert (said["averaged"], *(said["versions"])) == (True, "gan_jax", "jax", "flax")
    assert (said["step"], said["classes"]) == (run.step, list(run.classes))


def test_a_platform_has_its_own_convolutions(of, tmp_path):
    """A CPU's transposed convolution is four of stride 1; elsewhere it is one of a dilated image."""
    from gan_jax.runs.export import generator

    run = of("dcgan", {"generator.width": 16, "generator.depth": 2})
    function = jax.jit(generator(run))

    def dilated(platform):
        lowered = jax.export.export(function, platforms=[platform])(run.latents(0, 2))
        return lowered.mlir_module().count("lhs_dilate = [2, 2]")

    assert (dilated("cpu"), dilated("cuda"), dilated("tpu")) == (0, 2, 2)


def test_the_convolutions_for_converters_give_the_same_examples(of):
    run = of("dcgan", {"generator.width": 16, "generator.depth": 2})
    convertible = run.setup.recipe._replace(generator=make_generator(run.setup, CONVERTIBLE))
    z = run.latents(0, 3)
    jaxpr = str(jax.make_jaxpr(lambda z: step.sample(convertible, run.state.ema, z))(z))
    assert "conv_general_dilated" not in jaxpr
    assert_allclose(step.sample(convertible, run.state.ema, z), run.generate(z), atol=1e-6)


def test_safetensors_are_the_averaged_parameters(of, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    run = of("dcgan", {"generator.normalization": "batch"})
    path, _ = run.export(tmp_path / "g.safetensors")
    arrays = numpy.load_file(path)
    assert_array_equal(arrays["params.Dense_0.kernel"], run.generator_params["Dense_0"]["kernel"])
    leaves = jax.tree.leaves((run.state.ema.params, run.state.ema.stats))
    assert sorted(x.size for x in arrays.values()) == sorted(x.size for x in leaves)


@pytest.mark.parametrize(
    ("name", "changes"), [("mixture:ring8", None), ("dcgan", {"conditional": True}), ("resnet", None), ("r3gan", None)]
)
def test_onnx_gives_the_same_examples(name, changes, of, tmp_path):
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed: pip install 'gan-jax[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run = of(name, changes)
    path, _ = run.export(tmp_path / "g.onnx")
    session = runtime.InferenceSession(path)
    for n in (1, 7):
        inputs = inputs_of(run, n)
        assert_allclose(session.run(["x"], inputs)[0], run.generate(*inputs.values()), atol=1e-4)


@pytest.mark.parametrize("wrong", [np.zeros((3, 2)), np.full((3, 2), np.nan), np.zeros((3, 1))], ids=str)
def test_a_conversion_that_gives_other_examples_is_refused(wrong, of, tmp_path, monkeypatch):
    run = of("mixture:ring8")
    model = SimpleNamespace(SerializeToString=lambda: b"model")
    session = SimpleNamespace(run=lambda *_: [wrong])
    monkeypatch.setitem(sys.modules, "jax2onnx", SimpleNamespace(to_onnx=lambda *_, **__: model))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=lambda *_, **__: session))
    with pytest.raises(ValueError, match=r"generator mlp: the file gives other examples than the run; export to"):
        run.export(tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(of, tmp_path, monkeypatch):
    run = of("mixture:ring8")
    with pytest.raises(ValueError, match=r"must end in \.stablehlo, \.safetensors, \.onnx$"):
        run.export(tmp_path / "g.pt")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"^jax2onnx is missing \(.*\); pip install 'gan-jax\[onnx\]'$"):
        run.export(tmp_path / "g.onnx")
    broken = SimpleNamespace(to_onnx=lambda *_, **__: 1 / 0)
    monkeypatch.setitem(sys.modules, "jax2onnx", broken)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(ValueError, match=r"^jax2onnx cannot write the generator mlp: division by zero; export to"):
        run.export(tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())
