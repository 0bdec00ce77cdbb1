"""A folder of image files, or of folders of them, one for each class; StyleGAN's `dataset.zip` and `dataset.json`."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gan_jax.data.readers.arrays import DAMAGE, label_names
from gan_jax.data.readers.records import Reader, Records, decode, fingerprint
from gan_jax.data.stored import Images
from gan_jax.utils.errors import InputError, one_line, reason

ACCEPTED = (".png", ".jpg", ".jpeg", ".webp")
IGNORED = ("thumbs.db", "desktop.ini")  # what Windows leaves behind; and whatever starts with a dot
LAYOUTS = f"a folder holds images ({', '.join(ACCEPTED)}), or subfolders of them, one for each class"
LABELS = "dataset.json"  # of StyleGAN: {"labels": [[relative path, class or list of numbers], ...]}, or null for none
LABELS_FORM = '{"labels": [["00000/img00000000.png", 3], ...]}, with a class or a list of numbers each, or null'


class ImageFolder(Images):
    """The data set `folder`: images below a folder; where they lie in subfolders, these are classes."""

    def reader(self) -> Reader:
        """Raises InputError where other files lie among the images, unless what is corrupt is skipped."""
        records = Folder(self.required_dir("the folder of images, or a .zip of it"))
        if self.corrupt == "stop":
            records.refuse_non_images()
        # Grey and coloured images may lie in one folder: all are made coloured.
        return self.reader_of(records, self.channels or 3)


class Folder(Records):
    """The images of a folder, or of a zip file of one, in the order of their relative paths.

    Images directly in it: no labels. In subfolders, at any depth: the subfolders at the top are the classes, by name;
    with LABELS beside them, that file has the labels instead. Links are followed. A zip file is read as it is.
    """

    def __init__(self, path: str | os.PathLike):
        self.folder = Path(os.path.expanduser(path))
        is_zip = self.folder.suffix.lower() == ".zip" and not self.folder.is_dir()
        self._zip = _open_zip(self.folder) if is_zip else None
        files, top = _zip_listing(self._zip) if self._zip else _listing(self.folder)
        # A broken link and a pipe are no images.
        images = {name for name in files if name.lower().endswith(ACCEPTED) and self._is_file(name)}
        self.names, self.not_images = tuple(sorted(images)), tuple(sorted(set(files) - images - {LABELS}))
        self.has_labels_file = LABELS in files
        if self.has_labels_file:
            if not self.names:
                raise InputError(f"no image in {one_line(self.folder)}; {LAYOUTS}")
            self.classes, self.attributes, self._labels = _listed(self.file(LABELS), self._bytes, self.names)
        else:
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
        if self._zip:
            return fingerprint(self.folder.parent, [self.folder.name], "zip")
        return fingerprint(self.folder, [*self.names, *[LABELS] * self.has_labels_file], "folder")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> dict:
        image = decode(self._bytes(self.names[i]), upright=True)
        if not (self.classes or self.attributes):
            return {"image": image}
        if self._labels[i] is None:
            raise ValueError(f"it has no label in {LABELS}")
        return {"image": image, "label": self._labels[i]}

    def labels(self) -> np.ndarray:
        return np.array([-1 if label is None else label for label in self._labels])

    def file(self, i: int | str) -> Path:
        return self.folder / (i if isinstance(i, str) else self.names[i])

    def _is_file(self, name: str) -> bool:
        return self._zip is not None or os.path.isfile(self.folder / name)

    def _bytes(self, name: str) -> bytes:
        # Threads may read one ZipFile at once: it locks the file for every piece.
        return self._zip.read(name) if self._zip else (self.folder / name).read_bytes()


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise InputError(f"cannot read {one_line(path)} as a zip file: {reason(error)}") from error


def _zip_listing(file: zipfile.ZipFile) -> tuple[list[str], list[str]]:
    """As `_listing`, of a zip file."""
    names = [name for name in file.namelist() if not name.endswith("/") and all(map(_counts, name.split("/")))]
    return names, sorted({name.partition("/")[0] for name in names if "/" in name})


def _listed(path: Path, read: Callable[[str], bytes], names: tuple[str, ...]) -> tuple:
    """(classes, attributes, label by image, None where there is none) of LABELS, which lies at `path`."""
    try:
        listed = json.loads(read(LABELS))["labels"]
        if listed is None:
            return (), (), [None] * len(names)
        by_name = {name.replace("\\", "/"): label for name, label in listed}
        labels = np.array(list(by_name.values()))  # ValueError where they are of several lengths
    except Exception as error:
        raise InputError(f"{one_line(path)} has no labels: {reason(error)}; it is to be {LABELS_FORM}") from error
    classes, attributes = label_names(one_line(path), labels, len(by_name))
    if attributes:
        by_name = dict(zip(by_name, labels.astype(np.float32), strict=True))
    return classes, attributes, [by_name.get(name) for name in names]


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
