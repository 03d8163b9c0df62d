"""Signals that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ASKING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stop:
    """Whether somebody asked a training to stop.

    Attributes:
        asked: this process heard of it.
        agreed: all processes know, since the last step: now they stop together.
    """

    asked: bool = False
    agreed: bool = False


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[Stop]:
    """Let Ctrl-C, SIGTERM and SIGHUP ask ``stop``; a second Ctrl-C comes through at once.

    A SIGTERM only ever asks: launchers and batch systems send several, and one after each Ctrl-C.
    So does a SIGHUP, of a terminal that closes, unless it was to be ignored (``nohup``).
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    formers = {number: signal.getsignal(number) for number in _ASKING}
    formers = {n: former for n, former in formers.items() if former is not signal.SIG_IGN}
    interrupts: list[int] = []

    def hear(number: int, frame: Any) -> None:
        stop.asked = True
        interrupts.extend([number] * (number == signal.SIGINT))
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    for number in formers:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, former in formers.items():
            signal.signal(number, former)


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Hold an interrupt (Ctrl-C) back until the block is done; a second one comes through at
    once.
    """
    former = signal.getsignal(signal.SIGINT)
    if not callable(former) or threading.current_thread() is not threading.main_thread():
        yield  # ignored or not Python's to handle, or only the main thread hears of it anyway
        return
    heard: list[Any] = []

    def hear(number: int, frame: Any) -> None:
        heard.append(frame)
        if len(heard) > 1:
            former(number, frame)

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if len(heard) == 1:
        former(signal.SIGINT, heard[0])
