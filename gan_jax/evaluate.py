"""`--mode=evaluate`: the scores of a run's newest checkpoint, written to `evaluation.json`."""

import json
from pathlib import Path

from gan_jax.evaluation import evaluate
from gan_jax.evaluation.protocol import SAMPLES
from gan_jax.files import write_atomically
from gan_jax.generate import Generate
from gan_jax.recipe import Setup, run_keys
from gan_jax.state import TrainState


def evaluate_run(setup: Setup, state: TrainState, workdir: Path, num_samples: int) -> dict[str, float]:
    """Scores num_samples (0: the protocol's number) of the averaged generator; returns what it writes."""
    key = run_keys(setup.config.seed).evaluation
    samples = Generate(setup).examples(state.ema, key, num_samples or SAMPLES)
    scores = {"step": int(state.step), "num_samples": len(samples)} | evaluate(setup.source, samples, key)
    write_atomically(workdir / "evaluation.json", (json.dumps(scores, indent=2) + "\n").encode())
    return scores
