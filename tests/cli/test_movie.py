"""`--mode=movie`: the pictures of training, in order, from the folder alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from gan_jax.cli.movie import movie
from gan_jax.utils.errors import InputError
from gan_jax.utils.plots import write_png

STEPS = (9, 10, 100)


def draw(folder, channels):
    """A picture of one shade a step, and one of a callback."""
    for step in STEPS:
        shade = np.arange(1, channels + 1) * step // 2
        write_png(folder / "samples" / f"{step:08d}.png", np.full((40, 60, channels), shade, np.uint8))
    write_png(folder / "samples" / "mine-00000050.png", np.full((40, 60, 1), 255, np.uint8))


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def workdir(tmp_path, request):
    draw(tmp_path, request.param)
    return tmp_path


def shown(path):
    """(the colour in the middle of each frame, for how many ms each is shown, whether it repeats)."""
    with Image.open(path) as file:
        colours, durations = [], []
        for i in range(file.n_frames):
            file.seek(i)
            file.load()
            durations.append(file.info["duration"])
            colours.append(file.convert("RGB").getpixel((30, 34)))
        return colours, durations, file.info["loop"] == 0


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_pictures_follow_each_other_by_step_and_the_last_stays(workdir, kind):
    line = movie(workdir, workdir / f"out.{kind}", fps=20)
    assert line.startswith(f"{workdir / 'out'}.{kind}, 3 pictures, 0.0 MB")
    colours, durations, repeats = shown(workdir / f"out.{kind}")
    assert durations == [50, 50, 2000]
    assert repeats
    for step, colour in zip(STEPS, colours, strict=True):
        with Image.open(workdir / "samples" / f"{step:08d}.png") as file:
            expected = file.convert("RGB").getpixel((30, 20))
        np.testing.assert_allclose(colour, expected, atol=0 if kind == "gif" else 6)


def test_a_frame_says_its_step(workdir):
    movie(workdir, workdir / "out.gif", fps=1)
    with Image.open(workdir / "out.gif") as file:
        tops = []
        for i in range(3):
            file.seek(i)
            tops.append(np.asarray(file.convert("L"))[: file.height - 40])
        assert file.size[0] == 60
    assert all(top.max() > 200 for top in tops)
    assert (tops[0] != tops[1]).any()


def test_the_command_needs_no_device(tmp_path):
    draw(tmp_path, 3)
    command = [sys.executable, "-m", "gan_jax", "movie", f"--workdir={tmp_path}"]
    env = os.environ | {"JAX_PLATFORMS": "none"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"wrote {tmp_path / 'movie.gif'}, 3 pictures")
    assert shown(tmp_path / "movie.gif")[1] == [100, 100, 2000]


@pytest.mark.parametrize(
    ("out", "fps", "words"),
    [
        ("out.mp4", 10, "a movie is a FILE.gif or a FILE.webp"),
        ("out.gif", 0, "--fps is 0; it must be"),
        ("out.gif", float("nan"), "--fps is nan; it must be"),
        ("out.gif", 60, "at most 50"),
    ],
)
def test_what_cannot_be_written_is_one_line(workdir, out, fps, words):
    with pytest.raises(InputError, match=words):
        movie(workdir, workdir / out, fps)
    assert not list(workdir.glob("out*"))


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_picture_that_does_not_fit_leaves_the_old_movie(workdir, kind):
    path, out = workdir / "samples" / "00000100.png", workdir / f"out.{kind}"
    movie(workdir, out, fps=10)
    before = out.read_bytes()
    for content, words in (
        (path.read_bytes()[:-30], "cannot read"),
        (None, "40x40 pixels, and those before it are of"),
    ):
        path.write_bytes(content) if content else write_png(path, np.zeros((40, 40, 1), np.uint8))
        with pytest.raises(InputError, match=words) as caught:
            movie(workdir, out, fps=10)
        assert "\n" not in str(caught.value)
        assert out.read_bytes() == before


def test_a_folder_without_pictures_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"there are no pictures STEP\.png in .*samples; a run draws them"):
        movie(tmp_path, tmp_path / "out.gif", fps=10)
