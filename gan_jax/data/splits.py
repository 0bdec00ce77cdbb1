"""`NAME[a:b]`: a split of a finite set, or some of its examples."""

import re
from collections.abc import Iterable

from gan_jax.utils.errors import InputError

FORM = re.compile(r"(?P<name>[^\[\]]*)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?", re.ASCII)


def split_name(split: str, names: Iterable[str] = (), owner: str = "") -> str:
    """NAME. Raises InputError where `split` has another form, or it is none of the `names`, if any, of `owner`."""
    parsed, names = FORM.fullmatch(split), tuple(names)
    if parsed is None:
        right = "it is NAME or NAME[a:b], such as train[:1000], train[10%:] or train[-500:]"
        raise InputError(f"config key data.split is {split!r}; {right}")
    if names and parsed["name"] not in names:
        raise InputError(f"config key data.split is {split!r}; {owner} has {', '.join(names)}")
    return parsed["name"]


def chosen(split: str, count: int) -> range:
    """The places of the examples that `split` takes of the `count` of its NAME, as Python and TFDS read [a:b].

    A percentage is rounded to the closest place. Raises InputError where an end lies outside, or nothing lies between.
    """
    parsed = FORM.fullmatch(split)
    places = [_place(parsed[end], default, count) for end, default in (("start", 0), ("stop", count))]
    if None in places or places[0] >= places[1]:
        fault = "takes none of" if None not in places else "does not lie within"
        raise InputError(
            f"config key data.split is {split!r}, which {fault} the {count:,} examples of {parsed['name']}"
        )
    return range(*places)


def _place(end: str | None, default: int, count: int) -> int | None:
    """Where an end of a range lies; None where that is outside."""
    if end is None:
        return default
    size, whole = abs(int(end.rstrip("%"))), 100 if "%" in end else count
    if size > whole:
        return None
    size = round(size * count / 100) if "%" in end else size
    return count - size if end.startswith("-") else size
