"""How a command line ends: every mistake is one line on stderr and exit status 2."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable

import jax

from gan_jax.parallel import agreement
from gan_jax.utils.errors import AgreedError, DivergedError, InputError


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
    except (AgreedError, DivergedError) as error:  # which all processes of a run meet together
        return _report(error, explain)
    except BaseException as error:  # noqa: BLE001
        if not agreement.several():
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
    if agreement.says_process_is_gone(error):
        print(f"error: {agreement.GONE} ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        return 1
    try:
        raise error
    except InputError:
        print(f"error: {explain(str(error))}", file=sys.stderr)
        return 2
    except DivergedError:
        print(f"diverged: {error}", file=sys.stderr)
        return 1
    except (MemoryError, jax.errors.JaxRuntimeError):
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = "out of memory; smaller networks, a smaller batch_size or a larger accumulate need less"
        print(f"error: {line}", file=sys.stderr)
        return 2
    except OSError:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
