"""Examples of one shape from records of any: what decoding once and streaming have in common."""

import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from gan_jax.data.records import BadExampleError, Records
from gan_jax.data.source import stored_std
from gan_jax.data.transform import fit
from gan_jax.errors import InputError

FORMAT = 1  # of what decoding gives; another number makes all cached sets stale
SAMPLED = 1_000  # examples that tell the standard deviation
CORRUPT = ("stop", "skip")  # what to do at an example that cannot be read


class Reader:
    """The examples of a set, cut and resized to one shape. Used from several threads at once."""

    def __init__(self, records: Records, image_size: int, channels: int, corrupt: str):
        """`image_size` and `channels` 0: as the first example has them. `corrupt` is one of CORRUPT."""
        self.records = records
        self._image_size, self._channels, self._skips = image_size, channels, corrupt == "skip"
        self._told = set()  # bad examples that the user knows of

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def identity(self) -> str:
        """A hash of what decides every byte of the decoded set."""
        parts = [FORMAT, self.records.fingerprint, self._image_size, self._channels, self._skips]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels; none where the set keeps its labels back, as the test splits of some do."""
        return self.records.classes if self._first.get("label", -1) >= 0 else ()

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of every example."""
        height, width, channels = self._first["image"].shape
        return (self._image_size or height, self._image_size or width, self._channels or channels)

    @cached_property
    def std(self) -> float:
        """The standard deviation of the pixels, scaled to [-1, 1], of SAMPLED examples evenly spaced over the set."""
        sample = np.unique(np.linspace(0, len(self) - 1, SAMPLED, dtype=np.int64))
        return stored_std(self.rows(sample)["image"], top=255)

    def example(self, i: int) -> dict | None:
        """{"image": uint8 [*shape], "label": int where there are labels}; None where it is corrupt and skipped.

        Raises InputError at a corrupt one that may not be skipped, and at one of another size where none is resized.
        """
        example = self._decoded(i)
        if example is None:
            return None
        image = fit(example["image"], self._image_size, self.shape[2])
        if image.shape != self.shape:
            raise InputError(
                f"{self.records.where(i)} is {_size(image.shape)} and the first example {_size(self.shape)}; "
                "set data.image_size, to cut and resize them all"
            )
        if self.classes and example["label"] < 0:
            raise InputError(f"{self.records.where(i)} has no label, and the first example has one")
        return example | {"image": image}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of these examples, [n, ...]; in the place of one that is skipped, the next good one."""
        examples = [self._next_good(int(i)) for i in indices]
        rows = {"image": np.stack([example["image"] for example in examples])}
        if self.classes:
            rows["label"] = np.array([example["label"] for example in examples], np.int32)
        return rows

    def _next_good(self, start: int) -> dict:
        found = (self.example(i % len(self)) for i in range(start, start + len(self)))
        return self._any(example for example in found if example is not None)

    @cached_property
    def _first(self) -> dict:
        """The first example that can be read, as it is stored."""
        return self._any(example for example in map(self._decoded, range(len(self))) if example is not None)

    def _any(self, examples: Iterator[dict]) -> dict:
        for example in examples:
            return example
        raise InputError(f"none of the {len(self):,} examples can be read; the first is {self.records.where(0)}")

    def _decoded(self, i: int) -> dict | None:
        try:
            return self.records[i]
        except BadExampleError as error:
            if not self._skips:
                raise InputError(f"{error}; mend or remove it, or set data.corrupt to skip") from error
            self._tell(i, error)
            return None

    def _tell(self, i: int, error: BadExampleError) -> None:
        if i not in self._told:
            self._told.add(i)
            print(f"skipped {error} ({len(self._told):,} so far)", file=sys.stderr)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
