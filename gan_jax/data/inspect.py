"""What a data set holds, before one trains on it: lines about a sample of it, and a picture. Nothing is kept of it."""

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gan_jax.data import Source, Stored, independent, open_set
from gan_jax.data.digits import STACKED, StackedMnist, stacked
from gan_jax.data.own import OwnStream
from gan_jax.data.readers.arrays import Arrays
from gan_jax.data.readers.folder import Folder
from gan_jax.data.readers.records import BadExampleError, Reader, fit, size_text
from gan_jax.data.source import draw_stored, evenly_spaced
from gan_jax.data.stored import Images, room_for_data
from gan_jax.utils.errors import InputError, one_line
from gan_jax.utils.plots import grid, to_picture, write_png

SAMPLE = 500  # examples decoded, evenly spaced; as many draws where they are generated
COLUMNS, ROWS = 10, 10  # of a picture of a set without classes
MOST_CLASSES = 20  # that are counted one by one, and have a row each in the picture
CUT = 128  # pixels: images of differing shapes, for the picture
LARGEST_TILE = 256  # pixels: larger images are shrunk by a whole factor in the picture
SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")  # names of no class


def inspect(values: Mapping[str, Any], out: Path) -> Iterator[str]:
    """The lines about what the group `data` of a config names, each once it is known.

    The picture is written to `out`, and no other file. Raises InputError where the data does not exist, or nothing of
    it can be read.
    """
    opened = open_set(values)
    if isinstance(opened, Source) and not (opened.size and len(opened.shape) == 3):
        return _drawn(values["name"], opened, out)
    inspection = _Inspection(values, opened)
    # The picture would be an image of the set from then on.
    if isinstance(inspection.records.whole, Folder) and out.resolve().is_relative_to(
        inspection.records.folder.resolve()
    ):
        raise InputError(f"--out={out} would lie in the folder of images {one_line(values['dir'])}; name another place")
    return inspection.lines(out)


def _line(name: str, text: str) -> str:
    return f"{name:10} {text}"


def _drawn(name: str, source: Source, out: Path) -> Iterator[str]:
    """The lines of points, and of what is drawn without end."""
    drawn = np.asarray(independent(source, _keys(SAMPLE))["image"])
    are_images = len(source.shape) == 3
    yield _line("data", f"{name}, split train")
    yield _line("examples", f"{source.size:,}" if source.size else "endless: each is a fresh draw")
    yield _line("trained", size_text(source.shape) if are_images else f"points of {source.shape[0]} numbers")
    values = f"{drawn.min():.3g} to {drawn.max():.3g}, mean {drawn.mean():.3g}"
    yield _line("values", f"{values}, unscaled, of {SAMPLE} draws")
    if source.modes is not None:
        yield _line("modes", f"{len(source.modes.centers)} Gaussians, sigma {source.modes.sigma:g}")
    if are_images:
        write_png(out, grid(drawn[: ROWS * COLUMNS], COLUMNS))
    yield _line("picture", f"{one_line(out)}: draws" if are_images else "none: it is of images, and these are points")


def _keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


class _Bundled(Arrays):
    """The images of a source that holds them, as records."""

    def __init__(self, source: Source):
        self.classes, self._images, self._labels = source.classes, source.data["image"], source.data["label"]


class _Example(NamedTuple):
    """One example that was decoded, without its pixels: a sample of large images would not fit in the memory."""

    stored: tuple[int, int, int]  # its shape in the file
    trained: tuple[int, int, int]  # and as one trains on it
    low: int  # of its pixels then
    high: int
    mean: float
    label: int  # -1: none


class _Inspection:
    """Of a finite set."""

    def __init__(self, values: Mapping[str, Any], opened: Source | Stored):
        self._values, self._opened = values, opened
        self._image_size, self._image_width = values.get("image_size", 0), values.get("image_width", 0)
        self._flips = values.get("flip", False)
        if isinstance(opened, Source):
            if not {"image", "label"} <= set(opened.data):
                raise InputError(f"{values['name']} holds no images with labels on the device: only such are shown")
            self._reader, self._draw = Reader(_Bundled(opened), 0, 0, "skip"), opened.draw
        else:
            self._reader = replace(opened, corrupt="skip").reader()  # what cannot be read is counted
            self._draw = partial(draw_stored, top=255, flip=self._flips)
        self.records, self._count = self._reader.records, len(self._reader)
        self._stacks, self._is_folder = isinstance(opened, StackedMnist), isinstance(self.records.whole, Folder)

    def lines(self, out: Path) -> Iterator[str]:
        """See `inspect`."""
        place = [one_line(self.records.folder)] if self.records.folder else []
        yield _line("data", ", ".join([self._values["name"], f"split {self._values.get('split', 'train')}", *place]))
        of_stacks = f"endless: each a stack of {STACKED} of {self._count:,} digits"
        first = ", the first items of an iterable" if isinstance(self._opened, OwnStream) else ""
        yield _line("examples", of_stacks if self._stacks else f"{self._count:,}{first}")
        indices = evenly_spaced(self._count, SAMPLE)
        with ThreadPoolExecutor() as pool:
            outcomes = dict(zip(indices.tolist(), pool.map(self._example, indices), strict=True))
        sample = {i: outcome for i, outcome in outcomes.items() if isinstance(outcome, _Example)}
        bad = [outcome for outcome in outcomes.values() if isinstance(outcome, BadExampleError)]
        if not sample:
            raise InputError(f"none of the {len(indices):,} examples looked at can be read; the first: {bad[0]}")
        of = f"of the {len(indices):,} looked at" if len(indices) < self._count else "of all examples"
        yield from self._shapes(sample.values(), of)
        yield from self._faults(bad, of)
        labels = self.records.labels() if self.records.classes else np.full(self._count, -1)
        if labels is None:
            labelled, labels = np.array(list(sample)), np.array([example.label for example in sample.values()])
            larger = ": the set is too large to read every label for this" if len(indices) < self._count else ""
            yield from self._classes(labels, f"{of}{larger}")
        else:
            labelled = np.arange(self._count)
            yield from self._classes(labels, "of all examples")
        if len({example.trained for example in sample.values()}) > 1:
            yield _line("decoded", f"unknown until data.image_size is set; the picture has them cut to {CUT}x{CUT}")
            self._image_size = self._image_width = CUT
        else:
            yield self._decoded()
        if self._stacks:
            source = stacked(self._reader.rows(np.array(list(sample))))
            write_png(out, grid(np.asarray(independent(source, _keys(ROWS * COLUMNS))["image"]), COLUMNS))
            yield _line("picture", f"{one_line(out)}: stacks of the digits looked at")
        else:
            yield _line("picture", self._picture(labels, labelled, out))

    def _example(self, i: int) -> _Example | BadExampleError:
        try:
            example = self.records[i]
        except BadExampleError as error:
            return error
        image = self._fit(example["image"])
        pixels = int(image.min()), int(image.max()), float(image.mean())
        label = example["label"] if self.records.classes else -1
        return _Example(example["image"].shape, image.shape, *pixels, label)

    def _fit(self, image: np.ndarray) -> np.ndarray:
        return fit(image, self._image_size, self._reader.shape[2], self._image_width)

    def _shapes(self, sample, of: str) -> Iterator[str]:
        """Lines: sizes, and the range of the scaled pixels."""
        sizes = sorted({example.stored for example in sample}, key=math.prod)
        smallest, largest = size_text(sizes[0]), size_text(sizes[-1])
        yield _line("stored", (f"{len(sizes)} sizes, {smallest} to {largest}" if sizes[1:] else smallest) + f", {of}")
        (shape, *others) = {example.trained for example in sample}
        if others:
            yield _line("trained", f"none: the images are of {1 + len(others)} shapes")
            hint = "training stops at the first of another shape; set data.image_size, to cut and resize them"
            yield _line("hint", hint)
        else:
            shape = (*shape[:2], STACKED) if self._stacks else shape
            yield _line("trained", f"{size_text(shape)}, height x width x channels")
        levels = np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1)
        zero, one = np.ravel(self._draw({"image": levels}, None, _keys(2))["image"])
        low, high = min(example.low for example in sample), max(example.high for example in sample)
        weights = [math.prod(example.trained) for example in sample]
        mean = np.average([example.mean for example in sample], weights=weights)
        low, high, mean = (zero + level * (one - zero) for level in (low, high, mean))
        yield _line("pixels", f"{low:.3g} to {high:.3g}, mean {mean:.3g}, scaled to [-1, 1], {of}")

    def _faults(self, bad: list[BadExampleError], of: str) -> Iterator[str]:
        yield _line("unreadable", f"{len(bad):,} {of}" + (f"; the first: {bad[0]}" if bad else ""))
        others = self.records.not_images
        if self._is_folder:
            names = ": " + one_line(", ".join(others[:3])) + (", ..." if others[3:] else "") if others else ""
            yield _line("other", f"{len(others):,} files that are no images{names}")
        if (bad or others) and self._opened.corrupt == "stop":
            yield _line("hint", "training stops at them: mend or remove them, or set data.corrupt to skip")

    def _classes(self, labels: np.ndarray, of: str) -> Iterator[str]:
        names = [one_line(name, 60) for name in self.records.classes]
        if attributes := self.records.attributes:
            listed = one_line(", ".join(attributes[:MOST_CLASSES])) + (", ..." if attributes[MOST_CLASSES:] else "")
            yield _line("labels", f"vectors of {len(attributes):,} numbers: {listed}")
            return
        if not names:
            why = "all images lie in the folder itself" if self._is_folder else "the set has no labels"
            yield _line("classes", f"none: {why}")
            return
        of_stacks = f"{10**STACKED:,} of stacks, 000 to 999; {len(names)} of digits"
        yield _line("classes", f"{of_stacks if self._stacks else f'{len(names):,}'}; counts {of}")
        yield from _counts(names, labels)
        if self._is_folder and not self.records.whole.has_labels_file and (hint := _level_hint(self.records.whole)):
            yield _line("hint", hint)

    def _decoded(self) -> str:
        needed, room = self._count * math.prod(self._reader.shape), room_for_data()
        if not isinstance(self._opened, Images):
            return _line("decoded", f"{needed / 1e6:,.1f} MB: lies on the device")
        fate = "is streamed" if needed > room else "lies on the device"
        why = f"which has room for {room / 1e6:,.0f} MB (data.placement=auto)"
        return _line("decoded", f"{needed / 1e6:,.1f} MB: {fate}, {why}")

    def _picture(self, labels: np.ndarray, labelled: np.ndarray, out: Path) -> str:
        """Draws one class a row, or examples of all the set; `labels` are of the examples `labelled`."""
        classes = len(self.records.classes)
        if classes:
            members = [labelled[labels == label] for label in range(min(classes, MOST_CLASSES))]
            rows = [indices[evenly_spaced(len(indices), COLUMNS)] for indices in members]
            what = f"one class a row, {'in order' if classes <= MOST_CLASSES else f'the first {MOST_CLASSES}'}"
        else:
            indices = evenly_spaced(self._count, ROWS * COLUMNS)
            rows = [indices[start : start + COLUMNS] for start in range(0, len(indices), COLUMNS)]
            what = "examples, evenly spaced"
        images = {}  # by the place in the picture
        for row, indices in enumerate(rows):
            for column, i in enumerate(indices):
                with suppress(BadExampleError):
                    images[row * COLUMNS + column] = self._fit(self.records[i]["image"])
        shapes = {image.shape for image in images.values()}
        if len(shapes) != 1:  # all damaged, or of a shape that the sample did not meet
            return f"none: the images for it are of {len(shapes)} shapes"
        factor = math.ceil(max(shapes.pop()) / LARGEST_TILE)
        small = np.stack([np.atleast_3d(to_picture(image).reduce(factor)) for image in images.values()])
        drawn = self._draw({"image": small}, None, _keys(len(small)))["image"]
        tiles = np.full((len(rows) * COLUMNS, *drawn.shape[1:]), -1, np.float32)  # black
        tiles[list(images)] = drawn
        write_png(out, grid(tiles, COLUMNS))
        shrunk, mirrored = f", shrunk {factor} times" * (factor > 1), ", mirrored at random" * self._flips
        return f"{one_line(out)}: {what}{shrunk}{mirrored}"


def _counts(names: list[str], labels: np.ndarray) -> Iterator[str]:
    """Lines: each class with its count and share; of more than MOST_CLASSES, the smallest and the largest."""
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    listed = dict.fromkeys(range(len(names)), "")
    if len(names) > MOST_CLASSES:
        listed = {int(counts.argmin()): "  (the smallest)"}
        listed.setdefault(int(counts.argmax()), "  (the largest)")
    width = max(len(names[label]) for label in listed)
    for label, which in listed.items():
        yield f"  {names[label]:{width}}  {counts[label]:>9,}  {counts[label] / max(1, len(labels)):6.1%}{which}"
    if without := int(np.sum(labels < 0)):
        yield f"  {without:,} without a label"


def _level_hint(records: Folder) -> str:
    """What to say where the subfolders look like something else than classes; "" where they do not."""
    classes = records.classes
    inner = sorted({name.rpartition("/")[0] for name in records.names if name.count("/") > 1})
    if all(name.lower() in SPLIT_NAMES for name in classes):
        likely = next((name for name in classes if name.lower().startswith("train")), classes[0])
        fact = f"its classes are named {', '.join(classes)}"
    elif len(classes) == 1:
        fact, likely = f"its only class is {one_line(classes[0])}", classes[0]
    elif len(inner) > len(classes):
        likely = inner[0].partition("/")[0]
        where = f"{len(inner):,} subfolders of its {len(classes):,} classes, such as {one_line(inner[0])}"
        fact = f"its images lie in {where}"
    else:
        return ""
    return f"{fact}: did you mean {one_line(records.folder / likely)}?"
