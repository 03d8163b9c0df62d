"""What controls arguments get, by their annotations, defaults and help; and how they are drawn."""

import base64
import io
import math
import queue
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from guidestar.guidance import parse
from guidestar.io.images import read_settings
from guidestar.serve.studio import builder, controls, drawing, plotting, restoring, running
from guidestar.serve.studio.builder import BuilderPart
from guidestar.serve.studio.controls import Control
from guidestar.serve.studio.explaining import HALF, _picture, maps_of
from guidestar.serve.studio.form import Form, read_picture, read_query, read_seeds
from guidestar.serve.studio.planning import Planned
from guidestar.serve.studio.running import JobProgress, Runs, _look
from guidestar.serve.ticket import Pushes
from helpers.served import toy_model
from helpers.serving import PICTURE, opened


@pytest.mark.parametrize(
    ("help", "usual"),
    [
        ("", None),
        ("s, usually 3.", 3.0),
        ("usually 1.7–2.9; 1 is the plain model.", 2.3),
        ("λ, usually in [0, 1]; 0.6 is", 0.5),
        ("usually 5 to 10.", 5.0),
        ("usually 0.25 (0.125 for SD3)", 0.25),
        ("usually 7 for SD3", None),
        ("Usual: 4.", 4.0),
        ("β, usually −0.5.", 0.5),
        ("usually 0.1–0.2222", 0.161),
        ("usual values are none", None),
    ],
)
def test_the_number_that_a_help_calls_usual(help, usual):
    assert controls.usual_of(help) == usual


@pytest.mark.parametrize(
    ("size", "round"),
    [(0.0, 0.01), (0.003, 0.01), (0.012, 0.02), (0.7, 1), (1, 1), (1.1, 2), (3, 5), (5.004, 5),
     (5.1, 10), (10, 10), (150, 200)],
)  # fmt: skip
def test_sizes_are_rounded_up(size, round):
    assert controls._round_up(size) == round


@pytest.mark.parametrize(("span", "step"), [(10, 0.1), (5, 0.1), (4, 0.01), (50, 1), (1, 0.01)])
def test_steps_are_about_a_hundredth(span, step):
    assert controls._fine(span) == pytest.approx(step)


def slider(value, default=MISSING, help="", name="tau", whole=False):
    own = field() if default is MISSING else field(default=default)
    kind = make_dataclass("Kind", [(name, float, own)])
    made = Control(name=name, kind="text", text=str(value), help=help)
    found = controls.add_slider(made, kind, whole=whole, value=value)
    assert found.kind == ("whole" if whole else "number")
    return found.low, found.high, found.step


@pytest.mark.parametrize(
    ("given", "low", "high", "step"),
    [
        ({"value": 3.0}, 0, 10, 0.1),  # twice its value, rounded up
        ({"value": 0.7}, 0, 1, 0.01),  # a share
        ({"value": 0.7, "name": "scale"}, 0, 2, 0.01),
        ({"value": 0.5}, 0, 1, 0.01),
        ({"value": 1.0}, 0, 2, 0.01),
        ({"value": 0.4}, 0, 1, 0.01),
        ({"value": 0.0, "default": 0.0}, 0, 1, 0.01),
        ({"value": 0.0, "default": 4.0}, 0, 10, 0.1),
        ({"value": 1.0, "help": "usually 8"}, 0, 20, 0.1),
        ({"value": -0.4, "default": 0.0}, -1, 1, 0.01),
        ({"value": 0.4, "default": -0.4}, -1, 1, 0.01),
        ({"value": 0.4, "default": -1}, 0, 2, 0.01),
        ({"value": 0.4, "help": "in [−1, 1]"}, -1, 1, 0.01),
        ({"value": 0.4, "help": "in (0, 2.5]"}, 0, 2.5, 0.01),
        ({"value": 3.0, "help": "in [−1, 1]"}, -1, 3, 0.01),
        ({"value": -2.0, "help": "in [−1, 1]"}, -2, 1, 0.01),
        ({"value": 0.4, "help": "pixels in [0, 9]"}, 0, 1, 0.01),
        ({"value": 3.0, "default": 3, "whole": True}, 1, 10, 1),
        ({"value": 1.0, "default": 1, "whole": True}, 1, 5, 1),
        ({"value": 2.0, "default": 0, "whole": True}, 0, 5, 1),
        ({"value": 2.0, "whole": True}, 0, 5, 1),
        ({"value": 2.0, "default": 2, "help": "in [0, 9]", "whole": True}, 1, 9, 1),
        ({"value": 2.0, "default": 2, "help": "in [3, 9]", "whole": True}, 2, 9, 1),
        ({"value": 0.7, "default": 0.7, "whole": True}, 0, 5, 1),
    ],
)
def test_the_range_of_a_slider(given, low, high, step):
    assert slider(**given) == pytest.approx((low, high, step))


@dataclass(frozen=True)
class Thing:
    """A thing.

    Args:
        scale: how much,
            usually 3.
        one, two: of ``both``.

    Returns:
        nothing: at all
    """

    scale: float
    word: Literal["a", "b"] = "a"
    perhaps: Literal["a", 2] | None = None
    flag: bool = False
    count: int = 2
    either: int | float = 2
    maybe: float | None = None
    endless: float = math.inf
    text: str = "x"
    names: str | None = None
    gains: tuple[float, ...] = (1.0,)
    tensor: torch.Tensor | None = None
    function: Callable[[int], int] | None = None
    interval: tuple[float, float] | None = None


def test_each_annotation_has_its_control():
    thing = Thing(1.0)
    found = {f.name: controls.control_of(thing, f) for f in fields(thing)}
    shown = {n: (c.kind, c.text, c.low, c.high, c.choices) for n, c in found.items() if c}
    assert shown == {
        "scale": ("number", "1", 0.0, 10.0, ()),
        "word": ("choice", "'a'", None, None, ("'a'", "'b'")),
        "perhaps": ("choice", "None", None, None, ("None", "'a'", "2")),
        "flag": ("flag", "False", None, None, ()),
        "count": ("whole", "2", 1.0, 5.0, ()),
        "either": ("number", "2", 0.0, 5.0, ()),
        "maybe": ("text", "None", None, None, ()),
        "endless": ("text", "", None, None, ()),
        "text": ("text", "'x'", None, None, ()),
        "names": ("text", "None", None, None, ()),
        "gains": ("text", "[1]", None, None, ()),
    }
    assert found["scale"].help == "how much, usually 3."  # type: ignore[union-attr]
    assert not any(c.more for c in found.values() if c)
    assert controls.helps_of(Thing) == {
        "scale": "how much, usually 3.",
        "one": "of both.",
        "two": "of both.",
    }
    own = builder.parts_of("cfg(3, interval=(0.2, 3), every=2)")[0].controls
    assert {c.name for c in own if c.more} == {*controls.EXTRAS}
    interval = next(c for c in own if c.name == "interval")
    assert interval.text == "(0.2, 3)" and interval.kind == "text" and interval.help
    assert controls._choices(int | (str | None)) == [int, str, type(None)]
    assert controls._choices(tuple[int, str]) == [tuple[int, str]]


def test_a_part_says_what_it_is_and_costs():
    term, post = builder.parts_of("cfg(3) | rescale(0.7)")
    assert (term.name, term.kind, post.name, post.kind) == ("cfg", "term", "rescale", "post")
    assert term.summary and not term.summary.endswith((".", ":")) and "``" not in term.summary
    assert term.evaluations and term.controls[0].name == "scale"
    assert builder.base_of("uncond + cfg(2)") == "uncond" and builder.base_of("cfg(2)") == ""


def test_values_that_methods_begin_with():
    start = {n: builder.starting_text(n) for n in ("pag", "cfg", "rescale", "threshold", "AND")}
    assert start["pag"] == "pag(3)" and start["rescale"] == "cond | rescale(0.7)"
    assert start["threshold"] == "cond | threshold(0.995)"
    assert start["cfg"] == "cfg(3)" and start["AND"].startswith("AND(")
    assert builder.starting_scale("pag") == 3.0 and builder.starting_scale("cfg") == 3.0
    assert builder.add("", "pag") == "pag(3)" and builder.set_base("", "cond") == "cond"
    with pytest.raises(ValueError, match="the bases are cond, uncond and neg, not 'x'"):
        builder.set_base("cfg(2)", "x")
    names = [name for name, _ in builder.methods()]
    assert names == sorted(names) and "cfg" in names


def test_values_that_are_written():
    change = builder.change
    assert change("cfg(3, negative='a')", 0, "negative", " ") == "cfg(3)"
    assert change("cfg(3)", 0, "negative", " dog ") == "cfg(3, negative='dog')"
    with pytest.raises(ValueError, match=r"cfg needs its scale: write cfg\("):
        change("cfg(3)", 0, "scale", "")
    with pytest.raises(ValueError, match="cfg has no argument 'none'"):
        change("cfg(3)", 0, "none", "1")
    with pytest.raises(ValueError, match="cfg: scale must be one value, not '1\\) \\+ pag\\(2'"):
        change("cfg(3)", 0, "scale", "1) + pag(2")
    for index in (-1, 2):
        with pytest.raises(ValueError, match=f"has 2 parts, so none of index {index}"):
            change("cfg(3) | rescale(0.7)", index, "scale", "1")
        with pytest.raises(ValueError, match="has 2 parts"):
            builder.remove("cfg(3) | rescale(0.7)", index)
    assert change("cfg(3) | rescale(0.7)", 1, "scale", "0.2") == "cfg(3) | rescale(0.2)"
    assert builder.remove("cfg(3) | rescale(0.7)", 1) == "cfg(3)"


# Plots

FORM = Form(model="toy", conds=("cat", "dog"), seeds=(3, 4), steps=4, solver="ddim",
            guidance="cfg(2, every=2) + pag(0.5)")  # fmt: skip


def test_values_of_an_axis():
    read = lambda text, key="steps": plotting.read_axis(FORM, key, text)
    assert read("1, 2,,3").values == ("1", "2", "3") and read("1").label == "steps"
    assert read("(0, 1); (2, 3)", "0:interval").values == ("(0, 1)", "(2, 3)")
    with pytest.raises(ValueError, match="the axis 'steps' has no values; write some, like 1, 2"):
        read(" , ")
    with pytest.raises(ValueError, match="of an expression that has changed; choose it again"):
        read("1", "7:scale")
    labels = plotting.axes_of(FORM)
    assert ("cfg: scale", "0:scale") in labels and ("pag: scale", "1:scale") in labels
    own = [(text, key) for key, text in plotting.SETTINGS.items() if key != "strength"]
    assert labels[-len(own) :] == own
    assert plotting.axes_of(Form(model="toy", guidance=" ")) == labels[-8:]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("0:scale", "0, 1.25, 2.5, 3.75, 5"),
        ("1:scale", "0, 2.5, 5, 7.5, 10"),
        ("0:every", "1, 2, 3, 5"),
        ("0:carry", "'x0'; 'eps'; 'velocity'"),
        ("0:interval", "(0, 1); (0.2, 5); (1, 20)"),
        ("0:schedule", "None; linear; cosine"),
        ("0:negative", "None"),
        ("steps", "4, 8, 16, 32"),
        ("cond", "cat; dog"),
        ("negative", ""),
        ("seeds", "0, 1, 2, 3"),
        ("scale", "1, 2, 4"),
        ("guidance", "cond; cfg(2, every=2) + pag(0.5)"),
    ],
)
def test_values_to_begin_with(key, text):
    assert plotting.suggest(FORM, key) == text


def test_one_setting_changed():
    value = lambda key, text: plotting.with_value(FORM, key, text)
    assert value("1:scale", "3").guidance == "cfg(2, every=2) + pag(3)"
    assert value("seeds", "5-7").seeds == (5,) and value("cond", "dog").conds == ("dog",)
    assert value("steps", "9").steps == 9 and value("scale", "2.5").scale == 2.5
    assert value("solver", "heun").solver == "heun" and value("guidance", "cond").guidance == "cond"
    for key, name in (("steps", "steps"), ("scale", "scale of the student")):
        with pytest.raises(ValueError, match=f"{name} must be a number, not 'x'"):
            value(key, "x")
    with pytest.raises(ValueError, match="steps must be a number"):
        value("steps", "2.5")


def axis(key, *values):
    return plotting.Axis(key=key, values=values, label=key)


def test_a_plots_cells():
    found = plotting.cells(FORM, axis("seeds", "7", "8"), axis("steps", "2", "3", "4"))
    assert [[(f.seeds, f.steps) for f in row] for row in found] == [
        [((7,), n), ((8,), n)] for n in (2, 3, 4)
    ]
    assert found[0][0].conds == ("cat",)
    for x, y in ((axis("guidance", "apg(1)"), axis("0:scale", "3")),
                 (axis("0:scale", "3"), axis("guidance", "apg(1)"))):  # fmt: skip
        assert plotting.cells(FORM, x, y)[0][0].guidance == "apg(3)"
    eight = axis("seeds", *"12345678")
    assert len(plotting.cells(FORM, eight, axis("steps", *"12345678"))) == 8
    with pytest.raises(ValueError, match="a plot has 64 pictures at most, not 72"):
        plotting.cells(FORM, eight, axis("steps", *"123456789"))
    with pytest.raises(ValueError, match="both axes are 'steps'; choose two different ones"):
        plotting.cells(FORM, axis("steps", "1"), axis("steps", "1"))


def encoded(side, height=None):
    return base64.b64encode(png(Image.new("RGB", (side, height or side), (255, 0, 0)))).decode()


def png(image):
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


@pytest.mark.parametrize(
    ("side", "across", "scale"), [(8, 2, 4), (100, 2, 3), (160, 2, 2), (320, 2, 1), (400, 2, 1),
                                  (100, 7, 2), (100, 15, 1)]
)  # fmt: skip
def test_a_plots_pictures_are_enlarged(monkeypatch, side, across, scale):
    sheets: list[Any] = []

    def sheet(rows, **more):
        sheets.append((rows, more))
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(plotting, "sheet", sheet)
    x, y = axis("steps", *(str(k) for k in range(across))), axis("seeds", "7", "v" * 60)
    pictures = [encoded(side)] * (2 * across)
    found = plotting.draw(FORM, x, y, pictures)
    ((rows, more),) = sheets
    assert more["scale"] == scale and more["title"] == "across: steps; down: seeds"
    assert [len(r.images) for r in rows] == [across, across]
    assert [r.label for r in rows] == ["7", "v" * 37 + "..."]
    assert more["columns"] == [str(k) for k in range(across)]
    assert read_settings(found) == {
        "note": "toy · cat, dog · seed 3",
        "guidance": "cfg(2, every=2) + pag(0.5)",
        "x": "steps",
        "y": "seeds",
    }


def test_long_labels_are_cut():
    assert plotting._short("a" * 40) == "a" * 40
    assert plotting._short("a" * 41) == "a" * 37 + "..."
    assert plotting._short("abcdefgh", 2) == "abc..." and plotting._short("abcdef", 2) == "abcdef"


# What is drawn


def test_the_plan_as_bars():
    found = Planned(
        nfe=3, least=2, gradients=1, pictures=2, seconds=95.0, names=("cond", "a < b"),
        steps=((10.0, {"cond": 1.0, "a < b": 3.0}), (0.125, {"cond": 2.0})),
    )  # fmt: skip
    drawn = drawing.plan(found)
    # 560 × 110 over two steps and at most four passes
    bars = [part.partition("</rect>")[0] for part in drawn.split("<rect ")[1:]]
    place = 'x="{}" y="{}" width="279.0" height="{}" fill="{}"><title>step {}, noise ratio {}: {}'
    ink = drawing.INKS
    assert [b.partition("</title>")[0] for b in bars] == [
        place.format("0.5", "82.5", "27.5", ink[0], 1, "10", "cond"),
        place.format("0.5", "0.0", "82.5", ink[1], 1, "10", "a &lt; b"),
        place.format("280.5", "55.0", "55.0", ink[0], 2, "0.125", "cond"),
    ]
    assert "<p><b>2–3</b> evaluations a picture, <b>1</b> gradients · 2 steps · 2 pictures · " in (
        drawn
    )
    assert "about <b>2 min</b></p>" in drawn and f'background:{ink[1]}"></i>a &lt; b' in drawn
    one = Planned(nfe=2, least=2, gradients=0, pictures=1, seconds=None, names=(), steps=())
    assert "<p><b>2</b> evaluations a picture · 0 steps · 1 picture</p>" in drawing.plan(one)
    many = Planned(nfe=2, least=2, gradients=0, pictures=1, seconds=None, names=("cond",),
                   steps=((1.0, {"cond": 1.0}),) * 560)  # fmt: skip
    assert 'width="0.5"' in drawing.plan(many)
    assert drawing._seconds(89.94) == "89.9 s" and drawing._seconds(90) == "2 min"
    assert drawing._cut("abc", 3) == "abc" and drawing._cut("abcd", 3) == "ab…"


def test_pushes_as_lines():
    found = [
        Pushes(step=0, rho=2.0, sizes={"cfg(2)": 1.0}, base=2.0, maps={}),
        Pushes(step=1, rho=1.0, sizes={"cfg(2)": 1.0, "pag(1)": 0.5}, base=4.0, maps={}),
    ]
    drawn = drawing.pushes(found, {"cfg(2)": [(0, "AA=="), (1, "BB==")]})
    # shares 0.5, 0.25 and 0, 0.125; the largest is at 0.96 of 110
    wanted = {"cfg(2)": "140.0,4.4 420.0,57.2", "pag(1)": "140.0,110.0 420.0,83.6"}
    for k, points in enumerate(wanted.values()):
        assert f'<polyline points="{points}" fill="none" stroke="{drawing.INKS[k]}"/>' in drawn
    assert "the top line is 50 %." in drawn and drawn.count("<circle ") == 4
    assert '<circle cx="420.0" cy="57.2" r="2.5"' in drawn
    assert 'alt="push at step 2"><figcaption>2</figcaption>' in drawn and drawn.count("<img") == 2
    assert "no terms, so nothing pushes" in drawing.pushes([], {})
    still = [Pushes(step=0, rho=1.0, sizes={"cfg(2)": 0.0}, base=0.0, maps={})]
    assert "280.0,110.0" in drawing.pushes(still, {}) and "is 100 %" in drawing.pushes(still, {})


def test_controls_as_fields():
    control = lambda **c: drawing._control(3, Control(name="n", help="h<", **c))
    place = 'data-index="3" data-name="n"'
    choice = control(kind="choice", text="'b'", choices=("'a'", "'b'"))
    assert f"<select {place}>" in choice and '"&#x27;b&#x27;" selected>b</option>' in choice
    assert '&#x27;a&#x27;">a</option>' in choice and "h&lt;" in choice
    assert f'type="checkbox" {place} checked>' in control(kind="flag", text="True")
    assert f'type="checkbox" {place}>' in control(kind="flag", text="False")
    ranged = control(kind="number", text="2", low=0.0, high=5.0, step=0.1)
    assert 'min="0" max="5" step="0.1" value="2"' in ranged and ranged.count("<input") == 2
    for text, value in (("None", ""), ("[]", ""), ("x", "x")):
        plain = control(kind="text", text=text)
        assert f'type="text" {place} value="{value}" placeholder="{text}"' in plain
    more = Control(name="every", kind="text", text="1", more=True)
    own = Control(name="scale", kind="text", text="1")
    part = BuilderPart(
        name="cfg", kind="term", summary="s<", evaluations="2 a step", controls=(own, more)
    )
    drawn = drawing.controls([part], "uncond", [("cfg", "t" * 80)])
    assert "<details><summary>when and how often</summary>" in drawn
    assert drawn.index('data-name="scale"') < drawn.index("<details>") < drawn.index('"every"')
    assert '<option value="uncond" selected>uncond' in drawn and drawn.count(" selected>") == 1
    assert f"cfg — {'t' * 69}…</option>" in drawn and "<em>2 a step</em>" in drawn
    bare = BuilderPart(name="cfg", kind="term", summary="s", evaluations="", controls=(own,))
    assert "<details>" not in drawing.controls([bare], "", []) and "<em>" not in (
        drawing.controls([bare], "", [])
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_push_as_a_picture(channels):
    push = torch.zeros(channels, 2, 2)
    push[:, 0, 0], push[:, 1, 1] = 4.0, -2.0
    found = np.asarray(opened(_picture(push)).convert("L")).astype(int)
    grey = lambda v: round((v + 1) / 2 * 255)
    wanted = [[grey(HALF), grey(0)], [grey(0), grey(-HALF / 2)]]
    assert np.abs(found - np.array(wanted)).max() <= 1
    below = np.asarray(opened(_picture(-2 * push)).convert("L")).astype(int)  # the largest is < 0
    wanted = [[grey(-HALF), grey(0)], [grey(0), grey(HALF / 2)]]
    assert np.abs(below - np.array(wanted)).max() <= 1
    flat = np.asarray(opened(_picture(torch.zeros(1, 2, 2))).convert("L"))
    assert (np.abs(flat.astype(int) - 127) <= 1).all()


def test_maps_are_of_each_term():
    one = Pushes(step=0, rho=2.0, sizes={}, base=1.0, maps={"a": torch.ones(1, 2, 2)})
    two = Pushes(step=5, rho=1.0, sizes={}, base=1.0,
                 maps={"a": torch.zeros(1, 2, 2), "b": torch.ones(1, 2, 2)})  # fmt: skip
    found = maps_of([one, two])
    assert {t: [step for step, _ in rows] for t, rows in found.items()} == {"a": [0, 5], "b": [5]}
    assert found["a"][0][1] == found["b"][0][1] != found["a"][1][1]


# Pictures and seeds


def settings(**more):
    model = toy_model(shape=PICTURE)
    made = model.sample(["cat", "dog"], seeds=[3, 4], guidance="cfg(2)", steps=3, solver="ddim")
    index = more.get("index", 0)
    return {**asdict(made.settings), "index": index, "number": index, "stride": 1, **more}


def test_what_a_picture_brings_back():
    read = lambda **more: read_picture(settings(**more), ["toy"])
    product = {"cond": ["cat", "cat", "dog", "dog"], "seeds": [3, 4, 3, 4]}
    whole = read(**product)
    assert (whole.conds, whole.seeds) == (("cat", "dog"), (3, 4))
    turned = read(cond=["cat", "dog", "cat", "dog"], seeds=[3, 3, 4, 4], index=2)
    assert (turned.conds, turned.seeds) == (("cat",), (4,))
    bare = read(cond=None, seeds=[3, 4])
    assert (bare.conds, bare.seeds) == ((), (3, 4))
    assert read(cond=None, seeds=[3, 3], index=1).seeds == (3,)
    assert read(model="folder/toy").model == "toy"
    lists = read(guidance="cfg([1, 2]) + pag(3)", index=1, **{"cond": ["cat", "cat"]})
    assert (lists.guidance, lists.seeds) == ("cfg(2) + pag(3)", (4,))
    scaled = read(scale=[2.0, 2.0], cond=["cat", "cat"])
    assert (scaled.scale, scaled.seeds) == (2.0, (3, 4))
    other = read(scale=[2.0, 3.0], cond=["cat", "cat"], index=1)
    assert (other.scale, other.seeds) == (3.0, (4,))
    assert read(negative="x").negative == "x" and read(negative=None).negative == ""
    with pytest.raises(ValueError, match="this picture is of the model 'none', which is not"):
        read(model="none")


def test_limits_of_seeds():
    assert len(read_seeds("0-999")) == 1000 and read_seeds("-3-2") == (-3, -2, -1, 0, 1, 2)
    assert read_seeds(str(2**63 - 1)) == (2**63 - 1,) and read_seeds(str(-(2**63))) == (-(2**63),)
    for text in ("0-1000", str(2**63), "3-2"):
        with pytest.raises(ValueError, match="is empty or too long"):
            read_seeds(text)
    assert len(read_seeds("0-499, 0-499")) == 1000
    with pytest.raises(ValueError, match="there may be 1000 seeds at most"):
        read_seeds("0-499, 0-500")


def test_an_address_of_another_model_has_its_defaults():
    default = Form(model="toy", conds=("cat",), steps=4, guidance="cfg(2)")
    assert read_query("?seeds=1&seeds=7", default, ["toy"]).seeds == (7,)
    other = read_query("model=b&scale=2.5&steps=3", default, ["toy", "b"])
    assert other == Form(model="b", scale=2.5, steps=3)
    assert read_query("uncond=1&cond=dog", default, ["toy"]).conds == ()
    assert read_query("cond=dog&cond=cat", default, ["toy"]).conds == ("dog", "cat")


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (24, 1), (25, 2), (48, 2), (49, 3), (0, 1)])
def test_previews_are_at_most_so_many(steps, every):
    assert running.preview_every(steps) == every


def test_a_waiting_look_ends_with_the_first_change():
    changes: Any = queue.SimpleQueue()
    for _ in range(3):
        changes.put(None)
    running._wait(changes)
    assert changes.empty()


def test_a_run_is_looked_at():
    ticket = SimpleNamespace(is_over=False, preview=None, status="queued", place=2, steps_done=0,
                             steps=4, error=None, warnings=["w"])  # fmt: skip
    job: Any = SimpleNamespace(ticket=ticket, previews=lambda: ["p"], all_encoded=lambda: ["e"])
    found, shown = [JobProgress(status="queued")], [-1]
    look = lambda: _look(job, 0, found, shown, 0.0)
    assert look() and found[0].place == 2 and found[0].steps == 4 and not found[0].pictures
    assert not look()
    ticket.status, ticket.place, ticket.steps_done = "running", 0, 1
    assert look() and found[0].status == "running" and found[0].done == 1
    ticket.preview = SimpleNamespace(step=1)
    assert look() and found[0].pictures == ["p"] and shown == [1]
    job.previews = lambda: ["q"]
    assert not look() and found[0].pictures == ["p"]
    ticket.preview = SimpleNamespace(step=2)
    assert look() and found[0].pictures == ["q"]
    ticket.is_over, ticket.status = True, "done"
    assert look() and found[0].pictures == ["e"] and found[0].message == "w"
    assert not look()


def test_operators_and_what_lowers_a_loss():
    assert restoring.lowering() == sorted(restoring.lowering()) and "dps" in restoring.lowering()
    assert "cfg" not in restoring.lowering()
    grey, colour = toy_model(shape=PICTURE), toy_model(shape=(3, 8, 8))
    assert "gray" not in restoring.operators_for(grey)
    assert "gray" in restoring.operators_for(colour)
    assert str(parse(restoring.EXPRESSION)) == "cond + dps(5)"


def test_the_next_run_of_a_kind_takes_the_place_of_the_one_before():
    class Held:
        def __init__(self):
            self.status, self.place, self.steps_done, self.steps = "running", 0, 1, 4
            self.is_over, self.preview, self.error, self.cancelled = False, None, None, 0
            self.warnings: list[str] = []

        def watch(self, call):
            call(self)

        def cancel(self):
            self.cancelled += 1

    tickets: list[Any] = []

    def submit(body, owner):
        tickets.append(Held())
        assert owner == "me"
        return SimpleNamespace(ticket=tickets[-1], previews=lambda: [], all_encoded=lambda: [body])

    service: Any = SimpleNamespace(submit=submit, limits=SimpleNamespace(per_client=4))
    runs = Runs(service, "me")
    asked: Any = ["a", "b", "c"]
    first = runs.follow("make", asked)
    assert [p.status for p in next(first)] == ["running", "running", "queued"]  # two of four
    other = runs.follow("plot", asked[:1])
    next(other)
    assert [t.cancelled for t in tickets] == [0, 0, 0]
    second = runs.follow("make", asked[:1])
    next(second)
    assert [t.cancelled for t in tickets] == [1, 1, 0, 0] and len(runs.last("make")) == 1
    tickets[3].is_over, tickets[3].status = True, "done"
    assert [p.pictures for p in next(second)] == [["a"]]
    assert list(second) == [] and tickets[3].cancelled == 0
    other.close()
    assert tickets[2].cancelled == 1 and runs.last("none") == []
    assert runs.cancel("none") == 0
    tickets[2].is_over = False
    assert runs.cancel() == 1 and tickets[2].cancelled == 2
