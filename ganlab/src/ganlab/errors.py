"""The one exception that means: the input or the request is at fault, not the program."""


class InputError(ValueError):
    """A file, value or combination that ganlab cannot work with.

    The message names the file or value, what was found, what was expected and what to do.
    The command line prints it as one line and exits with code 2; in Python it is an ordinary
    ``ValueError``.
    """
