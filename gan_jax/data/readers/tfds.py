"""Image sets that TensorFlow Datasets prepares as ArrayRecord files, and reads without TensorFlow."""

import importlib.util
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from gan_jax.data.readers.records import Records, decode, fingerprint
from gan_jax.data.splits import split_name
from gan_jax.data.stored import Images
from gan_jax.utils.errors import InputError, one_line, reason

FORMAT = "array_record"
NAME = re.compile(r"(?P<set>[A-Za-z]\w*)(/(?P<config>\w[\w.+=,-]*))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
MOST_BYTES = 10**9  # of a split that is read for its labels: beside each of them lies its image


@dataclass(frozen=True, kw_only=True)
class TfdsImages(Images):
    """The data sets `tfds:NAME`: images of TensorFlow Datasets, such as tfds:mnist."""

    splits: ClassVar[tuple[str, ...]] = ()  # as the set has them

    def records(self) -> Records:
        """The images of the split."""
        return Tfds(self.name.removeprefix("tfds:"), split_name(self.split), self.dir)


class Tfds(Records):
    """One split of a prepared set: `name` is SET[/CONFIG][:VERSION], the newest version if none.

    `directory` "" is $TFDS_DATA_DIR, or ~/tensorflow_datasets. An image is what was stored: like tfds, it ignores EXIF.
    A label is -1 where the set keeps it back, as the test splits of some do.
    """

    def __init__(self, name: str, split: str, directory: str | os.PathLike):
        packages = ("tensorflow_datasets", "array_record")
        if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
            raise InputError(f'a TFDS set needs {" and ".join(missing)}, not installed here: pip install -e ".[tfds]"')
        import tensorflow_datasets as tfds  # half a second, the first time

        self.name, self.split = name, split
        self.folder = _folder(name, _root(directory))
        self._source, features = _open(self.folder, name, split)
        label = features.get("label")
        self.classes = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) and label.num_classes else ()
        if self.classes and len(self.classes) != label.num_classes:
            names = f"{one_line(self.folder)}/label.labels.txt names {len(self.classes)} classes"
            raise InputError(f"{names} where features.json counts {label.num_classes}")
        # Of a record, only these are made arrays: all of CelebA's 51 features take ten times as long.
        used = {"image": features["image"]} | ({"label": label} if self.classes else {})
        decoders = {"image": tfds.decode.SkipDecoding()}
        self._deserialize = partial(tfds.features.FeaturesDict(used).deserialize_example_np, decoders=decoders)
        self._label_of = tfds.features.FeaturesDict({"label": label}).deserialize_example_np if self.classes else None

    @property
    def fingerprint(self) -> str:
        """Of all splits, and formats: which files are those of one is for tfds to know."""
        files = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return fingerprint(self.folder, files, "tfds", self.name.partition(":")[0], self.split)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, i: int) -> dict:
        stored = self._deserialize(self._source[i])
        if missing := [name for name, value in stored.items() if value is None]:  # all are where a file was cut off
            raise ValueError(f"the record has no {' and no '.join(missing)}; is its file complete?")
        if self.classes and not -1 <= stored["label"] < len(self.classes):
            raise ValueError(f"label {stored['label']}, of {len(self.classes)} classes")
        return stored | {"image": decode(stored["image"], upright=False)}

    def labels(self) -> np.ndarray | None:
        if sum(path.stat().st_size for path in self.folder.glob(f"*-{self.split}.*")) > MOST_BYTES:
            return None
        labels = np.full(len(self), -1)
        for i in range(len(self)):
            with suppress(Exception):  # whatever array_record, protobuf and tfds raise where it is damaged
                labels[i] = self._label_of(self._source[i])["label"]
        return labels

    def file(self, i: int) -> str:
        return f"{self.folder}, {self.split}"


def _open(folder: Path, name: str, split: str) -> tuple:
    """The split's records as bytes, by index and safe among threads, and the features of the set, by name.

    Raises InputError where tfds cannot read them, or there is no image among them.
    """
    import resource  # not on Windows, where there is no array_record either

    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        splits, features = builder.info.splits, dict(builder.info.features.items())
        formats = {form.value for form in (builder.info.file_format, *builder.info.alternative_file_formats)}
    except Exception as error:  # whatever tfds raises
        where = f"{one_line(folder)} by its dataset_info.json and features.json"
        raise InputError(f"tfds cannot open {where}: {reason(error)}; {_advice(name)}") from error
    if FORMAT not in formats:
        raise InputError(
            f"{one_line(folder)} was prepared as {', '.join(sorted(formats))}, which has no random access; "
            f"move it away and {_advice(name)}"
        )
    image = features.get("image")
    dtype = np.dtype(image.np_dtype) if isinstance(image, tfds.features.Image) else "no encoded image"
    if dtype not in (np.uint8, np.uint16):
        listed = one_line(", ".join(sorted(features)))
        raise InputError(f"{name} has as its 'image' {dtype}, of the features {listed}; it is to be of 8 or 16 bit")
    if split not in splits:
        raise InputError(f"{name} has no split {one_line(split)!r}; it has {one_line(', '.join(splits))}")
    count = splits[split].num_shards
    if not splits[split].num_examples:
        raise InputError(f"the split {split} of {name} has no example, by {one_line(folder / 'dataset_info.json')}")
    files = splits[split].filename_template.replace(filetype_suffix=FORMAT).sharded_filepaths(count)
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            f"{one_line(missing[0])} is missing, and of the {count} files of {split} {len(missing)} are; "
            f"copy them, or {_advice(name)}"
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        # tfds keeps every shard open, and ImageNet's 1,024 are as many files as a process may commonly have.
        soft = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES), features


def _root(directory: str | os.PathLike) -> Path:
    return Path(os.path.expanduser(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"))


def _parse(name: str) -> re.Match:
    if (match := NAME.fullmatch(name)) is None:
        raise InputError(f"{one_line(name)!r} names no TFDS set: it is to be SET, SET/CONFIG, or either with :1.2.3")
    return match


def _advice(name: str) -> str:
    return f"prepare it where TensorFlow is: pip install -e '.[prepare]' && python -m gan_jax.data prepare {name}"


def _folder(name: str, root: Path) -> Path:
    """root/SET[/CONFIG]/VERSION, which exists."""
    parsed = _parse(name)
    if not root.is_dir():
        raise InputError(f"no folder {one_line(root)} of TFDS sets to find {name} in; {_advice(name)}")
    folder = root / parsed["set"] / (parsed["config"] or "")
    if not folder.is_dir():
        parent = folder.parent if folder.parent.is_dir() else root
        raise InputError(f"no {name}: no folder {one_line(folder)}; in {_contents(parent)}; {_advice(name)}")
    versions = [version for version in _subfolders(folder) if VERSION.fullmatch(version)]
    version = parsed["version"] or max(versions, key=lambda text: [*map(int, text.split("."))], default="")
    if version not in versions:
        hint = "" if versions or not _subfolders(folder) else ", which may be configs: name one as SET/CONFIG"
        raise InputError(f"no {f'version {version}'.strip()} of {name}: in {_contents(folder)}{hint}; {_advice(name)}")
    return folder / version


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot list {one_line(folder)}: {reason(error)}") from error


def _contents(folder: Path) -> str:
    return f"{one_line(folder)} there is {one_line(', '.join(_subfolders(folder))) or 'nothing'}"


def prepare(name: str, directory: str | os.PathLike) -> Path:
    """Downloads the set and writes it as ArrayRecord files into `directory` (see `Tfds`); returns its folder.

    Needs TensorFlow and the network. What has been prepared before is left as it is.
    """
    parsed, root = _parse(name), _root(directory)
    try:
        import tensorflow  # noqa: F401  most sets encode their images with it
        import tensorflow_datasets as tfds
    except ImportError as error:
        folder = root / parsed["set"] / (parsed["config"] or "") / (parsed["version"] or "VERSION")
        raise InputError(
            f"preparing {name} needs TensorFlow ({reason(error)}): pip install -e '.[prepare]'; or copy its folder, "
            f"prepared elsewhere with file_format='array_record', to {one_line(folder)}"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=str(root), file_format=FORMAT)
        builder.download_and_prepare()
    except Exception as error:  # whatever the script of the set raises, and the network
        raise InputError(f"cannot prepare {name} in {one_line(root)}: {reason(error)}") from error
    return Path(builder.data_dir)
