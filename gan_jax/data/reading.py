"""Examples of one shape from records of any: what decoding once and streaming have in common."""

import sys
from functools import cached_property

import numpy as np

from gan_jax.data.records import BadExampleError, Records
from gan_jax.data.transform import fit
from gan_jax.errors import InputError

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

    @property
    def identity(self) -> list:
        """What decides every byte of the decoded set."""
        return [self.records.fingerprint, self._image_size, self._channels, self._skips]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of every example."""
        first = self._good(0)[1]["image"]
        return (self._image_size or first.shape[0], self._image_size or first.shape[1], self._channels or first.shape[2])

    def example(self, i: int) -> dict | None:
        """{"image": uint8 [*shape], "label": int where there are labels}; None where it is skipped as corrupt.

        Raises InputError at a corrupt one that may not be skipped, and at one of another size that is not to be resized.
        """
        try:
            example = self.records[i]
        except BadExampleError as error:
            if not self._skips:
                raise InputError(f"{error}; mend or remove it, or set data.corrupt to skip") from error
            self._tell(i, error)
            return None
        image = fit(example["image"], self._image_size, self.shape[2] if "shape" in vars(self) else self._channels)
        if "shape" in vars(self) and image.shape != self.shape:
            raise InputError(
                f"{self.records.where(i)} is {_size(image)} and the first example {_size(self.shape)}; "
                "set data.image_size, to cut and resize them all"
            )
        return example | {"image": image}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of these examples, [n, ...]; in the place of one that is skipped, the next good one."""
        examples = [self._good(int(i))[1] for i in indices]
        rows = {"image": np.stack([example["image"] for example in examples])}
        if self.records.classes:
            rows["label"] = np.array([example["label"] for example in examples], np.int32)
        return rows

    def _good(self, start: int) -> tuple[int, dict]:
        for i in range(start, start + len(self)):
            example = self.example(i % len(self))
            if example is not None:
                return i % len(self), example
        raise InputError(f"{self.records.where(0)} and all others cannot be read; is this the right place?")

    def _tell(self, i: int, error: BadExampleError) -> None:
        if i not in self._told:
            self._told.add(i)
            print(f"skipped {error} ({len(self._told):,} so far)", file=sys.stderr)


def _size(image_or_shape) -> str:
    return "x".join(map(str, getattr(image_or_shape, "shape", image_or_shape)))
