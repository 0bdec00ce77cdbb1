"""`--mode=evaluate`: the scores of a run's newest checkpoint, written to `evaluation.json`."""

import json
from pathlib import Path

from gan_jax.evaluation import SAMPLES, evaluate
from gan_jax.files import write_atomically
from gan_jax.generate import Generate
from gan_jax.recipe import Setup
from gan_jax.state import TrainState


def evaluate_run(setup: Setup, state: TrainState, workdir: Path, num_samples: int) -> dict[str, float]:
    """Scores num_samples (0: the protocol's number) of the averaged generator; returns what it writes."""
    samples = Generate(setup).for_scores(state.ema, setup.keys.evaluation, num_samples or SAMPLES)
    scores = evaluate(setup.source, samples, setup.keys.reference)
    scores = {"step": int(state.step), "num_samples": len(samples)} | scores
    write_atomically(workdir / "evaluation.json", (json.dumps(scores, indent=2) + "\n").encode())
    return scores
