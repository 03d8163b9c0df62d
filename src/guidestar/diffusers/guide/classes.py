"""Objects that answer calls in another way for a while.

The class of a pipeline is exchanged for a derived one as long as it is guided. A network's calls
are replaced while a guided pipeline runs, for the thread of that run alone
(`guidestar.core.hooks`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import SupportsInt, TypeVar

from ...core.hooks import CALL, Forward, replaced, unchanged
from ..objects import Answer, Arguments, DiffusersNetwork, Pipeline

_P = TypeVar("_P")
MARK = "_guidestar"

RunCall = Callable[[DiffusersNetwork, tuple[object, ...], Arguments], Answer]
"""Answers a call of a network, given its arguments."""


def become(thing: _P, kind: type) -> _P:
    """Exchange the class of an object."""
    object.__setattr__(
        thing, "__class__", kind
    )  # some classes pass attributes on to what they wrap
    return thing


def plain_kind(kind: type) -> type:
    """Return the class that another was derived from by `derived`, or itself."""
    return getattr(kind, MARK, (kind,))[0]


def derived(kind: type, call: Callable[..., Answer] | None, **more: object) -> type:
    """Return a class that differs in what a call does, and passes for ``kind`` (saving writes its
    name).
    """
    names = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    calls = {} if call is None else {"__call__": call}
    return _equal(kind)(kind.__name__, (kind,), {**calls, **names, **more})


def _equal(kind: type) -> type:
    """Return the class of classes that equal ``kind``, as pipelines compare ``type(scheduler)``
    with that of a scheduler that they know (Bria).
    """
    like = {
        "__eq__": lambda cls, other: other is cls or other == kind,
        "__hash__": lambda cls: hash(kind),
    }
    return type(type(kind).__name__, (type(kind),), like)


# --- pipelines ---


def guided_kind(plain: type, call: Callable[..., Answer], wanted: object) -> type:
    """Return the class of a guided pipeline, whose calls are ``call``.

    Copies and pickles of such a pipeline are guided as well; what is made of its components is not,
    with a warning.
    """
    more = {
        "__reduce_ex__": _reduce,
        "components": property(_components),
        "save_pretrained": _save,
    }
    return derived(plain, call, **{MARK: (plain, wanted)}, **more)


def _reduce(self: Pipeline, protocol: SupportsInt) -> tuple[object, ...]:
    from .pipelines import guided_again

    made, (_, *rest), *state = object.__reduce_ex__(self, max(2, int(protocol)))
    plain, wanted = getattr(type(self), MARK)
    return guided_again, (plain, wanted, made, tuple(rest)), *state


def _components(self: Pipeline) -> dict[str, object]:
    """Return the parts of the pipeline; warn where another pipeline is made of them."""
    caller = sys._getframe(1)
    home = str(caller.f_globals.get("__name__")).partition(".")[0]
    if caller.f_code.co_name == "from_pipe" or home not in ("diffusers", "guidestar"):
        _warn(
            self,
            "a pipeline made of its components is not: guide that too, guidestar.guide(new, …)",
        )
    return plain_kind(type(self)).components.fget(self)


def _save(self: Pipeline, *args: object, **more: object) -> object:
    """Save the pipeline without its guidance; warn of that."""
    _warn(
        self,
        "its folder is not: guide the pipeline that is read from it too, guidestar.guide(new, …)",
    )
    return plain_kind(type(self)).save_pretrained(self, *args, **more)


def _warn(pipe: Pipeline, what: str) -> None:
    warnings.warn(f"this {type(pipe).__name__} is guided by guidestar, but {what}", stacklevel=3)


# --- networks ---


@contextmanager
def answered(nets: Mapping[str, DiffusersNetwork], run: RunCall) -> Iterator[None]:
    """Let ``run(net, args, kwargs)`` answer this thread's calls of networks within this context."""
    with ExitStack() as stack:
        for net in {id(net): net for net in nets.values()}.values():
            stack.enter_context(replaced(net, partial(_answering, net, run), CALL))
        yield


def _answering(net: DiffusersNetwork, run: RunCall, _: Forward) -> Forward:
    return lambda *args, **kwargs: run(net, args, kwargs)


def as_it_is(net: DiffusersNetwork, arguments: Arguments) -> Answer:
    """Call a network that may be guided as it is without us."""
    with unchanged(net, CALL):
        return net(**arguments)
