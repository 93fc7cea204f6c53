"""What can go wrong and is not a mistake in the program."""


class InputError(ValueError):
    """A file, value or combination that ganlab cannot work with.

    The message names the file or value, what was found, what was expected and what to do.
    The command line prints it as one line and exits with code 2; in Python it is an ordinary
    ``ValueError``.
    """


class TrainingFailed(RuntimeError):
    """A loss or weight became infinite or NaN; the message names the step and what to try."""
