"""The bar: on a terminal, after a while, and gone in the end."""

import io

import pytest

from gan_jax.utils import progress


class Terminal(io.StringIO):
    """A file that says that it is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("file", "patience", "shown"), [(Terminal, 0, True), (Terminal, 60, False), (io.StringIO, 0, False)]
)
def test_a_bar_is_on_a_terminal_and_after_a_while(monkeypatch, file, patience, shown):
    written = file()
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr(progress, "PATIENCE", patience)
    assert list(progress.progress(range(3), "samples")) == [0, 1, 2]
    assert ("samples" in written.getvalue()) == shown
    assert written.getvalue().split("\r")[-1].strip() == ""  # nothing of it stays
