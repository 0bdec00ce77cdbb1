"""What a pod of `jobset.yaml` runs: `gan_jax.main` with the flags given, and exit status 75 where it is not at its end.

A pod that is moved gets SIGTERM; all processes save and exit with 0, which Kubernetes takes for the end of the job. So
the first process, which writes the metrics, looks whether it is. In one process with the training, since Kubernetes
signals the first process of a container alone.
"""

import runpy
import sys
from pathlib import Path

import finished


def main() -> int:
    """The exit status; that of `gan_jax.main` where it is not 0 leaves as it came, in a SystemExit."""
    try:
        runpy.run_module("gan_jax.main", run_name="__main__", alter_sys=True)
    except SystemExit as exited:
        if exited.code:
            raise
    flags = dict(argument.lstrip("-").partition("=")[::2] for argument in sys.argv[1:])
    return finished.status(Path(flags["workdir"])) if flags["process_id"] == "0" else finished.END


if __name__ == "__main__":
    sys.exit(main())
