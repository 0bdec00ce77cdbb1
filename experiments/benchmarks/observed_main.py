"""`gan_jax.main` with JAX's own timings in a file: `observed_main.py EVENTS FLAG...`, one JSON object a line.

The first line tells when the imports were done; the others are JAX's events, with `end` on time.time's clock.
"""

import json
import sys
import time

import jax
from absl import app

from gan_jax import main
from gan_jax.cli import command_line


class Events:
    """The file, and what JAX calls at each event."""

    def __init__(self, path: str):
        self._file = open(path, "a", buffering=1)  # noqa: SIM115  open until the process is killed

    def note(self, event: str, seconds: float = 0.0, **facts) -> None:
        """Adds a line."""
        facts = {"event": event, "seconds": seconds, "end": time.time(), "program": facts.get("fun_name", "")}
        self._file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    events = Events(sys.argv.pop(1))
    events.note("imported")
    jax.monitoring.register_event_duration_secs_listener(events.note)
    jax.monitoring.register_event_listener(events.note)
    app.run(main.main, flags_parser=command_line.parse)
