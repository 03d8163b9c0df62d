"""Interrupts that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_back() -> Iterator[None]:
    """Hold an interrupt (Ctrl-C) back until the block is done; a second one comes through at once."""
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
