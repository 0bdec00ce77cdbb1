"""A look at a data set before one trains on it: what it holds, by a sample, and a picture. Nothing is kept of it."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from gan_jax.data import Source, Spec, checked, independent
from gan_jax.data.digits import TOP
from gan_jax.data.folder import Folder
from gan_jax.data.reading import Reader
from gan_jax.data.records import BadExampleError, one_line
from gan_jax.data.source import draw_stored
from gan_jax.data.stacked import DIGITS, stacked
from gan_jax.data.transform import fit
from gan_jax.errors import InputError
from gan_jax.images import grid, write_png
from gan_jax.look.labels import Bundled, counts, level_hint, place
from gan_jax.memory import room_for_data

LOOKED_AT = 500  # examples decoded, evenly spaced; as many draws where they are generated
COLUMNS, ROWS = 10, 10  # of a picture of a set without classes
MOST_CLASSES = 20  # that are counted one by one, and have a row each in the picture
CUT = 128  # pixels: images of differing shapes, for the picture
LARGEST_TILE = 256  # pixels: larger images are shrunk by a whole factor in the picture


class Stored(NamedTuple):
    """A finite set, opened."""

    spec: Spec
    reader: Reader  # skips what cannot be read: it is to be counted
    draw: Callable  # as in Source
    top: int  # the brightest level of its images


class Seen(NamedTuple):
    """One example that was decoded, without its pixels: a sample of large images would not fit in the memory."""

    stored: tuple[int, int, int]  # its shape in the file
    trained: tuple[int, int, int]  # and as one trains on it
    low: int  # of its pixels then
    high: int
    mean: float
    label: int  # -1: none


def look(spec: Spec, out: Path) -> Iterator[str]:
    """The lines that say what `spec` names, each once it is known; the picture is written to `out`, and no other file.

    Raises InputError where the data does not exist, or nothing of it can be read.
    """
    entry = checked(spec)
    if entry.reader is not None:
        reader = entry.reader(spec._replace(corrupt="skip"))
        _refuse_to_join(spec, out)
        return _look_at_stored(Stored(spec, reader, partial(draw_stored, top=255, flip=spec.flip), 255), out)
    source = entry.make(spec)
    if not source.size:
        return _look_at_endless(spec, source)
    return _look_at_stored(Stored(spec, Reader(Bundled(source), 0, 0, "skip"), source.draw, TOP), out)


def _refuse_to_join(spec: Spec, out: Path) -> None:
    # The picture would be an image of the set from then on.
    if spec.name == "folder" and out.resolve().is_relative_to(Path(spec.dir).resolve()):
        raise InputError(f"--out={out} would lie in the folder of images {one_line(spec.dir)}; name another place")


def _line(name: str, text: str) -> str:
    return f"{name:10} {text}"


def _look_at_endless(spec: Spec, source: Source) -> Iterator[str]:
    values = np.asarray(independent(source, jax.random.split(jax.random.key(0), LOOKED_AT))["image"])
    yield _line("data", f"{spec.name}, split {spec.split}")
    yield _line("examples", "endless: each is a fresh draw")
    yield _line("trained", f"points of {source.shape[0]} numbers")
    yield _line("values", f"{_range(values.min(), values.max(), values.mean())}, unscaled, of {LOOKED_AT} draws")
    if source.modes is not None:
        yield _line("modes", f"{len(source.modes.centers)} Gaussians, sigma {source.modes.sigma:g}")
    yield _line("picture", "none: it is of images, and these are points")


def _look_at_stored(stored: Stored, out: Path) -> Iterator[str]:
    spec, reader = stored.spec, stored.reader
    stacks, n = spec.name == "stacked_mnist", len(reader)
    where = place(reader.records)
    yield _line("data", ", ".join(filter(None, (spec.name, f"split {spec.split}", where and one_line(where)))))
    yield _line("examples", f"endless: each a stack of {DIGITS} of {n:,} digits" if stacks else f"{n:,}")
    indices = _evenly(np.arange(n), LOOKED_AT)
    seen, bad = _sample(stored, indices)
    looked = f"of the {len(indices):,} looked at" if len(indices) < n else "of all examples"
    yield from _shapes(stored, seen, looked, stacks)
    yield from _pixels(stored, seen, looked)
    yield from _faults(stored, bad, looked)
    labels = reader.records.labels() if reader.records.classes else np.full(n, -1)
    known = np.arange(n)
    if labels is None:
        labels, known = np.array([example.label for example in seen.values()]), np.array(list(seen))
    yield from _classes(stored, labels, len(known) == n, looked, stacks)
    if len({example.trained for example in seen.values()}) > 1:
        yield _line("decoded", f"unknown until data.image_size is set; the picture has them cut to {CUT}x{CUT}")
        stored = stored._replace(spec=spec._replace(image_size=CUT))
    else:
        yield from _decoded(stored)
    yield from _picture_of_stacks(stored, list(seen), out) if stacks else _picture(stored, labels, known, out)


def _evenly(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly spaced, the first and the last among them."""
    return values[np.linspace(0, len(values) - 1, min(most, len(values)), dtype=np.int64)]


def _sample(stored: Stored, indices: np.ndarray) -> tuple[dict[int, Seen], list[BadExampleError]]:
    """What the examples at these indices are, by index, and what is wrong with those that cannot be read."""
    _refuse_unreadable(stored.reader, indices)
    channels = stored.reader.shape[2]
    with ThreadPoolExecutor(stored.spec.workers) as pool:
        found = dict(zip(indices.tolist(), pool.map(partial(_seen, stored, channels), indices), strict=True))
    seen = {i: each for i, each in found.items() if isinstance(each, Seen)}
    return seen, [each for each in found.values() if isinstance(each, BadExampleError)]


def _refuse_unreadable(reader: Reader, indices: np.ndarray) -> None:
    # Before the reader is asked for its shape, for which it would go through a whole set of which nothing can be read.
    first = None
    for i in indices:
        try:
            reader.records[i]
        except BadExampleError as error:
            first = first or error
        else:
            return
    raise InputError(f"none of the {len(indices):,} examples looked at can be read; the first: {first}")


def _seen(stored: Stored, channels: int, i: int) -> Seen | BadExampleError:
    try:
        example = stored.reader.records[i]
    except BadExampleError as error:
        return error
    image = fit(example["image"], stored.spec.image_size, channels)
    pixels = int(image.min()), int(image.max()), float(image.mean())
    return Seen(example["image"].shape, image.shape, *pixels, example.get("label", -1))


def _shapes(stored: Stored, seen: dict[int, Seen], looked: str, stacks: bool) -> Iterator[str]:
    sizes = sorted({example.stored for example in seen.values()}, key=math.prod)
    differing = f"{len(sizes)} sizes, {_size(sizes[0])} to {_size(sizes[-1])}, {looked}" if sizes[1:] else ""
    yield _line("stored", differing or f"{_size(sizes[0])}, {looked}")
    trained = {example.trained for example in seen.values()}
    if len(trained) > 1:
        yield _line("trained", f"none: the images are of {len(trained)} shapes")
        yield _line("hint", "training stops at the first of another shape; set data.image_size, to cut and resize them")
        return
    height, width, channels = trained.pop()
    yield _line("trained", f"{_size((height, width, DIGITS if stacks else channels))}, height x width x channels")


def _pixels(stored: Stored, seen: dict[int, Seen], looked: str) -> Iterator[str]:
    sizes = [math.prod(example.trained) for example in seen.values()]
    low, high = min(example.low for example in seen.values()), max(example.high for example in seen.values())
    mean = np.average([example.mean for example in seen.values()], weights=sizes)
    scaled = [value / (stored.top / 2) - 1 for value in (low, high, mean)]
    yield _line("pixels", f"{_range(*scaled)}, scaled to [-1, 1], {looked}")


def _faults(stored: Stored, bad: list[BadExampleError], looked: str) -> Iterator[str]:
    yield _line("unreadable", f"{len(bad):,} {looked}" + (f"; the first: {bad[0]}" if bad else ""))
    records = stored.reader.records
    others = records.not_images if isinstance(records, Folder) else ()
    if stored.spec.name == "folder":
        yield _line("other", f"{len(others):,} files that are no images" + (f": {_named(others)}" if others else ""))
    if (bad or others) and stored.spec.corrupt == "stop":
        yield _line("hint", "training stops at them: mend or remove them, or set data.corrupt to skip")


def _classes(stored: Stored, labels: np.ndarray, whole: bool, looked: str, stacks: bool) -> Iterator[str]:
    names = [one_line(name, 60) for name in stored.reader.records.classes]
    if not names:
        why = "all images lie in the folder itself" if stored.spec.name == "folder" else "the set has no labels"
        yield _line("classes", f"none: {why}")
    else:
        number = f"{10**DIGITS:,} of stacks, 000 to 999; {len(names)} of digits" if stacks else f"{len(names):,}"
        among = "of all examples" if whole else f"{looked}: the set is too large to read every label for this"
        yield _line("classes", f"{number}; counts {among}")
        yield from counts(names, labels, MOST_CLASSES)
    hint = level_hint(stored.reader.records)
    if hint:
        yield _line("hint", hint)


def _decoded(stored: Stored) -> Iterator[str]:
    needed, room = len(stored.reader) * math.prod(stored.reader.shape), room_for_data()
    chosen = "placement" in checked(stored.spec).uses
    fate = "is streamed" if chosen and needed > room else "lies on the device"
    why = f", which has room for {room / 1e6:,.0f} MB (data.placement=auto)" if chosen else ""
    yield _line("decoded", f"{needed / 1e6:,.1f} MB: {fate}{why}")


def _picture(stored: Stored, labels: np.ndarray, known: np.ndarray, out: Path) -> Iterator[str]:
    """Draws one class a row, the first ones, or examples of all the set; `labels` are those of the examples `known`."""
    number = len(stored.reader.records.classes)
    if number:
        rows = [_evenly(known[labels == label], COLUMNS) for label in range(min(number, MOST_CLASSES))]
        what = f"one class a row, {'in order' if number <= MOST_CLASSES else f'the first {MOST_CLASSES}'}"
    else:
        chosen = _evenly(np.arange(len(stored.reader)), ROWS * COLUMNS)
        rows = [chosen[start : start + COLUMNS] for start in range(0, len(chosen), COLUMNS)]
        what = "examples, evenly spaced"
    images = _images(stored, rows)
    shapes = {image.shape for image in images.values()}
    if len(shapes) != 1:  # all damaged, or of a shape that the sample did not meet
        yield _line("picture", f"none: the images for it are of {len(shapes)} shapes")
        return
    factor = math.ceil(max(shapes.pop()) / LARGEST_TILE)
    write_png(out, grid(_tiles(stored, images, len(rows), factor), COLUMNS))
    notes = {f", shrunk {factor} times": factor > 1, ", mirrored at random": stored.spec.flip}
    yield _line("picture", f"{one_line(out)}: {what}" + "".join(note for note, holds in notes.items() if holds))


def _images(stored: Stored, rows: list[np.ndarray]) -> dict[int, np.ndarray]:
    """By its place in the picture, each image of `rows` of indices, as one trains on it; those that can be read."""
    images, channels = {}, stored.reader.shape[2]
    for row, indices in enumerate(rows):
        for column, i in enumerate(indices):
            with suppress(BadExampleError):
                image = stored.reader.records[i]["image"]
                images[row * COLUMNS + column] = fit(image, stored.spec.image_size, channels)
    return images


def _tiles(stored: Stored, images: dict[int, np.ndarray], rows: int, factor: int) -> np.ndarray:
    """The images at their places, `factor` times smaller: [rows * COLUMNS, h, w, c] in [-1, 1], elsewhere black."""
    small = np.stack([_shrunk(image, factor) for image in images.values()])
    drawn = stored.draw({"image": small}, None, jax.random.split(jax.random.key(0), len(small)))["image"]
    tiles = np.full((rows * COLUMNS, *drawn.shape[1:]), -1, np.float32)
    tiles[list(images)] = drawn
    return tiles


def _picture_of_stacks(stored: Stored, indices: list[int], out: Path) -> Iterator[str]:
    source = stacked(stored.reader.rows(np.array(indices)))
    images = independent(source, jax.random.split(jax.random.key(0), ROWS * COLUMNS))["image"]
    write_png(out, grid(np.asarray(images), COLUMNS))
    yield _line("picture", f"{one_line(out)}: stacks of the digits looked at")


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """uint8 [h, w, c], each pixel the mean of `factor`^2."""
    if factor == 1:
        return image
    small = np.asarray(Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).reduce(factor))
    return small.reshape(*small.shape[:2], image.shape[2])


def _named(names: tuple[str, ...]) -> str:
    return one_line(", ".join(names[:3])) + (", ..." if names[3:] else "")


def _range(low: float, high: float, mean: float) -> str:
    return f"{low:.3g} to {high:.3g}, mean {mean:.3g}"


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
