"""`python -m gan_jax.evaluation convert FILE.pth --out=FILE.npz`: the Inception weights that FID needs."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from gan_jax.data.records import one_line
from gan_jax.evaluation import inception
from gan_jax.subcommands import Parser, exit_status

PROGRAM = "python -m gan_jax.evaluation"


class Command(NamedTuple):
    """A subcommand."""

    help: str
    add_arguments: Callable  # its argparse parser -> None
    run: Callable  # the parsed arguments -> None


def main(argv: list[str]) -> int:
    """Runs the command that `argv` names; returns the exit status, 2 after a mistake in one line."""
    return exit_status(partial(_run, argv))


def _run(argv: list[str]) -> None:
    arguments = _parser().parse_args(argv)
    COMMANDS[arguments.command].run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Makes what the scores of images need.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{','.join(COMMANDS)}}}")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, allow_abbrev=False, help=command.help, description=command.help)
        )
    return parser


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.pth", help=inception.SOURCE)
    parser.add_argument("--out", type=_npz, required=True, metavar="FILE.npz", help="where to write")


def _npz(text: str) -> Path:
    if Path(text).suffix != ".npz" or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is to be a file named FILE.npz")
    return Path(text)


def _convert(arguments: argparse.Namespace) -> None:
    params = inception.convert(arguments.file)
    inception.save(arguments.out, params)
    print(f"{one_line(arguments.out)} has the weights {inception.weights_hash(params)}")


COMMANDS = {
    "convert": Command("write the weights of a PyTorch file as arrays for this code", _add_convert, _convert),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
