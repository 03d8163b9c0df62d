"""Objects that answer calls in another way for a while: their class is exchanged for one derived from it.

Pipelines keep theirs as long as they are guided; networks as long as a guided pipeline runs, and then
only for calls that come from that run. So two runs in two threads may share a network.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

P = TypeVar("P")
MARK = "_guidestar"
_RUNS: ContextVar[Mapping[int, Callable[..., Any]]] = ContextVar("guidestar_runs")
_held: dict[int, int] = {}
_lock = threading.Lock()


def become(thing: P, kind: type) -> P:
    """Exchange the class of an object."""
    object.__setattr__(thing, "__class__", kind)  # some classes pass attributes on to what they wrap
    return thing


def plain_kind(kind: Any) -> Any:
    """Return the class that another was derived from by `derived`, or itself."""
    return getattr(kind, MARK, (kind,))[0]


def derived(kind: type, call: Callable[..., Any], **more: Any) -> type:
    """Return a class that differs in what a call does, and passes for ``kind`` (saving writes its name)."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {"__call__": call, **names, **more})


# --- pipelines ---


def guided_kind(plain: Any, call: Callable[..., Any], wanted: Any) -> type:
    """Return the class of a guided pipeline, whose calls are ``call``.

    Copies and pickles of such a pipeline are guided as well; what is made of its components is not, which a warning says.
    """
    more = {"__reduce_ex__": _reduced, "components": property(_components), "save_pretrained": _save}
    return derived(plain, call, **{MARK: (plain, wanted)}, **more)


def _reduced(self: Any, protocol: Any) -> Any:
    from .pipelines import guided_again

    made, (_, *rest), *state = object.__reduce_ex__(self, max(2, int(protocol)))
    plain, wanted = getattr(type(self), MARK)
    return guided_again, (plain, wanted, made, tuple(rest)), *state


def _components(self: Any) -> dict[str, Any]:
    """Return the parts of the pipeline; warn where another pipeline is made of them."""
    caller = sys._getframe(1)
    home = str(caller.f_globals.get("__name__")).partition(".")[0]
    if caller.f_code.co_name == "from_pipe" or home not in ("diffusers", "guidestar"):
        _warn(self, "a pipeline made of its components is not: guide that too, guidestar.guide(new, …)")
    return plain_kind(type(self)).components.fget(self)


def _save(self: Any, *args: Any, **more: Any) -> Any:
    """Save the pipeline as ever; warn that the guidance is not a part of it."""
    _warn(self, "its folder is not: guide the pipeline that is read from it too, guidestar.guide(new, …)")
    return plain_kind(type(self)).save_pretrained(self, *args, **more)


def _warn(pipe: Any, what: str) -> None:
    warnings.warn(f"this {type(pipe).__name__} is guided by guidestar, but {what}", stacklevel=3)


# --- networks ---


@contextmanager
def answered(nets: Mapping[str, Any], run: Callable[..., Any]) -> Iterator[None]:
    """Let ``run(net, args, kwargs)`` answer the calls of networks that are made within this context."""
    unique = {id(net): net for net in nets.values()}
    token = _RUNS.set({**_RUNS.get({}), **dict.fromkeys(unique, run)})
    try:
        for net in unique.values():
            _hold(net, 1)
        yield
    finally:
        for net in unique.values():
            _hold(net, -1)
        _RUNS.reset(token)


def _hold(net: Any, change: int) -> None:
    """Count the runs that a network serves; it listens to them as long as there are any."""
    with _lock:
        count = _held.get(id(net), 0) + change
        if count:
            _held[id(net)] = count
            become(net, _listening(plain_kind(type(net))))
        elif _held.pop(id(net), None):
            become(net, plain_kind(type(net)))


@cache
def _listening(kind: type) -> type:
    return derived(kind, _call, **{MARK: (kind, None)})


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    run = _RUNS.get({}).get(id(self))
    return plain_kind(type(self)).__call__(self, *args, **kwargs) if run is None else run(self, args, kwargs)


def as_it_is(net: Any, arguments: Mapping[str, Any]) -> Any:
    """Call a network that may be guided as it is without us."""
    return plain_kind(type(net)).__call__(net, **arguments)
