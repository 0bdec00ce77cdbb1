"""The scores of a run's generator, as its config asks for them: shared by the training loop and `--mode=evaluate`."""

from functools import cached_property

import jax
import numpy as np

from gan_jax import images
from gan_jax.data.source import pick
from gan_jax.devices import mesh
from gan_jax.evaluation import data_scores
from gan_jax.evaluation.comparison import Score, compare, estimate, name_with
from gan_jax.evaluation.extractors import NONE, extract, make_extractor
from gan_jax.evaluation.memorisation import memorisation
from gan_jax.evaluation.reference import Reference, load_reference
from gan_jax.generate import COLUMNS, Generate
from gan_jax.recipe import Setup
from gan_jax.state import Average


class Scoring:
    """Scores averaged generators of one run; what does not depend on them is made once."""

    def __init__(self, setup: Setup, generate: Generate):
        self._setup, self._generate, self._wanted = setup, generate, setup.config.evaluation
        wanted = self._wanted
        # Made now: what is wrong with it is to be known before one trains.
        self._extractor = None if wanted.extractor == NONE else make_extractor(wanted.extractor, wanted.weights)

    def samples(self, average: Average, count: int) -> np.ndarray:
        """What is scored: [count, *shape] float32, the same at every step of a run but for the generator."""
        return self._generate.for_scores(average, self._setup.keys.evaluation, count)

    def scores(self, samples: np.ndarray) -> dict[str, Score]:
        """By name; those by features have their extractor in it."""
        found = data_scores(self._setup.source, samples, self._setup.keys.reference)
        scores = {name: Score(value) for name, value in found.items()}
        if self._extractor is not None:
            fake = extract(self._extractor, self._devices, samples)
            features = self._reference.features
            by_features = compare(features, fake, self._extractor.counts_modes, self._wanted.resamples)
            scores |= {name_with(self._extractor.name, name): score for name, score in by_features.items()}
        return scores

    def memorised(self, samples: np.ndarray) -> tuple[Score, np.ndarray] | None:
        """How authentic the samples are, and a picture; None without an extractor, or where the data is endless.

        All of the data that one trains on is searched. The picture, uint8 [h, w, 1 or 3], has the samples that are most
        like copies, each above its nearest training example.
        """
        if self._extractor is None or not self._setup.source.size:
            return None
        config = self._setup.config
        source = self._setup.reference(config.data.split)
        real = load_reference(source, config.data.name, config.data.split, self._extractor, self._devices, 0)
        fake = extract(self._extractor, self._devices, samples)
        found = memorisation(real.features.values, fake.values)
        closest = found.closest(COLUMNS)
        keys = jax.random.split(self._setup.keys.reference, len(closest))
        originals = np.asarray(pick(source, found.index[closest], keys)["image"])
        authenticity = estimate(np.mean, found.authentic, self._wanted.resamples)
        return authenticity, images.grid(np.concatenate([samples[closest], originals]), COLUMNS)

    @property
    def protocol(self) -> dict[str, str | int]:
        """What decides the scores by features beside the samples: {} without an extractor."""
        return {} if self._extractor is None else self._reference.protocol

    @cached_property
    def _devices(self):
        return mesh()  # all of them, however the run is trained: an extractor sees each image by itself

    @cached_property
    def _reference(self) -> Reference:
        config, wanted = self._setup.config, self._wanted
        source = self._setup.reference(wanted.split)
        return load_reference(source, config.data.name, wanted.split, self._extractor, self._devices, wanted.num_real)
