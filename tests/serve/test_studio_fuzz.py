"""Odd values and odd orders of events: no function of the page may raise."""

from __future__ import annotations

import random
from typing import Any

import pytest
from test_studio_handlers import Shown, name_of, targets, within_a_loop

from guidestar.serve.web import Limits, Service
from helpers.served import toy_model
from helpers.serving import PICTURE

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio's own warnings, and of divergence
EVENTS = 150

TEXTS = ("", " ", "cfg(2)", "cfg(", "cfg(2) + pag(1)", "cond", "uncond | rescale(0.5)", "cfg(1e9)",
         "cfg(nan)", "cfg('a')", "<script>alert(1)</script>", "\x00", "ü" * 300, "AND(2, 'cat')",
         "cond + dps(1)", "cfg([1, 2])", "cond + classifier(1)", "cfg(2, interval=(3, 1))", "()",
         "cfg(2) + " * 40, "cfg(-3)", "cfg(2, schedule=cosine)", "__import__('os')")  # fmt: skip
SEEDS = ("", "0", "0-3", "9-1", "-5", "1e3", "99999999999999999999", "0-999999", "1, 2, 2", "x")
VALUES = ("", "1", "2, 4", "x; y", "0; -1", "nan", "1e400", ",,,", "(0, 1); (1, 20)", "cat; cow",
          "ddim; leap", "0.5, 2")  # fmt: skip
DATA: tuple[Any, ...] = (
    None,
    {},
    [],
    "x",
    3,
    {"index": None},
    {"index": "x", "name": "scale"},
    {"index": "0", "name": "scale", "value": "3"},
    {"index": "99", "name": "scale", "value": "3"},
    {"index": "-1", "name": "scale", "value": "3"},
    {"index": "0", "name": "__class__", "value": "3"},
    {"index": "0", "name": "scale", "value": "cfg(1) + cfg(2)"},
    {"action": "add", "value": "pag"},
    {"action": "add", "value": "sag"},
    {"action": "add", "value": "none"},
    {"action": "remove"},
    {"action": "remove", "value": "x"},
    {"action": "remove", "value": "0"},
    {"action": "zzz"},
    {"action": "base", "value": "neg"},
    {"action": "base", "value": "x"},
    {"action": ["add"]},
    {"action": "delete", "id": 0},
    {"action": "again", "id": "x"},
    {"action": "restore", "id": None},
    {"action": "restore", "id": [1]},
    {"action": "delete", "id": 1e400},
)


def pool(draw: random.Random, name: str) -> Any:
    """An odd value of a field, of a kind that Gradio lets through."""
    names: dict[str, tuple[Any, ...]] = {
        "gs-model": ("toy", "toy", "student", None),
        "gs-classes": (None, [], ["cat"], ["cat", "dog"], ["cow"]),
        "gs-prompts": (None, "", "a\n\nb", "x" * 5000, "\n" * 300),
        "gs-steps": (None, 1, 2, 3),
        "gs-solver": (None, "", "ddim", "heun", "leap", "unipc(order=9)", "DPM++ 2M Karras"),
        "gs-grid": (None, "", "karras", "fitted"),
        "gs-seeds": (None, *SEEDS),
        "gs-values-x": (None, *VALUES),
        "gs-values-y": (None, *VALUES),
        "gs-axis-x": (None, "steps", "seeds", "0:scale", "9:scale", "guidance", "strength", "cond"),
        "gs-axis-y": (None, "steps", "solver", "1:scale", "x", "scale", "grid", "negative"),
        "gs-operator": (None, "inpaint", "identity", "downsample", "blur", "gray"),
        "gs-picture": (None, {}, {"background": None}, {"background": None, "layers": []}),
        "gs-noise": (None, 0, 0.5),
        "Factor of downsample": (None, 2, 3, 8),
        "Deviation of blur": (None, 0.5, 5),
        "gs-scale": (None, 0, 10),
        "gs-strength": (None, 0.05, 1),
        "gs-start": (None, "", "gone"),
        "gs-live": (True, False, None),
        "gs-random": (True, False, None),
        "gs-drop": (None, "/nowhere.png", __file__),
        "gs-start-drop": (None, "/nowhere.png", __file__),
        "gs-address": (None, "", "?steps=x", "?model=no", "?seeds=9-1", "?strength=nan&start=a"),
    }
    return draw.choice(names.get(name, (None, *TEXTS)))


@pytest.fixture(scope="module")
def blocks():
    pytest.importorskip("gradio")
    from guidestar.serve.studio.page import make_page

    models = {"toy": toy_model(shape=PICTURE), "student": toy_model(shape=PICTURE)}
    service = Service(models, Limits(seconds=60, per_client=4, steps=10, samples=6, prompt=200))
    yield within_a_loop(lambda: make_page(service))
    service.close()


@pytest.mark.parametrize("seed", range(2))
def test_no_event_raises(blocks, monkeypatch, seed):
    for name in ("Warning", "Info"):
        monkeypatch.setattr(f"gradio.{name}", lambda *a: None)
    draw = random.Random(seed)
    shown = Shown(blocks, f"fuzz-{seed}")
    events = sorted(
        {(name, event) for f in blocks.fns.values() if f.fn for name, event in targets(shown, f)}
        - {("", "load"), ("", "unload")}
    )
    for k in range(EVENTS):
        name, event = draw.choice(events)
        found = [f for f in blocks.fns.values() if f.fn and (name, event) in targets(shown, f)]
        f = draw.choice(found)
        for widget in f.inputs:
            if draw.random() < 0.5:
                shown.values[name_of(widget)] = pool(draw, name_of(widget))
        nth = [g for g in blocks.fns.values() if (name, event) in targets(shown, g)].index(f)
        data = draw.choice(DATA)
        try:
            shown.on(name, event, data, nth=nth)
        except Exception as error:
            inputs = {name_of(w): shown.values.get(name_of(w)) for w in f.inputs}
            raise AssertionError(f"event {k}: {name} {event} {data} of {inputs}") from error
