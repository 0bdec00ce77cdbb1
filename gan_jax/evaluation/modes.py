"""Mode coverage of a Gaussian mixture, by the protocol of VEEGAN and PacGAN (arXiv:1705.07761, arXiv:1712.04086)."""

import numpy as np
import scipy  # by itself it loads none of its parts until they are used, and training uses none

from gan_jax.data.source import Modes


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
    found = shares[shares > 0]
    return {
        "modes": len(np.unique(nearest[close])),
        "modes_total": total,
        "high_quality": float(close.mean()),
        "high_quality_ceiling": float(scipy.special.gammainc(modes.centers.shape[1] / 2, 9 / 2)),
        "reverse_kl": float(np.sum(found * np.log(found * total))),
        "reverse_kl_floor": (total - 1) / (2 * len(samples)),
    }
