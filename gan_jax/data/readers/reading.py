"""Examples of one shape from records of any shape."""

import hashlib
import json
import sys
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from gan_jax.data.readers.records import BadExampleError, Records, fit
from gan_jax.data.source import evenly_spaced, stored_std
from gan_jax.utils.errors import InputError

FORMAT = 1  # of what decoding gives; another number makes all cached sets stale
SAMPLED = 1_000  # examples that tell the standard deviation


class Reader:
    """The examples of a set, cut and resized to one shape. Used from several threads at once."""

    def __init__(self, records: Records, image_size: int, channels: int, corrupt: str):
        """`image_size` and `channels` 0: as the first example has them. `corrupt`: "stop", or "skip"."""
        self.records = records
        self._image_size, self._channels, self._skips = image_size, channels, corrupt == "skip"
        self._skipped = set()  # bad examples that the user knows of

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def identity(self) -> str:
        """A hash of what decides every byte of the decoded set."""
        decisive = [FORMAT, self.records.fingerprint, self._image_size, self._channels, self._skips]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]

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
        return stored_std(self.rows(evenly_spaced(len(self), SAMPLED))["image"], top=255)

    def example(self, i: int) -> dict | None:
        """{"image": uint8 [*shape], "label": int where there are labels}; None where it is corrupt and skipped.

        Raises InputError at a corrupt one that may not be skipped, and at one of another size where none is resized.
        """
        if (example := self._decoded(i)) is None:
            return None
        image = fit(example["image"], self._image_size, self.shape[2])
        if image.shape != self.shape:
            raise InputError(
                f"{self.records.where(i)} is {size_text(image.shape)} and the first example {size_text(self.shape)}; "
                "set data.image_size, to cut and resize them all"
            )
        if self.classes and example["label"] < 0:
            raise InputError(f"{self.records.where(i)} has no label, and the first example has one")
        return example | {"image": image}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of these examples, [n, ...]; in the place of one that is skipped, the next good one."""
        count = len(self)
        examples = [self._first_good(self.example(i % count) for i in range(start, start + count)) for start in indices]
        rows = {"image": np.stack([example["image"] for example in examples])}
        if self.classes:
            rows["label"] = np.array([example["label"] for example in examples], np.int32)
        return rows

    @cached_property
    def _first(self) -> dict:
        """The first example that can be read, as it is stored."""
        return self._first_good(map(self._decoded, range(len(self))))

    def _first_good(self, examples: Iterable[dict | None]) -> dict:
        example = next((example for example in examples if example is not None), None)
        if example is None:
            raise InputError(f"none of the {len(self):,} examples can be read; the first is {self.records.where(0)}")
        return example

    def _decoded(self, i: int) -> dict | None:
        try:
            return self.records[i]
        except BadExampleError as error:
            if not self._skips:
                raise InputError(f"{error}; mend or remove it, or set data.corrupt to skip") from error
            if i not in self._skipped:
                self._skipped.add(i)
                print(f"skipped {error} ({len(self._skipped):,} so far)", file=sys.stderr)
            return None


def size_text(shape: tuple[int, ...]) -> str:
    """`28x28x1` of (28, 28, 1)."""
    return "x".join(map(str, shape))
