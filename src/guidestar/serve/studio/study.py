"""Parts of the page that study a guidance: compare, X/Y plot, explain, inverse problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import gradio as gr

from ...model.model import Model
from ..web.building import at_most
from . import comparing, drawing, plotting, problems, restoring
from .explaining import maps_of
from .page import LATEST, QUIET, RUN, WRONG, FormData, Page, failed, labels_of
from .running import JobProgress


def add_compare(page: Page) -> None:
    """Add the comparison of two expressions."""
    panel = page.panel
    second = gr.Textbox(
        label="Second expression (the first is the one of the settings)",
        value="cond",
        elem_id="gs-second",
    )
    wrong = gr.HTML(elem_id="gs-second-problem")
    with gr.Row():
        run = gr.Button("Compare", variant="primary", elem_id="gs-compare")
        stop = gr.Button("Cancel", min_width=90, scale=0)
    state = gr.HTML(drawing.progress([]), elem_id="gs-compare-state")
    shown = gr.HTML(
        drawing.pictures([], [], note="The same seeds under both, and their difference."),
        elem_id="gs-compared",
    )
    second.change(
        lambda text: drawing.problem(problems.find_problem(text)), [second], [wrong], **LATEST
    )

    def compare(data: FormData, request: gr.Request) -> Iterator[tuple[object, object]]:
        try:
            form = page.form(data)
            forms = [form, replace(form, guidance=data[second] or "")]
            requests = [f.request(preview_every=4) for f in forms]
            for found in page.session(request).runs.follow("compare", requests):
                yield (
                    _compared([f.guidance for f in forms], labels_of(form), found),
                    (drawing.progress(found)),
                )
        except WRONG as error:
            yield gr.skip(), failed(error)

    gr.on([run.click, second.submit], compare, {*panel.fields, second}, [shown, state], **RUN)
    _add_stop(page, stop, "compare")


def _compared(expressions: list[str], labels: list[str], found: list[JobProgress]) -> Any:
    if not all(p.pictures for p in found):
        return gr.skip()
    rows = [
        f"<h4><code>{drawing.escape(text)}</code></h4>{drawing.pictures(p.pictures, labels)}"
        for text, p in zip(expressions, found, strict=True)
    ]
    if all(p.status == "done" for p in found):
        pairs = zip(found[0].pictures, found[1].pictures, strict=True)
        deltas = [comparing.difference_picture(a, b) for a, b in pairs]
        sizes = [f"at most {100 * most:.3g} %" for _, most in deltas]
        rows.append(
            "<h4>second − first (grey: the same)</h4>"
            f"{drawing.pictures([image for image, _ in deltas], sizes)}"
        )
    return "".join(rows)


def add_plot(page: Page) -> None:
    """Add the X/Y plot."""
    panel = page.panel
    axes, values = [], []
    for name in ("X", "Y"):
        with gr.Row():
            axes.append(gr.Dropdown([], label=f"{name} axis", elem_id=f"gs-axis-{name.lower()}"))
            values.append(gr.Textbox(label="Values", elem_id=f"gs-values-{name.lower()}"))
    with gr.Row():
        run = gr.Button("Plot", variant="primary", elem_id="gs-plot-run")
        stop = gr.Button("Cancel", min_width=90, scale=0)
    state = gr.HTML(drawing.progress([]), elem_id="gs-plot-state")
    shown = gr.HTML(
        drawing.pictures([], [], note="One picture for each pair of values."), elem_id="gs-plot"
    )

    def offer(data: FormData, request: gr.Request) -> tuple[object, object]:
        session = page.session(request)
        try:
            choices = plotting.axes_of(page.form(data))
        except WRONG:
            return gr.skip(), gr.skip()
        if choices == session.axes:  # what a slider changes is no reason to draw them anew
            return gr.skip(), gr.skip()
        session.axes = choices
        keys = [key for _, key in choices]
        first = [keys[0], "steps"] if keys[0] != "steps" else ["steps", "solver"]
        kept = [data[a] if data[a] in keys else first[k] for k, a in enumerate(axes)]
        return gr.update(choices=choices, value=kept[0]), gr.update(choices=choices, value=kept[1])

    gr.on(
        [panel.guidance.change, panel.model.change], offer, {*panel.fields, *axes}, axes, **LATEST
    )
    for axis, value in zip(axes, values, strict=True):
        axis.change(
            lambda data, axis=axis: _suggested(page, data, data[axis]),
            {*panel.fields, axis},
            [value],
            **LATEST,
        )

    def plot(data: FormData, request: gr.Request) -> Iterator[tuple[object, object]]:
        skip = gr.skip()
        try:
            form = page.form(data)
            x, y = (
                plotting.read_axis(form, data[a] or "", data[v] or "")
                for a, v in zip(axes, values, strict=True)
            )
            requests = [f.request() for row in plotting.cells(form, x, y) for f in row]
            found: list[JobProgress] = []
            for found in page.session(request).runs.follow("plot", requests):
                yield skip, drawing.progress(found)
            if all(p.pictures for p in found):
                made = plotting.draw(form, x, y, [p.pictures[0] for p in found])
                yield drawing.plot(made, f"{x.label} × {y.label}"), drawing.progress(found)
        except WRONG as error:
            yield skip, failed(error)

    run.click(plot, {*panel.fields, *axes, *values}, [shown, state], **RUN)
    _add_stop(page, stop, "plot")


def _suggested(page: Page, data: FormData, key: str | None) -> Any:
    try:
        return plotting.suggest(page.form(data), key or "")
    except WRONG:
        return gr.skip()


def add_explain(page: Page) -> None:
    """Add the explanation of a run."""
    with gr.Row():
        run = gr.Button("Explain", variant="primary", elem_id="gs-explain")
        stop = gr.Button("Cancel", min_width=90, scale=0)
    state = gr.HTML(drawing.progress([]), elem_id="gs-explain-state")
    shown = gr.HTML(
        drawing.pictures([], [], note="What each term of the expression does, step by step."),
        elem_id="gs-explained",
    )

    def explain(data: FormData, request: gr.Request) -> Iterator[tuple[object, object]]:
        session = page.session(request)
        try:
            form = page.form(data)
            for found in session.runs.follow("explain", [form.request(explain=True)]):
                drawn: Any = gr.skip()
                if found[0].status == "done":
                    pushes = session.runs.last("explain")[0].ticket.pushes
                    drawn = drawing.pushes(pushes, maps_of(pushes)) + drawing.pictures(
                        found[0].pictures, labels_of(form)
                    )
                yield drawn, drawing.progress(found)
        except WRONG as error:
            yield gr.skip(), failed(error)

    run.click(explain, set(page.panel.fields), [shown, state], **RUN)
    _add_stop(page, stop, "explain")


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """The fields of what was done to a picture.

    Args:
        picture: the picture; for inpainting, painted over.
        operator: what was done to it.
        noise: its standard deviation.
        factor: of downsample.
        deviation: of blur.
    """

    picture: gr.ImageEditor
    operator: gr.Dropdown
    noise: gr.Slider
    factor: gr.Slider
    deviation: gr.Slider

    @property
    def all(self) -> set[Any]:
        """All fields."""
        return {getattr(self, f.name) for f in fields(self)}

    def observe(self, data: FormData, model: Model, most: int) -> restoring.InverseProblem:
        """Return what is observed of the picture.

        Args:
            data: the values of the fields.
            model: whose pictures it is like.
            most: the largest number of its pixels.

        Raises:
            ValueError: there is no picture, or it is too large.
        """
        painted = data[self.picture] or {}
        if painted.get("background") is None:
            raise ValueError("drop a picture first")
        width, height = painted["background"].size
        at_most("the number of pixels", width * height, most)
        layers = painted.get("layers") or []
        return restoring.observe(
            model,
            painted["background"],
            data[self.operator],
            mask=layers[0].getchannel("A") if layers else None,
            options={"factor": data[self.factor], "deviation": data[self.deviation]},
            noise=data[self.noise],
        )


def _add_degradation(page: Page) -> Degradation:
    """Add the fields of what was done to a picture."""
    model = next(iter(page.service.engines.values())).model
    picture = gr.ImageEditor(
        type="pil",
        label="Drop a picture; for inpainting, paint over what is to be filled in",
        sources=["upload", "clipboard"],
        brush=gr.Brush(colors=["#d1495b"], default_size=24, color_mode="fixed"),
        layers=False,
        transforms=["crop"],
        height=360,
        elem_id="gs-picture",
    )
    with gr.Row():
        operator = gr.Dropdown(
            restoring.operators_for(model),
            value="inpaint",
            label="What was done to it",
            elem_id="gs-operator",
        )
        noise = gr.Slider(0, 0.5, value=0, step=0.01, label="Noise", elem_id="gs-noise")
    with gr.Row():
        factor = gr.Slider(2, 8, value=2, step=1, label="Factor of downsample", visible=False)
        deviation = gr.Slider(0.5, 5, value=1.5, step=0.1, label="Deviation of blur", visible=False)
    operator.change(
        lambda name: (gr.update(visible=name == "downsample"), gr.update(visible=name == "blur")),
        [operator],
        [factor, deviation],
        **QUIET,
    )
    page.panel.model.change(
        lambda name: (
            gr.update(
                choices=restoring.operators_for(page.service.engines[name].model), value="inpaint"
            )
            if name in page.service.engines
            else gr.skip()
        ),
        [page.panel.model],
        [operator],
        **QUIET,
    )
    return Degradation(
        picture=picture, operator=operator, noise=noise, factor=factor, deviation=deviation
    )


def add_restore(page: Page) -> None:
    """Add inverse problems."""
    given = _add_degradation(page)
    guidance = gr.Textbox(
        label=f"Expression, with one of {', '.join(restoring.lowering())}",
        value=restoring.EXPRESSION,
        elem_id="gs-restoring",
    )
    wrong = gr.HTML(elem_id="gs-restoring-problem")
    with gr.Row():
        run = gr.Button("Restore", variant="primary", elem_id="gs-restore")
        stop = gr.Button("Cancel", min_width=90, scale=0)
    state = gr.HTML(drawing.progress([]), elem_id="gs-restore-state")
    shown = gr.HTML(elem_id="gs-restored")
    guidance.change(
        lambda text: drawing.problem(problems.find_problem(text)), [guidance], [wrong], **LATEST
    )

    def restore(data: FormData, request: gr.Request) -> Iterator[tuple[object, object]]:
        try:
            form = replace(page.form(data), guidance=data[guidance] or "")
            model = page.service.engines[form.model].model
            made = given.observe(data, model, page.service.limits.pixels)
            body = form.request(observation=made.observation, preview_every=2)
            known = [made.original, made.observed]
            for found in page.session(request).runs.follow("restore", [body]):
                drawn = drawing.pictures(
                    [*known, *found[0].pictures],
                    ["picture", "observed", *(f"restored, {text}" for text in labels_of(form))],
                )
                yield drawn, drawing.progress(found)
        except WRONG as error:
            yield gr.skip(), failed(error)

    inputs = {*page.panel.fields, guidance, *given.all}
    run.click(restore, inputs, [shown, state], **RUN)
    _add_stop(page, stop, "restore")


def _add_stop(page: Page, stop: Any, kind: str) -> None:
    def cancel(request: gr.Request) -> None:
        page.session(request).runs.cancel(kind)

    stop.click(cancel, None, None, **{**QUIET, "queue": False})
