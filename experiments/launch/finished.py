"""Whether the run in a folder has come to its end: `python experiments/launch/finished.py WORKDIR`.

`gan_jax.main` exits with 0 at the end, and also where a signal stopped it and the state is saved. A scheduler that is
to start the job again in the second case alone asks here: exit status 0 at the end, 75 (of sysexits.h: try again)
before it, 2 where the folder holds no run.
"""

import json
import sys
from pathlib import Path

END, NOT_YET, MISTAKE = 0, 75, 2


def status(workdir: Path) -> int:
    """END or NOT_YET. Raises OSError where the folder holds no run, and ValueError where its files are not as written.

    The metrics of the last step are always written, and those after a checkpoint are dropped where a run goes on.
    """
    try:
        num_steps = json.loads((workdir / "config.json").read_text())["num_steps"]
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return END if lines and json.loads(lines[-1])["step"] == num_steps else NOT_YET
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing") from error


def main(arguments: list[str]) -> int:
    """The exit status, with one line on stderr after a mistake."""
    if len(arguments) != 1:
        print("usage: python experiments/launch/finished.py WORKDIR", file=sys.stderr)
        return MISTAKE
    try:
        return status(Path(arguments[0]))
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; WORKDIR must be the folder of a run", file=sys.stderr)
    except ValueError as error:
        print(f"error: {arguments[0]} holds a file that the run did not write so: {error}", file=sys.stderr)
    return MISTAKE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
