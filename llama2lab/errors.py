"""The one exception that a user is meant to read."""


class LabError(Exception):
    """A mistake that the user can mend: one line that says what is wrong, where, and what to do.

    The command line prints the line without a traceback and exits with code 2.
    """
