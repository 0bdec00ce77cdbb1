"""Image sets that TensorFlow Datasets prepared as ArrayRecord files, read without TensorFlow; and preparing them.

The folder's JSON files are read here: what a set holds, and what is missing from it, is known before anything slow is
imported. The records are read by `array_record` itself: `tfds.data_source` spends 200 us on a record of MNIST before
its image is decoded, because it asks for records in lists; one at a time, the same reader takes 7 us.
"""

import bisect
import importlib.util
import itertools
import json
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from gan_jax.data.records import BadExampleError, decode, fingerprint, index, one_line, reason
from gan_jax.errors import InputError

FORMAT = "array_record"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # what tfds takes where dataset_info.json names none
NAME = re.compile(r"(?P<set>[A-Za-z]\w*)(/(?P<config>\w[\w.+=,-]*))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII)
VERSION = re.compile(r"\d+\.\d+\.\d+", re.ASCII)
INSTALL = 'pip install "gan-jax[tfds]"'
MOST_BYTES = 10**9  # of a split that is read for its labels: beside each of them lies its image
MAX_OPEN = 256  # shards of a split open at once: ImageNet has 1,024, as many files as a process may commonly open
# One record at a time: whatever is read ahead is thrown away by the next seek.
READER = {"options": "readahead_buffer_size:0,max_parallelism:0", "file_reader_buffer_size": 32768}


class Tfds:
    """One split of a prepared set: `name` is SET[/CONFIG][:VERSION], the newest version if none; see `Records`.

    `directory` "" is $TFDS_DATA_DIR, or ~/tensorflow_datasets. An image is what was stored: like tfds, it ignores EXIF.
    A label is -1 where the set keeps it back, as the test splits of some do.
    """

    def __init__(self, name: str, split: str, directory: str | os.PathLike):
        _refuse_missing_packages()
        self.name, self.split = name, split
        self.folder = _folder(name, _root(directory))
        features = _features(self.folder, name)
        lengths, files = _shards(self.folder, name, split)
        self.classes = _class_names(self.folder, features)
        self._files = tuple(files)
        self._shards = _Shards([self.folder / file for file in files], lengths)

    @property
    def fingerprint(self) -> str:
        others = ("dataset_info.json", "features.json", "label.labels.txt")
        present = [file for file in others if (self.folder / file).exists()]
        return fingerprint(self.folder, (*present, *self._files), "tfds", self.name.partition(":")[0], self.split)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, i: int) -> dict:
        i = index(i, len(self))
        try:
            features = _parse(self._shards.read(i))
            example = {"image": decode(_value(features, "image", "bytes_list"), upright=False)}
            if self.classes:
                example["label"] = self._label(_value(features, "label", "int64_list"))
        except InputError:  # of the whole file, which it names
            raise
        except (RuntimeError, ValueError) as error:
            raise BadExampleError(f"{self.where(i)}: {reason(error)}") from error
        return example

    def labels(self) -> np.ndarray | None:
        if sum((self.folder / file).stat().st_size for file in self._files) > MOST_BYTES:
            return None
        return np.array([self._label_of(i) for i in range(len(self))])

    def _label_of(self, i: int) -> int:
        try:
            return self._label(_value(_parse(self._shards.read(i)), "label", "int64_list"))
        except (RuntimeError, ValueError):  # damaged
            return -1

    def where(self, i: int) -> str:
        return f"{one_line(self.folder)}, {self.split} (example {i} of {len(self)})"

    def _label(self, label: int) -> int:
        if not -1 <= label < len(self.classes):
            raise ValueError(f"label {label}, of {len(self.classes)} classes")
        return label


class _Shards:
    """The records of ArrayRecord files, one after the other: bytes. Files are opened when they are first read."""

    def __init__(self, paths: list[Path], lengths: list[int]):
        self.paths, self.lengths = paths, lengths
        self.ends = list(itertools.accumulate(lengths))
        self._open()

    def _open(self):
        self._readers = OrderedDict()  # the least recently used first
        self._opening = threading.Lock()
        self._reading = [threading.Lock() for _ in self.paths]  # a reader has one position

    def __getstate__(self) -> dict:
        return {"paths": self.paths, "lengths": self.lengths, "ends": self.ends}

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, i: int) -> bytes:
        """Record i; a RuntimeError says what is wrong with it, an InputError with all of its file."""
        shard = bisect.bisect_right(self.ends, i)
        with self._reading[shard]:
            reader = self._reader(shard)
            try:
                reader.seek(i - self.ends[shard] + self.lengths[shard])
                return reader.read()
            except RuntimeError:
                # It never recovers from a damaged record, while those around it can be read.
                with self._opening:
                    self._readers.pop(shard, None)
                raise

    def _reader(self, shard: int):
        with self._opening:
            reader = self._readers.pop(shard, None) or _opened(self.paths[shard], self.lengths[shard])
            self._readers[shard] = reader
            # One that another thread is reading now is closed when that has done with it.
            while len(self._readers) > MAX_OPEN:
                self._readers.popitem(last=False)
            return reader


def _opened(path: Path, length: int):
    """A reader of the file at `path`, which is to hold `length` records."""
    from array_record.python.array_record_module import ArrayRecordReader

    what = f"{one_line(path)} is no complete ArrayRecord file"
    try:
        reader = ArrayRecordReader(str(path), **READER)
        count = reader.num_records() if reader.ok() else None
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{what}: {reason(error)}; copy or prepare the set again") from error
    if count != length:
        found = "damaged or cut off" if count is None else f"{count} records where dataset_info.json counts {length}"
        raise InputError(f"{what}: {found}; copy or prepare the set again")
    return reader


def _parse(record: bytes):
    """The features of a `tf.train.Example`: a map by name."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2  # a third of a second, the first time

    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError("the record is no tf.train.Example") from error


def _value(features, name: str, kind: str):
    values = getattr(features[name], kind).value if name in features else ()
    if len(values) != 1:
        raise ValueError(f"the record has {len(values)} values of {name}, where 1 is needed")
    return values[0]


def _refuse_missing_packages():
    missing = [name for name in ("tensorflow_datasets", "array_record") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"a TFDS set needs {' and '.join(missing)}, not installed here: {INSTALL}")


def _root(directory: str | os.PathLike) -> Path:
    return Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _parts(name: str) -> re.Match:
    match = NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{one_line(name)!r} names no TFDS set: it is to be SET, SET/CONFIG, or either with :1.2.3")
    return match


def _advice(name: str) -> str:
    return (
        "prepare it where TensorFlow is installed: "
        f"pip install 'gan-jax[prepare]' && python -m gan_jax.data prepare {name}"
    )


def _folder(name: str, root: Path) -> Path:
    """root/SET[/CONFIG]/VERSION, which exists."""
    parts = _parts(name)
    if not root.is_dir():
        raise InputError(f"no folder {one_line(root)} of TFDS sets to find {name} in; {_advice(name)}")
    folder = root / parts["set"] / (parts["config"] or "")
    if not folder.is_dir():
        parent = folder.parent if folder.parent.is_dir() else root
        raise InputError(f"no {name}: no folder {one_line(folder)}; in {_contents(parent)}; {_advice(name)}")
    versions = [version for version in _subfolders(folder) if VERSION.fullmatch(version)]
    version = parts["version"] or max(versions, key=_number, default=None)
    if version not in versions:
        wanted = f"version {version}" if version else "version"
        hint = "" if versions or not _subfolders(folder) else ", which may be configs: name one as SET/CONFIG"
        raise InputError(f"no {wanted} of {name}: in {_contents(folder)}{hint}; {_advice(name)}")
    return folder / version


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot list {one_line(folder)}: {reason(error)}") from error


def _contents(folder: Path) -> str:
    return f"{one_line(folder)} there is {one_line(', '.join(_subfolders(folder))) or 'nothing'}"


def _json(folder: Path, file: str, name: str) -> dict:
    path = folder / file
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{one_line(folder)} is no prepared TFDS set: it has no {file}; {_advice(name)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {one_line(path)}: {reason(error)}; {_advice(name)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{one_line(path)} is no JSON object; {_advice(name)}")
    return content


def _features(folder: Path, name: str) -> dict:
    """The set's features by name, one of which is "image"."""
    try:
        features = dict(_json(folder, "features.json", name)["featuresDict"]["features"])
        image = features.get("image", {}).get("image")
        dtype = (image or {}).get("dtype", "uint8")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{one_line(folder / 'features.json')} lists no features of a known form") from error
    if image is None or dtype not in ("uint8", "uint16"):
        listed = one_line(", ".join(sorted(features)))
        found = "no encoded image" if image is None else f"an image of {dtype}"
        raise InputError(
            f"{name} has {found} as its feature 'image'; its features are {listed}; a set with 8- or 16-bit images is "
            "needed"
        )
    return features


def _class_names(folder: Path, features: dict) -> tuple[str, ...]:
    """As tfds has them: the lines of label.labels.txt, or numbers; () where `label` is no class."""
    try:
        count = int(features.get("label", {}).get("classLabel", {}).get("numClasses", 0))
        file = folder / "label.labels.txt"
        if not file.exists():
            return tuple(map(str, range(count)))
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8").split("\n") if line.strip())
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"cannot read the classes of {one_line(folder)}: {reason(error)}") from error
    if len(names) != count:
        raise InputError(f"{one_line(file)} names {len(names)} classes where features.json counts {count}")
    return names


def _shards(folder: Path, name: str, split: str) -> tuple[list[int], list[str]]:
    """How many records each file of the split holds, and its name; all of the files exist."""
    info, where = _json(folder, "dataset_info.json", name), one_line(folder / "dataset_info.json")
    try:
        formats = {info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", ())}
        splits = {entry["name"]: entry for entry in info["splits"]}
        lengths = [int(length) for length in splits.get(split, {}).get("shardLengths", ())]
        files = _file_names(info["name"], splits[split], len(lengths)) if lengths else []
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
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
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"{one_line(folder / missing[0])} is missing, and of the {len(files)} files of {split} {len(missing)} are; "
            f"copy them, or {_advice(name)}"
        )
    return lengths, files


def _file_names(dataset: str, split: dict, count: int) -> list[str]:
    """The files of a split by the template of tfds (`tfds.core.ShardedFileTemplate`)."""
    width = max(5, len(str(count)))
    total = f"{count:0{width}}"
    template = split.get("filepathTemplate") or TEMPLATE
    known = {"DATASET": dataset, "SPLIT": split["name"], "FILEFORMAT": FORMAT, "NUM_SHARDS": total}
    numbers = [f"{shard:0{width}}" for shard in range(count)]
    return [template.format(**known, SHARD_INDEX=n, SHARD_X_OF_Y=f"{n}-of-{total}") for n in numbers]


def prepare(name: str, directory: str | os.PathLike) -> Path:
    """Downloads the set and writes it as ArrayRecord files into `directory` (see `Tfds`); returns its folder.

    Needs TensorFlow and the network. What has been prepared before is left as it is.
    """
    parts, root = _parts(name), _root(directory)
    try:
        import tensorflow  # noqa: F401  most sets encode their images with it
        import tensorflow_datasets as tfds
    except ImportError as error:
        folder = root / parts["set"] / (parts["config"] or "") / (parts["version"] or "VERSION")
        raise InputError(
            f"preparing {name} needs TensorFlow ({reason(error)}): pip install 'gan-jax[prepare]'; or copy its folder, "
            f"prepared elsewhere with file_format='array_record', to {one_line(folder)}"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=str(root), file_format=FORMAT)
        builder.download_and_prepare()
    except Exception as error:  # whatever the script of the set raises, and the network
        raise InputError(f"cannot prepare {name} in {one_line(root)}: {reason(error)}") from error
    return Path(builder.data_dir)
