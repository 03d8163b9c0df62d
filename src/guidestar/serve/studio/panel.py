"""The panel of settings: its fields, and how they and a `Form` become each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from ...model.binding import find_scale
from ...model.fitted import FITTED
from ...model.model import Model
from ...sampling import SOLVERS
from ...sampling.grids import GRIDS
from ..web.service import Service
from . import builder, drawing, problems
from .form import Form, read_seeds, write_seeds
from .starts import STRENGTH, Start, Starts

_MOST_STEPS = 100
"""Steps of the slider; a request may have more."""

MOST_PROMPTS = 100
"""Prompts that may be written; the server's own limit is far below."""

SCRIPT = """
const send = (kind, data) => trigger(kind, data);
element.addEventListener('input', e => {
  const t = e.target, d = t.dataset;
  if (d.index === undefined) return;
  const value = t.type === 'checkbox' ? (t.checked ? 'True' : 'False') : t.value;
  element.querySelectorAll(`input[data-index="${d.index}"][data-name="${d.name}"]`).forEach(o => {
    if (o !== t) o.value = value;
  });
  if (t.type !== 'text') send('input', {index: Number(d.index), name: d.name, value});
});
element.addEventListener('change', e => {
  const t = e.target, d = t.dataset;
  if (d.base !== undefined) send('click', {action: 'base', value: t.value});
  else if (d.add !== undefined && t.value) {
    send('click', {action: 'add', value: t.value});
    t.value = '';
  }
  else if (t.type === 'text' && d.index !== undefined)
    send('input', {index: Number(d.index), name: d.name, value: t.value});
});
element.addEventListener('click', e => {
  const b = e.target.closest('[data-remove]');
  if (b) send('click', {action: 'remove', value: b.dataset.remove});
});
"""
"""Sends what a control changes; moving a slider does not draw the controls anew."""

REMOVE = """
element.addEventListener('click', e => {
  if (e.target.closest('[data-remove]')) trigger('click', {});
});
"""
"""Sends that a picture to start from is to be left out."""


class Panel:
    """The fields of the settings, as the page shows them.

    Args:
        service: whose models can be chosen.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._add_conditions()
        self._add_guidance()
        self._add_solver()
        self._add_start()

    def _add_conditions(self) -> None:
        """Add the model and what its samples are of."""
        names = list(self.service.engines)
        start = default_form(self.service, names[0])
        with gr.Row():
            self.model = gr.Dropdown(
                names, value=start.model, label="Model", min_width=130, elem_id="gs-model"
            )
            self.classes = gr.Dropdown(
                label="Classes (none: unconditional)",
                multiselect=True,
                min_width=170,
                elem_id="gs-classes",
            )
            self.prompts = gr.Textbox(
                label="Prompts, one a line", lines=2, min_width=170, elem_id="gs-prompts"
            )

    def _add_guidance(self) -> None:
        """Add the expression with its plan and controls, the seeds and the steps."""
        self.guidance = gr.Textbox(
            label="Guidance", lines=1, max_lines=3, elem_id="gs-guidance", autofocus=True
        )
        self.problem = gr.HTML(elem_id="gs-problem")
        self.plan = gr.HTML(elem_id="gs-plan")
        with gr.Row():
            self.seeds = gr.Textbox(label="Seeds (0-3: several)", min_width=110, elem_id="gs-seeds")
            top = min(_MOST_STEPS, self.service.limits.steps)
            self.steps = gr.Slider(
                1, top, step=1, label="Steps", min_width=150, elem_id="gs-steps", buttons=[]
            )
        self.random = gr.Checkbox(
            label="New seeds at every run", container=False, elem_id="gs-random"
        )
        with gr.Accordion("Build the expression", open=True, elem_id="gs-building"):
            self.controls = gr.HTML(js_on_load=SCRIPT, elem_id="gs-controls")

    def _add_solver(self) -> None:
        """Add the solver, its levels, the negative and a student's scale."""
        with gr.Row():
            self.solver = gr.Dropdown(
                list(SOLVERS),
                label="Solver",
                allow_custom_value=True,
                min_width=130,
                elem_id="gs-solver",
            )
            levels = [("recommended", ""), *((name, name) for name in (*GRIDS, FITTED))]
            self.grid = gr.Dropdown(levels, label="Noise levels", min_width=130, elem_id="gs-grid")
            self.negative = gr.Textbox(label="Negative", min_width=130, elem_id="gs-negative")
        self.scale = gr.Slider(
            0, 10, step=0.1, label="Scale of the student", visible=False, elem_id="gs-scale"
        )

    def _add_start(self) -> None:
        """Add the picture to start from."""
        self.starts = Starts()
        self.start = gr.Textbox(visible="hidden", elem_id="gs-start")
        with gr.Accordion("Start from a picture", open=False, elem_id="gs-starting") as starting:
            self.starting = starting
            self.start_drop = gr.File(
                label="Drop a picture; the stronger, the less of it is left",
                file_types=["image"],
                height=84,
                elem_id="gs-start-drop",
            )
            self.start_shown = gr.HTML(elem_id="gs-start-shown", js_on_load=REMOVE)
            self.strength = gr.Slider(
                0.05,
                1,
                value=STRENGTH,
                step=0.05,
                label="Strength (the share of the steps)",
                elem_id="gs-strength",
            )

    @property
    def fields(self) -> list[Any]:
        """The fields of a `Form`, as `read` takes them."""
        return [
            self.model,
            self.classes,
            self.prompts,
            self.negative,
            self.seeds,
            self.steps,
            self.solver,
            self.grid,
            self.guidance,
            self.scale,
            self.start,
            self.strength,
        ]

    @property
    def shown(self) -> list[Any]:
        """What `write` gives values for: the fields, the controls of the expression, and whether
        the picture to start from is open.
        """
        return [*self.fields, self.controls, self.starting]

    def read(self, values: Sequence[Any]) -> Form:
        """Return the settings of the fields' values.

        Raises:
            ValueError: the seeds cannot be read, or there is no such model.
        """
        name, classes, prompts, negative, seeds, steps, solver, grid, guidance, scale = values[:10]
        start, strength = values[10:]
        if name not in self.service.engines:
            raise ValueError("choose a model")
        model = self.service.engines[name].model
        conds = tuple(classes or ()) if model.classes else tuple(_lines(prompts))
        return Form(
            model=name,
            conds=conds if model.encoder is not None else (),
            negative=(negative or "").strip(),
            seeds=read_seeds(seeds or ""),
            steps=None if steps is None else int(steps),
            solver=solver or "",
            grid=grid or "",
            guidance=guidance or "",
            scale=None if scale is None or find_scale(model.denoiser) is None else float(scale),
            start=self._start(start or ""),
            strength=STRENGTH if strength is None else float(strength),
        )

    def _start(self, name: str) -> Start | None:
        """Return a picture to start from by its name.

        Raises:
            ValueError: it is not kept.
        """
        found = self.starts.find(name) if name else None
        if name and found is None:
            raise ValueError("the picture to start from is not kept any more; drop it again")
        return found

    def write(self, form: Form) -> list[Any]:
        """Return the values of `shown` for some settings."""
        model = self.service.engines[form.model].model
        classes, takes = list(model.classes), model.encoder is not None
        embed = find_scale(model.denoiser)
        scale = gr.update(visible=False, value=None)
        if embed is not None:
            value = embed.default if form.scale is None else form.scale
            scale = gr.update(visible=True, minimum=embed.low, maximum=embed.high, value=value)
        return [
            form.model,
            gr.update(
                choices=classes,
                value=[c for c in form.conds if c in classes],
                visible=bool(classes),
            ),
            gr.update(value="\n".join(form.conds), visible=takes and not classes),
            gr.update(value=form.negative, visible=takes),
            write_seeds(form.seeds),
            form.steps,
            form.solver,
            form.grid,
            form.guidance,
            scale,
            "" if form.start is None else self.starts.keep(form.start),
            form.strength,
            draw_controls(form.guidance),
            gr.skip() if form.start is None else gr.update(open=True),
        ]


def default_form(service: Service, name: str) -> Form:
    """Return the settings that a model's card recommends."""
    model: Model = service.engines[name].model
    conds: tuple[str, ...] = ()
    if model.classes:
        conds = (model.classes[-1],)
    elif model.encoder is not None:
        conds = (str(model.card.get("example", "a red apple")),)
    return Form(
        model=name,
        conds=conds,
        seeds=tuple(range(4)),
        steps=min(model.defaults.get("steps", 20), service.limits.steps),
        solver=model.defaults.get("solver", "dpmpp-2m"),
        grid="",
        guidance=str(model.expression(None, conditional=bool(conds))),
    )


def draw_controls(text: str) -> object:
    """Draw the controls of an expression; leave them as they are where it does not parse."""
    try:
        parts = builder.parts_of(text) if text.strip() else ()
        base = builder.base_of(text) if text.strip() else ""
    except ValueError:
        return gr.skip()
    return drawing.controls(parts, base, builder.methods())


def change_argument(text: str, data: Mapping[str, Any]) -> tuple[object, object]:
    """Write what a control changed into the expression; return it, and the error if any."""
    return _attempt(
        lambda: builder.change(text, int(data["index"]), str(data["name"]), str(data["value"]))
    )


def restructure(text: str, data: Mapping[str, Any]) -> tuple[object, object]:
    """Add or remove a part, or set the base; return the expression, and the error if any."""
    value = str(data.get("value", ""))
    actions: dict[str, Callable[[], str]] = {
        "add": lambda: builder.add(text, value),
        "remove": lambda: builder.remove(text, int(value)),
        "base": lambda: builder.set_base(text, value),
    }
    action = str(data.get("action"))
    return _attempt(actions[action]) if action in actions else (gr.skip(), gr.skip())


def sent_by(event: gr.EventData) -> Mapping[str, Any]:
    """Return what the page's script sent with an event; nothing where it is of another kind."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}


def _attempt(make: Callable[[], str]) -> tuple[object, object]:
    try:
        return make(), ""
    except KeyError:  # the script sent less than it does
        return gr.skip(), gr.skip()
    except (ValueError, TypeError) as error:
        text = str(getattr(error, "problem", "") or error).partition("\n")[0]
        return gr.skip(), drawing.problem(problems.locate("", text))


def _lines(text: str | None) -> list[str]:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if len(lines) > MOST_PROMPTS:
        raise ValueError(f"there may be {MOST_PROMPTS} prompts at most, not {len(lines)}")
    return lines
