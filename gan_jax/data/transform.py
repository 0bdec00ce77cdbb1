"""Images of any size and colour, made one shape. NumPy and Pillow, on the host."""

import numpy as np
from PIL import Image


def fit(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The largest centre square of `image` uint8 [h, w, 1 or 3], resized: uint8 [size, size, channels].

    Lanczos with antialiasing, by Pillow: what StyleGAN2-ADA and StyleGAN3 prepare their sets with (`dataset_tool.py
    --transform=center-crop`), and no filter of a framework that skips pixels when it shrinks (arXiv:2104.11222).
    RGB to grey is the luma of ITU-R 601, grey to RGB repeats it. Size 0 leaves height and width as they are. What
    already is of that shape comes back bit for bit.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels {channels}: 1 (grey) or 3 (RGB)")
    if size:
        height, width = image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    if image.shape[2] > channels:
        image = _array(_picture(image).convert("L"))  # before the resize, which then has a third of the work
    if size and image.shape[0] != size:
        image = _array(_picture(image).resize((size, size), Image.Resampling.LANCZOS))
    return np.repeat(image, channels, axis=2) if image.shape[2] < channels else image


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _array(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
