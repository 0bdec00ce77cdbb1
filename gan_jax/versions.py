"""What code a process runs: for several that must run the same, and named where they do not."""

import hashlib
import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")  # of which a run's numbers are made


def code_versions() -> dict[str, str]:
    """A hash of each of this package's files, and the versions of Python and of PACKAGES."""
    package = Path(__file__).parent
    files = {f"gan_jax/{path.relative_to(package).as_posix()}": _hash(path) for path in sorted(package.rglob("*.py"))}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"Python": platform.python_version()} | versions | files


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
