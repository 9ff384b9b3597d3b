"""The one exception that a user is meant to read."""


class LabError(Exception):
    """A mistake that the user can mend: one line that says what is wrong, where, and what to do.

    The command line prints the line without a traceback and exits with code 2.
    """


def first_line(e: BaseException) -> str:
    """The first line of somebody else's exception, or its type where it says nothing."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
