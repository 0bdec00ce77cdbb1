"""The ways in which a run may end that are nobody's bug."""


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line: what is wrong, and what would be right.

    `main` prints the line and exits with status 2.
    """


class AgreedError(InputError):
    """An InputError of which every process of the run knows, so that all end by themselves."""


class UnsavedError(InputError):
    """A checkpoint could not be written, such as on a full disk; those before it are as they were."""


class NotFiniteError(InputError):
    """What a generator gives is not finite, and cannot be scored."""


class DivergedError(ArithmeticError):
    """Training left the finite numbers; the message is one line that names the step. `main` exits with status 1."""
