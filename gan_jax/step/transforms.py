"""Differentiable transforms of images: what the discriminator may be shown in the place of an image.

Each is a function (key, image [h, w, c]) -> [h, w, c] of values around [-1, 1], differentiable in the image; what it
draws, it draws from its key. Those of `DIFF_AUGMENT` are of arXiv:2006.10738 with the ranges of its published code;
`flip`, `rotation` and `scale` are of arXiv:2006.06676 (appendix B).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

NONE = "none"
LARGEST_SHIFT = 1 / 8  # of the height and of the width, rounded to whole pixels, as is the next one
CUT = 1 / 2
SCALE_SPREAD = 0.2  # standard deviation of the scale's logarithm to base 2


def brightness(key, image):
    """image + b, b uniform on [-1/2, 1/2)."""
    return image + jax.random.uniform(key, (), image.dtype, -0.5, 0.5)


def saturation(key, image):
    """The distance of each pixel from its grey, times s uniform on [0, 2): one channel stays as it is."""
    grey = jnp.mean(image, axis=-1, keepdims=True)
    return grey + (image - grey) * jax.random.uniform(key, (), image.dtype, 0, 2)


def contrast(key, image):
    """The distance of each value from the mean of all, times c uniform on [1/2, 3/2)."""
    mean = jnp.mean(image)
    return mean + (image - mean) * jax.random.uniform(key, (), image.dtype, 0.5, 1.5)


def translation(key, image):
    """Moved by whole pixels, up to an eighth of either side (rounded: 4 of 28), either way; 0 comes in at the edges."""
    return _resampled(image, *map(_shifted, jax.random.split(key), image.shape[:2]))


def cutout(key, image):
    """A window of half the height and half the width becomes 0; its centre is anywhere in the image."""
    rows, columns = map(_window, jax.random.split(key), image.shape[:2])
    return jnp.where((rows[:, None] & columns)[:, :, None], 0, image)


def flip(key, image):
    """Mirrored left to right, or not, with equal chances."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def rotation(key, image):
    """Turned by 0, 1, 2 or 3 quarters of a circle, with equal chances: a square."""
    turns = jax.random.randint(key, (), 0, 4)
    return jax.lax.switch(turns, [lambda image, k=k: jnp.rot90(image, k) for k in range(4)], image)


def scale(key, image):
    """Magnified about its centre by 2^(0.2 e), e ~ N(0, 1), with linear interpolation; 0 comes in where it shrinks."""
    factor = jnp.exp2(SCALE_SPREAD * jax.random.normal(key, (), image.dtype))
    return _resampled(image, *(_scaled(factor, size) for size in image.shape[:2]))


def _shifted(key, size: int):
    """The places of a side of `size` pixels that those of the moved image show, [size]."""
    most = int(size * LARGEST_SHIFT + 0.5)
    return jnp.arange(size) - jax.random.randint(key, (), -most, most + 1)


def _scaled(factor, size: int):
    centre = (size - 1) / 2
    return (jnp.arange(size) - centre) / factor + centre


def _window(key, size: int):
    """Which of a side's pixels lie in the window, [size]."""
    cut = int(size * CUT + 0.5)
    first = jax.random.randint(key, (), 0, size + 1 - cut % 2) - cut // 2
    places = jnp.arange(size)
    return (first <= places) & (places < first + cut)


def _resampled(image, rows, columns):
    """What `image` shows at these rows [h] and columns [w], numbers, with linear interpolation, and 0 outside it.

    As two small products: no gather, whose derivative is a slow scatter. They are taken in float32, or an accelerator
    would round the pixels.
    """
    rows, columns = (
        jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(size))).astype(image.dtype)
        for places, size in zip((rows, columns), image.shape[:2], strict=True)
    )
    return jnp.einsum("ik,klc,jl->ijc", rows, image, columns, precision=jax.lax.Precision.HIGHEST)


TRANSFORMS: dict[str, Callable] = {
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "translation": translation,
    "cutout": cutout,
    "flip": flip,
    "rotation": rotation,
    "scale": scale,
}
GROUPS = {"color": ("brightness", "saturation", "contrast")}  # in the order of the published code
DIFF_AUGMENT = "color,translation,cutout"
NAMES = (*GROUPS, *TRANSFORMS)  # what a policy may name


def names(policy: str) -> tuple[str, ...]:
    """The transforms that a policy, names with commas between, stands for, in its order; KeyError at an unknown one."""
    if policy == NONE:
        return ()
    parts = [part.strip() for part in policy.split(",")]
    return tuple(name for part in parts for name in GROUPS.get(part) or (_known(part),))


def _known(name: str) -> str:
    TRANSFORMS[name]
    return name


def is_policy(policy: str) -> bool:
    """Whether it is "none", or names transforms, each once."""
    try:
        chosen = names(policy)
    except KeyError:
        return False
    return len(set(chosen)) == len(chosen)


def of_policy(policy: str) -> tuple[Callable, ...]:
    """The functions that a policy stands for."""
    return tuple(TRANSFORMS[name] for name in names(policy))
