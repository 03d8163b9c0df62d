"""Signals that stop a training at the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stop:
    """A request to stop a training.

    Attributes:
        requested: this process received the request.
        agreed: all processes know of it since the last step, and stop together.
    """

    requested: bool = False
    agreed: bool = False


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[Stop]:
    """Let Ctrl-C, SIGTERM and SIGHUP request a stop; a second Ctrl-C interrupts at once.

    A repeated SIGTERM does not interrupt: launchers and batch systems send several. Neither does a
    SIGHUP, of a closed terminal; where it is ignored (``nohup``) it stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    formers = {number: signal.getsignal(number) for number in _SIGNALS}
    formers = {n: former for n, former in formers.items() if former is not signal.SIG_IGN}
    interrupts: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        interrupts.extend([number] * (number == signal.SIGINT))
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    for number in formers:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, former in formers.items():
            signal.signal(number, former)


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Defer an interrupt (Ctrl-C) to the end of the block; a second one interrupts at once."""
    former = signal.getsignal(signal.SIGINT)
    if not callable(former) or threading.current_thread() is not threading.main_thread():
        yield  # it is ignored, not handled by Python, or goes to the main thread
        return
    received: list[FrameType | None] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(frame)
        if len(received) > 1:
            former(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if len(received) == 1:
        former(signal.SIGINT, received[0])
