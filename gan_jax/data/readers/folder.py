"""A folder of image files, or of folders of them, one for each class."""

import os
from pathlib import Path

import numpy as np

from gan_jax.data.readers.records import Reader, Records, decode, fingerprint, one_line, reason
from gan_jax.data.stored import Images
from gan_jax.utils.errors import InputError

ACCEPTED = (".png", ".jpg", ".jpeg", ".webp")
IGNORED = ("thumbs.db", "desktop.ini")  # what Windows leaves behind; and whatever starts with a dot
LAYOUTS = f"a folder holds images ({', '.join(ACCEPTED)}), or subfolders of them, one for each class"


class ImageFolder(Images):
    """The data set `folder`: images below a folder; where they lie in subfolders, these are classes."""

    def reader(self) -> Reader:
        """Raises InputError where other files lie among the images, unless what is corrupt is skipped."""
        records = Folder(self.required_dir("the folder of images"))
        if self.corrupt == "stop":
            records.refuse_non_images()
        # Grey and coloured images may lie in one folder: all are made coloured.
        return Reader(records, self.image_size, self.channels or 3, self.corrupt)


class Folder(Records):
    """The images of a folder, in the order of their relative paths.

    Images directly in it: no labels. In subfolders, at any depth: the subfolders at the top are the classes, by name.
    Links are followed.
    """

    def __init__(self, path: str | os.PathLike):
        self.folder = Path(os.path.expanduser(path))
        files, top = _listing(self.folder)
        # A broken link and a pipe are no images.
        images = {name for name in files if name.lower().endswith(ACCEPTED) and os.path.isfile(self.folder / name)}
        self.names, self.not_images = tuple(sorted(images)), tuple(sorted(set(files) - images))
        self.classes = _classes(self.folder, self.names, top)
        numbers = {name: label for label, name in enumerate(self.classes)}
        self._labels = [numbers.get(name.partition("/")[0]) for name in self.names]

    def refuse_non_images(self):
        """InputError if the folder holds a file that is no image by its suffix."""
        if self.not_images:
            first = one_line(self.folder / self.not_images[0])
            raise InputError(
                f"{first} is no image file, 1 of {len(self.not_images)} in {one_line(self.folder)}: accepted are "
                f"{', '.join(ACCEPTED)}; move others out of the folder"
            )

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.folder, self.names, "folder")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> dict:
        image = decode(self.file(i).read_bytes(), upright=True)
        return {"image": image} | ({"label": self._labels[i]} if self.classes else {})

    def labels(self) -> np.ndarray:
        return np.array(self._labels)

    def file(self, i: int) -> Path:
        return self.folder / self.names[i]


def _listing(path: Path) -> tuple[list[str], list[str]]:
    """The relative posix paths of all files below, in any order, and the names of the folders at the top."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{one_line(path)} {what}; {LAYOUTS}")
    files, top, errors, root = [], [], [], os.fspath(path)
    above = {root: (os.path.realpath(path),)}  # of each folder to come, itself and those it lies in, without links
    for folder, inner, names in os.walk(root, onerror=errors.append, followlinks=True):
        prefix, outer = folder[len(root) :].lstrip("/"), above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in filter(_counts, inner)}
        inner[:] = [name for name in real if real[name] not in outer]  # else a link that runs in a circle
        above |= {os.path.join(folder, name): (*outer, real[name]) for name in inner}
        top = top if prefix else list(inner)
        files += [os.path.join(prefix, name) for name in filter(_counts, names)]
    if errors:
        raise InputError(f"cannot list {one_line(errors[0].filename)}: {reason(errors[0])}")
    return files, top


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in IGNORED


def _classes(path: Path, names: tuple[str, ...], top: list[str]) -> tuple[str, ...]:
    """The folders at the top, by name, if the images lie there; () if they lie in the folder itself."""
    if not names:
        raise InputError(f"no image in {one_line(path)}; {LAYOUTS}")
    loose = [name for name in names if "/" not in name]
    filled = {name.partition("/")[0] for name in names if "/" in name}
    if loose and filled:
        raise InputError(
            f"{one_line(path)} holds both images ({one_line(loose[0])}) and subfolders of images "
            f"({one_line(min(filled))}), so which of them have a class is unclear; {LAYOUTS}"
        )
    if filled and (empty := set(top) - filled):  # left out, it would shift the labels of one split against another's
        raise InputError(f"no image in {one_line(path / min(empty))}: every subfolder is a class; fill or remove it")
    return tuple(sorted(filled))
