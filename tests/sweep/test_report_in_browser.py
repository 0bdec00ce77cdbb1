"""A sweep's report in a real browser, headless Chromium: a click sorts the table, and every picture is there."""

import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from gan_jax.sweep import report, results
from gan_jax.sweep.folders import PICTURE, POINTS, member_folder
from gan_jax.sweep.plan import Member
from gan_jax.utils.plots import write_png

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Clicks headings of the last table, and writes down what is then to be seen.
LOOK = """
<script>
addEventListener("load", () => {
  const table = [...document.querySelectorAll("table")].at(-1);
  const heading = [...table.tHead.rows[0].cells].find((each) => each.textContent === "high_quality");
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent).join(" ");
  const seen = [order()];
  for (let i = 0; i < 2; i++) { heading.click(); seen.push(order()); }
  const images = [...document.images].map((each) => each.naturalWidth > 50);
  document.title = JSON.stringify({ seen, images });
});
</script>
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def browse(*arguments):
    flags = "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"
    return subprocess.run([BROWSER, *flags, *arguments], capture_output=True, timeout=120, check=True).stdout.decode()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("report"), []
    for i, quality in enumerate((0.5, 0.05, None, 0.25, 1e-3)):
        member = Member(i, {"objective.name": "wgan", "seed": i}, None)
        scores = {} if quality is None else {"high_quality": quality}
        steps = np.arange(1, 11)
        curves = {"d_loss": np.stack([steps, np.sin(steps + i)], axis=1)}
        status = "diverged, step 3: d_loss not finite" if quality is None else "finished"
        found.append(results.Result(member, status, 1.0, scores, curves))
        place = member_folder(folder, member)
        (place / POINTS).mkdir(parents=True)
        write_png(place / PICTURE, np.full((100, 100, 3), 40 * i, np.uint8))
        for step in (10, 20):
            points = np.random.default_rng(step).standard_normal((50, 2))
            points[0] = np.inf
            np.save(place / POINTS / f"{step:08d}.npy", points)
    report.write_report(found, folder, "a sweep")
    return folder / report.REPORT


def test_a_click_sorts_and_every_picture_is_there(written, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(written.read_text().replace("</body>", LOOK + "</body>"))
    title = re.search(r"<title>(.*?)</title>", browse("--dump-dom", page.as_uri())).group(1)
    found = json.loads(html.unescape(title))
    assert found["seen"] == ["0 1 2 3 4", "4 1 3 0 2", "0 3 1 4 2"]
    assert len(found["images"]) == 1 + 1 + 5  # curve, animation, members
    assert all(found["images"])


def test_the_curve_is_drawn(written, tmp_path):
    """The picture of d_loss has a line in a colour that nothing else on the page has."""
    path = tmp_path / "screen.png"
    browse(f"--screenshot={path}", "--window-size=1200,1400", written.as_uri())
    pixels = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).reshape(-1, 3).astype(int)
    blue = np.abs(pixels - [31, 119, 180]).max(axis=1) < 12  # Matplotlib's first colour
    assert blue.sum() > 300
