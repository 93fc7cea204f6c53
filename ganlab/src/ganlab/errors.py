"""What can go wrong and is not a mistake in the program."""


class InputError(ValueError):
    """A file, value or combination that ganlab cannot work with.

    The message names the file or value, what was found, what was expected and what to do.
    The command line prints it as one line and exits with code 2; in Python it is an ordinary
    ``ValueError``.
    """


class TrainingFailed(RuntimeError):
    """A loss or weight became infinite or NaN; the message names the step and what to try.

    Attributes:
        step: where it was seen first.
        batch: file name of the batch of that step in the run directory; None if it was not saved.
    """

    def __init__(self, message: str, step: int = 0, batch: str | None = None) -> None:
        super().__init__(message)
        self.step, self.batch = step, batch


class Note(UserWarning):
    """Something to know about a result that is as it was asked for; no sign of a fault."""
