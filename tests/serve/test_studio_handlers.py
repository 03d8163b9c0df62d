"""The studio's page without a browser: its fields, what they offer, and what each event does."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import secrets
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from guidestar.networks.guidance_scale import GuidanceScale
from guidestar.sampling import SOLVERS
from guidestar.sampling.grids import GRIDS
from guidestar.serve.studio import builder, drawing, plotting
from guidestar.serve.studio.form import Form
from guidestar.serve.studio.running import JobProgress
from guidestar.serve.web import Limits, Service, make_app
from guidestar.serve.web.errors import RefusedError
from helpers.served import Words, toy_model
from helpers.serving import PICTURE, opened, pixels

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio's own warnings
SKIP = {"__type__": "update"}


class Captions(Words):
    """The same words as prompts."""

    classes = ()


def student():
    made = toy_model(shape=PICTURE)
    vars(made.denoiser)["scale"] = GuidanceScale(width=4, low=1.5, high=6.0, default=2.5)
    return made


def captioned(**more):
    made = toy_model(shape=PICTURE, **more)
    made.encoder = Captions()  # type: ignore[assignment]
    return made


def bare():
    made = toy_model(shape=PICTURE)
    made.encoder, made.defaults = None, {}
    return made


@pytest.fixture(scope="module")
def service():
    pytest.importorskip("gradio")
    models: Any = {
        "toy": toy_model(shape=PICTURE),
        "captions": captioned(),
        "bare": bare(),
        "student": student(),
        "colour": toy_model(shape=(3, 8, 8)),
    }
    made = Service(models, Limits(seconds=60, per_client=6, steps=60, prompt=200, pixels=400))
    yield made
    made.close()


@pytest.fixture(scope="module")
def blocks(service):
    from guidestar.serve.studio.page import make_page

    return within_a_loop(lambda: make_page(service))


def within_a_loop(make):
    """Call a function while a loop runs: else Gradio makes some, and never closes them."""

    async def made():
        return make()

    return asyncio.run(made())


class Shown:
    """The page: its widgets by name, and its events as functions of their values."""

    def __init__(self, blocks: Any, visit: str) -> None:
        self.blocks, self.visit = blocks, visit
        self.widgets = {name_of(b): b for b in blocks.blocks.values()}
        self.values: dict[str, Any] = {}

    def value(self, widget: Any) -> Any:
        return self.values.get(name_of(widget), widget.value)

    def on(self, name: str, event: str, data: Any = None, nth: int = 0) -> list[Any]:
        """What an event's function returns, or yields."""
        (f, *_) = [f for f in self.blocks.fns.values() if (name, event) in targets(self, f)][nth:]
        given = [self.value(i) for i in f.inputs]
        args: list[Any] = [dict(zip(f.inputs, given, strict=True))] if f.inputs_as_dict else given
        known = {
            "request": SimpleNamespace(request=None, client=None, session_hash=self.visit),
            "event": SimpleNamespace(_data=data),
        }
        names = [n for n, p in inspect.signature(f.fn).parameters.items() if p.default is p.empty]
        args += [known[n] for n in names if n in known]
        found = f.fn(*args)
        return list(found) if inspect.isgenerator(found) else [found]


def name_of(widget: Any) -> str:
    own = getattr(widget, "elem_id", None) or getattr(widget, "label", None)
    return str(own or getattr(widget, "value", None) or type(widget).__name__)


def targets(shown: Shown, f: Any) -> list[tuple[str, str]]:
    found = []
    for key, event in f.targets:
        block = shown.blocks.blocks.get(key)
        found.append((name_of(block) if block is not None else "", event))
    return found


@pytest.fixture
def shown(blocks, request):
    made = Shown(blocks, request.node.name)
    made.values = {
        "gs-model": "toy", "gs-classes": ["cat"], "gs-prompts": "", "gs-seeds": "1-2",
        "gs-steps": 4, "gs-solver": "ddim", "gs-grid": "", "gs-negative": "",
        "gs-guidance": "cfg(2)", "gs-scale": None, "gs-random": False, "gs-live": False,
        "gs-second": "cond", "gs-axis-x": None, "gs-axis-y": None, "gs-values-x": "",
        "gs-values-y": "", "gs-operator": "identity", "gs-picture": None,
        "gs-start": "", "gs-strength": 0.6,
    }  # fmt: skip
    return made


def form(**more):
    given = {"model": "toy", "conds": ("cat",), "seeds": (1, 2), "steps": 4, "solver": "ddim",
             "guidance": "cfg(2)"}  # fmt: skip
    return Form(**{**given, **more})


FIELDS = ("model", "classes", "prompts", "negative", "seeds", "steps", "solver", "grid",
          "guidance", "scale", "start", "strength")  # fmt: skip
SETTINGS = [f"gs-{name}" for name in FIELDS]
WRITTEN = [*SETTINGS, "gs-controls", "gs-starting"]


def test_what_each_event_reads_and_writes(shown):
    found = {}
    for f in shown.blocks.fns.values():
        key = tuple(f"{name} {event}" for name, event in targets(shown, f))
        outputs = [name_of(o) for o in f.outputs]
        found.setdefault(key, []).append((sorted(name_of(i) for i in f.inputs), outputs))
    made = ["gs-pictures", "gs-state", "gs-gallery", "gs-seeds"]
    sure = sorted([*SETTINGS, "gs-random"])
    one = {
        ("gs-run click",): (sure, made),
        ("gs-guidance submit",): (sure, made),
        (" then",): (sure, made),
        ("gs-cancel click",): ([], []),
        ("gs-drop upload",): (["gs-drop"], [*WRITTEN, "gs-drop"]),
        ("gs-gallery click",): ([], ["gs-gallery", *WRITTEN]),
        ("gs-gallery submit",): ([], ["gs-gallery", *WRITTEN]),
        ("gs-second change",): (["gs-second"], ["gs-second-problem"]),
        ("gs-compare click", "gs-second submit"): (
            sorted([*SETTINGS, "gs-second"]),
            ["gs-compared", "gs-compare-state"],
        ),
        ("gs-guidance change", "gs-model change"): (
            sorted([*SETTINGS, "gs-axis-x", "gs-axis-y"]),
            ["gs-axis-x", "gs-axis-y"],
        ),
        ("gs-axis-x change",): (sorted([*SETTINGS, "gs-axis-x"]), ["gs-values-x"]),
        ("gs-axis-y change",): (sorted([*SETTINGS, "gs-axis-y"]), ["gs-values-y"]),
        ("gs-plot-run click",): (
            sorted([*SETTINGS, "gs-axis-x", "gs-axis-y", "gs-values-x", "gs-values-y"]),
            ["gs-plot", "gs-plot-state"],
        ),
        ("gs-explain click",): (sorted(SETTINGS), ["gs-explained", "gs-explain-state"]),
        ("gs-restoring change",): (["gs-restoring"], ["gs-restoring-problem"]),
        ("gs-operator change",): (["gs-operator"], ["Factor of downsample", "Deviation of blur"]),
        ("gs-model change",): (["gs-model"], ["gs-operator"]),
        ("gs-restore click",): (
            sorted([*SETTINGS, "gs-restoring", "gs-picture", "gs-operator", "gs-noise",
                    "Factor of downsample", "Deviation of blur"]),
            ["gs-restored", "gs-restore-state"],
        ),
        ("Light / dark click",): ([], []),
        ("gs-start-drop upload",): (["gs-start-drop"], ["gs-start", "gs-start-drop"]),
        ("gs-start-shown click",): ([], ["gs-start"]),
        ("gs-start change",): (["gs-start"], ["gs-start-shown"]),
        ("gs-controls input",): (["gs-guidance"], ["gs-guidance", "gs-problem"]),
        ("gs-controls click",): (["gs-guidance"], ["gs-guidance", "gs-problem"]),
        ("gs-model input",): (["gs-model"], WRITTEN),
        tuple(f"{name} change" for name in SETTINGS): (
            sorted(SETTINGS),
            ["gs-problem", "gs-plan", "gs-address"],
        ),
    }  # fmt: skip
    for key, wanted in one.items():
        assert found.pop(key) == [wanted], key
    assert found.pop(("gs-guidance change",)) == [
        (sorted([*SETTINGS, "gs-random", "gs-live"]), made),
        (["gs-guidance"], ["gs-controls"]),
    ]
    assert found.pop(("gs-address change",)) == [
        (sorted([*SETTINGS, "gs-random", "gs-live"]), made),
        (["gs-address"], []),
    ]
    assert found.pop(("Cancel click",)) == [([], [])] * 4
    (load, leave) = found.values()
    assert load == [(["gs-address"], [*WRITTEN, "gs-gallery"])]
    assert leave == [([], [])]


def test_what_fields_offer(shown):
    w = shown.widgets
    steps, scale, noise = w["gs-steps"], w["gs-scale"], w["gs-noise"]
    assert (steps.minimum, steps.maximum, steps.step) == (1, 60, 1)
    assert (scale.minimum, scale.maximum, scale.step, scale.visible) == (0, 10, 0.1, False)
    assert (noise.minimum, noise.maximum, noise.step, noise.value) == (0, 0.5, 0.01, 0)
    factor, deviation = w["Factor of downsample"], w["Deviation of blur"]
    assert (factor.minimum, factor.maximum, factor.step, factor.value) == (2, 8, 1, 2)
    assert (deviation.minimum, deviation.maximum) == (0.5, 5)
    assert (deviation.step, deviation.value) == (0.1, 1.5)
    assert not factor.visible and not deviation.visible
    assert [v for _, v in w["gs-model"].choices] == ["toy", "captions", "bare", "student", "colour"]
    assert w["gs-model"].value == "toy" and w["gs-classes"].multiselect
    assert [v for _, v in w["gs-solver"].choices] == list(SOLVERS)
    assert w["gs-solver"].allow_custom_value
    assert w["gs-grid"].choices == [("recommended", ""), *((g, g) for g in (*GRIDS, "fitted"))]
    assert w["gs-second"].value == "cond" and w["gs-restoring"].value == "cond + dps(5)"
    kinds = ["identity", "inpaint", "downsample", "blur"]
    assert [v for _, v in w["gs-operator"].choices if v in kinds] and w["gs-operator"].value == (
        "inpaint"
    )
    assert "gray" not in [v for _, v in w["gs-operator"].choices]
    editor = w["gs-picture"]
    assert editor.type == "pil" and editor.sources == ["upload", "clipboard"]
    assert editor.layers.disabled and list(editor.transforms) == ["crop"]
    strength = w["gs-strength"]
    assert (strength.minimum, strength.maximum, strength.step, strength.value) == (
        *(0.05, 1, 0.05, 0.6),
    )
    assert w["gs-start-drop"].file_types == ["image"] and w["gs-start"].visible == "hidden"
    assert not w["gs-starting"].open
    assert w["gs-drop"].file_types == [".png"] and w["gs-address"].visible == "hidden"
    assert w["gs-plan"].value in (None, "") and "make pictures" in w["gs-pictures"].value
    for name in ("gs-controls", "gs-gallery", "gs-start-shown"):
        assert "trigger(" in w[name].js_on_load
    assert shown.blocks.title == "guidestar studio" and not shown.blocks.analytics_enabled
    assert shown.blocks.delete_cache == (600, 3600)


@pytest.fixture
def panel(shown):
    """The panel of the page, by the function that its event calls."""
    (f,) = [f for f in shown.blocks.fns.values() if ("gs-model", "input") in targets(shown, f)]
    return inspect.getclosurevars(f.fn).nonlocals["panel"]


def test_fields_are_read_as_each_model_takes_them(panel):
    read = lambda **more: panel.read([more.get(name) for name in FIELDS])
    given: Any = {"classes": ["cat", "dog"], "prompts": " a \n\n b ", "negative": " x ",
                  "seeds": "3-4", "steps": 7.0, "solver": "heun", "grid": "karras",
                  "guidance": "cfg(3)", "scale": 3}  # fmt: skip
    common = {"negative": "x", "seeds": (3, 4), "steps": 7, "solver": "heun", "grid": "karras",
              "guidance": "cfg(3)"}  # fmt: skip
    assert read(model="toy", **given) == Form(model="toy", conds=("cat", "dog"), **common)
    assert read(model="captions", **given) == Form(model="captions", conds=("a", "b"), **common)
    assert read(model="bare", **given) == Form(model="bare", **common)
    own = Form(model="student", conds=("cat", "dog"), scale=3.0, **common)
    assert read(model="student", **given) == own
    nothing = Form(model="toy", seeds=(0,))
    assert read(model="toy", seeds="0") == nothing
    assert read(model="student", seeds="0") == Form(model="student", seeds=(0,))
    for name in (None, "other"):
        with pytest.raises(ValueError, match="choose a model"):
            read(model=name, **given)
    with pytest.raises(ValueError, match="there is no seed"):
        read(model="toy")
    lines = "\n".join(["p"] * 100)
    assert len(read(model="captions", seeds="0", prompts=lines).conds) == 100
    with pytest.raises(ValueError, match="there may be 100 prompts at most, not 101"):
        read(model="captions", seeds="0", prompts=lines + "\np")


def update(**more):
    return {**SKIP, **more}


def test_fields_are_written_as_each_model_takes_them(panel):
    found = panel.write(form(conds=("cat", "bird"), negative="n", grid="karras", seeds=(1, 2, 5)))
    assert found[:10] == [
        "toy",
        update(choices=["cat", "dog", "blurry"], value=["cat"], visible=True),
        update(value="cat\nbird", visible=False),
        update(value="n", visible=True),
        "1-2, 5",
        4,
        "ddim",
        "karras",
        "cfg(2)",
        update(value=None, visible=False),
    ]
    assert found[10:12] == ["", 0.6] and found[13] == SKIP
    parts = builder.parts_of("cfg(2)")
    assert found[12] == drawing.controls(parts, "", builder.methods())
    captions = panel.write(form(model="captions", conds=("a", "b")))
    assert captions[1] == update(choices=[], value=[], visible=False)
    assert captions[2] == update(value="a\nb", visible=True)
    nothing = panel.write(form(model="bare", conds=()))
    assert nothing[2]["visible"] is False and nothing[3]["visible"] is False
    for given, value in ((None, 2.5), (4.0, 4.0)):
        scaled = panel.write(form(model="student", scale=given))
        assert scaled[9] == update(minimum=1.5, maximum=6.0, value=value, visible=True)
    assert panel.write(form(guidance=""))[12] == drawing.controls((), "", builder.methods())
    based = panel.write(form(guidance="uncond + cfg(2)"))[12]
    assert based == drawing.controls(
        builder.parts_of("uncond + cfg(2)"), "uncond", builder.methods()
    )
    assert panel.write(form(guidance="cfg("))[12] == SKIP


def dropped(folder, size=(12, 8), name="start.png"):
    Image.linear_gradient("L").resize(size).save(folder / name)
    return str(folder / name)


def test_a_picture_to_start_from_is_read_and_written(panel, tmp_path):
    from guidestar.serve.studio.starts import read_start

    start = read_start(dropped(tmp_path), 400, 512)
    read = lambda model, name, strength=0.35: panel.read(
        [model, *[None] * 3, "0", *[None] * 5, name, strength]
    )
    with pytest.raises(ValueError, match="not kept any more; drop it again"):
        read("toy", start.name)
    written = panel.write(form(start=start, strength=0.35))
    assert written[10:12] == [start.name, 0.35]
    assert written[13] == update(open=True)
    assert read("toy", start.name) == Form(model="toy", start=start, strength=0.35)
    assert read("toy", "") == read("toy", None) == Form(model="toy", strength=0.35)
    assert read("toy", None, None) == Form(model="toy")


def test_a_picture_to_start_from_is_dropped_shown_and_left_out(shown, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr("gradio.Warning", warned.append)
    assert shown.on("gs-start-drop", "upload") == [(SKIP, SKIP)]
    for path, text in [
        (dropped(tmp_path, (21, 20)), "more than 400 pixels"),
        (__file__, "cannot be read as a picture"),
    ]:
        shown.values["gs-start-drop"] = path
        assert shown.on("gs-start-drop", "upload") == [(SKIP, None)]
        assert text in warned[-1]
    shown.values["gs-start-drop"] = dropped(tmp_path)
    ((name, empty),) = shown.on("gs-start-drop", "upload")
    assert len(name) == 20 and empty is None
    shown.values["gs-start"] = name
    (html,) = shown.on("gs-start", "change", nth=1)
    assert opened(images(html)[0]).size == (12, 8) and "data-remove" in html
    assert shown.on("gs-start-shown", "click") == [""]
    shown.values["gs-start"] = ""
    assert shown.on("gs-start", "change", nth=1) == [""]


def test_pictures_are_made_from_a_start(shown, service, tmp_path):
    """The last half of four steps, from the picture cropped to the model's size."""
    shown.values["gs-start-drop"] = dropped(tmp_path, (12, 8))
    shown.values["gs-start"] = shown.on("gs-start-drop", "upload")[0][0]
    shown.values["gs-strength"] = 0.5
    *_, (drawn, _, gallery, _) = shown.on("gs-run", "click")
    model = service.engines["toy"].model
    middle = Image.linear_gradient("L").resize((12, 8)).crop((2, 0, 10, 8))
    start = torch.from_numpy(np.array(middle)).float()[None, None] / 127.5 - 1
    run = {"guidance": "cfg(2)", "seeds": [1, 2], "steps": 4, "solver": "ddim"}
    rho = float(model.grid(4)[2].rho)
    found = model.sample("cat", start=start.repeat(2, 1, 1, 1), start_rho=rho, **run)
    wanted = [pixels(p) for p in found.pil()]
    assert [pixels(p) for p in images(drawn)[::2]] == wanted
    assert "from a picture at 0.5" in gallery
    # The gallery keeps the picture: its settings make the same again.
    shown.values["gs-start"] = ""
    back = shown.on("gs-gallery", "click", {"action": "restore", "id": 1})[0]
    assert back[1 + 10 : 1 + 12] != ["", 0.6]
    shown.values |= {"gs-start": back[11], "gs-strength": back[12], "gs-seeds": back[5]}
    *_, (drawn, *_) = shown.on("gs-run", "click")
    assert [pixels(p) for p in images(drawn)[::2]] == wanted[1:]
    # The plan is of the steps that are left.
    wrong, drawn, address = shown.on("gs-guidance", "change", nth=3)[0]
    assert wrong == "" and "4</b> evaluations a picture" in drawn and "2 steps" in drawn
    assert f"start={back[11]}&strength=0.5" in address


def test_a_models_own_settings(service):
    from guidestar.serve.studio.panel import default_form

    made = lambda name: default_form(service, name)
    seeds = (0, 1, 2, 3)
    assert made("toy") == Form(model="toy", conds=("blurry",), seeds=seeds, steps=4,
                               solver="ddim", guidance="cfg(2)")  # fmt: skip
    assert made("captions").conds == ("a red apple",)
    assert made("bare") == Form(
        model="bare", seeds=seeds, steps=20, solver="dpmpp-2m", guidance="uncond"
    )
    engines = {"own": SimpleNamespace(model=captioned(card={"example": "a tree"}))}
    own: Any = SimpleNamespace(engines=engines, limits=Limits(steps=3))
    found = default_form(own, "own")
    assert found.conds == ("a tree",) and found.steps == 3


def images(html: str) -> list[str]:
    return [part.partition('"')[0] for part in html.split("data:image/png;base64,")[1:]]


def sampled(service, names, seeds, guidance="cfg(2)", steps=4):
    model = service.engines["toy"].model
    found = model.sample(names, guidance=guidance, seeds=seeds, steps=steps, solver="ddim")
    return [pixels(image) for image in found.pil()]


def test_pictures_are_made_and_kept(shown, service):
    found = shown.on("gs-run", "click")
    drawn, state, gallery, seeds = found[-1]
    made = [pixels(p) for p in images(drawn)[::2]]  # each is there once more, to download
    assert made == sampled(service, ["cat"] * 2, [1, 2])
    assert "cat-seed1.png" in drawn and "seed 2" in drawn and "cat ·" not in drawn
    assert "gs-done" in state and gallery.count("<figure") == 2 and seeds == SKIP
    assert all(g == SKIP and s == SKIP for _, _, g, s in found[:-1])
    assert all(d == SKIP or images(d) for d, _, _, _ in found[:-1])
    shown.values["gs-classes"] = ["cat", "dog"]
    drawn = shown.on("gs-guidance", "submit")[-1][0]
    assert "cat · 1" in drawn and "dog · 2" in drawn


def test_new_seeds_are_drawn_where_that_is_chosen(shown, monkeypatch):
    drawn: list[int] = []
    monkeypatch.setattr(secrets, "randbelow", lambda most: drawn.append(most) or 40)
    shown.values["gs-random"] = True
    first, *_, last = shown.on("gs-run", "click")
    assert first == (SKIP, SKIP, SKIP, "40-41") and drawn == [2**31]
    assert "cat-seed40.png" in last[0] and "cat-seed41.png" in last[0]
    again = shown.on("gs-address", "change")  # nothing is drawn again
    assert again == [(SKIP,) * 4]
    shown.values["gs-live"] = True
    *_, redrawn, kept = shown.on("gs-address", "change")
    assert "cat-seed1.png" in redrawn[0] and len(drawn) == 1
    assert redrawn[2] == SKIP and kept[2].count("<figure") == 4  # the gallery, after the picture
    assert kept[:2] == (SKIP, SKIP)


def test_a_change_redraws_once_by_whichever_way_it_comes(shown, service):
    shown.values["gs-live"] = True
    by_text = lambda: shown.on("gs-guidance", "change")
    assert "gs-done" in by_text()[-2][1]
    nothing = [(SKIP,) * 4]
    assert by_text() == shown.on("gs-address", "change") == nothing
    shown.values["gs-guidance"] = "cfg(5)"
    *_, (drawn, state, _, _), _ = by_text()
    assert "gs-done" in state
    made = [pixels(p) for p in images(drawn)[::2]]
    assert made == sampled(service, ["cat"] * 2, [1, 2], "cfg(5)")
    assert shown.on("gs-address", "change") == nothing
    shown.values["gs-steps"] = 5
    assert "gs-done" in shown.on("gs-address", "change")[-2][1]
    for text in ("cfg(", "cfg(5) + clasifier(1)", ""):  # which are marked at their place
        shown.values["gs-guidance"] = text
        found = by_text()
        assert found == nothing or text == ""
    shown.values |= {"gs-guidance": "cond + nag(", "gs-seeds": "x"}
    assert "seeds are whole numbers" in by_text()[0][1]
    shown.values |= {"gs-guidance": "cond + dps(1)", "gs-seeds": "1"}  # which no text shows
    assert "gs-failed" in by_text()[-1][1]


def test_few_steps_are_redrawn_without_previews_and_many_with(shown, monkeypatch):
    from guidestar.serve.studio.running import Runs

    asked = []
    follow = Runs.follow
    monkeypatch.setattr(
        Runs, "follow", lambda self, kind, made: asked.extend(made) or follow(self, kind, made)
    )
    shown.values["gs-live"] = True
    for steps in (8, 9, 60):
        shown.values["gs-steps"] = steps
        shown.on("gs-guidance", "change")
    assert [a.preview_every for a in asked] == [0, 1, 3]


def test_what_took_the_place_of_a_run_shows_where_it_stands(monkeypatch):
    from guidestar.serve.studio import making

    ended = [JobProgress(status="running", seconds=0.1), JobProgress(status="running", seconds=0.5)]
    runs = SimpleNamespace(follow=lambda kind, asked: ([p] for p in ended))
    session: Any = SimpleNamespace(runs=runs, made=None)
    quiet = lambda: [s for _, s, _, _ in making._follow(session, form(), 0, wait=0.3)]
    assert len(quiet()) == 1
    ended.append(JobProgress(status="cancelled", seconds=0.1))
    assert "gs-cancelled" in quiet()[-1]

    def follow(kind, asked):
        yield [ended[1]]
        session.made = form(steps=9)
        yield [ended[2]]

    session.runs.follow = follow
    assert len(quiet()) == 1


@pytest.mark.parametrize(
    ("name", "event", "wrong"),
    [
        ("gs-run", "click", 1),
        ("gs-compare", "click", 1),
        ("gs-plot-run", "click", 1),
        ("gs-explain", "click", 1),
        ("gs-restore", "click", 1),
    ],
)
def test_what_is_wrong_is_in_the_place_of_the_progress(shown, name, event, wrong):
    shown.values["gs-seeds"] = "x"
    (found,) = shown.on(name, event)
    line = "seeds are whole numbers and ranges, like 7 or 0-3 or 1, 5, not 'x'"
    failed = drawing.progress([JobProgress(status="failed", message=line)])
    assert found[wrong] == failed and all(v == SKIP for k, v in enumerate(found) if k != wrong)


def messages(monkeypatch):
    import gradio

    found: list[tuple[str, str]] = []
    monkeypatch.setattr(gradio, "Info", lambda text: found.append(("info", text)))
    monkeypatch.setattr(gradio, "Warning", lambda text: found.append(("warning", text)))
    return found


def test_nothing_is_cancelled_where_nothing_is_under_way(shown, monkeypatch):
    found = messages(monkeypatch)
    shown.on("gs-cancel", "click")
    assert found == [("info", "nothing is under way")]
    page = inspect.getclosurevars(
        next(f for f in shown.blocks.fns.values() if ("gs-cancel", "click") in targets(shown, f)).fn
    ).nonlocals["page"]
    session = page.sessions.find(shown.visit, "client-unknown")
    ended: list[Any] = []
    monkeypatch.setattr(session.runs, "cancel", lambda kind=None: ended.append(kind) or 1)
    shown.on("gs-cancel", "click")
    assert len(found) == 1 and ended == [None]
    for k, kind in enumerate(("compare", "plot", "explain", "restore")):
        shown.on("Cancel", "click", nth=k)
        assert ended[-1] == kind


def test_a_dropped_picture_brings_its_settings(shown, tmp_path, monkeypatch):
    found = messages(monkeypatch)
    shown.values["gs-drop"] = None
    (nothing,) = shown.on("gs-drop", "upload")
    assert nothing == [SKIP] * (len(WRITTEN) + 1) and not found
    shown.values["gs-classes"] = ["cat", "dog"]
    drawn = shown.on("gs-run", "click")[-1][0]
    file = tmp_path / "p.png"
    file.write_bytes(base64.b64decode(images(drawn)[1]))
    shown.values["gs-drop"] = str(file)
    (back,) = shown.on("gs-drop", "upload")
    assert back[0] == "toy" and back[1]["value"] == ["cat", "dog"] and back[4] == "1-2"
    assert back[-1] is None and found == [("info", "the settings of the picture are back")]
    Image.new("L", (8, 8)).save(file)
    (refused,) = shown.on("gs-drop", "upload")
    assert refused == [*[SKIP] * len(WRITTEN), None] and found[-1][0] == "warning"
    shown.values["gs-drop"] = str(tmp_path / "none.png")
    shown.on("gs-drop", "upload")
    assert "No such file" in found[-1][1]


def test_a_dropped_picture_that_started_from_another_brings_all_else(shown, tmp_path, monkeypatch):
    found = messages(monkeypatch)
    shown.values["gs-start-drop"] = dropped(tmp_path, (8, 8))
    shown.values["gs-start"] = shown.on("gs-start-drop", "upload")[0][0]
    shown.values["gs-guidance"] = "cfg(2.5)"
    drawn = shown.on("gs-run", "click")[-1][0]
    file = tmp_path / "p.png"
    file.write_bytes(base64.b64decode(images(drawn)[1]))
    shown.values["gs-drop"] = str(file)
    (back,) = shown.on("gs-drop", "upload")
    places = [WRITTEN.index(f"gs-{name}") for name in ("guidance", "seeds", "steps", "start")]
    assert [back[k] for k in places] == ["cfg(2.5)", "1-2", 2, ""]  # 0.6 of 4 steps
    assert found[-1][0] == "info" and "drop that one too" in found[-1][1]


def test_pictures_of_the_gallery_are_restored_and_deleted(shown):
    shown.on("gs-run", "click")
    (found,) = shown.on("gs-gallery", "click", {"action": "restore", "id": 1})
    assert found[0].count("<figure") == 2 and found[5] == "2" and found[1] == "toy"
    (found,) = shown.on("gs-gallery", "submit", {"action": "again", "id": 0})
    assert found[5] == "1"
    for data in ({"action": "delete", "id": 9}, {}, None):
        (found,) = shown.on("gs-gallery", "click", data)
        assert found[0].count("<figure") == 2 and found[1:] == [SKIP] * len(WRITTEN)
    (found,) = shown.on("gs-gallery", "click", {"action": "delete", "id": 1})
    assert found[0].count("<figure") == 1 and "seed 1" in found[0]
    assert found[1:] == [SKIP] * len(WRITTEN)


def test_the_page_opens_as_its_address_says(shown, monkeypatch):
    found = messages(monkeypatch)
    event = next(f for f in shown.blocks.fns.values() if any(e == "load" for _, e in f.targets))
    visit = SimpleNamespace(request=None, client=None, session_hash=shown.visit)
    made = event.fn("?seeds=7&guidance=cfg(5)", visit)
    assert (made[0], made[4], made[8]) == ("toy", "7", "cfg(5)") and made[1]["value"] == ["blurry"]
    assert "Pictures that you make are kept here" in made[-1] and not found
    other = event.fn("?model=bare&steps=9", visit)
    assert (other[0], other[5], other[6], other[8]) == ("bare", 9, "dpmpp-2m", "uncond")
    wrong = event.fn("?model=none&seeds=7", visit)
    assert wrong[0] == "toy" and wrong[4] == "0-3"
    assert found == [("warning", "the address names the model 'none'; there is toy, captions, "
                      "bare, student, colour")]  # fmt: skip
    leave = next(f for f in shown.blocks.fns.values() if any(e == "unload" for _, e in f.targets))
    sessions = inspect.getclosurevars(leave.fn).nonlocals["sessions"]
    session = sessions.find(shown.visit, "o")
    assert sessions.find(shown.visit, "o") is session
    leave.fn(visit)
    assert sessions.find(shown.visit, "o") is not session


def test_who_a_visitor_is(panel, service):
    from guidestar.serve.studio.page import Page

    asked: list[tuple[str, str]] = []
    sessions: Any = SimpleNamespace(find=lambda name, owner: asked.append((name, owner)))
    page = Page(service=service, sessions=sessions, panel=panel)
    request: Any = SimpleNamespace(
        session_hash=7,
        client=SimpleNamespace(host="10.0.0.1"),
        request=SimpleNamespace(state=SimpleNamespace(owner="key-1")),
    )
    page.session(request)
    request.request.state.owner = None
    page.session(request)
    request.client = request.request = None
    page.session(request)
    assert asked == [("7", "key-1"), ("7", "client-10.0.0.1"), ("7", "client-unknown")]


def test_controls_and_text_follow_each_other(shown):
    data = {"index": "0", "name": "scale", "value": "3"}
    assert shown.on("gs-controls", "input", data) == [("cfg(3)", "")]
    shown.values["gs-guidance"] = "cfg(3)"
    assert shown.on("gs-guidance", "change", nth=2) == [SKIP]  # the slider stays in the hand
    shown.values["gs-guidance"] = "cfg(4)"
    wanted = drawing.controls(builder.parts_of("cfg(4)"), "", builder.methods())
    assert shown.on("gs-guidance", "change", nth=2) == [wanted]
    shown.values["gs-guidance"] = "cfg(3)"
    assert shown.on("gs-guidance", "change", nth=2)[0] != SKIP  # that was forgotten meanwhile
    for count, drawn in ((200, True), (201, False)):
        shown.values["gs-guidance"] = "cfg(3)".ljust(count)
        assert (shown.on("gs-guidance", "change", nth=2) != [SKIP]) == drawn
    shown.values["gs-guidance"] = "cfg(3)"
    ((text, wrong),) = shown.on("gs-controls", "input", {**data, "value": "nan"})
    assert text == SKIP and "gs-problem" in wrong
    for action, value, made in (
        ("add", "rescale", "cfg(3) | rescale(0.7)"),
        ("base", "uncond", "uncond + cfg(3)"),
    ):
        ((text, wrong),) = shown.on("gs-controls", "click", {"action": action, "value": value})
        assert text.startswith(made[:12]) and wrong == ""
    shown.values["gs-guidance"] = "cfg(3) + apg(2)"
    ((text, _),) = shown.on("gs-controls", "click", {"action": "remove", "value": "0"})
    assert text == "apg(2)"
    ((text, wrong),) = shown.on("gs-controls", "click", {"action": "add", "value": "none"})
    assert text == SKIP and "there is no method" in wrong


def test_another_model_brings_its_own_settings(shown):
    shown.values["gs-model"] = "bare"
    (found,) = shown.on("gs-model", "input")
    assert found[0] == "bare" and found[5] == 20 and found[8] == "uncond" and found[4] == "0-3"


def test_settings_are_checked_and_planned(shown, service):
    from guidestar.serve.studio.planning import plan

    ((wrong, planned, address),) = shown.on("gs-seeds", "change")
    assert wrong == "" and planned == drawing.plan(plan(service, form()))
    assert address == form().write_query()
    cases = {"cfg(": "gs-problem", "cfg(2, wrong=1)": "wrong"}
    for text, part in cases.items():
        shown.values["gs-guidance"] = text
        ((wrong, *others),) = shown.on("gs-seeds", "change")
        assert part in wrong and others == [SKIP, SKIP]
    long = "cfg(2)".ljust(201)
    shown.values["gs-guidance"] = long
    ((wrong, *others),) = shown.on("gs-seeds", "change")
    assert "an expression may have 200 characters here, not 201" in wrong
    assert others == [SKIP, SKIP]
    shown.values["gs-guidance"] = long[:200]
    assert shown.on("gs-seeds", "change")[0][0] == ""
    shown.values.update({"gs-guidance": None, "gs-seeds": ""})
    ((wrong, *others),) = shown.on("gs-seeds", "change")
    assert "there is no seed" in wrong and others == [SKIP, SKIP]


def test_what_an_error_says():
    from guidestar.guidance import ExpressionError, parse
    from guidestar.serve.studio.page import failed, labels_of, message_of

    with pytest.raises(ExpressionError) as found:
        parse("cfg(")
    assert message_of(found.value) == found.value.problem
    assert message_of(RefusedError(400, "code", "one line\nmore", "field")) == "one line"
    assert message_of(ValueError("a\nb")) == "a"
    assert failed(ValueError("a")) == drawing.progress([JobProgress(status="failed", message="a")])
    assert labels_of(form()) == ["seed 1", "seed 2"]
    two = form(conds=("cat", "dog"), seeds=(1,))
    assert labels_of(two) == ["cat · 1", "dog · 1"]
    assert labels_of(form(conds=())) == ["seed 1", "seed 2"]


def test_two_expressions_are_compared(shown, service):
    shown.values.update({"gs-second": "cfg(", "gs-seeds": "1"})
    assert "gs-problem" in shown.on("gs-second", "change")[0]
    shown.values["gs-second"] = "cond"
    assert shown.on("gs-second", "change") == [""]
    drawn, state = shown.on("gs-compare", "click")[-1]
    first, second, delta = images(drawn)
    assert pixels(first) == sampled(service, ["cat"], [1])[0]
    assert pixels(second) == sampled(service, ["cat"], [1], "cond")[0]
    from guidestar.serve.studio.comparing import difference_picture

    wanted, most = difference_picture(first, second)
    assert pixels(delta) == pixels(wanted) and f"at most {100 * most:.3g} %" in drawn
    assert drawn.index("<code>cfg(2)") < drawn.index("<code>cond") < drawn.index("second − first")
    assert "gs-done" in state


def test_a_comparison_on_its_way():
    from guidestar.serve.studio.study import _compared

    done = JobProgress(status="done", pictures=["aW1hZ2U="])
    waits = JobProgress(status="queued")
    assert _compared(["a", "b"], ["seed 1"], [done, waits]) == SKIP
    runs = JobProgress(status="running", pictures=["aW1hZ2U="])
    found = _compared(["a < 1", "b"], ["seed 1"], [done, runs])
    assert found.count("<h4>") == 2 and "a &lt; 1" in found and "second" not in found


def test_axes_are_offered(shown):
    ((x, y),) = shown.on("gs-guidance", "change", nth=1)
    choices = plotting.axes_of(form())
    assert x == update(choices=choices, value="0:scale")
    assert y == update(choices=choices, value="steps")
    shown.values.update({"gs-axis-x": "solver", "gs-axis-y": "9:none"})
    shown.values["gs-guidance"] = "cond + pag(2)"
    ((x, y),) = shown.on("gs-guidance", "change", nth=1)
    assert (x["value"], y["value"]) == ("solver", "steps")
    shown.values.update({"gs-guidance": "", "gs-axis-x": None})
    ((x, y),) = shown.on("gs-guidance", "change", nth=1)
    assert (x["value"], y["value"]) == ("steps", "solver")
    shown.values["gs-seeds"] = "x"
    assert shown.on("gs-guidance", "change", nth=1) == [(SKIP, SKIP)]


def test_axes_are_not_offered_anew_where_a_slider_moves(shown):
    offered = lambda: shown.on("gs-guidance", "change", nth=1)[0]
    assert offered()[0]["value"] == "0:scale"
    shown.values["gs-guidance"] = "cfg(4.5)"
    assert offered() == (SKIP, SKIP)
    shown.values["gs-guidance"] = "cfg(4.5) + pag(1)"
    assert ("pag: scale", "1:scale") in offered()[0]["choices"]


def test_values_are_suggested(shown):
    shown.values.update({"gs-axis-x": "steps", "gs-axis-y": "seeds"})
    assert shown.on("gs-axis-x", "change") == ["4, 8, 16, 32"]
    assert shown.on("gs-axis-y", "change") == ["0, 1, 2, 3"]
    for key in (None, "9:scale", "0:none"):
        shown.values["gs-axis-x"] = key
        assert shown.on("gs-axis-x", "change") == [SKIP]


def test_a_plot_of_two_settings(shown, service):
    shown.values.update({"gs-axis-x": "0:scale", "gs-values-x": "1, 3", "gs-axis-y": "seeds",
                         "gs-values-y": "1, 2"})  # fmt: skip
    found = shown.on("gs-plot-run", "click")
    drawn, state = found[-1]
    assert all(d == SKIP for d, _ in found[:-1]) and "gs-done" in state
    x = plotting.read_axis(form(), "0:scale", "1, 3")
    y = plotting.read_axis(form(), "seeds", "1, 2")
    model = service.engines["toy"].model
    made = []
    for seed in (1, 2):
        for scale in (1, 3):
            sample = model.sample(["cat"], guidance=f"cfg({scale})", seeds=[seed], steps=4,
                                  solver="ddim")  # fmt: skip
            data = np.asarray(sample.pil()[0])
            made.append(as_png(data))
    wanted = plotting.draw(form(), x, y, made)
    assert pixels(images(drawn)[0]) == pixels(base64.b64encode(wanted).decode())
    assert 'alt="cfg: scale × seed"' in drawn


def as_png(array) -> str:
    made = io.BytesIO()
    Image.fromarray(array).save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()


def test_a_run_is_explained(shown, service):
    from guidestar.serve.studio.explaining import maps_of

    found = shown.on("gs-explain", "click")
    drawn, state = found[-1]
    assert "gs-done" in state and all(d == SKIP for d, _ in found[:-1])
    page = inspect.getclosurevars(
        next(
            f for f in shown.blocks.fns.values() if ("gs-explain", "click") in targets(shown, f)
        ).fn
    ).nonlocals["page"]
    pushes = page.sessions.find(shown.visit, "o").runs.last("explain")[0].ticket.pushes
    assert len(pushes) == 4 and drawn.startswith(drawing.pushes(pushes, maps_of(pushes)))
    assert [pixels(p) for p in images(drawn)[-2:]] == sampled(service, ["cat"] * 2, [1, 2])


def test_operators_have_their_options_and_models_their_operators(shown):
    show = lambda a, b: [(update(visible=a), update(visible=b))]
    for name, wanted in (("downsample", show(True, False)), ("blur", show(False, True)),
                         ("inpaint", show(False, False))):  # fmt: skip
        shown.values["gs-operator"] = name
        assert shown.on("gs-operator", "change") == wanted
    offered = {}
    for name in ("toy", "colour"):
        shown.values["gs-model"] = name
        (found,) = shown.on("gs-model", "change", nth=1)
        assert found["value"] == "inpaint"
        offered[name] = found["choices"]
    assert [n for n in offered["colour"] if n not in offered["toy"]] == ["gray"]


def test_an_inverse_problem_is_solved(shown, monkeypatch):
    shown.values["gs-restoring"] = "cond + dps("
    assert "gs-problem" in shown.on("gs-restoring", "change")[0]
    shown.values["gs-restoring"] = "cond + dps(0.2)"
    assert shown.on("gs-restoring", "change") == [""]
    ((_, state),) = shown.on("gs-restore", "click")
    assert "drop a picture first" in state
    ramp = Image.linear_gradient("L").resize((20, 20)).convert("RGBA")
    painted = Image.new("RGBA", (20, 20))
    painted.paste((209, 73, 91, 255), (0, 0, 20, 10))
    shown.values["gs-picture"] = {"background": ramp, "layers": [painted]}
    for operator, asked in (("identity", {}), ("inpaint", {}), ("downsample", {"factor": 2})):
        shown.values["gs-operator"] = operator
        found = shown.on("gs-restore", "click")
        drawn, state = found[-1]
        assert "gs-done" in state, (operator, asked, state)
        assert ["picture" in drawn, "observed" in drawn, "restored, seed 2" in drawn] == [True] * 3
        assert len(images(drawn)) == 4 and opened(images(drawn)[0]).size == (8, 8)
    observed = np.asarray(opened(images(shown_of(shown, "inpaint"))[1]).convert("L"))
    known = np.asarray(opened(images(shown_of(shown, "identity"))[1]).convert("L"))
    assert (observed[4:] == known[4:]).all() and not (observed[:4] == known[:4]).all()
    shown.values["gs-picture"] = {"background": ramp, "layers": []}
    shown.values["gs-operator"] = "inpaint"
    ((_, state),) = shown.on("gs-restore", "click")
    assert "gs-failed" in state
    shown.values["gs-picture"] = {"background": ramp.resize((21, 20)), "layers": []}
    ((_, state),) = shown.on("gs-restore", "click")
    assert "the number of pixels" in state and "400" in state


def shown_of(shown, operator):
    shown.values["gs-operator"] = operator
    return shown.on("gs-restore", "click")[-1][0]


def test_the_page_of_a_server(service, monkeypatch):
    pytest.importorskip("gradio")
    from guidestar.serve.studio import mount

    measured: list[Any] = []
    monkeypatch.setattr(mount, "_measure", measured.append)
    small = Service({"toy": toy_model(shape=PICTURE)}, Limits(seconds=60, body=1234))
    try:
        app = within_a_loop(lambda: make_app(small, studio=True))
        for _ in range(500):
            if measured:
                break
            time.sleep(0.01)
        assert measured == [small.engines["toy"]]
        with TestClient(app, base_url="http://localhost") as client:
            answer = client.get("/", follow_redirects=False)
            assert (answer.status_code, answer.headers["location"]) == (307, "/studio/")
            assert client.get("/favicon.ico").status_code == 204
            page = client.get("/studio/")
            assert page.status_code == 200 and "guidestar studio" in page.text
            assert page.headers["content-security-policy"] == mount.POLICY
            assert "content-security-policy" not in client.get("/v1/models").headers
            config = client.get("/studio/config").json()
            assert config["max_file_size"] == 1234 and config["css"] and not config["footer_links"]
            assert not config.get("enable_monitoring") and not config.get("show_error")
    finally:
        small.close()


def test_an_engine_is_measured_in_few_steps():
    from guidestar.serve.studio import mount

    asked: list[Any] = []

    class Measured:
        model = toy_model(shape=PICTURE)

        def submit(self, request, timeout):
            asked.append((request, timeout))
            return SimpleNamespace(result=asked.append)

    mount._measure(Measured())  # type: ignore[arg-type]
    (request, timeout), seconds = asked
    assert (list(request.seeds), request.levels.steps, timeout, seconds) == (
        [0, 1, 2, 3],
        4,
        60,
        60,
    )
    assert str(request.guidance) == "uncond"

    class Broken:
        model = toy_model(shape=PICTURE)

        def submit(self, request, timeout):
            raise RuntimeError("full")

    mount._measure(Broken())  # type: ignore[arg-type]  # nothing is raised


def test_pictures_and_progress_are_drawn():
    none = drawing.pictures([], [], note="a < b")
    assert none == '<div class="gs-empty">a &lt; b</div>'
    one = drawing.pictures(["AA=="], ['"a"'])
    assert one.startswith('<div class="gs-pictures gs-few">') and "download" not in one
    assert "&quot;a&quot;" in one and "data:image/png;base64,AA==" in one
    named = drawing.pictures(["AA=="] * 3, ["a", "b", "c"], ["x.png", "y.png", "z.png"])
    assert named.startswith('<div class="gs-pictures">') and 'download="y.png"' in named
    quoted = drawing.pictures(["AA=="], ["a"], ['"x.png'])
    assert 'download="&quot;x.png"' in quoted
    assert drawing.pictures(["AA=="] * 2, ["a", "b"]).startswith('<div class="gs-pictures gs-few">')
    shown = lambda *found: drawing.progress([JobProgress(**f) for f in found])
    assert drawing.progress([]) == '<div class="gs-progress"></div>'
    half = shown({"status": "running", "done": 1, "steps": 4, "seconds": 1.25},
                 {"status": "running", "done": 2, "steps": 4, "seconds": 0.5})  # fmt: skip
    assert "width:38%" in half and "step 3 of 8 · 1.2 s" in half and "gs-running" in half
    waits = shown({"status": "queued", "place": 3}, {"status": "queued", "place": 2},
                  {"status": "running"})  # fmt: skip
    assert "waiting, place 2 in the queue" in waits and "gs-queued" in waits and "width:0%" in waits
    done = shown({"status": "done", "seconds": 1.0, "message": "m", "done": 1, "steps": 2},
                 {"status": "done", "seconds": 2.345, "message": "m"})  # fmt: skip
    assert "done in 2.35 s · m<" in done.replace("2.34 s", "2.35 s") and "width:100%" in done
    assert "done in 1.00 s<" in shown({"status": "done", "seconds": 1.0})
    wrong = shown({"status": "done"}, {"status": "failed", "message": "a & b"})
    assert "gs-failed" in wrong and "a &amp; b<" in wrong
    assert ">cancelled<" in shown({"status": "cancelled"})
    assert drawing.plot(b"\x00", 'a"b') == (
        '<p><a id="gs-plot-save" download="xy-plot.png" href="data:image/png;base64,AA==">Save '
        'as a picture</a></p><img src="data:image/png;base64,AA==" alt="a&quot;b">'
    )
