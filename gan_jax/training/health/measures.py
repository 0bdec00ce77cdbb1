"""A run's vital signs, which its steps do not report: how diverse samples are, logits' ranges, singular values."""

from functools import partial

import jax
import numpy as np
import scipy  # by itself it loads none of its parts until they are used

from gan_jax import step
from gan_jax.config.build import Setup
from gan_jax.data import independent
from gan_jax.networks.spectral import matrices
from gan_jax.step import losses
from gan_jax.step.inference import COPIED
from gan_jax.step.state import Average, TrainState

EXAMPLES = 256  # of the data, and as many samples; or as many more as make whole chunks, of whole groups for D
CLUSTERS = 16  # of the data
RESOLUTION = 1e-8  # of singular values, relative to the largest one


class Vitals:
    """Takes the vital signs of one run on this process's first device, with the same examples and latents each time.

    No number of the training depends on any of it.
    """

    def __init__(self, setup: Setup, like: "Vitals | None" = None):
        """Draws the real examples. Raises InputError where these cannot be read.

        `like`: of another run of the same program, whose compiled function serves for this one too.
        """
        recipe = setup.recipe
        self._samples_and_logits = like._samples_and_logits if like else jax.jit(partial(_samples_and_logits, recipe))
        self._chunk = -(-COPIED // recipe.group_size) * recipe.group_size
        count = -(-EXAMPLES // self._chunk) * self._chunk
        real = independent(setup.source, jax.random.split(setup.keys.backdrop, count))
        self._real, self._labels = np.asarray(real["image"]), losses.labels_of(recipe, real)
        self._keys, data = jax.random.split(setup.keys.pictures, count), _flat(self._real)
        self._centers, self._distance = cluster_centers(data), mean_distance(data)
        self._clusters = clusters_met(data, self._centers)

    def measure(self, state: TrainState) -> dict[str, float]:
        """The vital signs of this state, by their names in the metrics; what is not a finite number is left out.

        diversity: the mean distance of two samples, over that of two real examples;
        clusters: `clusters_met` by samples, over that by real examples (the bins of arXiv:1805.12462);
        logit_{real,fake}_{min,max}: of D's logits, with its running statistics;
        {g,d}_singular_max: the largest singular value among a player's weights;
        {g,d}_singular_spread: the most that the largest is of a weight's median one, at most 1 / RESOLUTION.
        """
        # Through the host, where the singular values are taken; of several processes each has a copy of the state.
        players = state.generator, state.discriminator
        generator, discriminator = jax.device_get([Average(player.params, player.stats) for player in players])
        examples = (self._keys, self._real, *self._labels)
        chunks = [x.reshape(-1, self._chunk, *x.shape[1:]) for x in examples]  # of which one is in memory at a time
        fake, *logits = self._samples_and_logits(generator, discriminator, chunks)
        measured = self._diversity(_flat(fake.reshape(self._real.shape)))
        for side, x in zip(("real", "fake"), logits, strict=True):
            measured |= {f"logit_{side}_min": float(x.min()), f"logit_{side}_max": float(x.max())}
        measured |= _singular("g", generator.params) | _singular("d", discriminator.params)
        return {name: value for name, value in measured.items() if np.isfinite(value)}

    def _diversity(self, samples: np.ndarray) -> dict[str, float]:
        if not self._distance or not np.isfinite(samples).all():  # the data is one example over and over; G is lost
            return {}
        clusters = clusters_met(samples, self._centers) / self._clusters
        return {"diversity": mean_distance(samples) / self._distance, "clusters": clusters}


# scikit-learn is imported where it is used: that takes a second, which a run with health_every=0 can do without.


def mean_distance(x: np.ndarray) -> float:
    """Of two examples of x [n, d], n > 1: Euclidean, over all pairs."""
    from sklearn.metrics.pairwise import euclidean_distances

    distances = euclidean_distances(x - x.mean(axis=0))  # the smaller the norms, the smaller the rounding
    return float(distances.sum() / (len(x) * (len(x) - 1)))


def cluster_centers(x: np.ndarray) -> np.ndarray:
    """The centers of CLUSTERS clusters of x [n, d] by k-means, or of fewer where x has fewer different rows: [k, d].

    It starts from the first example and, one after another, those farthest from all that are chosen.
    """
    from sklearn.cluster import KMeans

    chosen = x[:1]
    while len(chosen) < CLUSTERS and (apart := scipy.spatial.distance.cdist(x, chosen).min(axis=1)).max() > 0:
        chosen = np.concatenate([chosen, x[[apart.argmax()]]])
    return KMeans(len(chosen), init=chosen, n_init=1).fit(x).cluster_centers_


def clusters_met(x: np.ndarray, centers: np.ndarray) -> float:
    """How many clusters the examples x [n, d] are in: exp(entropy) of their shares, each in that of its center [k, d].

    From 1, where all are in one, to k, where all clusters have the same share.
    """
    from sklearn.metrics import pairwise_distances_argmin

    middle = centers.mean(axis=0)
    shares = np.bincount(pairwise_distances_argmin(x - middle, centers - middle)) / len(x)
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _flat(x) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(len(x), -1)


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """The singular values of a matrix [rows, columns], ascending, float64 [min(rows, columns)]; NaN if not finite.

    From the eigenvalues of the smaller Gram matrix: those below RESOLUTION of the largest are not exact, but
    np.linalg.svd takes 3 times as long for [4096, 512] and 24 times for [128, 8192].
    """
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        return np.full(min(matrix.shape), np.nan)
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))


def _samples_and_logits(recipe, generator, discriminator, examples):
    """Of (keys, real, labels), each in chunks: (samples, D's logits of the real examples, of the samples)."""

    def of_chunk(chunk):
        keys, real, *labels = chunk
        fake = step.sample(recipe, generator, recipe.prior(keys), *labels)
        return fake, *(step.judge(recipe, discriminator, x, *labels) for x in (real, fake))

    return jax.lax.map(of_chunk, examples)


def _singular(player: str, params) -> dict[str, float]:
    largest, spreads = [], []
    for matrix in matrices(params).values():
        values = singular_values(matrix)
        largest.append(values[-1])
        spreads.append(values[-1] / np.maximum(np.median(values), RESOLUTION * values[-1]) if values[-1] else 1)
    return {f"{player}_singular_max": float(np.max(largest)), f"{player}_singular_spread": float(np.max(spreads))}
