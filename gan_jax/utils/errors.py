"""The ways in which a run may end that are nobody's bug."""

from contextlib import contextmanager


class InputError(ValueError):
    """A mistake of the user. The message is one line, what is wrong and what would be right; the exit status is 2."""


class AgreedError(InputError):
    """An InputError that every process of the run raises, so that all end by themselves."""


class UnsavedError(InputError):
    """A checkpoint could not be written, such as on a full disk; those before it are as they were."""


class NotFiniteError(InputError):
    """A sample is not finite, and cannot be scored."""


class DivergedError(ArithmeticError):
    """A number of training is not finite. The message is one line that names the step; the exit status is 1."""


def one_line(text: object, limit: int = 300) -> str:
    """`text` without line breaks and characters that a terminal or a log in UTF-8 cannot show, at most `limit` long."""
    characters = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in characters)
    return line if len(line) <= limit else line[:limit] + "..."


def reason(error: Exception) -> str:
    """What an exception says, in one line."""
    return one_line(getattr(error, "strerror", None) or error or type(error).__name__)


@contextmanager
def users_code(name: str):
    """Within it, whatever the user's part of that name raises becomes an InputError, one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} fails: {type(error).__name__}: {one_line(error)}") from error
