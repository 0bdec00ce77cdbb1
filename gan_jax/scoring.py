"""The scores of a run's generator, as its config asks for them: shared by the training loop and `--mode=evaluate`."""

import jax
import numpy as np

from gan_jax import images
from gan_jax.data.source import pick
from gan_jax.devices import mesh
from gan_jax.errors import InputError
from gan_jax.evaluation import data_scores
from gan_jax.evaluation.comparison import LEAST, Score, compare, estimate, name_with
from gan_jax.evaluation.extractors import NONE, counts_modes, extract, make_extractor
from gan_jax.evaluation.memorisation import Memorisation, memorisation
from gan_jax.evaluation.reference import Reference, load_reference
from gan_jax.generate import COLUMNS, Generate
from gan_jax.recipe import Setup
from gan_jax.state import Average


class Scoring:
    """Scores averaged generators of one run; what does not depend on them is made once, before one trains."""

    def __init__(self, setup: Setup, generate: Generate):
        """Raises InputError where the extractor's weights or the real images are missing, or these are too few."""
        self._setup, self._generate = setup, generate
        wanted, self._extractor, self._reference = setup.config.evaluation, None, None
        if wanted.extractor != NONE:
            self._extractor = make_extractor(wanted.extractor, wanted.weights)
            # All of this process, however the run is trained: an extractor sees each image by itself.
            self._devices = mesh(jax.local_devices())
            self._reference = self._load(wanted.split, wanted.num_real)

    def samples(self, average: Average, count: int) -> np.ndarray:
        """What is scored: [count, *shape] float32, the same at every step of a run but for the generator."""
        if self._extractor is not None and count < LEAST:
            raise InputError(f"{count} samples are to be scored, and their features need at least {LEAST}")
        return self._generate.for_scores(average, self._setup.keys.evaluation, count)

    def scores(self, samples: np.ndarray, resamples: int) -> dict[str, Score]:
        """By name; those by features have their extractor in it. `resamples` 0: without intervals."""
        found = data_scores(self._setup.source, samples, self._setup.keys.reference)
        scores = {name: Score(value) for name, value in found.items()}
        if self._extractor is not None:
            fake = extract(self._extractor, self._devices, samples)
            counts = counts_modes(self._extractor.name, self._setup.source)
            by_features = compare(self._reference.features, fake, counts, resamples)
            scores |= {name_with(self._extractor.name, name): score for name, score in by_features.items()}
        return scores

    def values(self, samples: np.ndarray) -> dict[str, float]:
        """The scores without intervals."""
        return {name: score.value for name, score in self.scores(samples, resamples=0).items()}

    def memorised(self, samples: np.ndarray, resamples: int) -> tuple[Score, np.ndarray] | None:
        """How authentic the samples are, and a picture; None without an extractor, or where the data is endless.

        All of the split that one trains on is searched, and its mirror images where these are trained on. The picture,
        uint8 [h, w, 1 or 3], has the samples that are most like copies, each above its nearest training example.
        """
        if self._extractor is None or not self._setup.source.size:
            return None
        data = self._setup.config.data
        found = self._nearest(samples, self._load(data.split, 0).features.values, data.flip)
        closest = found.closest(COLUMNS)
        source, keys = self._setup.reference(data.split), jax.random.split(self._setup.keys.reference, len(closest))
        originals = np.asarray(pick(source, found.index[closest], keys)["image"])
        authenticity = estimate(np.mean, found.authentic, resamples)
        return authenticity, images.grid(np.concatenate([samples[closest], originals]), COLUMNS)

    @property
    def protocol(self) -> dict[str, str | int]:
        """What decides the scores by features beside the samples: {} without an extractor."""
        return {} if self._reference is None else self._reference.protocol

    def _load(self, split: str, count: int) -> Reference:
        source, name = self._setup.reference(split), self._setup.config.data.name
        return load_reference(source, name, split, self._extractor, self._devices, count)

    def _nearest(self, samples: np.ndarray, real: np.ndarray, mirrored: bool) -> Memorisation:
        found = memorisation(real, extract(self._extractor, self._devices, samples).values)
        if not mirrored:
            return found
        return found.or_nearer(memorisation(real, extract(self._extractor, self._devices, samples[:, :, ::-1]).values))
