"""The scores of a run's generator, as its config asks for them: while it trains, and of a checkpoint."""

import json
from pathlib import Path

import jax
import numpy as np

from gan_jax.config.build import Setup
from gan_jax.data.source import pick
from gan_jax.evaluation.features.extractors import NONE, Features, extract, make_extractor
from gan_jax.evaluation.features.reference import Reference, load_reference
from gan_jax.evaluation.metrics.comparison import LEAST, Examples, Need, Score, compare, needs_met, scores_of
from gan_jax.evaluation.metrics.neighbours import memorisation
from gan_jax.parallel.devices import mesh
from gan_jax.runs.sampler import COLUMNS, Generate
from gan_jax.step.state import Average, TrainState
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError
from gan_jax.utils.files import write_atomically

PICTURE = "memorisation.png"  # the samples most like copies of training examples, each above what it is like


class Scoring:
    """Scores averaged generators of one run; what does not depend on them is made once, before one trains."""

    def __init__(self, setup: Setup, generate: Generate):
        """Raises InputError where the extractor's weights or the real images are missing, or these are too few."""
        self._setup, self._generate = setup, generate
        config, self._extractor, self._reference = setup.config.evaluation, None, None
        self._name = config.extractor
        if self._name != NONE:
            self._extractor = make_extractor(self._name, **config)
            # All of this process, however the run is trained: an extractor sees each image by itself.
            self._devices = mesh(jax.local_devices())
            self._reference = self._load(config.split, config.num_real)

    def samples(self, average: Average, count: int) -> np.ndarray:
        """What is scored: [count, *shape] float32, the same at every step of a run but for the generator."""
        if self._extractor is not None and count < LEAST:
            raise InputError(f"{count} samples are to be scored, and their features need at least {LEAST}")
        return self._generate.for_scores(average, self._setup.keys.evaluation, count)

    def scores(self, samples: np.ndarray, resamples: int) -> dict[str, Score]:
        """By name; those by features have their extractor in it. `resamples` 0: without intervals by the bootstrap."""
        examples = Examples(self._setup.source, samples, self._setup.keys.reference)
        if self._extractor is not None:
            examples.real, examples.fake = self._reference.features, self._features(samples)
        met, metrics = needs_met(self._name, self._setup.source), scores_of(self._setup.config.evaluation)
        return compare(examples, met, resamples, self._name, metrics)

    def values(self, samples: np.ndarray) -> dict[str, float]:
        """The scores without intervals."""
        return {name: score.value for name, score in self.scores(samples, resamples=0).items()}

    def memorised(self, samples: np.ndarray, resamples: int) -> tuple[dict[str, Score], np.ndarray] | None:
        """The scores of copies, and a picture; None without an extractor, or where the data is endless.

        All of the split that one trains on is searched, and its mirror images where these are trained on. The picture,
        uint8 [h, w, 1 or 3], has the samples that are most like copies, each above its nearest training example.
        """
        if self._extractor is None or not self._setup.source.size:
            return None
        data = self._setup.config.data
        real = self._load(data.split, 0).features.values
        copies = memorisation(real, self._features(samples).values)
        if data.flip:
            copies = copies.or_nearer(memorisation(real, self._features(samples[:, :, ::-1]).values))
        closest = copies.closest(COLUMNS)
        source, keys = self._setup.reference(data.split), jax.random.split(self._setup.keys.reference, len(closest))
        originals = np.asarray(pick(source, copies.index[closest], keys)["image"])
        scores = compare(Examples(copies=copies), {Need.COPIES}, resamples, self._name)
        return scores, plots.grid(np.concatenate([samples[closest], originals]), COLUMNS)

    @property
    def protocol(self) -> dict[str, str | int]:
        """What decides the scores by features beside the samples: {} without an extractor."""
        return {} if self._reference is None else self._reference.protocol

    def _features(self, samples: np.ndarray) -> Features:
        return extract(self._extractor, self._devices, samples)

    def _load(self, split: str, count: int) -> Reference:
        source, name = self._setup.reference(split), self._setup.config.data.name
        return load_reference(source, name, split, self._extractor, self._devices, count)


def evaluate_run(
    setup: Setup, state: TrainState, workdir: Path, num_samples: int, generate: Generate | None = None
) -> dict:
    """Scores num_samples (0: as many as the config says) of the averaged generator; returns what it writes.

    `generate`: that of the setup, where there is one already.

    evaluation.json has the scores by name, their intervals [low, high] by name under "intervals", and under "protocol"
    what else the scores depend on. With an extractor and a finite set it writes PICTURE too.
    """
    scoring, resamples = Scoring(setup, generate or Generate(setup)), setup.config.evaluation.resamples
    samples = scoring.samples(state.ema, num_samples or setup.config.evaluation.num_samples)
    scores = scoring.scores(samples, resamples)
    if (memorised := scoring.memorised(samples, resamples)) is not None:
        scores |= memorised[0]
        plots.write_png(workdir / PICTURE, memorised[1])
    written = {"step": int(state.step), "num_samples": len(samples)}
    written |= {name: score.value for name, score in scores.items()}
    if scoring.protocol:
        written["intervals"] = {name: score.interval for name, score in scores.items() if score.interval}
        written["protocol"] = scoring.protocol
    text = json.dumps(written, indent=2) + "\n"
    write_atomically(workdir / "evaluation.json", text.encode())
    return json.loads(text)
