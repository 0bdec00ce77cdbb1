"""A folder of image files, or of folders of them, one for each class."""

import os
from pathlib import Path

import numpy as np

from gan_jax.data.records import BadExampleError, decode, fingerprint, index, one_line, reason
from gan_jax.errors import InputError

ACCEPTED = (".png", ".jpg", ".jpeg", ".webp")
IGNORED = ("thumbs.db", "desktop.ini")  # what Windows leaves behind; and whatever starts with a dot
LAYOUTS = f"a folder holds images ({', '.join(ACCEPTED)}), or subfolders of them, one for each class"


class Folder:
    """The images of a folder, in the order of their relative paths; see `Records`.

    Images directly in it: no labels. In subfolders, at any depth: the subfolders at the top are the classes, by name.
    Links are followed.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(os.path.expanduser(path))
        files, top = _listing(self.path)
        names = sorted(name for name, regular in files if regular and name.lower().endswith(ACCEPTED))
        self.names = tuple(names)
        images = set(names)
        self.not_images = tuple(sorted(name for name, _ in files if name not in images))
        self.classes = _classes(self.path, self.names, top)
        self._labels = {name: label for label, name in enumerate(self.classes)}

    def refuse_non_images(self):
        """InputError if the folder holds a file that is no image by its suffix."""
        if self.not_images:
            first = one_line(self.path / self.not_images[0])
            raise InputError(
                f"{first} is no image file, 1 of {len(self.not_images)} in {one_line(self.path)}: accepted are "
                f"{', '.join(ACCEPTED)}; move others out of the folder"
            )

    @property
    def fingerprint(self) -> str:
        """See `Records`; a file is looked up for each image, so keep it."""
        return fingerprint(self.path, self.names, "folder")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> dict:
        name = self.names[index(i, len(self))]
        try:
            image = decode((self.path / name).read_bytes(), upright=True)
        except (OSError, ValueError) as error:
            raise BadExampleError(f"{self.where(i)}: {reason(error)}") from error
        if not self.classes:
            return {"image": image}
        return {"image": image, "label": self._labels[name.partition("/")[0]]}

    def labels(self) -> np.ndarray:
        return np.array([self._labels[name.partition("/")[0]] for name in self.names])

    def where(self, i: int) -> str:
        return f"{one_line(self.path / self.names[i])} (example {i} of {len(self)})"


def _listing(path: Path) -> tuple[list[tuple[str, bool]], list[str]]:
    """(relative posix path, is it a regular file) of all files below, in any order, and the folders at the top."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{one_line(path)} {what}; {LAYOUTS}")
    files, top, pending = [], [], [("", (os.path.realpath(path),))]
    try:
        while pending:
            prefix, above = pending.pop()
            with os.scandir(path / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.lower() in IGNORED:
                        continue
                    name = prefix + entry.name
                    if not _leads_to_folder(entry):
                        files.append((name, os.path.isfile(entry.path)))  # a broken link or a pipe is not
                    elif (real := os.path.realpath(entry.path)) not in above:  # else a link that runs in a circle
                        pending.append((f"{name}/", (*above, real)))
                        if not prefix:
                            top.append(name)
    except OSError as error:
        raise InputError(f"cannot list {one_line(error.filename)}: {reason(error)}") from error
    return files, top


def _leads_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _classes(path: Path, names: tuple[str, ...], top: list[str]) -> tuple[str, ...]:
    """The folders at the top, by name, if the images lie there; () if they lie in the folder itself."""
    if not names:
        raise InputError(f"no image in {one_line(path)}; {LAYOUTS}")
    filled = {name.partition("/")[0] for name in names if "/" in name}
    if not filled:
        return ()
    loose = next((name for name in names if "/" not in name), None)
    if loose is not None:
        raise InputError(
            f"{one_line(path)} holds both images ({one_line(loose)}) and subfolders of images "
            f"({one_line(min(filled))}), so which of them have a class is unclear; {LAYOUTS}"
        )
    empty = sorted(set(top) - filled)
    if empty:  # left out, it would shift the labels of one split against those of another
        raise InputError(f"no image in {one_line(path / empty[0])}: every subfolder is a class; fill or remove it")
    return tuple(sorted(top))
