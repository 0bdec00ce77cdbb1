"""gan_jax: generative adversarial networks as pure functions, in JAX and Flax."""

import importlib

__version__ = "0.1.0"

_PUBLIC = {  # name: its module, or module:attribute
    "build": "gan_jax.config.build:build",
    "train": "gan_jax.training.loop:train",
    "load": "gan_jax.runs.trained:load",
    "Callback": "gan_jax.training.callbacks:Callback",
    "Report": "gan_jax.training.callbacks:Report",
    "recipe": "gan_jax.config.build",
    "step": "gan_jax.step",
    "main": "gan_jax.main",
    "objectives": "gan_jax.objectives",
    "penalties": "gan_jax.penalties",
    "networks": "gan_jax.networks",
    "data": "gan_jax.data",
    "config": "gan_jax.config",
    "parallel": "gan_jax.parallel",
    "runs": "gan_jax.runs",
    "training": "gan_jax.training",
    "evaluation": "gan_jax.evaluation",
    "sweep": "gan_jax.sweep",
    "theory": "gan_jax.theory",
    "analysis": "gan_jax.analysis",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    """Imports a public name when it is first used: `import gan_jax` starts no JAX."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    imported = importlib.import_module(module)
    globals()[name] = value = getattr(imported, attribute) if attribute else imported
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
