"""`python -m gan_jax.data show SPEC`: what a set holds, before one trains on it; `prepare NAME`: makes a TFDS set."""

import argparse
import os
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from gan_jax.data import SOURCES, is_name
from gan_jax.data.inspect import SAMPLE, inspect
from gan_jax.data.readers import tfds
from gan_jax.parallel.exit_status import Parser, exit_status
from gan_jax.utils.errors import InputError
from gan_jax.utils.keys import Key, is_path, union

PROGRAM = "python -m gan_jax.data"
# The keys of the group `data` that say what is looked at, and not how one trains on it.
KEYS = {name: key for name, key in union(SOURCES).items() if name not in ("placement", "workers")}
KEY = re.compile(rf"(config key |(?<=set ))data\.(?=({'|'.join(KEYS)})\b)")  # as messages name it
ARRAYS, ZIP = (".npy", ".npz"), ".zip"


def main(argv: list[str]) -> int:
    """Prints the results of the command that `argv` names; returns the exit status, 2 after a mistake in one line."""
    # Looking is not training: it is not to take most of an accelerator's memory from a run that is on it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return exit_status(partial(_run, argv), _explain)


def _explain(message: str) -> str:
    """Most lines speak of config keys, which here are flags."""
    return KEY.sub("--", message).replace("or data.name to one of", "or SPEC to one of")


def _run(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.command == "prepare":
        name = arguments.name.removeprefix("tfds:")
        print(f"{name} is in {tfds.prepare(name, arguments.dir)}")
        return
    values = {name: getattr(arguments, name) for name in KEYS} | _place(arguments.spec, arguments.dir)
    for line in inspect(values, arguments.out):
        print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Looks at data sets, and prepares them.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{show,prepare}")
    what = "prints what a data set holds, and draws examples of it"
    how = f"{SAMPLE} examples, evenly spaced, are decoded, and those of the picture; nothing is cached"
    show = commands.add_parser("show", allow_abbrev=False, help=what, description=f"This {what}. {how}.")
    where = f"{', '.join(SOURCES)}; or a path: a folder of images, a .zip of one, a .npy or .npz file"
    show.add_argument("spec", metavar="SPEC", help=where)
    for name, key in KEYS.items():
        kind = {"action": "store_true"} if key.rule.type is bool else {"type": partial(_value, key), "metavar": "VALUE"}
        show.add_argument(f"--{name}", default=key.default, help=f"{key.text} ({key.default!r})", **kind)
    show.add_argument("--out", type=_png, default="data.png", metavar="FILE.png", help="the picture (data.png)")
    what = "downloads a TFDS set and writes it as ArrayRecord files; needs TensorFlow and the network"
    prepare = commands.add_parser("prepare", allow_abbrev=False, help=what, description=f"This {what}.")
    prepare.add_argument("name", metavar="NAME", help="as TFDS has it: SET[/CONFIG][:VERSION], such as cifar10")
    prepare.add_argument("--dir", default="", help="($TFDS_DATA_DIR, or ~/tensorflow_datasets)")
    return parser


def _value(key: Key, text: str):
    with suppress(ValueError):
        if key.rule.holds(value := key.rule.type(text)):
            return value
    raise argparse.ArgumentTypeError(f"is {text!r}; it must be {key.rule.words}")


def _png(text: str) -> Path:
    if Path(text).suffix.lower() != ".png" or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is to be a file named FILE.png")
    return Path(text)


def _place(spec: str, directory: str) -> dict[str, str]:
    """The keys `name` and `dir` of what SPEC and --dir say."""
    if is_name(spec) and not (is_path(spec) and Path(spec).exists()):
        return {"name": spec, "dir": directory}
    path = Path(spec)
    is_array = path.is_file() and path.suffix.lower() in ARRAYS
    if not (path.is_dir() or is_array or (path.is_file() and path.suffix.lower() == ZIP)):
        raise InputError(
            f"{spec!r} is neither a data set ({', '.join(SOURCES)}) nor the path of a folder of images or of a "
            f"{', '.join(ARRAYS)} or {ZIP} file"
        )
    if directory:
        raise InputError(f"--dir is {directory}, but {spec} is a path by itself; leave one of them out")
    return {"name": "arrays" if is_array else "folder", "dir": spec}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
