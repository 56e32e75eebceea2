"""What the clients' scripts share."""

from contextlib import contextmanager


class Caught:
    """The error that a block ended with."""

    error: Exception


@contextmanager
def refused(kind):
    """The block must end with such an error, which is `error` of what this gives."""
    caught = Caught()
    try:
        yield caught
    except kind as error:
        caught.error = error
        return
    raise AssertionError(f"{kind} was not raised")
