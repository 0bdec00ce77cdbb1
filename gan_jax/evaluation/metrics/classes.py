"""Scores of modes and classes: which of them samples are in, how evenly, and the Inception score."""

import numpy as np
import scipy  # by itself it loads none of its parts until they are used, and training uses none

from gan_jax.data.source import Modes
from gan_jax.utils.errors import InputError


def mode_scores(samples: np.ndarray, modes: Modes) -> dict[str, float]:
    """How well samples [n, d] cover the m equal components, with what a perfect generator would score.

    Returns:
      modes, modes_total: components that are nearest to at least one high-quality sample, and how many there are.
      high_quality: the share of samples within 3 sigma of a center; its ceiling is that of the mixture itself,
        P(chi^2_d < 9): 0.9889 in the plane.
      reverse_kl: KL in nats from the shares of the samples, each counted to its nearest center, to uniform; its
        floor is the expected value (m - 1) / 2n of a perfect generator, to first order in 1/n.
    """
    distances = np.linalg.norm(samples[:, None] - modes.centers[None], axis=-1)
    nearest, close = distances.argmin(axis=1), distances.min(axis=1) < 3 * modes.sigma
    total = len(modes.centers)
    shares = np.bincount(nearest, minlength=total) / len(samples)
    return {
        "modes": len(np.unique(nearest[close])),
        "modes_total": total,
        "high_quality": float(close.mean()),
        "high_quality_ceiling": float(scipy.special.gammainc(modes.centers.shape[1] / 2, 9 / 2)),
        "reverse_kl": float(scipy.special.rel_entr(shares, 1 / total).sum()),
        "reverse_kl_floor": (total - 1) / (2 * len(samples)),
    }


def label_scores(labels: np.ndarray, classes: int) -> dict[str, float]:
    """How well samples that a classifier gave labels int [n], 0 ... classes - 1, cover equally likely classes.

    The protocol of PacGAN for stacked MNIST, with 26,000 samples and 1,000 classes (arXiv:1712.04086, section 4.2).

    Returns:
      modes, modes_total: classes with at least one sample, and how many there are, m.
      reverse_kl, reverse_kl_floor: KL in nats from the shares of the samples to uniform; its expected value for a
        perfect generator and classifier, exactly: m E[c/n log(c m/n)] with the count c of a class binomial.

    Raises InputError for labels that are none of the classes, or none at all.
    """
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels are {labels.dtype} of shape {labels.shape}: they should be integers of shape [n]")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels from {labels.min()} to {labels.max()}: they should be classes, 0 to {classes - 1}")
    n = len(labels)
    shares, counts = np.bincount(labels, minlength=classes) / n, np.arange(n + 1)
    chances = scipy.stats.binom.pmf(counts, n, 1 / classes)
    return {
        "modes": int(np.count_nonzero(shares)),
        "modes_total": classes,
        "reverse_kl": float(scipy.special.rel_entr(shares, 1 / classes).sum()),
        "reverse_kl_floor": float(classes * chances @ scipy.special.rel_entr(counts / n, 1 / classes)),
    }


def class_labels(logits: np.ndarray) -> tuple[np.ndarray, int]:
    """The likeliest classes, int [n], of logits [n, classes] or [n, channels, classes]; how many there are.

    Those of the channels are the digits of one number, the first channel's first.
    """
    channels = logits if logits.ndim == 3 else logits[:, None]
    _, count, classes = channels.shape
    return channels.argmax(axis=-1) @ classes ** np.arange(count)[::-1], classes**count


def inception_score(probabilities: np.ndarray, splits: int) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)) of a classifier's probabilities [n, c], rows that sum to 1 (arXiv:1606.03498).

    Returns the mean and standard deviation over `splits` parts of consecutive examples, whose order should be random;
    10 of 5,000 in the paper. Between 1 and min(c, n / splits); smaller parts score lower (arXiv:1801.01973).
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
    parts, entropy = np.split(p, np.arange(1, splits) * len(p) // splits), scipy.special.entr
    # The mean KL is the mutual information of label and example.
    scores = [np.exp(entropy(part.mean(axis=0)).sum() - entropy(part).sum(axis=1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))
