"""One training step, from minibatch to update; the names a script needs, imported when first used."""

import importlib

_PUBLIC = {  # name: its module, or module:attribute
    "init_state": "gan_jax.step.step:init_state",
    "train_step": "gan_jax.step.step:train_step",
    "train_steps": "gan_jax.step.step:train_steps",
    "draw_batches": "gan_jax.step.step:draw_batches",
    "alternating": "gan_jax.step.step:alternating",
    "simultaneous": "gan_jax.step.step:simultaneous",
    "extragradient": "gan_jax.step.step:extragradient",
    "consensus": "gan_jax.step.step:consensus",
    "discriminator_step": "gan_jax.step.step:discriminator_step",
    "generator_step": "gan_jax.step.step:generator_step",
    "discriminator_gradient": "gan_jax.step.step:discriminator_gradient",
    "generator_gradient": "gan_jax.step.step:generator_gradient",
    "discriminator_keys": "gan_jax.step.step:discriminator_keys",
    "step_keys": "gan_jax.step.step:step_keys",
    "sample": "gan_jax.step.inference:sample",
    "discriminate": "gan_jax.step.inference:discriminate",
    "judge": "gan_jax.step.inference:judge",
    "Recipe": "gan_jax.step.state:Recipe",
    "TrainState": "gan_jax.step.state:TrainState",
    "Player": "gan_jax.step.state:Player",
    "RegularizerState": "gan_jax.step.state:RegularizerState",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    """Imports a public name when it is first used: `import gan_jax.step` starts no JAX."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    globals()[name] = value = getattr(found, attribute) if attribute else found
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
