"""Change what a module does, for the calls of one thread or asyncio task alone.

A network may serve several runs at the same time, so ``forward`` is not replaced for everyone.
While some thread has changed a module, a dispatcher takes the place of its ``forward``. It reads
the changes of the calling thread from a context variable; all other threads get the plain module.
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
"""What is replaced: the forward, inside the module's hooks, or the whole call, compiled or not."""

CALL: Where = "_compiled_call_impl"


@dataclass(eq=False)
class _Change:
    """One change. It also has a flag, as it may end in another thread than it began."""

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
    """Let this thread's (or task's) calls of a module call ``change(original)`` instead.

    Changes of one module nest: the original of the second is the first. Hooks of the module and
    calls from other threads do not change.

    Args:
        module: the module.
        change: makes the new function of the original one.
        where: what is replaced.
    """
    key: _Key = (module, where)
    plain = _install(module, where)
    own = _Change(change(replacement(module, where) or plain))
    try:
        _CHANGES.set({**_CHANGES.get(), key: (*_CHANGES.get().get(key, ()), own)})
        yield
    finally:
        own.active = False
        # Also those that ended in another thread, which could not take them out of this one's.
        left = {k: tuple(c for c in v if c.active) for k, v in _CHANGES.get().items()}
        _CHANGES.set({k: changes for k, changes in left.items() if changes})
        _uninstall(module, where)


@contextmanager
def unchanged(module: nn.Module, where: Where = "forward") -> Iterator[None]:
    """Let this thread's calls of a module go to the plain module."""
    before = _CHANGES.get()
    _CHANGES.set({k: changes for k, changes in before.items() if k != (module, where)})
    try:
        yield
    finally:
        _CHANGES.set(before)


def replacement(module: nn.Module, where: Where = "forward") -> Forward | None:
    """Return the function that replaces a module's forward in this thread, if there is one."""
    changes = _CHANGES.get().get((module, where), ())
    return next((c.forward for c in reversed(changes) if c.active), None)


def is_compiled(module: object) -> bool:
    """Return whether a module was compiled in place: its compiled code would ignore a change."""
    call = getattr(module, CALL, None)
    return (call.before if isinstance(call, _Dispatcher) else call) is not None


class _Dispatcher:
    """The ``forward`` of a module while any thread has changed it."""

    def __init__(self, module: nn.Module, where: Where) -> None:
        self.before: Forward | None = vars(module).get(where)
        plain = "forward" if where == "forward" else "_call_impl"
        self.plain: Forward = self.before or getattr(module, plain)
        self.module, self.users = module, 0
        self.where: Where = where
        wraps(self.plain)(self)  # its signature

    def __call__(self, *args: object, **kwargs: object) -> object:
        return (replacement(self.module, self.where) or self.plain)(*args, **kwargs)


def _install(module: nn.Module, where: Where) -> Forward:
    """Install the dispatcher, if it is not there, and return the plain function of the module."""
    with _LOCK:
        own = vars(module)  # setattr of a compiled module would set it on the inner module
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
