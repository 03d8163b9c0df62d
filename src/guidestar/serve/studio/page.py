"""The page: settings on the left, what is done with them on the right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from ...guidance import ExpressionError
from ..errors import EngineError
from ..web.errors import RefusedError
from ..web.service import Service
from . import drawing, problems
from .form import Form, read_query
from .panel import Panel, change_argument, default_form, draw_controls, restructure, sent_by
from .planning import plan
from .running import JobProgress
from .session import Session, Sessions
from .starts import read_start

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

KEPT = 600, 3600
"""Seconds between looks at pictures that were dropped, and after which these are deleted."""

ADDRESS = "q => { history.replaceState(null, '', q ? '?' + q : location.pathname); }"
"""Writes the settings into the page's address."""

DARK = "() => { document.body.classList.toggle('dark'); }"

WRONG = (ValueError, ArithmeticError, EngineError, RefusedError, MemoryError)
"""What a run can be refused with."""

FormData = Mapping[Any, Any]
"""The values of fields, by the field."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
RUN = {**QUIET, "concurrency_limit": None}
LATEST = {**RUN, "trigger_mode": "always_last"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Page:
    """What all parts of the page share.

    Args:
        service: that carries out its runs.
        sessions: the visits.
        panel: the settings.
    """

    service: Service
    sessions: Sessions
    panel: Panel

    def session(self, request: gr.Request) -> Session:
        """Return the visit that a request belongs to."""
        owner = getattr(getattr(request.request, "state", None), "owner", None)
        client = request.client.host if request.client else "unknown"
        return self.sessions.find(str(request.session_hash), owner or f"client-{client}")

    def form(self, data: FormData) -> Form:
        """Read the settings.

        Raises:
            ValueError: a field cannot be read.
        """
        return self.panel.read([data[field] for field in self.panel.fields])


def make_page(service: Service, sessions: Sessions | None = None) -> gr.Blocks:
    """Make the page of a service, for its visits."""
    from .making import add_make
    from .study import add_compare, add_explain, add_plot, add_restore

    sessions = sessions or Sessions(service)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Gradio's own imports
        blocks = gr.Blocks(
            title="guidestar studio",
            analytics_enabled=False,
            fill_width=True,
            delete_cache=KEPT,
        )
    with blocks:
        address = gr.Textbox(visible="hidden", elem_id="gs-address")
        with gr.Row(elem_id="gs-head"):
            gr.HTML("<h1>guidestar studio</h1>")
            dark = gr.Button("Light / dark", size="sm", scale=0, min_width=110)
        with gr.Row():
            with gr.Column(scale=5, min_width=330):
                panel = Panel(service)
            page = Page(service=service, sessions=sessions, panel=panel)
            with gr.Column(scale=7, min_width=330), gr.Tabs():
                with gr.Tab("Make", id="make"):
                    gallery = add_make(page, address)
                with gr.Tab("Compare", id="compare"):
                    add_compare(page)
                with gr.Tab("X/Y plot", id="plot"):
                    add_plot(page)
                with gr.Tab("Explain", id="explain"):
                    add_explain(page)
                with gr.Tab("Inverse problems", id="restore"):
                    add_restore(page)
        dark.click(None, js=DARK, api_visibility="private")
        _follow_settings(page, address)

        def open_page(query: str, request: gr.Request) -> list[object]:
            return _open(page, query, request)

        def leave(request: gr.Request) -> None:
            sessions.drop(str(request.session_hash))

        blocks.load(
            open_page,
            [address],
            [*panel.shown, gallery],
            js="() => [window.location.search]",
            **QUIET,
        )
        blocks.unload(leave)
    return blocks


def _open(page: Page, query: str, request: gr.Request) -> list[object]:
    """Fill the page in, from its address."""
    first = default_form(page.service, next(iter(page.service.engines)))
    try:
        name = parse_qs(query.lstrip("?")).get("model", [""])[-1]
        default = default_form(page.service, name) if name in page.service.engines else first
        form = read_query(query, default, list(page.service.engines), page.panel.starts.find)
        if form.start is None and "start" in parse_qs(query.lstrip("?")):
            gr.Warning("the picture to start from is not kept here any more; drop it again")
    except ValueError as error:
        gr.Warning(str(error))
        form = first
    return [*page.panel.write(form), page.session(request).gallery.draw()]


def _follow_settings(page: Page, address: Any) -> None:
    """Let text, controls, plan and address follow each other."""
    panel = page.panel

    def move(text: str, event: gr.EventData, request: gr.Request) -> tuple[object, object]:
        changed, wrong = change_argument(text or "", sent_by(event))
        if isinstance(changed, str):
            page.session(request).written.add(changed)
        return changed, wrong

    def rebuild(text: str, event: gr.EventData) -> tuple[object, object]:
        return restructure(text or "", sent_by(event))

    def redraw(text: str, request: gr.Request) -> object:
        text, written = text or "", page.session(request).written
        if text in written or len(text) > page.service.limits.prompt:
            return gr.skip()
        written.clear()
        return draw_controls(text)

    def choose(name: str | None) -> list[object]:
        if name not in page.service.engines:  # no model is chosen
            return [gr.skip() for _ in panel.shown]
        return panel.write(default_form(page.service, name))

    both = [panel.guidance, panel.problem]
    panel.controls.input(move, [panel.guidance], both, **{**QUIET, "queue": False})
    panel.controls.click(rebuild, [panel.guidance], both, **QUIET)
    panel.guidance.change(redraw, [panel.guidance], [panel.controls], **LATEST)
    panel.model.input(
        choose,
        [panel.model],
        panel.shown,
        **QUIET,
    )
    gr.on(
        [field.change for field in panel.fields],
        lambda data: _refresh(page, data),
        set(panel.fields),
        [panel.problem, panel.plan, address],
        **LATEST,
    )
    address.change(None, [address], None, js=ADDRESS, api_visibility="private")
    panel.start_drop.upload(
        lambda path: _drop_start(page, path),
        [panel.start_drop],
        [panel.start, panel.start_drop],
        **QUIET,
    )
    panel.start_shown.click(lambda: "", None, [panel.start], **QUIET)
    panel.start.change(
        lambda name: drawing.start(panel.starts.find(name or "")),
        [panel.start],
        [panel.start_shown],
        **LATEST,
    )


def _drop_start(page: Page, path: str | None) -> tuple[object, object]:
    """Keep a picture to start from; return its name, and an empty field for the next."""
    if not path:
        return gr.skip(), gr.skip()
    service = page.service
    side = max(512, *(max(size) for size in service.sizes.values()))  # what any model here takes
    try:
        return page.panel.starts.keep(read_start(path, service.limits.pixels, side)), None
    except ValueError as error:
        gr.Warning(message_of(error))
        return gr.skip(), None


def _refresh(page: Page, data: FormData) -> tuple[object, object, object]:
    """Check the settings, and draw their plan; return error, plan and address."""
    text = data[page.panel.guidance] or ""
    if len(text) > (most := page.service.limits.prompt):
        long = f"an expression may have {most} characters here, not {len(text)}"
        return drawing.problem(problems.locate("", long)), gr.skip(), gr.skip()
    if (wrong := problems.find_problem(text)) is not None:
        return drawing.problem(wrong), gr.skip(), gr.skip()
    try:
        form = page.form(data)
        return "", drawing.plan(plan(page.service, form)), form.write_query()
    except WRONG as error:
        return drawing.problem(problems.locate(text, message_of(error))), gr.skip(), gr.skip()


def message_of(error: BaseException) -> str:
    """Return what an error says, in one line."""
    if isinstance(error, ExpressionError):
        return error.problem
    text = getattr(error, "message", None) or str(error)
    return str(text).partition("\n")[0]


def failed(error: BaseException) -> str:
    """Show an error in the place of the progress."""
    return drawing.progress([JobProgress(status="failed", message=message_of(error))])


def labels_of(form: Form) -> list[str]:
    """Name the pictures of a run."""
    several = len(form.conds) > 1
    return [f"{cond} · {seed}" if several else f"seed {seed}" for cond, seed in form.samples]
