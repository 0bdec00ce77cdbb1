"""How a command line ends: every mistake is one line on stderr and exit status 2."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable

import jax

from gan_jax.parallel import agreement
from gan_jax.utils.errors import AgreedError, DivergedError, InputError

_OUT_OF_MEMORY = "out of memory; smaller networks, a smaller batch_size or a larger accumulate need less"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it; its subcommands do too."""

    def error(self, message: str):
        raise InputError(f"{' '.join(message.split())}; {self.prog} --help lists what it takes")


def exit_status(run: Callable[[], None], explain: Callable[[str], str] = str) -> int:
    """Runs a command: 0, or 1 where a run diverged, 2 after a mistake, 130 after an interrupt, each told in one line.

    `explain` puts the line of an InputError into the words of this command line. Of a run of several processes, one
    that ends for a reason of its own is not waited for, and does not wait: the process ends here.
    """
    try:
        run()
    except BaseException as error:  # noqa: BLE001
        # All processes of a run meet the first two together.
        if isinstance(error, AgreedError | DivergedError) or not agreement.several():
            return _report(error, explain)
        try:
            status = _report(error, explain)
        except BaseException:  # noqa: BLE001  a bug
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # a usual exit would wait for the others, who wait for this process
    return 0


def _report(error: BaseException, explain: Callable[[str], str]) -> int:
    """The exit status after this error, once its line is printed; raises it where it is nobody's mistake."""
    exhausted = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if agreement.says_process_is_gone(error):
        status, line = 1, f"error: {agreement.GONE} ({' '.join(str(error).split())[:200]})"
    elif isinstance(error, InputError):
        status, line = 2, f"error: {explain(str(error))}"
    elif isinstance(error, DivergedError):
        status, line = 1, f"diverged: {error}"
    elif isinstance(error, MemoryError) or exhausted:
        status, line = 2, f"error: {_OUT_OF_MEMORY}"
    elif isinstance(error, OSError):
        status, line = 2, f"error: {error.filename or 'a file'}: {error.strerror or error}"
    elif isinstance(error, KeyboardInterrupt):
        status, line = 130, "interrupted"
    else:
        raise error
    print(line, file=sys.stderr)
    return status
