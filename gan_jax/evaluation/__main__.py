"""`python -m gan_jax.evaluation train NAME` and `convert FILE.pth`: the weights of what features are taken with."""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gan_jax.data.readers.records import one_line
from gan_jax.evaluation.features import classifier_training, inception, weight_files
from gan_jax.parallel.exit_status import Parser, exit_status
from gan_jax.utils import runtime
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
    train = _command(commands, "train", "train a classifier and write its weights", _train)
    train.add_argument(
        "name", metavar="NAME", choices=classifier_training.TRAININGS, help=", ".join(classifier_training.TRAININGS)
    )
    train.add_argument("--dir", default="", help="where TFDS sets lie ($TFDS_DATA_DIR, or ~/tensorflow_datasets)")
    train.add_argument("--out", type=_npz, required=True, metavar="FILE.npz", help="the weights, in float16")
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the weights and of the order (0)")
    convert = _command(commands, "convert", "write the weights of a PyTorch file as arrays for this code", _convert)
    convert.add_argument("file", type=Path, metavar="FILE.pth", help=inception.SOURCE)
    convert.add_argument("--out", type=_npz, required=True, metavar="FILE.npz", help="where to write")
    return parser


def _command(commands, name: str, text: str, run: Callable) -> argparse.ArgumentParser:
    command = commands.add_parser(name, allow_abbrev=False, help=text, description=text)
    command.set_defaults(run=run)
    return command


def _npz(text: str) -> Path:
    if Path(text).suffix != ".npz" or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is to be a file named FILE.npz")
    return Path(text)


def _convert(arguments: argparse.Namespace) -> None:
    params = inception.convert(arguments.file)
    inception.save(arguments.out, params)
    print(f"{one_line(arguments.out)} has the weights {inception.weights_hash(params)}")


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 0 to 2147483647")
    return int(text)


def _train(arguments: argparse.Namespace) -> None:
    print(f"runtime: {runtime.fast()}", file=sys.stderr)
    how = classifier_training.TRAININGS[arguments.name]
    examples = classifier_training.read_examples(how, "train", arguments.dir)
    test = classifier_training.read_examples(how, "test", arguments.dir)
    require_writable(arguments.out.parent)  # known now, and not when it is trained
    arrays = weight_files.pack(classifier_training.train(how, examples, arguments.seed))
    accuracy = classifier_training.accuracy(weight_files.unpack(arrays), test)
    weight_files.write(arguments.out, arrays, _about(arguments, how, accuracy, len(test.images)))
    print(f"test accuracy {accuracy:.2%} of {len(test.images):,}, with weights in float16; wrote {arguments.out}")


def _about(
    arguments: argparse.Namespace, how: classifier_training.Training, accuracy: float, count: int
) -> dict[str, Any]:
    """How the weights were made; nothing of it depends on where files lie, so that a rerun makes the same file."""
    directory = " --dir=TFDS_DIR" if how.data.startswith("tfds:") else ""
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return {
        "command": f"{PROGRAM} train {arguments.name}{directory} --out={arguments.name}.npz --seed={arguments.seed}",
        "training": how._asdict(),
        "seed": arguments.seed,
        "test_accuracy": accuracy,
        "test_examples": count,
        "device": jax.devices()[0].device_kind,
        "versions": versions | {"python": platform.python_version()},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
