"""What every study writes: `experiments/results/NAME.md`, tables that name the command, and `NAME.png`."""

import io
from pathlib import Path

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from gan_jax.utils.files import write_atomically

RESULTS = Path(__file__).resolve().parents[1] / "results"


def figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes [rows, columns]; no pyplot, so nothing to close."""
    made = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots(rows, columns, squeeze=False)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, ["---"] * len(header), *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(name: str, title: str, parts: list[str], drawn: Figure) -> None:
    """Writes the report and its picture, prints the report, and says where both are."""
    made_by = f"Made by `python -m experiments.studies.{name}` (jax {jax.__version__}, {jax.default_backend()})."
    text = "\n\n".join([f"# {title}", made_by, *parts, f"![{title}]({name}.png)"]) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / f"{name}.md", text.encode())
    write_atomically(RESULTS / f"{name}.png", _png(drawn))
    print(f"wrote {RESULTS / name}.md and .png")


def _png(drawn: Figure) -> bytes:
    """With a palette of 128 colours: a third of the size, and plots need no more."""
    drawn.canvas.draw()
    picture = Image.fromarray(np.asarray(drawn.canvas.buffer_rgba())[..., :3])
    buffer = io.BytesIO()
    picture.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()
