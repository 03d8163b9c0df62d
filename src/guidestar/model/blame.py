"""Which argument of a run an error is about, for those who know it by a name of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def blaming(argument: str) -> Iterator[None]:
    """Note on a ValueError that is raised within which argument of a run it is about.

    The innermost note stays, so what calls a function need not know what that blames. It serves
    as a decorator too.

    Args:
        argument: by its name in `RunArguments`, or "cond".
    """
    try:
        yield
    except ValueError as error:
        error.__dict__.setdefault("argument", argument)
        raise


def argument_of(error: BaseException) -> str | None:
    """Return the name of the argument that an error is about; None where that is not known."""
    return getattr(error, "argument", None)
