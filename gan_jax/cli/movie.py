"""`--mode=movie`: the pictures of training one after another."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image, ImageDraw

from gan_jax.data.readers.arrays import DAMAGE
from gan_jax.runs import workdirs
from gan_jax.utils import plots
from gan_jax.utils.errors import InputError, reason
from gan_jax.utils.progress import progress

KINDS = (".gif", ".webp")
FASTEST = 50  # frames a second: a GIF counts in hundredths of one, and of 1 of them readers make 10
HELD = 2_000  # ms for which the last picture stays, at least
LINE = 14  # pixels above a picture, for its step


def movie(workdir: Path, out: Path, fps: float) -> str:
    """Writes the pictures samples/STEP.png of a run, in order, as an animation that repeats; returns what it wrote.

    `out`: a FILE.gif or FILE.webp. Raises InputError where it is another, where there are no pictures, or where one
    cannot be read or has another size than the first.
    """
    if out.suffix.lower() not in KINDS:
        raise InputError(f"--out is {out}; a movie is a FILE.gif or a FILE.webp")
    if not 0 < fps <= FASTEST:
        raise InputError(f"--fps is {fps:g}; it must be a number greater than 0, at most {FASTEST}")
    pictures = workdirs.pictures(workdir)
    if not pictures:
        raise InputError(
            f"there are no pictures STEP.png in {workdir / 'samples'}; a run draws them every sample_every"
        )
    shown = 1000 / fps  # ms
    plots.write_animation(out, _frames(pictures), [shown] * (len(pictures) - 1) + [max(HELD, shown)])
    return f"{out}, {len(pictures)} pictures, {out.stat().st_size / 1e6:.1f} MB"


def _frames(pictures: Mapping[int, Path]) -> Iterator[Image.Image]:
    """Each picture, in grey or RGB, with its step above it; read when it is its turn."""
    size = None
    for step, path in progress(pictures.items(), "pictures"):
        try:
            with Image.open(path) as file:
                picture = file.convert("L" if file.mode == "L" else "RGB")
        except DAMAGE as error:
            raise InputError(f"cannot read {path}: {reason(error)}; remove it") from error
        size = size or picture.size
        if picture.size != size:
            shape, first = ("x".join(map(str, sides)) for sides in (picture.size, size))
            raise InputError(f"{path} is of {shape} pixels, and those before it are of {first}; remove it")
        frame = Image.new(picture.mode, (picture.width, picture.height + LINE))
        frame.paste(picture, (0, LINE))
        ImageDraw.Draw(frame).text((3, 1), f"step {step:,}", fill="white")
        yield frame
