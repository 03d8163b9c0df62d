"""Methods of a user: their arguments are checked as those of the library are."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast, get_type_hints

from ..core.arguments import check_arguments, is_written
from .serialize import arguments_by_origin, is_foreign


def checking_arguments(kind: type) -> None:
    """Let a user's class check its arguments when it is made, whatever its own check leaves out.

    After its own ``__post_init__``, if it has one, come those of its bases, which it may have
    forgotten to call; then the arguments that it declares, against their annotations. Lists become
    tuples, as in every term.
    """
    if not is_foreign(kind):
        return
    defined = vars(kind).get("__post_init__")
    own = cast("Callable[[Any], None] | None", getattr(defined, "of_user", defined))

    def check(self: Any) -> None:
        if own is not None:
            own(self)
        if inherited := getattr(super(kind, self), "__post_init__", None):
            inherited()
        _check_declared(self, kind)

    made = wraps(own or check)(check)
    cast("Any", made).of_user = own
    cast("Any", kind).__post_init__ = made


def _check_declared(term: Any, kind: type) -> None:
    """Check the arguments that a class of a user's declares."""
    if kind is not type(term):
        return  # the last class checks for all
    names = [f.name for f, foreign in arguments_by_origin(kind) if foreign]
    try:
        hints = get_type_hints(kind)
        for name in names:
            if is_written(hints[name]):  # what is for Python alone stays the object that it is
                object.__setattr__(term, name, _without_lists(getattr(term, name)))
        check_arguments(term, term.name, *names)
    except (NameError, AttributeError):  # annotations that cannot be read; `register` refuses them
        return


def _without_lists(value: object) -> object:
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return tuple(map(_without_lists, cast("list[object]", value)))
    return value
