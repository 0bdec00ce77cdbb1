"""The process of one side: `worker.py '{"kind": ..., ...}'`, then one JSON request a line, each answered by one line.

`{"steps": n}` takes n steps and answers with the seconds and the share of the CPUs that other processes used meanwhile;
`{"describe": true}` answers with versions, losses and peak memory. A failure is answered by `{"error": "one line"}`.
"""

import json
import math
import os
import resource
import sys
import traceback

import quiet


def main() -> None:
    """Serves requests until the input ends."""
    # What libraries print must not come between the answers, so that the real output is kept aside.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        serve(json.loads(sys.argv[1]), answers)
    except Exception as error:  # noqa: BLE001  whatever a framework raises becomes the reason in the report
        traceback.print_exc()
        first_line = (str(error).strip() or "no message").splitlines()[0]
        answers.write(json.dumps({"error": f"{type(error).__name__}: {first_line}"}) + "\n")


def serve(options: dict, answers) -> None:
    """Makes the side and answers."""
    import sides

    side = sides.make(**options)
    answers.write(json.dumps({"per_call": side.per_call}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        answer = described(side) if "describe" in request else timed(side, request["steps"])
        answers.write(json.dumps(answer) + "\n")


def timed(side, steps: int) -> dict:
    """Seconds of `steps` steps and how much others disturbed them."""
    before = quiet.usage()
    side.run(steps)
    after = quiet.usage()
    return {"seconds": after.clock - before.clock, "others": quiet.others(before, after)}


def described(side) -> dict:
    """What the side says of itself, its losses finite: nothing is to be learned from the speed of NaNs."""
    facts = side.describe() | {"peak": peak(side.peak_bytes())}
    for name, loss in facts.get("losses", {}).items():
        if not math.isfinite(loss):
            raise FloatingPointError(f"{name} is {loss} after the timed steps")
    return facts


def peak(of_device: int | None) -> float:
    """Peak memory in MB: the device's, in bytes, or this process's where there is none."""
    if of_device is not None:
        return of_device / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
