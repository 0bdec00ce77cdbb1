"""The Inception score (arXiv:1606.03498)."""

import numpy as np
import scipy  # by itself it loads none of its parts until they are used

from gan_jax.errors import InputError


def inception_score(probabilities: np.ndarray, splits: int) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)) of a classifier's probabilities [n, c], rows that sum to 1 (arXiv:1606.03498).

    Returns: mean and standard deviation over `splits` parts of consecutive examples; 10 of 5,000 in the paper, so the
      order should be random. Between 1 and min(c, n / splits); smaller parts score lower (arXiv:1801.01973).

    Raises InputError for rows that are no probabilities and for parts without examples.
    """
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise InputError(
            f"{splits} splits of probabilities of shape {probabilities.shape}: [examples, classes] are needed, and"
            f" from 1 to as many splits as examples"
        )
    p = probabilities.astype(np.float64)
    # Negated, so that NaN fails too.
    if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, rtol=0, atol=1e-3)):
        raise InputError("an example's probabilities are negative or do not sum to 1: logits need a softmax first")
    ends = np.arange(1, splits) * len(p) // splits
    scores = [_score(part) for part in np.split(p, ends)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(p: np.ndarray) -> float:
    # The mean KL is the mutual information of label and example.
    entropy = scipy.special.entr
    return np.exp(entropy(p.mean(axis=0)).sum() - entropy(p).sum(axis=1).mean())
