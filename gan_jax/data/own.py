"""Data of one's own, by import path or handed to `gan_jax.build`: whatever it is becomes a `Source` or a `Stored`."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax.data.readers.arrays import IMAGES, LABELS, Held, check_range, label_names
from gan_jax.data.readers.items import Items
from gan_jax.data.readers.records import SAMPLED, BadExampleError, Reader, Records
from gan_jax.data.source import Source
from gan_jax.data.splits import chosen, split_name
from gan_jax.data.stored import Images, Stored
from gan_jax.utils.errors import InputError, one_line, reason, users_code
from gan_jax.utils.keys import arguments, keys_of

HELD = 2_000  # examples of an iterable that scores and pictures know
FORMS = (
    "data is a Source, arrays (x, (x, labels) or a dict of image and label), an object with __getitem__ and __len__, "
    "an iterable, a function of a key, draw(key), or a function without parameters that returns one of these"
)


@dataclass(frozen=True, kw_only=True)
class OwnImages(Images):
    """Images of one's own, by index."""

    open_records: Callable[[], Records]
    splits: tuple[str, ...] = ("train",)

    def records(self) -> Records:
        return self.open_records()


@dataclass(frozen=True, kw_only=True)
class OwnStream(Images):
    """Images of an iterable, trained on in its own order, again from the start where it ends.

    Where a run stands in it follows from the step, so a run that goes on reads it anew and passes as many examples: to
    the same bits if it yields the same again. Scores and pictures know its first HELD examples.
    """

    again: Callable[[], Any]  # the iterable, anew

    def records(self) -> Records:
        """The first HELD examples."""
        iterable = self.again()
        return Items(list(islice(_once(iterable, self.name), HELD)), f"the first items of {self.name}", iterable)

    def source(self) -> Source:
        if self.placement == "device" or self.split != "train":
            key, right = ("placement", "stream") if self.placement == "device" else ("split", "train")
            fault = f"but {self.name} is an iterable, which is streamed as it comes"
            raise InputError(f"config key data.{key} is {getattr(self, key)!r}, {fault}; set it to {right}")
        reader = self.reader()
        return replace(self, placement="stream").source_of(reader)._replace(items=partial(self._items, reader))

    def _items(self, reader: Reader, place: int) -> Iterator[dict]:
        if place:
            print(f"passing {place:,} items of {self.name}, up to where the run stands", file=sys.stderr)
        return islice(self._good(reader), place, None)

    def _good(self, reader: Reader) -> Iterator[dict]:
        for i, item in enumerate(_repeated(self.again, self.name)):
            where = f"{one_line(self.name)} (item {i})"
            try:
                example = reader.records.whole.parse(item)
            except Exception as error:  # noqa: BLE001  whatever is in an item
                reader.skip(len(reader) + i, BadExampleError(f"{where}: {reason(error)}"))
                continue
            fitted = reader.fitted(example, where)
            yield {name: np.asarray(fitted[name], dtype) for name, (_, dtype) in reader.forms.items()}


def _once(iterable: Any, name: str) -> Iterator:
    """The items; whatever fails in it is an InputError."""
    i = -1
    try:
        for i, item in enumerate(iterable):  # noqa: B007
            yield item
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} fails after {i + 1:,} items: {type(error).__name__}: {reason(error)}") from error


def _repeated(again: Callable[[], Any], name: str) -> Iterator:
    while True:
        is_empty = True
        for item in _once(again(), name):
            is_empty = False
            yield item
        if is_empty:
            raise InputError(f"{name} is an iterable that yields nothing")


IMAGE_KEYS = {name: key for name, key in keys_of(OwnImages).items() if name != "dir"}


def as_set(
    thing: Any, values: Mapping[str, Any], name: str, again: Callable[[], Any] | None = None, split: str = "train"
) -> Source | Stored:
    """What a thing of FORMS is; nothing of it is decoded yet.

    Args:
      values: of IMAGE_KEYS.
      name: for messages.
      again: makes the thing anew; without it an iterator, which can be read once, is refused.
      split: of which it holds the examples.
    """
    if isinstance(thing, Stored | Source):
        return _refusing(values, name, thing)
    if _is_function(thing):
        if len(_required(thing)) == 1:
            return _refusing(values, name, endless(thing, name))
        again = partial(_made, thing, name)
        return as_set(again(), values, name, again)
    if (arrays := _arrays(thing)) is not None:
        if arrays[0].ndim == 2:
            split_name(taken := values.get("split", split), (split,), name)
            places = chosen(taken, len(arrays[0]))
            made = points(name, *(array[places.start : places.stop] for array in arrays))
            return _refusing({key: values[key] for key in values if key != "split"}, name, made)
        return OwnImages(name=name, open_records=partial(Held, name, *arrays), splits=(split,), **values)
    if isinstance(thing, Mapping) and thing:
        split = split_name(values.get("split", split), thing, name)
        return as_set(thing[split], values, name, split=split)
    if hasattr(thing, "__getitem__") and hasattr(thing, "__len__"):
        return OwnImages(name=name, open_records=partial(Items, thing, name), splits=(split,), **values)
    if not hasattr(thing, "__iter__") or isinstance(thing, str):
        raise InputError(f"{name} is a {type(thing).__name__}; {FORMS}")
    if again is None and iter(thing) is thing:
        right = "hand over a function without parameters that returns it, or an object with __iter__"
        raise InputError(f"{name} is an iterator, which can be read only once; {right}")
    return OwnStream(name=name, again=again or (lambda: thing), **values)


def _made(function: Callable, name: str) -> Any:
    with users_code(name):
        return function()


def _refusing(values: Mapping[str, Any], name: str, made: Source | Stored) -> Source | Stored:
    """What was `made` without these keys of images. Raises InputError where one of them is set."""
    for key, value in values.items():
        if value != IMAGE_KEYS[key].default and not IMAGE_KEYS[key].common:
            right = f"set it to {IMAGE_KEYS[key].default!r}"
            raise InputError(f"config key data.{key} is {value!r}, but {name} has no {key}; {right}")
    return made


def _arrays(thing: Any) -> tuple[np.ndarray, ...] | None:
    """(x,) or (x, labels) of what holds arrays of many examples; None where it is something else."""
    if isinstance(thing, Mapping) and set(thing) <= {*IMAGES, *LABELS} and (of := [x for x in IMAGES if x in thing]):
        thing = (thing[of[0]], *[thing[key] for key in LABELS if key in thing])
    parts = thing if isinstance(thing, tuple) and len(thing) in (1, 2) else (thing,)
    if not (hasattr(parts[0], "__array__") and hasattr(parts[0], "shape")):
        return None
    arrays = tuple(np.asarray(part) for part in parts if part is not None)
    return arrays if arrays[0].ndim >= 2 else None


def points(name: str, x: np.ndarray, labels: np.ndarray | None = None) -> Source:
    """The source of points, floats [n, d], all on the device."""
    x = np.asarray(x, np.float32)
    if not x.size or not np.isfinite(x).all():
        raise InputError(f"{name} holds points {list(x.shape)}; they are to be finite numbers [n, d]")
    classes, attributes = label_names(name, labels, len(x))
    data = {"image": x} | ({} if labels is None else {"label": labels.astype(np.float32 if attributes else np.int32)})
    return Source(x.shape[1:], _pick, float(x.std()), data, len(x), classes=classes, attributes=attributes)


def _pick(data, indices, keys):
    return data if indices is None else jax.tree.map(lambda x: x[indices], data)


def endless(draw: Callable, name: str) -> Source:
    """The source of a function of a key, which JAX can trace: draw(key) -> an example, or (example, label).

    An example is floats: [d], or an image [h, w, c] in [-1, 1]. A label is a vector of numbers or, where
    `draw.classes` says how many there are or their names, an integer. The standard deviation is that of SAMPLED draws.
    """
    one = partial(_drawn, draw)
    try:
        shapes = jax.eval_shape(one, jax.random.key(0))
        drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), SAMPLED))
    except Exception as error:
        raise InputError(f"{name} cannot be run on the device: {type(error).__name__}: {reason(error)}") from error
    shape, label = shapes["image"].shape, shapes.get("label")
    if len(shape) not in (1, 3):
        raise InputError(f"{name} draws an array {list(shape)}; an example is [d], or an image [h, w, c]")
    values = np.asarray(drawn["image"])
    if not np.isfinite(values).all():
        raise InputError(f"{name} draws numbers that are not finite")
    if len(shape) == 3:
        check_range(name, float(values.min()), float(values.max()))
    classes = getattr(draw, "classes", ())
    classes = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
    if label is not None and not label.shape and not classes:
        right = "set its attribute `classes` to how many there are, or draw vectors"
        raise InputError(f"the labels of {name} are integers; {right}")
    if label is not None and not label.shape and not 0 <= drawn["label"].min() <= drawn["label"].max() < len(classes):
        raise InputError(f"{name} draws labels outside 0 ... {len(classes) - 1}, of the {len(classes)} classes it has")
    attributes = tuple(map(str, range(label.shape[0]))) if label is not None and label.shape else ()
    names = {"classes": () if label is None or attributes else classes, "attributes": attributes}
    return Source(shape, lambda data, indices, keys: jax.vmap(one)(keys), float(values.std()), **names)


def _drawn(draw: Callable, key) -> dict:
    drawn = draw(key)
    if isinstance(drawn, Mapping):
        drawn = tuple(drawn[name] for name in ("image", "label") if name in drawn)
    image, *labels = drawn if isinstance(drawn, tuple) else (drawn,)
    example = {"image": jnp.asarray(image, jnp.float32)}
    for label in map(jnp.asarray, labels):
        if label.ndim > 1 or (label.ndim == 0 and not jnp.issubdtype(label.dtype, jnp.integer)):
            raise TypeError(f"its label is {label.dtype} {list(label.shape)}; it is to be an integer, or a vector [m]")
        example["label"] = label.astype(jnp.float32 if label.ndim else jnp.int32)
    return example


def _is_function(thing: Any) -> bool:
    """Whether it makes data: a function or a class, and not what only happens to be called."""
    return callable(thing) and (isinstance(thing, type) or not hasattr(thing, "__getitem__"))


def _required(function: Callable) -> list[str]:
    """The parameters that a function has to be called with."""
    parameters = inspect.signature(function).parameters.values()
    variable = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [x.name for x in parameters if x.default is x.empty and x.kind not in variable and x.name != "name"]


class Own:
    """A thing of FORMS as a part: its config keys are those of images, and those of a function's parameters.

    A function that has a key of that name takes it itself. Raises TypeError where a function needs more than a key.
    """

    def __init__(self, thing: Any):
        required = _required(thing) if _is_function(thing) else []
        if len(required) > 1:
            raise TypeError(f"a function that needs {', '.join(required)}; {FORMS}")
        self._thing, self._makes = thing, _is_function(thing) and not required
        self._own = keys_of(thing) if self._makes else {}
        self.config_keys = IMAGE_KEYS | self._own
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.__signature__ = inspect.Signature([inspect.Parameter(x, keyword) for x in ("name", *self.config_keys)])

    def __call__(self, name: str, **values) -> Source | Stored:
        of_images = {key: value for key, value in values.items() if key not in self._own}
        own = arguments(self._thing, values, {"name": name}) if self._makes else {}
        with users_code(name):
            return as_set(partial(self._thing, **own) if own else self._thing, of_images, name)


def part(thing: Any) -> Callable[..., Source | Stored]:
    """The entry of SOURCES for what an import path names."""
    return thing if isinstance(thing, type) and issubclass(thing, Stored) else Own(thing)
