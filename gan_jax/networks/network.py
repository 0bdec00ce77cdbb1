"""A network as the step knows it, and what is made into one: a Flax module, Linen or NNX, or a pair of pure functions.

Noise inside a network of one's own (dropout, noise inputs) comes from one key an example, like all else in a step, so
that it is the same on any number of devices. What the module is given looks like a single key, `examples_key`, which
draws row i of every array from the key of example i: `nn.Dropout`, `self.make_rng(...)` and `jax.random` work on it.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.extend import random as extended

from gan_jax.utils.errors import InputError
from gan_jax.utils.hashing import scramble
from gan_jax.utils.keys import parameters_of


class Network(NamedTuple):
    """A network as the step knows it. `params` and `stats` are pytrees of float arrays."""

    # label: int32 [n], the class of each example, where the network was built with classes; None where it was not.
    init: Callable  # (key, x [n, ...], label=None) -> (params, stats)
    # (params, stats, x [n, ...], train, label=None) -> (y, new stats): what a call in training moves; one that draws
    # `noise` takes keys=, [n], too.
    apply: Callable
    convolves: bool | None = None  # whether it has convolutions, which XLA runs slowly in a CPU's loop; None: not known
    # As apply, of a discriminator: ((logits, float32 [n, d], what its last affine map sees), new stats), in one pass.
    features: Callable | None = None
    noise: bool = False  # whether it may draw noise of its own
    # Modules whose parts are layers; None: `init` does not make the parameters in the order of the layers.
    opened: tuple[str, ...] | None = None

    def keyed(self, keys: Callable[[], jax.Array]) -> dict:
        """The keyword of `apply` for the keys [n] of this call's noise, made only where the network draws any."""
        return {"keys": keys()} if self.noise else {}


def as_network(part: Any, matmul_precision: str = "default") -> Network:
    """The network that a part of one's own is.

    Args:
      part: a Network; a Linen module, called as `module(x)`, with `train=` and `label=` if it takes them; an NNX
        module, whose initial parameters are those it has, or a function of `nnx.Rngs` that makes one, called alike;
        or a pair init(key, x) -> params, apply(params, x) -> y, which may take `label`, and `train` and `keys` [n].
      matmul_precision: of its float32 products, one of `gan_jax.networks.MATMUL_PRECISIONS`.

    Raises TypeError where it is none of these.
    """
    if isinstance(part, Network):
        return part
    if isinstance(part, nn.Module):
        return from_linen(part, matmul_precision, own=True)
    if isinstance(part, tuple) and len(part) == 2 and all(map(callable, part)):
        return _from_pair(*part, matmul_precision)
    from flax import nnx  # a part of a second, which only those who use it need to spend

    if isinstance(part, nnx.Module):
        return _from_nnx(lambda rngs: part, matmul_precision)
    if callable(part) and "rngs" in parameters_of(part):
        return _from_nnx(lambda rngs: part(rngs=rngs), matmul_precision)
    raise TypeError(f"a {type(part).__name__}, neither a Linen or NNX module nor a pair of functions (init, apply)")


def convolves(network: Network, *inputs) -> bool:
    """Whether a network has convolutions: as it says, or by its trace at inputs of these shapes."""
    if network.convolves is not None:
        return network.convolves
    return "conv_general_dilated" in str(jax.make_jaxpr(partial(first_call, network))(jax.random.key(0), *inputs))


def layers(network: Network, *inputs) -> dict[tuple[str, ...], int]:
    """The layers of a network, numbered from its input on: {path of a module in the tree of parameters: its layer}.

    A layer is a module with a kernel, at the top of the tree or in one that is `opened`, and the modules without one
    that follow it: of mlp each dense map with its normalisation, of dcgan each convolution with its own, of resnet each
    block, of r3gan the map from the image, each block, and the kernel as large as the image. A block of self-attention,
    minibatch discrimination and the last affine map are layers; the rows of the classes belong to the last one.
    """
    paths = []

    def init(key, *inputs):
        paths.extend(flatten_dict(network.init(key, *inputs)[0]))  # in order: a tree that leaves a trace is sorted

    jax.eval_shape(init, jax.random.key(0), *inputs)
    has_kernel: dict[tuple[str, ...], bool] = {}
    for path in paths:
        module = path[: 2 if path[0] in network.opened else 1]
        has_kernel[module] = path[-1] == "kernel" or has_kernel.get(module, False)
    kernels = np.cumsum(list(has_kernel.values()), dtype=int).tolist()  # up to each module, it included
    return {module: max(0, count - 1) for module, count in zip(has_kernel, kernels, strict=True)}


def first_call(network: Network, key, x, *label):
    """What a network gives in training, before its first update."""
    noise = network.keyed(lambda: jax.random.split(key, len(x)))
    return network.apply(*network.init(key, x, *label), x, True, *label, **noise)[0]


def products(matmul_precision: str):
    """A context in which float32 products are traced with this precision, one of MATMUL_PRECISIONS."""
    return nullcontext() if matmul_precision == "default" else jax.default_matmul_precision(matmul_precision)


def from_linen(module: nn.Module, matmul_precision: str, own: bool = False) -> Network:
    """The pure functions of a Linen module, with products this precise.

    The module is called as `module(x)`, with `train=` and `label=` if it takes them. One of the user's `own` may draw
    noise, and all its collections but the parameters are its statistics; else they are those of `batch_stats`.
    """
    keywords = _keywords_of(type(module).__call__, module)
    kept = nn.DenyList(("params", "intermediates")) if own else ["batch_stats"]

    def init(key, x, label=None):
        streams = {**(_streams(jax.random.split(key, len(x))) if own else {}), "params": key}
        variables = dict(module.init(streams, x, **keywords(train=True, label=label)))
        variables.pop("intermediates", None)
        return variables.pop("params", {}), variables if own else variables.get("batch_stats", {})

    def run(mutable, params: Any, stats: Any, x, train: bool, label, keys):
        variables = {"params": params, **(stats if own else {"batch_stats": stats})}
        streams = {} if keys is None else _streams(keys)
        # What is traced here keeps its precision, and so do the derivatives that JAX makes of it.
        with products(matmul_precision):
            y, new = module.apply(variables, x, **keywords(train=train, label=label), mutable=mutable, rngs=streams)
        sown, new = new.get("intermediates", {}), {name: new[name] for name in new if name != "intermediates"}
        return y, {**stats, **new} if own else new.get("batch_stats", {}), sown

    def apply(params: Any, stats: Any, x, train: bool, label=None, keys=None):
        return run(kept, params, stats, x, train, label, keys)[:2]

    def features(params: Any, stats: Any, x, train: bool, label=None, keys=None):
        mutable = nn.DenyList("params") if own else [*kept, "intermediates"]
        y, new, sown = run(mutable, params, stats, x, train, label, keys)
        if "features" not in sown:
            name, right = type(module).__name__, 'self.sow("intermediates", "features", x) of what its last layer sees'
            raise InputError(f"objective.feature_matching needs features, and {name} has none; it should {right}")
        (seen,) = sown["features"]
        return (y, seen.astype(jnp.float32)), new

    # Compiled as functions of their own they are traced once, however often a step calls them: real, fake, D and G.
    apply, features = (jax.jit(function, static_argnums=3) for function in (apply, features))
    convolves = None if own else "form" in type(module).__dataclass_fields__
    return Network(init, apply, convolves, features, noise=own, opened=getattr(type(module), "opened", ()))


def _from_pair(init: Callable, apply: Callable, matmul_precision: str) -> Network:
    of_init, of_apply = _keywords_of(init), _keywords_of(apply)

    def applied(params, stats, x, train: bool, label=None, keys=None):
        with products(matmul_precision):
            return apply(params, x, **of_apply(train=train, label=label, keys=keys)), stats

    def initial(key, x, label=None):
        return init(key, x, **of_init(label=label)), {}

    return Network(initial, jax.jit(applied, static_argnums=3), noise=True)


def _from_nnx(make: Callable, matmul_precision: str) -> Network:
    """The network of `make(nnx.Rngs)`: nnx.Param are its parameters; other state, but of Rngs, its statistics."""
    from flax import nnx

    def split(module):  # into what is static, and the states of parameters, randomness and statistics
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    def init(key, x, label=None):
        _, params, _, stats = split(make(nnx.Rngs(key)))
        return tuple(jax.tree.map(jnp.copy, nnx.to_pure_dict(state)) for state in (params, stats))

    def apply(params, stats, x, train: bool, label=None, keys=None):
        graph, of_params, of_noise, of_stats = split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        nnx.replace_by_pure_dict(of_params, params)
        nnx.replace_by_pure_dict(of_stats, stats)
        module = nnx.merge(graph, of_params, _seeded(of_noise, keys), of_stats)
        (module.train if train else module.eval)()
        with products(matmul_precision):
            y = module(x, **_keywords_of(type(module).__call__, module)(train=train, label=label))
        return y, nnx.to_pure_dict(split(module)[-1])

    return Network(init, jax.jit(apply, static_argnums=3), noise=True)


def _seeded(state, keys):
    """The state of a module's nnx.Rngs at their beginning, each with an `examples_key` of its own of `keys` [n]."""
    leaves, tree = jax.tree.flatten(state)
    key = examples_key(jax.random.split(jax.random.key(0), 1) if keys is None else keys)
    seeded = [
        jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros((), jnp.uint32)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, seeded)


def _keywords_of(function: Callable, owner: Any = None) -> Callable[..., dict]:
    """(keywords) -> those that `function` takes. ValueError at a label for what has no use for labels."""
    parameters = parameters_of(function)

    def taken(**keywords):
        if keywords.get("label") is not None and "label" not in parameters:
            name = type(owner).__module__ if owner is not None else function.__name__
            raise ValueError(f"a label is given to {name}, whose networks cannot be conditional")
        return {name: value for name, value in keywords.items() if name in parameters}

    return taken


def _streams(keys) -> dict:
    """Linen's random streams for the examples of `keys` [n]; one of another name has a part of `params`."""
    key = examples_key(keys)
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(("params", "dropout", "noise"))}


def examples_key(keys) -> jax.Array:
    """One key made of n keys, of which row i of whatever is drawn, [n, ...], depends on keys[i] alone."""
    return jax.random.wrap_key_data(jax.random.key_data(keys), impl=_implementation(len(keys)))


@lru_cache
def _implementation(n: int):
    """The kind of keys that hold the keys of n examples."""

    def of_each(function):
        return lambda data, *more: jax.vmap(lambda words: function(jax.random.wrap_key_data(words), *more))(data)

    def bits(data, width, shape):
        if shape[:1] != (n,):
            right = f"draw [n, ...], row i for example i: the examples are the first axis, {n} of them here"
            raise InputError(f"a network draws noise of shape {list(shape)}; {right}")
        return of_each(lambda key: jax.random.bits(key, shape[1:], f"uint{width}"))(data)

    def split(data, shape):
        of_key = of_each(lambda key: jax.random.key_data(jax.random.split(key, shape)))
        return jnp.moveaxis(of_key(data), 0, -2)

    def seed(_):
        raise TypeError("keys of examples are made of keys")

    return extended.define_prng_impl(
        key_shape=(n, 2),
        seed=seed,
        split=split,
        random_bits=bits,
        fold_in=of_each(lambda key, number: jax.random.key_data(jax.random.fold_in(key, number))),
        name=f"examples_{n}",
        tag=f"ex{n}",
    )


def keys_of_values(x) -> jax.Array:
    """A key for each example that follows from its values x [n, ...] float32: equal examples have equal keys.

    With them a network that draws noise is a function of its input, as samples of given latents are to be.
    """
    words = jax.lax.bitcast_convert_type(x.reshape(len(x), -1).astype(jnp.float32), jnp.uint32)
    places = scramble(jnp.arange(words.shape[1], dtype=jnp.uint32) + np.uint32(1))
    mixed = scramble(words ^ places)
    return jax.random.wrap_key_data(jnp.stack([jnp.sum(mixed, 1), jnp.sum(scramble(mixed + np.uint32(1)), 1)], axis=1))
