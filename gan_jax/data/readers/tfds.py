"""Image sets that TensorFlow Datasets prepared as ArrayRecord files, read by `tfds` without TensorFlow; preparing them.

What a set holds, and what is missing from it, is known from its JSON files before anything slow is imported. Of a
record, only the image and the label are made arrays: all of CelebA's 51 features take ten times as long.
"""

import importlib.util
import json
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gan_jax.data.readers.records import Records, decode, fingerprint, one_line, reason
from gan_jax.data.stored import Images, Split
from gan_jax.utils.errors import InputError

FORMAT = "array_record"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # the default of tfds for the names of the files
NAME = re.compile(r"(?P<set>[A-Za-z]\w*)(/(?P<config>\w[\w.+=,-]*))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
MOST_BYTES = 10**9  # of a split that is read for its labels: beside each of them lies its image
_OPENING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class TfdsImages(Images):
    """The data sets `tfds:NAME`."""

    split: Split = "train"

    def records(self) -> Records:
        """The images of the split."""
        return Tfds(self.name.removeprefix("tfds:"), self.split, self.dir)


class Tfds(Records):
    """One split of a prepared set: `name` is SET[/CONFIG][:VERSION], the newest version if none.

    `directory` "" is $TFDS_DATA_DIR, or ~/tensorflow_datasets. An image is what was stored: like tfds, it ignores EXIF.
    A label is -1 where the set keeps it back, as the test splits of some do.
    """

    def __init__(self, name: str, split: str, directory: str | os.PathLike):
        packages = ("tensorflow_datasets", "array_record")
        if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
            raise InputError(f'a TFDS set needs {" and ".join(missing)}, not installed here: pip install -e ".[tfds]"')
        self.name, self.split = name, split
        self.folder = _folder(name, _root(directory))
        self.classes = _classes(self.folder, name)
        self._length = _length(self.folder, name, split)
        self._opened = None

    @property
    def fingerprint(self) -> str:
        """Of all splits, and formats: which files are those of one is for tfds to know."""
        files = sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return fingerprint(self.folder, files, "tfds", self.name.partition(":")[0], self.split)

    def __len__(self) -> int:
        return self._length

    def read(self, i: int) -> dict:
        source, features, decoders = self._open()
        stored = features.deserialize_example_np(source[i], decoders=decoders)
        if missing := [name for name, value in stored.items() if value is None]:  # all are where a file was cut off
            raise ValueError(f"the record has no {' and no '.join(missing)}; is its file complete?")
        example = {"image": decode(stored["image"], upright=False)}
        if self.classes:
            example["label"] = stored["label"]
            if not -1 <= example["label"] < len(self.classes):
                raise ValueError(f"label {example['label']}, of {len(self.classes)} classes")
        return example

    def labels(self) -> np.ndarray | None:
        import tensorflow_datasets as tfds

        if sum(path.stat().st_size for path in self.folder.glob(f"*-{self.split}.*")) > MOST_BYTES:
            return None
        source, features, _ = self._open()
        label, labels = tfds.features.FeaturesDict({"label": features["label"]}), np.full(len(self), -1)
        for i in range(len(self)):
            with suppress(Exception):  # whatever array_record, protobuf and tfds raise where it is damaged
                labels[i] = label.deserialize_example_np(source[i])["label"]
        return labels

    def file(self, i: int) -> str:
        return f"{self.folder}, {self.split}"

    def _open(self) -> tuple:
        """The records as bytes, by index and safe among threads; their features; how not to decode the image."""
        with _OPENING:
            if self._opened is None:
                try:
                    self._opened = _opened(self.folder, self.split, ("image", "label") if self.classes else ("image",))
                except Exception as error:  # whatever tfds raises
                    raise InputError(f"tfds cannot open {one_line(self.folder)}: {reason(error)}") from error
            return self._opened


def _opened(folder: Path, split: str, names: tuple[str, ...]) -> tuple:
    import resource  # not on Windows, where there is no array_record either

    import tensorflow_datasets as tfds  # half a second, the first time

    builder = tfds.builder_from_directory(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        # tfds keeps every shard open, and ImageNet's 1,024 are as many files as a process may commonly have.
        soft += builder.info.splits[split].num_shards
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    source = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    features = tfds.features.FeaturesDict({name: builder.info.features[name] for name in names})
    return source, features, {"image": tfds.decode.SkipDecoding()}


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


def _json(folder: Path, file: str, name: str):
    path = folder / file
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {one_line(path)}: {reason(error)}; {_advice(name)}") from error


def _classes(folder: Path, name: str) -> tuple[str, ...]:
    """As tfds has them: the lines of label.labels.txt, or numbers; () where `label` is no class. There is an image."""
    where, labels = one_line(folder / "features.json"), folder / "label.labels.txt"
    try:
        features = dict(_json(folder, "features.json", name)["featuresDict"]["features"])
        dtype = features.get("image", {}).get("image", {"dtype": "no encoded image"}).get("dtype", "uint8")
        count = int(features.get("label", {}).get("classLabel", {}).get("numClasses", 0))
        lines = labels.read_text(encoding="utf-8").split("\n") if labels.exists() else map(str, range(count))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} lists no features of a known form: {reason(error)}") from error
    if dtype not in ("uint8", "uint16"):
        listed = one_line(", ".join(sorted(features)))
        raise InputError(f"{name} has as its 'image' {dtype}, of the features {listed}; it is to be of 8 or 16 bit")
    names = tuple(filter(None, map(str.strip, lines)))
    if len(names) != count:
        raise InputError(f"{one_line(labels)} names {len(names)} classes where features.json counts {count}")
    return names


def _length(folder: Path, name: str, split: str) -> int:
    """How many examples the split has. Its files exist, if they have the names that tfds gives by default."""
    info, where = _json(folder, "dataset_info.json", name), one_line(folder / "dataset_info.json")
    try:
        formats = {info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", ())}
        splits = {entry["name"]: entry for entry in info["splits"]}
        facts = splits.get(split, {})
        lengths = [int(length) for length in facts.get("shardLengths", ())]
        has_default_names = facts.get("filepathTemplate") in (None, "", TEMPLATE)
        stem = folder / f"{info['name']}-{split}.{FORMAT}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} describes no data set of a known form: {reason(error)}") from error
    if FORMAT not in formats:
        raise InputError(
            f"{one_line(folder)} was prepared as {', '.join(sorted(map(str, formats)))}, which has no random access; "
            f"move it away and {_advice(name)}"
        )
    if split not in splits:
        raise InputError(f"{name} has no split {one_line(split)!r}; it has {one_line(', '.join(splits))}")
    if sum(lengths) == 0:
        raise InputError(f"the split {split} of {name} has no example, by {where}")
    files = [f"{stem}-{shard:05}-of-{len(lengths):05}" for shard in range(len(lengths))]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing and has_default_names:
        raise InputError(
            f"{one_line(missing[0])} is missing, and of the {len(files)} files of {split} {len(missing)} are; "
            f"copy them, or {_advice(name)}"
        )
    return sum(lengths)


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
