"""How the tests run a command line in a process of its own, forked from one that has its imports: these take seconds.

It is a real process, with an exit status, and can be killed. What is left out is the import and `atexit`.
"""

import multiprocessing.forkserver
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).resolve().parents[2]
# All but the modules with the flags, of which a process can have one.
IMPORTS = [
    "gan_jax.sweep.run",
    "gan_jax.sweep.report",
    "gan_jax.analysis.spectrum",
    "gan_jax.utils.runtime",
    "gan_jax.cli.command_line",
    "sklearn.cluster",  # and these, which the package imports when it needs them
    "scipy.stats",
    "grain",
]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTS)


class Command:
    """`python -m module *arguments`, started in the root of the clone."""

    def __init__(self, module: str, *arguments):
        self._arguments = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory(prefix="gan_jax-tests-")
        self._paths = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._process = _context.Process(target=_run, args=(module, self._arguments, self._paths))
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.exitcode is None

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 300) -> CompletedProcess:
        """How it ended, with its whole output; kills it where it takes longer."""
        self._process.join(timeout)
        if self.running:
            self._process.kill()
            raise TimeoutError(f"{self._arguments} took more than {timeout} s")
        output, errors = (path.read_text() for path in self._paths)
        return CompletedProcess(self._arguments, self._process.exitcode, output, errors)


def run(module: str, *arguments) -> CompletedProcess:
    """How the command ended."""
    return Command(module, *arguments).wait()


def end_server() -> None:
    """Ends the process with the imports, once its commands have ended: their time then counts as that of the tests."""
    multiprocessing.forkserver._forkserver._stop()


def _run(module: str, arguments: list[str], paths: list[Path]) -> None:
    os.chdir(ROOT)
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
