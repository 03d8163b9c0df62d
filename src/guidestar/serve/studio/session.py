"""What the page keeps of each visitor: their runs and their gallery."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from ..web.service import Service
from .form import Form
from .gallery import Entry, Gallery
from .running import Runs

_MOST = 500
"""Visitors that are kept; those who were away longest go first."""


class Session:
    """One visit of the page.

    Args:
        service: that carries out its runs.
        owner: as the service's limits count.

    ``written`` are the expressions that controls have written: these need not be drawn anew, which
    would take a slider away from the hand that moves it. ``made`` are the settings of the pictures
    that were made last, or are being made. ``axes`` are what a plot was offered last.
    """

    def __init__(self, service: Service, owner: str) -> None:
        self.runs = Runs(service, owner)
        self.gallery = Gallery()
        self.written: set[str] = set()
        self.made: Form | None = None
        self.axes: list[tuple[str, str]] = []


class Sessions:
    """The visits of the page, by their names."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._found: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, name: str, owner: str) -> Session:
        """Return a visit, new if need be."""
        with self._lock:
            found = self._found.get(name)
            if found is None:
                found = self._found[name] = Session(self.service, owner)
            self._found.move_to_end(name)
            gone = [self._found.popitem(last=False)[1] for _ in range(len(self._found) - _MOST)]
        for session in gone:
            session.runs.cancel()
        return found

    def picture(self, key: str, id: int) -> Entry | None:
        """Return a picture of the gallery whose secret is ``key``, if it is kept."""
        with self._lock:
            galleries = [session.gallery for session in self._found.values()]
        return next((g.find(id) for g in galleries if g.key == key), None)

    def drop(self, name: str) -> None:
        """End a visit, and cancel what is under way."""
        with self._lock:
            found = self._found.pop(name, None)
        if found is not None:
            found.runs.cancel()


def random_seeds(count: int) -> tuple[int, ...]:
    """Draw the first of ``count`` seeds."""
    first = secrets.randbelow(2**31)
    return tuple(range(first, first + count))
