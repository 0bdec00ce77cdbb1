"""`gan_jax.load`: a trained run as an object that samples, judges and exports; the verbs of the command line use it."""

from collections.abc import Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gan_jax import step
from gan_jax.config import build, schema
from gan_jax.config.build import Setup
from gan_jax.config.by_hand import with_parts
from gan_jax.networks.latents import PRIORS
from gan_jax.parallel.devices import mesh
from gan_jax.runs import workdirs
from gan_jax.runs.checkpoints import BEST, Checkpoints, saved_steps
from gan_jax.runs.sampler import Generate, resized
from gan_jax.step.state import Average, TrainState
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError

NEWEST = "newest"
_FOLDERS = {NEWEST: "checkpoints", BEST: BEST}
CENTRE_OF = 10_000  # latents of a prior of one's own, whose mean stands for the prior's


def load(workdir: str | Path, checkpoint: str | int = NEWEST, averaged: bool = True, **parts: Any) -> "Trained":
    """The trained run in the folder `workdir`, which may have been moved; neither its data nor its config file is read.

    Args:
      checkpoint: "newest", "best" (of a run with `evaluation.best`), or the step of one that was kept.
      averaged: whether to sample from the generator's moving average, or from the generator itself.
      parts: what `gan_jax.build` was given by hand, if the run was built so.

    Raises InputError, one line, where there is no such run or checkpoint, or none that is whole.
    """
    with_parts(schema.default_config(), parts)  # from now on they have the names by which the run's config knows them
    return restored(Path(workdir), checkpoint=checkpoint, averaged=averaged)


def restored(
    workdir: Path,
    config: ConfigDict | None = None,
    checkpoint: str | int = NEWEST,
    averaged: bool = True,
    with_data: bool = False,
) -> "Trained":
    """`load` for verbs. `config`: in place of the run's. `with_data`: the setup has the data, which scores need."""
    setup = setup_of(workdir, config, with_data)
    folder, steps = _checkpoint(workdir, str(checkpoint))
    with closing(Checkpoints(folder)) as saved:
        state = saved.restore(build.abstract_state(setup), steps, setup.hyperparameters)
    if not averaged:
        state = state.replace(ema=Average(state.generator.params, state.generator.stats))
    return Trained(setup, state)


def setup_of(workdir: Path, config: ConfigDict | None = None, with_data: bool = False) -> Setup:
    """The setup of the run in `workdir` on one device; `config`: in the place of the run's."""
    source, device = None if with_data else workdirs.known_source(workdir), mesh(jax.local_devices()[:1])
    config = config or workdirs.read_config(workdir, whole=source is None)
    if source is None:
        return build.build_on(None, config, device)
    # Whatever made the data, or scores samples, need not be here: a folder, a module, what was handed over.
    neutral = {group: schema.default_config()[group].to_dict() for group in workdirs.NOT_FOR_SAMPLES}
    other = schema.nested(schema.flatten(config.to_dict() | neutral)).lock()
    return build.build_on(source, other, device)._replace(config=config, title=build.title_of(config))


def _checkpoint(workdir: Path, name: str) -> tuple[Path, list[int]]:
    """(the folder of the checkpoints of this name, the steps of those that will do)."""
    if name in _FOLDERS:
        folder = workdir / _FOLDERS[name]
        if steps := saved_steps(folder):
            return folder, steps
        best = "no best checkpoint; train it with evaluation.best set"
        raise InputError(f"{workdir} has {best if name == BEST else 'no checkpoint yet; train it first'}")
    steps_in = {folder: saved_steps(workdir / folder) for folder in _FOLDERS.values()}
    for folder, steps in steps_in.items():
        if name.isdecimal() and int(name) in steps:
            return workdir / folder, [int(name)]
    kept = sorted({step for steps in steps_in.values() for step in steps})
    right = ", ".join([NEWEST, *([BEST] if steps_in[BEST] else []), *map(str, kept)])
    raise InputError(f"{workdir} has no checkpoint {name}; it has {right}" if kept else f"{workdir} has no checkpoint")


class Trained:
    """A trained run: its generator, by default the averaged one, and its discriminator.

    `config`, `step`, `classes`: the run's config, the checkpoint's step, the names of the classes that a label chooses
    (none of an unconditional run). `setup` and `state` are what the functions of `gan_jax.step` take.
    """

    def __init__(self, setup: Setup, state: TrainState):
        """`state.ema` is what samples are made from."""
        self.config, self.setup, self.state = setup.config, setup, state
        self.step = int(state.step)
        self.classes = setup.source.classes if setup.recipe.conditional else ()
        self.sampler = Generate(setup)
        self._judge = jax.jit(partial(step.discriminate, setup.recipe))

    def __repr__(self) -> str:
        return f"<{self.setup.title}, step {self.step:,}>"

    @property
    def generator_params(self) -> Any:
        """The parameters that samples are made with, a pytree."""
        return self.state.ema.params

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an example: (h, w, c), or (d,) of points."""
        return self.setup.source.shape

    def latents(self, seed: int, n: int, start: int = 0) -> np.ndarray:
        """Draws `start` ... `start + n - 1` of the prior with this seed: [n, d] float32. Draw i depends on i alone."""
        return np.asarray(self.sampler.latents(jax.random.key(_whole("seed", seed)), start, _whole("n", n)))

    def sample(
        self, n: int, seed: int = 0, label: Any = None, truncation: float | None = None, start: int = 0
    ) -> np.ndarray:
        """The examples at `latents(seed, n, start)`: [n, *shape] float32.

        Args:
          label: a class, its number or name, or a vector of numbers where labels are vectors; several are taken in
            turn. None: all classes in turn.
          truncation: the share of a latent's distance from the prior's mean that is kept; None: all of it.
        """
        labels = self.labels(label, n, start)
        return self.generate(self.truncated(self.latents(seed, n, start), truncation), labels)

    def generate(self, z: Any, label: Any = None) -> np.ndarray:
        """The examples at latents z [n, d]: [n, *shape] float32, images in [-1, 1], points in the data's units.

        A conditional generator needs a label, or one for each latent. Inside `jax.jit` or `jax.grad` it is a pure
        function of z, and what it is given is not checked.
        """
        if isinstance(z, jax.core.Tracer):
            labels = () if label is None else (self._one_each(label, len(z)),)
            return step.sample(self.setup.recipe, self.state.ema, z, *labels)
        z = self.checked_latents(z)
        return self.sampler.from_latents(self._average, z, self._one_each(label, len(z)))

    def discriminate(self, x: Any, label: Any = None) -> np.ndarray:
        """D's logits at examples x [n, *shape], as `generate` returns them: [n] float32."""
        x = self._checked("examples", x, self.shape)
        labels, size = self._one_each(label, len(x)), self.sampler.size(len(x))
        inputs = [x] if labels is None else [x, labels]
        logits = [
            self._judge(self.state.discriminator, *(resized(array[start : start + size], size) for array in inputs))
            for start in range(0, len(x), size)
        ]
        return np.concatenate(logits)[: len(x)]

    def to_uint8(self, x: Any) -> np.ndarray:
        """Images [n, h, w, c] in [-1, 1] as uint8, 0 ... 255."""
        if len(self.shape) != 3:
            raise InputError("to_uint8 is for images, and the examples of this run are points")
        return plots.to_uint8(np.asarray(x))

    def export(self, path: str | Path) -> list[Path]:
        """Writes the generator for use without this package; see `gan_jax.runs.export`. Returns the paths."""
        from gan_jax.runs.export import export  # what few need

        return export(self, Path(path))

    def truncated(self, z: Any, truncation: float | None) -> np.ndarray:
        """Latents [n, d] moved towards the prior's mean until this share of their distance is left."""
        if truncation is None:
            return z
        if not 0 <= truncation < np.inf:
            raise InputError(f"truncation is {truncation}; it must be a number of at least 0: 1 leaves latents alone")
        return np.float32(self._centre + truncation * (z - self._centre))

    def labels(self, label: Any, n: int, start: int = 0) -> np.ndarray | None:
        """The labels of n examples, [n] int32 or [n, m] float32: those of `label` in turn, from place `start` on.

        None without labels. Raises InputError at a label that there is not.
        """
        if label is None:
            return self.sampler.labels(n, start)
        labels = self._known(label)
        return labels[np.arange(start, start + n) % len(labels)]

    def checked_latents(self, z: Any) -> np.ndarray:
        """Latents as float32 [n, d]. Raises InputError where they are not of the prior's shape, or not finite."""
        return self._checked("latents", z, self._latent_shape)

    def _one_each(self, label: Any, n: int) -> np.ndarray | None:
        """The labels of n examples: the one, or as many."""
        if label is None and not self.setup.recipe.conditional:
            return None
        if label is None:
            raise InputError(f"the run is conditional; give a label, one for all or {n}")
        labels = self._known(label)
        if len(labels) not in (1, n):
            raise InputError(f"there are {len(labels)} labels for {n} examples; give one for all or {n}")
        return resized(labels, n)

    def _known(self, label: Any) -> np.ndarray:
        """One label or several as an array [k] or [k, m]."""
        if not self.setup.recipe.conditional:
            raise InputError("the run is not conditional; leave the label out")
        if size := self.setup.recipe.label_size:
            vectors = np.asarray(label, np.float32)
            return self._checked("labels", vectors if vectors.ndim == 2 else vectors[None], (size,))
        several = isinstance(label, Sequence) and not isinstance(label, str)
        return np.array([self._class(name) for name in (label if several else np.ravel(label).tolist())], np.int32)

    def _class(self, name: Any) -> int:
        """The number of a class, given that or its name."""
        if name in self.classes:
            return self.classes.index(name)
        number = int(name) if isinstance(name, str) and name.isdecimal() else name
        if isinstance(number, (int, np.integer)) and not isinstance(number, bool) and 0 <= number < len(self.classes):
            return int(number)
        some = f"{', '.join(self.classes[:20])}{', ...' if len(self.classes) > 20 else ''}"
        right = f"a number from 0 to {len(self.classes) - 1}, or one of {some}"
        raise InputError(f"there is no label {name!r}; it must be {right}")

    def _checked(self, what: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
        """The values as float32 [n, *shape]. Raises InputError where they are not that, or not finite."""
        values = np.asarray(values)
        right = f"[n, {', '.join(map(str, shape))}]"
        if values.shape[1:] != shape or values.ndim != 1 + len(shape) or not len(values):
            raise InputError(f"the {what} are of shape {list(values.shape)}; they must be {right}")
        if not np.issubdtype(values.dtype, np.floating) and values.dtype != jnp.bfloat16:
            raise InputError(f"the {what} are {values.dtype}; they must be floats")
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"the {what} are not all finite numbers")
        return values

    @cached_property
    def _average(self) -> Average:
        """What samples are made from, on the sampler's devices: placed once, however many batches follow."""
        return self.sampler.place(self.state.ema)

    @cached_property
    def _latent_shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.setup.recipe.prior, jax.random.key(0)[None]).shape[1:]

    @cached_property
    def _centre(self) -> np.ndarray:
        """The mean of the prior: 0 of those of this package; of one's own that of many draws."""
        if self.config.latent.prior in PRIORS:
            return np.float32(0)
        return self.latents(0, CENTRE_OF).mean(axis=0)


def _whole(name: str, number: Any) -> int:
    """The number as an integer from 0 on. Raises InputError where it is none."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or not 0 <= number < 2**32:
        raise InputError(f"{name} is {number!r}; it must be an integer from 0 to 2^32 - 1")
    return int(number)
