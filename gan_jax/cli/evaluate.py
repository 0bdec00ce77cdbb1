"""`--mode=evaluate`: the scores of a run's newest checkpoint, written to `evaluation.json`."""

import json
from pathlib import Path

from gan_jax.config.build import Setup
from gan_jax.step.state import TrainState
from gan_jax.training.evaluator import Scoring
from gan_jax.training.sampler import Generate
from gan_jax.utils.files import write_atomically
from gan_jax.utils.plots import write_png

PICTURE = "memorisation.png"  # the samples most like copies of training examples, each above what it is like


def evaluate_run(
    setup: Setup, state: TrainState, workdir: Path, num_samples: int, generate: Generate | None = None
) -> dict:
    """Scores num_samples (0: as many as the config says) of the averaged generator; returns what it writes.

    `generate`: that of the setup, where there is one already.

    The dict has the scores by name, their intervals [low, high] by name under "intervals", and under "protocol" what
    else the scores depend on. With an extractor and a finite set it writes PICTURE too.
    """
    scoring = Scoring(setup, generate or Generate(setup))
    samples = scoring.samples(state.ema, num_samples or setup.config.evaluation.num_samples)
    resamples = setup.config.evaluation.resamples
    scores = scoring.scores(samples, resamples)
    if (memorised := scoring.memorised(samples, resamples)) is not None:
        of_copies, picture = memorised
        scores |= of_copies
        write_png(workdir / PICTURE, picture)
    written = {"step": int(state.step), "num_samples": len(samples)}
    written |= {name: score.value for name, score in scores.items()}
    if scoring.protocol:
        written["intervals"] = {name: score.interval for name, score in scores.items() if score.interval}
        written["protocol"] = scoring.protocol
    write_atomically(workdir / "evaluation.json", (json.dumps(written, indent=2) + "\n").encode())
    return json.loads(json.dumps(written))
