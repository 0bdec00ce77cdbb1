"""Fine-tuning, as pure functions of pytrees: what a run starts with of another one, and what of D stays as it is."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import jax

from gan_jax.step.state import Average, Player, Recipe, TrainState
from gan_jax.utils.keys import FLAG, TEXT, Needs, one_of

# By init.players: the fields of a TrainState that are taken.
TAKEN = {
    "both": ("generator", "ema", "discriminator"),
    "generator": ("generator", "ema"),
    "discriminator": ("discriminator",),
}


class InitKeys(NamedTuple):
    """The config keys of a start from another run."""

    run: Annotated[
        str, TEXT, "the run whose networks this one starts with: its FOLDER, FOLDER:STEP or FOLDER:best; empty: none"
    ] = ""
    players: Annotated[str, one_of(TAKEN), "whose networks are taken, G's with its average", Needs("init.run")] = "both"
    strict: Annotated[
        bool, FLAG, "do not start where an array does not fit; False: it is initialised anew", Needs("init.run")
    ] = False


class Row(NamedTuple):
    """An array of either of two trees."""

    path: tuple[str, ...]
    size: int
    here: str  # its dtype and shape in the new tree; empty: it is not there
    there: str  # the same in the old one

    @property
    def taken(self) -> bool:
        """Whether the new tree takes it from the old one."""
        return self.here == self.there

    def __str__(self) -> str:
        return f"{'/'.join(self.path)} is {self.here or 'missing'} here, {self.there or 'missing'} there"


def transferred(new: Any, old: Any) -> tuple[Any, list[Row]]:
    """The tree `new` with the arrays of `old` that have the same path, shape and dtype; and a row for every array.

    The rows are in the order of the leaves of `new`; those of arrays that only `old` has follow.
    """
    ours, theirs = _by_path(new), _by_path(old)
    rows = [
        Row(path, math.prod(leaf.shape), _form(ours.get(path)), _form(theirs.get(path)))
        for path, leaf in (ours | theirs | ours).items()
    ]
    leaves = [theirs[row.path] if row.taken else ours[row.path] for row in rows[: len(ours)]]
    return jax.tree.unflatten(jax.tree.structure(new), leaves), rows


def started(recipe: Recipe, players: str, state: TrainState, other: TrainState) -> TrainState:
    """The first state of a run with what fits of the networks of another run; the optimisers start at these.

    `players`: a key of TAKEN.
    """
    for name in TAKEN[players]:
        arrays, _ = transferred(_arrays(getattr(state, name)), _arrays(getattr(other, name)))
        state = state.replace(**{name: getattr(state, name).replace(**arrays)})
    generator, discriminator, numbers = state.generator, state.discriminator, state.hyperparameters
    return state.replace(
        generator=generator.replace(opt_state=recipe.generator_tx(numbers).init(generator.params)),
        discriminator=discriminator.replace(opt_state=recipe.discriminator_tx(numbers).init(discriminator.params)),
    )


def compared(players: str, state: TrainState, other: TrainState) -> dict[str, list[Row]]:
    """The rows of each player that is taken; their paths begin with params or stats. Shapes and dtypes will do."""
    names = [name for name in TAKEN[players] if name != "ema"]  # whose arrays are of the forms of G's
    return {name: transferred(_arrays(getattr(state, name)), _arrays(getattr(other, name)))[1] for name in names}


def by_module(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """How many numbers of each top-level module, and of all running statistics, are taken, and why not all."""
    modules: dict[str, list[Row]] = {}
    for row in rows:
        module = "/".join(row.path[1:2]) or "its array"  # of a network of one's own the parameters may be a single one
        modules.setdefault("running statistics" if row.path[0] == "stats" else module, []).append(row)
    return [
        {
            "module": name,
            "taken": sum(row.size for row in of_module if row.taken),
            "of": sum(row.size for row in of_module if row.here),
            "why": next((str(row) for row in of_module if not row.taken), ""),
        }
        for name, of_module in modules.items()
    ]


def with_frozen(count: int, layers: Mapping[tuple[str, ...], int], tree: Any, held: Any) -> Any:
    """`tree`, of D's parameters, running statistics or both, with the arrays of its first `count` layers from `held`.

    `layers`: as `gan_jax.networks.network.layers` numbers them, by the paths of their modules.
    """

    def chosen(path, leaf, other):
        return other if _layer(_names(path), layers) < count else leaf

    return jax.tree.map_with_path(chosen, tree, held)


def held_constant(frozen: Callable, params: Any) -> Any:
    """D's parameters, of which those that are frozen are constants to derivatives; `frozen`: of a recipe."""
    return frozen(params, jax.lax.stop_gradient(params))


def held(frozen: Callable, player: Player, before: Player) -> Player:
    """D after an update, with what is frozen, parameters and statistics, as it was before."""
    return player.replace(**frozen(_arrays(player), _arrays(before)))


def _layer(names: tuple[str, ...], layers: Mapping[tuple[str, ...], int]) -> float:
    """The layer of an array. Before the path in its module there may be other names, such as that of a collection."""
    parts = (names[i:j] for i in range(len(names)) for j in range(i + 1, len(names) + 1))
    return next((layers[part] for part in parts if part in layers), math.inf)


def _arrays(part: Player | Average) -> dict[str, Any]:
    return {"params": part.params, "stats": part.stats}


def _by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    return {_names(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _names(path) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _form(leaf: Any) -> str:
    return "" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
