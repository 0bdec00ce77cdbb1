"""`python -m gan_jax.data show SPEC`: what a set holds, before one trains on it; `prepare NAME`: makes a TFDS set."""

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path

from gan_jax.data import CORRUPT, NAMES, NEUTRAL, Spec, is_name, tfds
from gan_jax.errors import InputError
from gan_jax.exit_status import Parser, exit_status
from gan_jax.look import LOOKED_AT, look

PROGRAM = "python -m gan_jax.data"
FLAGS = ("split", "dir", "image_size", "channels", "flip", "corrupt")  # keys of the group `data` of a config
KEY = re.compile(rf"(config key |(?<=set ))data\.(?=({'|'.join(FLAGS)})\b)")  # as messages name it
ARRAYS = (".npy", ".npz")


def main(argv: list[str]) -> int:
    """Prints the results of the command that `argv` names; returns the exit status, 2 after a mistake in one line."""
    # A look is no training: it is not to take most of an accelerator's memory from a run that is on it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Most lines speak of config keys, which here are flags.
    return exit_status(partial(_run, argv), partial(KEY.sub, "--"))


def _run(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    {"show": _show, "prepare": _prepare}[arguments.command](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Looks at data sets, and prepares them.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{show,prepare}")
    _add_show(commands)
    _add_prepare(commands)
    return parser


def _add_show(commands) -> None:
    show = commands.add_parser(
        "show",
        allow_abbrev=False,
        help="print what a set holds, and draw examples of it",
        description=f"Prints what a data set holds, and draws examples of it. {LOOKED_AT} examples are decoded, evenly "
        "spaced, and those of the picture; nothing is cached. The flags are keys of the group data of a config.",
    )
    show.add_argument(
        "spec", metavar="SPEC", help=f"{', '.join(NAMES)}; or a path: a folder of images, a .npy or .npz file"
    )
    show.add_argument("--dir", default=NEUTRAL["dir"], help="where TFDS sets lie; the folder; the file of arrays")
    show.add_argument("--split", default="train", help="the part of the set (train)")
    size, channels, corrupt = (NEUTRAL[key] for key in ("image_size", "channels", "corrupt"))
    show.add_argument("--image_size", type=_count, default=size, metavar="N", help="cut and resize to NxN (0: do not)")
    show.add_argument("--channels", type=_channels, default=channels, metavar="C", help="1: grey, 3: RGB (0: as is)")
    show.add_argument("--flip", action="store_true", help="mirror each with probability 1/2")
    show.add_argument(
        "--corrupt", choices=CORRUPT, default=corrupt, help="at what cannot be read, training is to (stop)"
    )
    show.add_argument("--out", type=_png, default="data.png", metavar="FILE.png", help="the picture (data.png)")


def _add_prepare(commands) -> None:
    prepare = commands.add_parser(
        "prepare",
        allow_abbrev=False,
        help="download a TFDS set and write it as ArrayRecord files",
        description="Downloads a TFDS set and writes it as ArrayRecord files; needs TensorFlow and the network.",
    )
    prepare.add_argument("name", metavar="NAME", help="as TFDS has it: SET[/CONFIG][:VERSION], such as cifar10")
    prepare.add_argument("--dir", default=NEUTRAL["dir"], help="($TFDS_DATA_DIR, or ~/tensorflow_datasets)")


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels, such as 64; 0: as they are")
    return int(text)


def _channels(text: str) -> int:
    if text not in ("0", "1", "3"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of 1 (grey), 3 (RGB) and 0 (as they are)")
    return int(text)


def _png(text: str) -> Path:
    if Path(text).suffix.lower() != ".png" or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is to be a file named FILE.png")
    return Path(text)


def _show(arguments: argparse.Namespace) -> None:
    name, directory = _named(arguments.spec, arguments.dir)
    given = {flag: getattr(arguments, flag) for flag in FLAGS}
    spec = Spec(**NEUTRAL | given | {"name": name, "dir": directory}, workers=os.cpu_count() or 1)
    for line in look(spec, arguments.out):
        print(line, flush=True)


def _named(spec: str, directory: str) -> tuple[str, str]:
    """(data.name, data.dir) of what SPEC and --dir say."""
    if is_name(spec):
        return spec, directory
    path = Path(spec)
    is_array = path.is_file() and path.suffix.lower() in ARRAYS
    if not (path.is_dir() or is_array):
        raise InputError(
            f"{spec!r} is neither a data set ({', '.join(NAMES)}) nor the path of a folder of images or of a "
            f"{' or '.join(ARRAYS)} file"
        )
    if directory:
        raise InputError(f"--dir is {directory}, but {spec} is a path by itself; leave one of them out")
    return "arrays" if is_array else "folder", spec


def _prepare(arguments: argparse.Namespace) -> None:
    name = arguments.name.removeprefix("tfds:")
    print(f"{name} is in {tfds.prepare(name, arguments.dir)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
