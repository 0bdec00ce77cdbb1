"""`python -m gan_jax.theory`: every identity from both sides, in float32 and float64, and its error."""

import sys

import jax
import jax.numpy as jnp

from gan_jax.theory.identities import IDENTITIES, TOLERANCES, check
from gan_jax.theory.pathwise import ESTIMATES, compare


def main() -> int:
    """Prints both tables; the exit status is 1 if anything in them fails."""
    failed = _print_identities() + _print_estimates()
    print(f"\n{failed} failed" if failed else "\nall hold")
    return 1 if failed else 0


def _print_identities() -> int:
    print(f"{'identity':66} {'dtype':8} {'left':>13} {'right':>13} {'error':>9} {'tolerance':>9}  pass")
    failed = 0
    for i, identity in enumerate(IDENTITIES):
        for dtype, tolerance in TOLERANCES.items():
            with jax.enable_x64(dtype == "float64"):
                result = check(identity, jax.random.fold_in(jax.random.key(0), i), jnp.dtype(dtype))
            passed = result.error <= tolerance
            failed += not passed
            sides = f"{result.left:13.6g} {result.right:13.6g} {result.error:9.1e} {tolerance:9.0e}"
            print(f"{identity.name:66} {dtype:8} {sides}  {'yes' if passed else 'NO'}")
    return failed


def _print_estimates() -> int:
    title = "gradient by samples, and in closed form"
    print(f"\n{title:66} {'samples':>13} {'closed form':>13} {'std error':>9}  within 4")
    failed = 0
    for name, estimate in ESTIMATES.items():
        for parameter, row in zip(("mean", "log scale"), compare(estimate, jax.random.key(1)), strict=True):
            passed = abs(row.estimate - row.exact) < 4 * row.standard_error
            failed += not passed
            sides = f"{row.estimate:13.6f} {row.exact:13.6f} {row.standard_error:9.1e}"
            print(f"{name + ', in the ' + parameter:66} {sides}  {'yes' if passed else 'NO'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
