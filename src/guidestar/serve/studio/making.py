"""The part of the page that makes pictures: runs, previews, dropped pictures, the gallery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from ...io.images import read_settings
from . import drawing, problems
from .form import Form, read_picture, write_seeds
from .gallery import picture_name
from .page import LATEST, QUIET, RUN, WRONG, FormData, Page, failed, labels_of, message_of
from .panel import sent_by
from .running import preview_every
from .session import Session, random_seeds

FEW = 8
"""Steps up to which pictures that are redrawn have no previews: they would be in the way."""

PATIENCE = 0.3
"""Seconds after which a redrawing shows how far it is."""

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

    def make(data: FormData, request: gr.Request) -> Iterator[tuple[object, ...]]:
        yield from _make(page, data, request, fresh=bool(data[panel.random]))

    def redraw(data: FormData, request: gr.Request) -> Iterator[tuple[object, ...]]:
        if data[live]:
            yield from _redraw(page, data, request)
        else:
            yield (gr.skip(),) * 4

    run.click(make, fields, outputs, **RUN)
    panel.guidance.submit(make, fields, outputs, **RUN)
    # The expression redraws by itself, which spares it the way through the address; what the
    # address says then has been drawn already.
    panel.guidance.change(redraw, {*fields, live}, outputs, **LATEST)
    address.change(redraw, {*fields, live}, outputs, **LATEST)

    def cancel(request: gr.Request) -> None:
        _cancel(page, request)

    def use(event: gr.EventData, request: gr.Request) -> list[object]:
        return _use(page, event, request)

    stop.click(cancel, None, None, **{**QUIET, "queue": False})
    dropped.upload(lambda path: _drop(page, path), [dropped], [*panel.shown, dropped], **QUIET)
    gallery.click(use, None, [gallery, *panel.shown], **QUIET)
    gallery.submit(use, None, [gallery, *panel.shown], **QUIET).then(make, fields, outputs, **RUN)
    return gallery


def _make(
    page: Page, data: FormData, request: gr.Request, *, fresh: bool
) -> Iterator[tuple[object, ...]]:
    session = page.session(request)
    skip = gr.skip()
    try:
        form = page.form(data)
        if fresh:
            form = replace(form, seeds=random_seeds(len(form.seeds)))
            yield skip, skip, skip, write_seeds(form.seeds)
        yield from _follow(session, form, preview_every(form.steps or 20))
    except WRONG as error:
        yield skip, failed(error), skip, skip


def _redraw(page: Page, data: FormData, request: gr.Request) -> Iterator[tuple[object, ...]]:
    """Make the pictures again, if the settings have changed.

    What is wrong with an expression is marked at its place, so not here too.
    """
    session, skip = page.session(request), gr.skip()
    try:
        form = page.form(data)
        if form == session.made or problems.find_problem(form.guidance) is not None:
            yield skip, skip, skip, skip
            return
        steps = form.steps or 20
        every = 0 if steps <= FEW else preview_every(steps)
        for drawn, state, kept, seeds in _follow(session, form, every, wait=PATIENCE):
            yield drawn, state, skip, seeds
            if isinstance(kept, str):  # after the picture, as it may be large
                yield skip, skip, kept, skip
    except WRONG as error:
        yield skip, failed(error), skip, skip


def _follow(
    session: Session, form: Form, every: int, *, wait: float = 0.0
) -> Iterator[tuple[object, ...]]:
    """Make pictures, and yield what is to be shown; for ``wait`` seconds nothing but the result."""
    skip = gr.skip()
    labels = labels_of(form)
    session.made = form
    for found in session.runs.follow("make", [form.request(preview_every=every)]):
        p = found[0]
        if p.status == "done":
            session.gallery.add(form, p.pictures)
            files = [picture_name(form, k) for k in range(len(labels))]
            drawn = drawing.pictures(p.pictures, labels, files)
            yield drawn, drawing.progress(found), session.gallery.draw(), skip
        elif p.status == "cancelled" and session.made != form:
            return  # others took their place, and show where they stand
        elif p.status not in ("queued", "running") or p.seconds >= wait:
            drawn = drawing.pictures(p.pictures, labels) if p.pictures else skip
            yield drawn, drawing.progress(found), skip, skip


def _cancel(page: Page, request: gr.Request) -> None:
    if not page.session(request).runs.cancel():
        gr.Info("nothing is under way")


def _drop(page: Page, path: str | None) -> list[object]:
    """Bring back the settings of a picture."""
    nothing = [gr.skip() for _ in page.panel.shown]
    if not path:
        return [*nothing, gr.skip()]
    try:
        settings = read_settings(Path(path).read_bytes())
        started = settings.get("started") is True
        if started:  # all but that picture can come back
            settings = {**settings, "started": False}
        form = read_picture(settings, list(page.service.engines))
    except (ValueError, OSError) as error:
        gr.Warning(message_of(error))
        return [*nothing, None]
    gr.Info(
        "the settings of the picture are back, but for the picture that it started from, which "
        "it does not carry (drop that one too, at the picture to start from); its steps are those "
        "that it went through"
        if started
        else "the settings of the picture are back"
    )
    return [*page.panel.write(form), None]


def _use(page: Page, event: gr.EventData, request: gr.Request) -> list[object]:
    """Delete a picture of the gallery, or bring its settings back."""
    session, data = page.session(request), sent_by(event)
    entry = session.gallery.find(data.get("id"))
    unchanged: list[object] = [gr.skip() for _ in page.panel.shown]
    if entry is not None and data.get("action") == "delete":
        session.gallery.remove(entry.id)
    elif entry is not None:
        unchanged = page.panel.write(entry.form)
    return [session.gallery.draw(), *unchanged]
