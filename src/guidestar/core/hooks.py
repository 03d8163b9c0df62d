"""Change what a module does, for the calls of one thread or task alone.

A network may serve several runs at the same time. So nothing is put in the place of a module's
``forward`` for everyone: while some call has changed it, a dispatcher stands there, which looks up
the changes of the calling thread (or asyncio task) in a context variable. All others get the module
as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from threading import RLock
from typing import Any, Literal

from torch import nn

Forward = Callable[..., Any]
Where = Literal["forward", "_compiled_call_impl"]
"""What is changed: the forward, within the module's hooks, or the whole call, compiled or not."""

CALL: Where = "_compiled_call_impl"


@dataclass(eq=False)
class _Change:
    """One change; it ends by its flag too, as its end may come in another thread than its start."""

    forward: Forward
    active: bool = True


_Key = tuple[nn.Module, Where]
_NONE: Mapping[_Key, tuple[_Change, ...]] = {}
_CHANGES: ContextVar[Mapping[_Key, tuple[_Change, ...]]] = ContextVar(
    "changed modules", default=_NONE
)
_LOCK = RLock()


@contextmanager
def replaced(
    module: nn.Module, change: Callable[[Forward], Forward], where: Where = "forward"
) -> Iterator[None]:
    """Let this thread's (or task's) calls of a module do what ``change(original)`` does.

    Changes of one module nest: the original of the second is the first. Hooks of the module, and
    calls by other threads, stay as they are.
    """
    key: _Key = (module, where)
    plain = _install(module, where)
    own = _Change(change(replacement(module, where) or plain))
    try:
        _CHANGES.set({**_CHANGES.get(), key: (*_CHANGES.get().get(key, ()), own)})
        yield
    finally:
        own.active = False
        _CHANGES.set(
            {
                k: left
                for k, changes in _CHANGES.get().items()
                if (left := tuple(c for c in changes if c is not own))
            }
        )
        _uninstall(module, where)


@contextmanager
def unchanged(module: nn.Module, where: Where = "forward") -> Iterator[None]:
    """Let this thread's calls of a module be what they are without any change."""
    before = _CHANGES.get()
    _CHANGES.set({k: changes for k, changes in before.items() if k != (module, where)})
    try:
        yield
    finally:
        _CHANGES.set(before)


def replacement(module: nn.Module, where: Where = "forward") -> Forward | None:
    """Return what stands in the place of a module's forward for this thread, if anything does."""
    changes = _CHANGES.get().get((module, where), ())
    return next((c.forward for c in reversed(changes) if c.active), None)


def is_compiled(module: object) -> bool:
    """Return whether a module was compiled in place: compiled code would ignore a change."""
    call = getattr(module, CALL, None)
    return (call.before if isinstance(call, _Dispatcher) else call) is not None


class _Dispatcher:
    """What stands at a module's ``forward`` while any thread has changed it."""

    def __init__(self, module: nn.Module, where: Where) -> None:
        self.before: Forward | None = vars(module).get(where)
        self.plain: Forward = self.before or (
            module.forward if where == "forward" else module._call_impl  # pyright: ignore[reportPrivateUsage]
        )
        self.module, self.users = module, 0
        self.where: Where = where
        wraps(self.plain)(self)  # its signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (replacement(self.module, self.where) or self.plain)(*args, **kwargs)


def _install(module: nn.Module, where: Where) -> Forward:
    """Put the dispatcher in its place, if it is not there, and return what the module does without
    it.
    """
    with _LOCK:
        own = vars(module)  # set here, as a compiled module hands attributes on to what it wraps
        if not isinstance(own.get(where), _Dispatcher):
            own[where] = _Dispatcher(module, where)
        own[where].users += 1
        return own[where].plain


def _uninstall(module: nn.Module, where: Where) -> None:
    with _LOCK:
        own = vars(module)
        dispatcher: _Dispatcher = own[where]
        dispatcher.users -= 1
        if not dispatcher.users and dispatcher.before is None:
            del own[where]
        elif not dispatcher.users:
            own[where] = dispatcher.before
