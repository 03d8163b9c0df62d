"""The part of the page that makes pictures: runs, previews, dropped pictures, the gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ...io.images import read_settings
from . import drawing
from .form import read_picture, write_seeds
from .gallery import picture_name
from .page import LATEST, QUIET, RUN, WRONG, Data, Page, failed, labels_of, message_of
from .running import preview_every
from .session import random_seeds

GALLERY = """
element.addEventListener('click', e => {
  const b = e.target.closest('[data-action]');
  if (!b) return;
  const data = {action: b.dataset.action, id: Number(b.dataset.id)};
  trigger(data.action === 'again' ? 'submit' : 'click', data);
});
"""
"""Sends which button of which picture was pressed."""


def add_make(page: Page, address: Any) -> Any:
    """Add what makes pictures; return the gallery.

    Args:
        page: that it is part of.
        address: changes whenever the settings do, and can be carried out.
    """
    panel = page.panel
    with gr.Row():
        run = gr.Button("Make pictures", variant="primary", elem_id="gs-run")
        stop = gr.Button("Cancel", elem_id="gs-cancel", min_width=90, scale=0)
        live = gr.Checkbox(
            label="Redraw at once",
            info="on every change of a setting",
            min_width=150,
            elem_id="gs-live",
        )
    state = gr.HTML(drawing.progress([]), elem_id="gs-state")
    shown = gr.HTML(
        drawing.pictures([], [], note="Choose what to show, and make pictures."),
        elem_id="gs-pictures",
    )
    dropped = gr.File(
        label="Drop a PNG that was made here or by the command line: its settings come back",
        file_types=[".png"],
        height=84,
        elem_id="gs-drop",
    )
    with gr.Accordion("Gallery of this visit", open=True):
        gallery = gr.HTML(elem_id="gs-gallery", js_on_load=GALLERY)
    fields, outputs = {*panel.fields, panel.random}, [shown, state, gallery, panel.seeds]

    def make(data: Data, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        yield from _make(page, data, request, fresh=bool(data[panel.random]))

    def redraw(data: Data, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        if data[live]:
            yield from _make(page, data, request, fresh=False)
        else:
            yield (gr.skip(),) * 4

    run.click(make, fields, outputs, **RUN)
    panel.guidance.submit(make, fields, outputs, **RUN)
    address.change(redraw, {*fields, live}, outputs, **LATEST)

    def cancel(request: gr.Request) -> None:
        _cancel(page, request)

    def use(event: gr.EventData, request: gr.Request) -> list[Any]:
        return _use(page, event, request)

    stop.click(cancel, None, None, **{**QUIET, "queue": False})
    dropped.upload(lambda path: _drop(page, path), [dropped], [*panel.shown, dropped], **QUIET)
    gallery.click(use, None, [gallery, *panel.shown], **QUIET)
    gallery.submit(use, None, [gallery, *panel.shown], **QUIET).then(make, fields, outputs, **RUN)
    return gallery


def _make(page: Page, data: Data, request: gr.Request, *, fresh: bool) -> Iterator[tuple[Any, ...]]:
    session = page.session(request)
    skip = gr.skip()
    try:
        form = page.form(data)
        if fresh:
            form = replace(form, seeds=random_seeds(len(form.seeds)))
            yield skip, skip, skip, write_seeds(form.seeds)
        labels = labels_of(form)
        asked = form.request(preview_every=preview_every(form.steps or 20))
        for found in session.runs.follow("make", [asked]):
            p = found[0]
            if p.status == "done":
                session.gallery.add(form, p.pictures)
                files = [picture_name(form, k) for k in range(len(labels))]
                drawn = drawing.pictures(p.pictures, labels, files)
                yield drawn, drawing.progress(found), session.gallery.draw(), skip
            else:
                drawn = drawing.pictures(p.pictures, labels) if p.pictures else skip
                yield drawn, drawing.progress(found), skip, skip
    except WRONG as error:
        yield skip, failed(error), skip, skip


def _cancel(page: Page, request: gr.Request) -> None:
    if not page.session(request).runs.cancel():
        gr.Info("nothing is under way")


def _drop(page: Page, path: str | None) -> list[Any]:
    """Bring back the settings of a picture."""
    nothing = [gr.skip() for _ in page.panel.shown]
    if not path:
        return [*nothing, gr.skip()]
    try:
        form = read_picture(read_settings(Path(path).read_bytes()), list(page.service.engines))
    except (ValueError, OSError) as error:
        gr.Warning(message_of(error))
        return [*nothing, None]
    gr.Info("the settings of the picture are back")
    return [*page.panel.write(form), None]


def _use(page: Page, event: gr.EventData, request: gr.Request) -> list[Any]:
    """Delete a picture of the gallery, or bring its settings back."""
    session, data = page.session(request), event._data or {}
    entry = session.gallery.find(int(data.get("id", -1)))
    unchanged: list[Any] = [gr.skip() for _ in page.panel.shown]
    if entry is not None and data.get("action") == "delete":
        session.gallery.remove(entry.id)
    elif entry is not None:
        unchanged = page.panel.write(entry.form)
    return [session.gallery.draw(), *unchanged]
