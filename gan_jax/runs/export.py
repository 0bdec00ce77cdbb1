"""A trained generator for use without this package: StableHLO, which JAX alone runs, safetensors and ONNX.

`NAME.stablehlo` is the function (z [n, d] float32, label where conditional) -> examples [n, *shape] float32, for any n,
compiled where it is called: a CPU, a CUDA GPU or a TPU. `NAME.safetensors` has the parameters by name, `NAME.onnx` the
function for other runtimes. FILE.json beside it says what goes in and what comes out.
"""

import importlib
import json
import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from gan_jax import __version__, step
from gan_jax.config.build import make_generator
from gan_jax.networks.cpu.forms import CONVERTIBLE
from gan_jax.step.state import Recipe
from gan_jax.utils.errors import InputError, one_line
from gan_jax.utils.files import write_atomically

if TYPE_CHECKING:  # which imports this module
    from gan_jax.runs.trained import Trained

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("z", "label")
EXAMPLES, TOLERANCE = 3, 1e-4  # at which a converted generator is run, and how far off it may be
RANGES = {"uniform": "uniform on [-1, 1)", "normal": "standard normal"}  # of latents, by prior


def export(run: "Trained", path: Path) -> list[Path]:
    """Writes the generator of `run` to `path`, by its suffix, and its description beside it; returns both paths.

    Raises InputError at a suffix that is none of WRITERS, or where the package for it is missing.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"{path} is no file to export to; its name must end in {', '.join(WRITERS)}")
    content = WRITERS[path.suffix](run)
    about = path.with_name(f"{path.name}.json")
    write_atomically(path, content)
    write_atomically(about, (json.dumps(description(run, path.suffix), indent=2) + "\n").encode())
    return [path, about]


def description(run: "Trained", suffix: str) -> dict[str, Any]:
    """What goes into the function and comes out of it, and where it is from."""
    prior = run.config.latent.prior
    inputs = [{"shape": ["n", *x.shape[1:]], "dtype": str(x.dtype)} for x in _inputs(run)]
    inputs[0]["range"] = RANGES.get(prior, prior)
    return {
        "format": suffix.removeprefix("."),
        "inputs": dict(zip(INPUTS, inputs, strict=False)),
        "output": {
            "shape": ["n", *run.shape],
            "dtype": "float32",
            "range": "[-1, 1]" if len(run.shape) == 3 else "the data's units",
        },
        "classes": list(run.classes),
        "attributes": list(run.setup.source.attributes if len(inputs) > 1 else ()),
        "platforms": list(PLATFORMS) if suffix == ".stablehlo" else [],
        "step": run.step,
        "averaged": run.state.ema.params is not run.state.generator.params,
        "versions": {"gan_jax": __version__, **{name: version(name) for name in ("jax", "flax")}},
        "config": run.config.to_dict(),
    }


def _stablehlo(run: "Trained") -> bytes:
    """The function for all platforms, with the convolutions that are right on them."""
    function = generator(run)
    return jax_export.export(jax.jit(function), platforms=PLATFORMS)(*_inputs(run)).serialize()


def generator(run: "Trained") -> Callable:
    """(z [n, d], label [n] or [n, m] where conditional) -> examples, for an n that need not be known."""
    average = jax.tree.map(np.asarray, run.state.ema)
    if run.config.convolution != "auto" or not run.setup.recipe.generator.convolves:
        return _function(run.setup.recipe, average)
    forms = {
        form: _function(run.setup.recipe._replace(generator=make_generator(run.setup, form)), average)
        for form in ("cpu", "plain")
    }
    return lambda *inputs: jax.lax.platform_dependent(*inputs, cpu=forms["cpu"], default=forms["plain"])


def _function(recipe: Recipe, average) -> Callable:
    def examples(z, *label):
        return step.sample(recipe, average, z, *label)

    def one(*inputs):
        return examples(*(x[None] for x in inputs))[0]

    # Noise of a network's own is drawn for a number of examples that is known.
    return jax.vmap(one) if recipe.generator.noise else examples


def _inputs(run: "Trained") -> list[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the function's inputs, for n examples."""
    (n,) = jax_export.symbolic_shape("n")
    inputs = [jax.ShapeDtypeStruct((n, *run.latents(0, 1).shape[1:]), jnp.float32)]
    if run.setup.recipe.conditional:
        size = run.setup.recipe.label_size
        label = ((n, size), jnp.float32) if size else ((n,), jnp.int32)
        inputs.append(jax.ShapeDtypeStruct(*label))
    return inputs


def _onnx(run: "Trained") -> bytes:
    """The function for other runtimes, its inputs z and label, its output x, with a batch of any size.

    The converter may be wrong in silence, so the file is run at EXAMPLES latents before it is kept.
    """
    convert, runtime = _needed("jax2onnx", "onnx").to_onnx, _needed("onnxruntime", "onnx")
    recipe, average = run.setup.recipe, jax.tree.map(np.asarray, run.state.ema)
    inputs = [jax.ShapeDtypeStruct(("n", *x.shape[1:]), x.dtype) for x in _inputs(run)]
    examples = dict(zip(INPUTS, (run.latents(0, EXAMPLES), run.labels(None, EXAMPLES)), strict=True))
    feed = {name: examples[name] for name, _ in zip(INPUTS, inputs, strict=False)}
    failed = f"jax2onnx cannot write the generator {run.config.generator.network}"
    for name in ("jax2onnx", "onnx_ir"):  # they warn of every shape, and of parts of JAX that they miss
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        function = _function(recipe._replace(generator=make_generator(run.setup, CONVERTIBLE)), average)
        model = convert(function, inputs, input_names=list(feed), output_names=["x"]).SerializeToString()
        (x,) = runtime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)
    except Exception as error:
        raise InputError(f"{failed}: {one_line(error)}; export to .stablehlo") from error
    finally:
        jax.clear_caches()  # what was traced meanwhile has the converter's functions in the place of JAX's
    right = run.generate(*feed.values())
    if x.shape != right.shape or not np.abs(x - right).max() <= TOLERANCE:
        raise InputError(f"{failed}: the file gives other examples than the run; export to .stablehlo")
    return model


def _safetensors(run: "Trained") -> bytes:
    """The generator's parameters and statistics, params.NAME and stats.NAME."""
    save = _needed("safetensors.numpy", "export").save
    named = {"params": run.state.ema.params, "stats": run.state.ema.stats}
    leaves = jax.tree_util.tree_leaves_with_path(named)
    arrays = {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
    return save(arrays, metadata={"step": str(run.step), "config": json.dumps(run.config.to_dict())})


def _needed(module: str, extra: str):
    """The module of an extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{package} is missing ({error}); pip install 'gan-jax[{extra}]'") from error


WRITERS: dict[str, Callable[["Trained"], bytes]] = {
    ".stablehlo": _stablehlo,
    ".safetensors": _safetensors,
    ".onnx": _onnx,
}
