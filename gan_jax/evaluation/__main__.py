"""`python -m gan_jax.evaluation train NAME` and `convert FILE.pth`: the weights of what features are taken with."""

import argparse
import importlib.metadata
import json
import platform
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np

from gan_jax.evaluation.features import classifier_training, inception, weight_files
from gan_jax.evaluation.features.classifier_training import TRAININGS
from gan_jax.parallel.exit_status import Parser, exit_status
from gan_jax.utils import runtime
from gan_jax.utils.errors import one_line
from gan_jax.utils.files import require_writable

PROGRAM = "python -m gan_jax.evaluation"
VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")  # what decides on the bits of a training


def main(argv: list[str]) -> int:
    """Runs the command that `argv` names; returns the exit status, 2 after a mistake in one line."""
    # Lines on data speak of config keys, which here are flags.
    return exit_status(partial(_run, argv), lambda line: line.replace("config key data.", "--"))


def _run(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Makes what the scores of images need.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="{train,convert}")
    train = commands.add_parser("train", allow_abbrev=False, help="train a classifier and write its weights")
    train.add_argument("name", metavar="NAME", choices=TRAININGS, help=", ".join(TRAININGS))
    train.add_argument("--dir", default="", help="where TFDS sets lie ($TFDS_DATA_DIR, or ~/tensorflow_datasets)")
    train.add_argument("--out", type=_npz, required=True, metavar="FILE.npz", help="the weights, in float16")
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the weights and of the order (0)")
    train.set_defaults(run=_train)
    convert = commands.add_parser("convert", allow_abbrev=False, help="write the weights of a PyTorch file as arrays")
    convert.add_argument("file", type=Path, metavar="FILE.pth", help=inception.SOURCE)
    convert.add_argument("--out", type=_npz, required=True, metavar="FILE.npz", help="where to write")
    convert.set_defaults(run=_convert)
    return parser


def _npz(text: str) -> Path:
    if Path(text).suffix != ".npz" or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is to be a file named FILE.npz")
    return Path(text)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 0 to 2147483647")
    return int(text)


def _convert(arguments: argparse.Namespace) -> None:
    arrays = inception.convert(arguments.file)
    weight_files.write_npz(arguments.out, arrays)
    print(f"{one_line(arguments.out)} has the weights {weight_files.digest(arrays)}")


def _train(arguments: argparse.Namespace) -> None:
    print(f"runtime: {runtime.fast()}", file=sys.stderr)
    name, seed, training = arguments.name, arguments.seed, TRAININGS[arguments.name]
    examples, test = (classifier_training.read_examples(training, split, arguments.dir) for split in ("train", "test"))
    require_writable(arguments.out.parent)  # known now, and not when it is trained
    arrays = weight_files.pack(classifier_training.train(training, examples, seed))
    accuracy, count = classifier_training.accuracy(weight_files.unpack(arrays), test), len(test.images)
    directory = " --dir=TFDS_DIR" if training.data.startswith("tfds:") else ""
    # Nothing of it depends on where files lie, so that a rerun makes the same file.
    about = {
        "command": f"{PROGRAM} train {name}{directory} --out={name}.npz --seed={seed}",
        "training": training._asdict(),
        "seed": seed,
        "test_accuracy": accuracy,
        "test_examples": count,
        "device": jax.devices()[0].device_kind,
        "versions": {package: importlib.metadata.version(package) for package in VERSIONS}
        | {"python": platform.python_version()},
        "sha256": weight_files.digest(arrays),
    }
    text = {weight_files.ABOUT: np.array(json.dumps(about))}
    weight_files.write_npz(arguments.out, arrays | text, np.savez_compressed)
    print(f"test accuracy {accuracy:.2%} of {count:,}, with weights in float16; wrote {arguments.out}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
