"""Stacked MNIST: three random digits as the channels of one image, 1,000 modes to find (arXiv:1611.02163)."""

import jax
import jax.numpy as jnp

from gan_jax.data.source import Source, draw_stored, stored_std

DIGITS = 3


def stacked(digits: dict) -> Source:
    """The source of stacks of `digits` {"image": uint8 [n, h, w, 1], "label": int [n]}, as the literature has it.

    Every stack is a fresh draw of three independent digits, with replacement; its label is their decimal number, 0 to
    999, the red channel's digit first.
    """
    height, width = digits["image"].shape[1:3]
    classes = tuple(f"{number:03d}" for number in range(10**DIGITS))
    std = stored_std(digits["image"], top=255)
    return Source((height, width, DIGITS), draw=_draw, std=std, data=digits, classes=classes)


def _draw(digits, indices, keys):
    chosen = jax.vmap(lambda key: jax.random.randint(key, (DIGITS,), 0, len(digits["image"])))(keys)  # [n, 3]
    single = draw_stored(digits, chosen.reshape(-1), keys, top=255, flip=False)
    n, (height, width) = len(keys), single["image"].shape[1:3]
    image = jnp.moveaxis(single["image"].reshape(n, DIGITS, height, width), 1, -1)
    return {"image": image, "label": single["label"].reshape(n, DIGITS) @ 10 ** jnp.arange(DIGITS)[::-1]}
