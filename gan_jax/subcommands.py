"""What the command lines share: every mistake is one line on stderr and exit status 2."""

import argparse
import sys
from collections.abc import Callable

import jax

from gan_jax.errors import DivergedError, InputError


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it; its subcommands do too."""

    def error(self, message: str):
        raise InputError(f"{' '.join(message.split())}; {self.prog} --help lists what it takes")


def exit_status(run: Callable[[], None], explain: Callable[[str], str] = str) -> int:
    """Runs a command: 0, or 1 where a run diverged, 2 after a mistake, 130 after an interrupt, each told in one line.

    `explain` puts the line of an InputError into the words of this command line.
    """
    try:
        run()
    except InputError as error:
        print(f"error: {explain(str(error))}", file=sys.stderr)
        return 2
    except DivergedError as error:
        print(f"diverged: {error}", file=sys.stderr)
        return 1
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = "out of memory; smaller networks, a smaller batch_size or a larger accumulate need less"
        print(f"error: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
