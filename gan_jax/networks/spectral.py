"""Spectral normalisation of a network: its weights over their largest singular values (arXiv:1802.05957).

It is put around a network's pure functions, so that no layer knows of it: the parameters stay as they are, and the
network is applied to W / sigma(W) for every matrix W among them. These are the kernels and the embeddings, a
convolution's kernel [k, k, in, out] as the matrix [k k in, out] of the paper, the kernel of a transposed convolution as
that of the convolution whose adjoint it is. Biases, scales and shifts, those of a class included, stay.

sigma comes from one iteration of the power method a call, which goes on from a vector u for each matrix, kept in the
network's statistics. A discriminator that sees real and fake one after the other so makes two iterations an update.
Of the matrix [k k in, out] the largest singular value is not the norm of the convolution, where kernels overlap: that
is at most k times as large for stride 1.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

VECTORS = 2**32 - 1  # folded into the key of the parameters, which folds hashes of their names


def normalised(network):
    """The `Network` with its weights so normalised; same parameters, from the same key.

    Its statistics are {"network": those of `network`, "vectors": u [columns] for each matrix, in a tree as that of the
    parameters}. In training the vectors move, in evaluation they do not, but sigma is there that of the next iteration
    too: it does not depend on the length of u, so that an average of vectors serves as well as one.
    """
    functions = {"init": partial(_init, network), "apply": partial(_apply, network.apply)}
    if network.features is not None:
        functions["features"] = partial(_apply, network.features)
    return network._replace(**functions)


def power_iteration(matrix, u):
    """One iteration of the power method.

    Args:
      matrix: [rows, columns] float32.
      u: [columns], near the right singular vector, of any length but 0.
    Returns:
      (sigma, the next u). sigma = v^T matrix u for the unit vectors of this iteration, which are constants to its
      derivatives, as in the paper: its gradient is v u^T. A matrix of zeros has sigma 1, and leaves u.
    """
    with jax.default_matmul_precision("highest"):  # float32 on a GPU and a TPU too
        constant = jax.lax.stop_gradient(matrix)
        v = _unit(constant @ u)
        following = _unit(v @ constant)
        sigma = v @ matrix @ following
    return jnp.where(sigma > 0, sigma, 1), jnp.where(sigma > 0, following, u)


def _unit(x):
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2)), jnp.finfo(x.dtype).tiny)


def _init(network, key, *inputs):
    params, stats = network.init(key, *inputs)
    weights = matrices(params)
    keys = jax.random.split(jax.random.fold_in(key, VECTORS), len(weights))
    vectors = {
        path: _unit(jax.random.normal(key, weights[path].shape[1:]))
        for key, path in zip(keys, sorted(weights), strict=True)
    }
    return params, {"network": stats, "vectors": unflatten_dict(vectors)}


def _apply(function, params, stats, x, train: bool, *label, **keys):
    weights, vectors = normalised_weights(params, stats["vectors"])
    y, own = function(weights, stats["network"], x, train, *label, **keys)
    return y, {"network": own, "vectors": vectors if train else stats["vectors"]}


@jax.named_scope("spectral_norm")
def normalised_weights(params, vectors):
    """(the parameters with every matrix over its sigma, the next vectors), trees as those that they are made from."""
    weights, vectors = flatten_dict(params), flatten_dict(vectors)
    for path, matrix in matrices(params).items():
        sigma, vectors[path] = power_iteration(matrix, vectors[path])
        weights[path] = weights[path] / sigma
    return unflatten_dict(weights), unflatten_dict(vectors)


def matrices(params) -> dict:
    """Of a network's parameters the weights, as matrices [rows, columns], by path.

    They are what has two axes and is not a class's scale or shift.
    """
    return {
        path: leaf.reshape(-1, leaf.shape[-1])
        for path, leaf in flatten_dict(params).items()
        if leaf.ndim > 1 and path[-1] not in ("scale", "bias")
    }
