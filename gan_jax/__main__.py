"""`python -m gan_jax`, or `gan-jax`: says what there is, and starts the other command lines by a short name."""

import os
import runpy
import sys
from difflib import get_close_matches

MAIN = "gan_jax.main"
COMMANDS = {  # name: what it stands for, after python -m; what it does
    "train": (MAIN, "trains a config, or goes on with a run"),
    "sample": (f"{MAIN} --mode=sample", "writes samples of a run"),
    "export": (f"{MAIN} --mode=export", "writes a run's generator for use without this package"),
    "evaluate": (f"{MAIN} --mode=evaluate", "scores a run"),
    "movie": (f"{MAIN} --mode=movie", "shows the pictures of training one after another, as a GIF or WebP"),
    "compare": ("gan_jax.compare", "says in what runs differ and what came of it"),
    "spectrum": (f"{MAIN} --mode=spectrum", "finds eigenvalues of a run's gradient field"),
    "profile": (f"{MAIN} --mode=profile", "says where the time and the memory of a step go"),
    "plan": (f"{MAIN} --mode=plan", "plans a run for devices that you do not have"),
    "sweep": ("gan_jax.sweep", "trains many runs as one program"),
    "data": ("gan_jax.data", "shows a data set, or prepares one"),
    "evaluation": ("gan_jax.evaluation", "trains or converts what features are taken with"),
    "theory": ("gan_jax.theory", "computes every identity from both sides"),
    "list": ("gan_jax list", "lists what there is: configs, objectives, ..., keys"),
}
HELP = """gan_jax: generative adversarial networks as pure functions, in JAX and Flax

  python -m gan_jax COMMAND ...    or    gan-jax COMMAND ...

{commands}

  gan-jax list objectives                     what there is, with parameters and defaults; list KIND [PATTERN]
  gan-jax train --config=configs/dcgan.py     trains a DCGAN on handwritten digits
  gan-jax train --config=configs/dcgan.py --print_config
                                              every key of the config, and where its value comes from
  gan-jax COMMAND --help                      what a command takes"""


def main(argv: list[str] | None = None) -> int:
    """Does what `argv`, by default the process's, asks for; returns the exit status, 2 after a mistake in one line."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("help", "-h", "-help", "--help"):
        width = max(len(module) for module, _ in COMMANDS.values()) + len("python -m ")
        rows = (f"  {name:11} {f'python -m {module}':{width}}  {text}" for name, (module, text) in COMMANDS.items())
        print(HELP.format(commands="\n".join(rows)))
        return 0
    sys.path.append(os.getcwd())  # `python -m` has it; the console script has not
    if command == "list":
        return _list(arguments)
    if command not in COMMANDS:
        close = "".join(f"did you mean {name}? " for name in get_close_matches(command, COMMANDS, n=1))
        print(f"error: there is no command {command}; {close}there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, *flags = COMMANDS[command][0].split()
    sys.argv[1:] = [*flags, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _list(arguments: list[str]) -> int:
    # These take seconds, which the help and the other commands do not need.
    from gan_jax.cli.command_line import show
    from gan_jax.cli.listing import KINDS, listing
    from gan_jax.parallel.exit_status import exit_status
    from gan_jax.utils.errors import InputError

    def run():
        if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
            raise InputError(f"list takes KIND and, if you like, PATTERN; KIND is one of {', '.join(KINDS)}")
        show(listing(*arguments))

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main())
