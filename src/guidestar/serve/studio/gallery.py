"""The pictures that a visitor made, with their settings, as long as the page is open."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from .form import Form

MOST = 60
"""Pictures that are kept; the oldest go first."""

GALLERY_PATH = "/studio/gallery"
"""Where browsers fetch the pictures: each once, however often the gallery is drawn."""

_MOST_BYTES = 64 * 2**20
"""Bytes of all of them together."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A picture of the gallery.

    Args:
        id: of it, in this gallery.
        form: settings that make it alone.
        image: PNG in base64, which carries its settings.
    """

    id: int
    form: Form
    image: str

    @property
    def label(self) -> str:
        """What it is, in a line."""
        name = self.form.conds[0] if self.form.conds else "unconditional"
        start = f" · from a picture at {self.form.strength:g}" if self.form.start else ""
        return f"{name} · seed {self.form.seeds[0]} · {self.form.guidance}{start}"

    @property
    def file(self) -> str:
        """The name of its file."""
        return picture_name(self.form, 0)

    @property
    def png(self) -> bytes:
        """The file."""
        return base64.b64decode(self.image)


class Gallery:
    """Pictures, the newest first. Their addresses, `key` in them, are a secret of the visitor."""

    def __init__(self) -> None:
        self.key = secrets.token_hex(12)
        self.entries: list[Entry] = []
        self._next = 0

    def add(self, form: Form, images: Sequence[str]) -> None:
        """Add the pictures of a run, each with the settings that make it alone."""
        made = []
        for (cond, seed), image in zip(form.samples, images, strict=True):
            alone = replace(form, conds=() if cond is None else (cond,), seeds=(seed,))
            made.append(Entry(id=self._next, form=alone, image=image))
            self._next += 1
        self.entries = [*made, *self.entries][:MOST]
        while len(self.entries) > 1 and sum(len(e.image) for e in self.entries) > _MOST_BYTES:
            self.entries.pop()

    def remove(self, id: int) -> None:
        """Take a picture out."""
        self.entries = [e for e in self.entries if e.id != id]

    def find(self, id: object) -> Entry | None:
        """Return a picture by its id."""
        return next((e for e in self.entries if e.id == id), None)

    def draw(self) -> str:
        """Show them, each with what can be done with it."""
        if not self.entries:
            return '<div class="gs-empty">Pictures that you make are kept here.</div>'
        cards = (
            _card(entry, f"{GALLERY_PATH}/{self.key}/{entry.id}.png") for entry in self.entries
        )
        return f'<div class="gs-gallery">{"".join(cards)}</div>'


def picture_name(form: Form, index: int) -> str:
    """Name the file of a picture of a run."""
    cond, seed = form.samples[index]
    words = "".join(c if c.isalnum() else "-" for c in (cond or "uncond"))[:40]
    return f"{words}-seed{seed}.png"


def _card(entry: Entry, address: str) -> str:
    label, file = escape(entry.label, quote=True), escape(entry.file, quote=True)
    buttons = "".join(
        f'<button type="button" data-action="{action}" data-id="{entry.id}" '
        f'title="{title}" aria-label="{title}">{sign}</button>'
        for action, sign, title in (
            ("restore", "↩", "bring its settings back"),
            ("again", "⟳", "make it again"),
            ("delete", "×", "delete it"),
        )
    )
    return (
        f'<figure title="{label}"><img src="{address}" alt="{label}"><figcaption>{label}'
        f'</figcaption><nav>{buttons}<a download="{file}" href="{address}" '
        'title="download" aria-label="download">↓</a></nav></figure>'
    )
