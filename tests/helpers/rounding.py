"""How the tests compare trainings that differ by the order of their sums: on other devices, in other parts."""

import jax
import numpy as np

# Gradient descent: Adam (at its first step, or with b1 = 0) and RMSProp divide a gradient by its own size, and one that
# is zero but for rounding moves its weight by a whole learning rate, to either side. The rates are so large that what
# moves does by much more than the tolerance.
DESCENT = {
    f"{player}.optimizer.{key}": value
    for player in ("generator", "discriminator")
    for key, value in {"name": "sgd", "b1": 0.5, "learning_rate": 0.1, "decay_to": 1.0}.items()
}

# Relative to the norm of what is compared. Float32 rounds at 6e-8; after a few steps 1e-6 of a move is seen, and a
# scale near 1 that moved little could lose ten times that to one rounding. A broken collective costs more than 1e-2.
TOLERANCE = 1e-4


def norm(tree) -> float:
    """Of all numbers of a tree."""
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))
