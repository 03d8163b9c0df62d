"""What the studio's page stands on: settings, the builder, errors, plots, observations, runs."""

from __future__ import annotations

import base64
import io
import json
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from guidestar.guidance import METHODS, losses_of, parse
from guidestar.guidance.term import Direction
from guidestar.io.images import read_settings
from guidestar.serve import Engine
from guidestar.serve.studio import (
    builder,
    comparing,
    drawing,
    plotting,
    problems,
    restoring,
    running,
)
from guidestar.serve.studio.explaining import maps_of
from guidestar.serve.studio.form import Form, read_picture, read_query, read_seeds, write_seeds
from guidestar.serve.studio.gallery import MOST, Gallery, picture_name
from guidestar.serve.studio.planning import plan
from guidestar.serve.studio.running import Runs, preview_every
from guidestar.serve.studio.session import Sessions
from guidestar.serve.studio.starts import Start, Starts, read_start
from guidestar.serve.web import Limits, Service
from guidestar.serve.web.errors import RefusedError
from helpers.served import EXPRESSIONS, Slow, toy_model
from helpers.serving import PICTURE, opened

FORM = Form(
    model="toy", conds=("cat", "dog"), seeds=(3, 4), steps=4, solver="ddim", guidance="cfg(2)"
)
MODELS = ["toy"]


@pytest.fixture(scope="module")
def service():
    made = Service({"toy": toy_model(shape=PICTURE)}, Limits(seconds=60, per_client=6))
    yield made
    made.close()


def png(array) -> str:
    made = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()


# Seeds, addresses, pictures


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", (7,)),
        ("0-3", (0, 1, 2, 3)),
        ("1, 5, 9-10", (1, 5, 9, 10)),
        ("-4", (-4,)),
        (" 2 - 3 ", (2, 3)),
    ],
)
def test_seeds(text, seeds):
    assert read_seeds(text) == seeds
    assert read_seeds(write_seeds(seeds)) == seeds


@pytest.mark.parametrize(
    "text", ["", "x", "3-1", "0-100000", "1.5", "99999999999999999999", "0-900, 0-900"]
)
def test_seeds_that_are_none(text):
    with pytest.raises(ValueError, match="seed"):
        read_seeds(text)


def test_seeds_are_written_as_ranges():
    assert write_seeds([0, 1, 2, 7, 9, 10]) == "0-2, 7, 9-10"
    assert write_seeds([-2, -1]) == "-2, -1"


@pytest.mark.parametrize(
    "form",
    [
        FORM,
        Form(model="toy"),
        Form(model="toy", conds=("a & b = c", "ü, 你好"), negative="x", scale=2.5, grid="karras"),
        Form(model="toy", guidance="cfg(3, interval=(0.2, 3)) | rescale(0.7)", seeds=(2**62,)),
    ],
)
def test_the_address_carries_the_settings(form):
    other = Form(model="toy", conds=("dog",))
    assert read_query("?" + form.write_query(), other, MODELS) == form


def test_the_address_names_the_picture_to_start_from():
    start = Start(name="abc", image="QUI=")
    form = Form(model="toy", start=start, strength=0.25)
    kept = Starts()
    assert read_query(form.write_query(), FORM, MODELS, kept.find).start is None
    assert kept.keep(start) == "abc" and kept.find("abd") is None
    assert read_query(form.write_query(), Form(model="toy"), MODELS, kept.find) == form
    assert "strength" not in Form(model="toy", strength=0.25).write_query()


def test_the_pictures_to_start_from_that_were_used_last_are_kept(monkeypatch):
    monkeypatch.setattr("guidestar.serve.studio.starts._MOST_BYTES", 8)
    kept = Starts()
    for name in "abc":
        kept.keep(Start(name=name, image="1234"))
        kept.find("a")
    assert [kept.find(name) is not None for name in "abc"] == [True, False, True]
    kept.keep(Start(name="d", image="1" * 100))  # which is in use, so it stays
    assert [kept.find(name) is not None for name in "abcd"] == [False, False, False, True]


def test_a_picture_to_start_from_is_made_smaller(tmp_path):
    Image.linear_gradient("L").resize((40, 20)).save(tmp_path / "a.png")
    small = read_start(str(tmp_path / "a.png"), 800, 10)
    assert opened(small.image).size == (20, 10) and opened(small.image).mode == "RGB"
    assert opened(read_start(str(tmp_path / "a.png"), 800, 20).image).size == (40, 20)
    assert read_start(str(tmp_path / "a.png"), 800, 10) == small
    with pytest.raises(ValueError, match="cannot be read as a picture: it has more than 799"):
        read_start(str(tmp_path / "a.png"), 799, 10)


def test_a_form_with_a_start_asks_for_it():
    made = Form(model="toy", start=Start(name="a", image="QUI="), strength=0.25).request()
    assert (made.start, made.strength, made.resize) == ("QUI=", 0.25, "crop")
    assert FORM.request().start is FORM.request().strength is FORM.request().resize is None


def test_an_address_of_another_model_or_of_no_number():
    with pytest.raises(ValueError, match="there is toy"):
        read_query("model=../etc", FORM, MODELS)
    with pytest.raises(ValueError, match="steps in the address must be a number"):
        read_query("steps=many", FORM, MODELS)


def carried(samples, index: int) -> dict:
    """The settings of a picture, as a PNG has them."""
    from dataclasses import asdict

    settings = json.loads(json.dumps(asdict(samples.settings)))
    return {**settings, "index": index, "number": index, "stride": 1}


def test_a_picture_brings_its_settings_back():
    model = toy_model(shape=PICTURE)
    names, seeds = ["cat", "cat", "dog", "dog"], [3, 4, 3, 4]
    samples = model.sample(
        names, guidance="cfg(2)", seeds=seeds, steps=4, solver="ddim", negative="blurry"
    )
    form = read_picture(carried(samples, 2), MODELS)
    assert form.conds == ("cat", "dog") and form.seeds == (3, 4)
    assert (form.negative, form.steps, form.solver, form.guidance) == (
        "blurry",
        4,
        "ddim",
        "cfg(2)",
    )
    assert form.samples == list(zip(names, seeds, strict=True))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_picture_of_a_mixed_run_brings_its_own_settings_back(index):
    model = toy_model(shape=PICTURE)
    names, seeds = ["cat", "dog", "cat"], [9, 5, 7]
    samples = model.sample(names, guidance="cfg([1, 2.5, 4])", seeds=seeds, steps=3)
    form = read_picture(carried(samples, index), MODELS)
    assert form.samples == [(names[index], seeds[index])]
    alone = model.sample(
        [form.conds[0]],
        guidance=form.guidance,
        seeds=form.seeds,
        steps=form.steps,
        solver=form.solver,
    )
    torch.testing.assert_close(alone.x[0], samples.x[index], rtol=1e-5, atol=1e-5)


def test_a_picture_of_a_folder_is_known_by_its_name():
    settings = carried(toy_model(shape=PICTURE).sample("cat", seeds=[0]), 0)
    assert read_picture({**settings, "model": "out/runs/toy"}, MODELS).model == "toy"
    with pytest.raises(ValueError, match="not served here; there is toy"):
        read_picture({**settings, "model": "other"}, MODELS)
    with pytest.raises(ValueError, match="the loss 'loss'"):
        read_picture({**settings, "lacking": ["the loss 'loss'"]}, MODELS)


# The builder


def test_every_method_can_be_added_and_is_described():
    for name, summary in builder.methods():
        text = builder.add("cond", name)
        (part,) = builder.parts_of(text)
        assert part.name == name and summary and part.summary == summary
        if not issubclass(METHODS[name], Direction):
            continue
        assert {c.name for c in part.controls} >= {"scale", "interval", "every"}
        assert all(c.help for c in part.controls if c.name == "scale"), name


def test_every_control_reads_what_it_shows():
    for name, _ in builder.methods():
        text = builder.add("cond", name)
        (part,) = builder.parts_of(text)
        for control in part.controls:
            assert builder.change(text, 0, control.name, control.text) == text


def test_sliders_are_within_their_range_and_reach_twice_the_usual():
    for name, _ in builder.methods():
        for control in builder.parts_of(builder.add("cond", name))[0].controls:
            if control.low is not None:
                assert control.low <= float(control.text) <= control.high
                assert 0 < control.step <= (control.high - control.low) / 4
    scale = builder.parts_of("cfg(3)")[0].controls[0]
    assert (scale.low, scale.high, scale.step) == (0.0, 10.0, 0.1)
    phi = builder.parts_of("cond | rescale(0.7)")[0].controls[0]
    assert (phi.low, phi.high) == (0.0, 1.0)


START = "cfg(3, interval=(0.2, 3)) + pag(1) | rescale(0.7)"


@pytest.mark.parametrize(
    ("index", "name", "value", "text"),
    [
        (0, "scale", "5", "cfg(5, interval=(0.2, 3)) + pag(1) | rescale(0.7)"),
        (0, "scale", "[1, 2]", "cfg([1, 2], interval=(0.2, 3)) + pag(1) | rescale(0.7)"),
        (0, "interval", "", "cfg(3) + pag(1) | rescale(0.7)"),
        (0, "interval", "(1, 2)", "cfg(3, interval=(1, 2)) + pag(1) | rescale(0.7)"),
        (0, "negative", "a 'dog'", START.replace("3))", "3), negative=\"a 'dog'\")")),
        (0, "schedule", "cosine", START.replace("3))", "3), schedule=cosine)")),
        (1, "every", "2", "cfg(3, interval=(0.2, 3)) + pag(1, every=2) | rescale(0.7)"),
        (2, "space", "'eps'", "cfg(3, interval=(0.2, 3)) + pag(1) | rescale(0.7, space='eps')"),
        (2, "scale", "0.5", "cfg(3, interval=(0.2, 3)) + pag(1) | rescale(0.5)"),
    ],
)
def test_a_control_writes_the_text(index, name, value, text):
    assert builder.change(START, index, name, value) == text


@pytest.mark.parametrize(
    ("index", "name", "value", "message"),
    [
        (0, "scale", "many", "unknown name"),
        (0, "interval", "(3, 1)", "interval"),
        (0, "nothing", "1", "no argument"),
        (3, "scale", "1", "3 parts"),
        (2, "scale", "7", "rescale"),
        (0, "scale", "1) + pag(2", "cfg"),
    ],
)
def test_a_control_that_does_not_fit_is_refused(index, name, value, message):
    with pytest.raises(ValueError, match=message):
        builder.change(START, index, name, value)


def test_parts_are_added_removed_and_given_a_base():
    assert builder.add("cfg(3)", "pag") == "cfg(3) + pag(3)"
    assert builder.add("cfg(3)", "rescale") == "cfg(3) | rescale(0.7)"
    assert builder.add("cfg(3) | rescale(0.7)", "apg") == "cfg(3) + apg(3) | rescale(0.7)"
    assert builder.remove(START, 0) == "pag(1) | rescale(0.7)"
    assert builder.remove("cfg(3)", 0) == "cond"
    assert builder.set_base("cfg(3)", "uncond") == "uncond + cfg(3)"
    assert builder.set_base("uncond + cfg(3)", "") == "cfg(3)"
    with pytest.raises(ValueError, match="no method"):
        builder.add("cfg(3)", "__import__")


def test_controls_are_drawn_escaped():
    drawn = drawing.controls(builder.parts_of("nag(3, negative='<b>&\"')"), "", [])
    assert "<b>&" not in drawn.replace("<b>nag</b>", "") and "&lt;b&gt;&amp;" in drawn


# Errors at their place


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("cfg(2) + apgg(1.5)", "apgg"),
        ("cfg(2) + apg(1.5, momentun=0.5)", "momentun"),
        ("  cfg(2, interval=3)", "3"),
        ("cfg('x')", "'x'"),
        ("cfg(3) pag(1)", "pag"),
    ],
)
def test_an_error_is_at_its_place(text, marked):
    found = problems.find_problem(text)
    assert text[found.start : found.end] == marked
    assert f"<mark>{drawing.escape(marked)}</mark>" in drawing.problem(found)


def test_no_error():
    assert problems.find_problem("cfg(3)") is None and problems.find_problem(" ") is None
    assert drawing.problem(None) == ""


def test_an_error_of_a_model_is_at_the_term_it_names():
    found = problems.locate("cfg(2) + classifier(1)", "classifier: there is no classifier 'x'")
    assert found.text[found.start : found.end] == "classifier"
    assert problems.locate("cfg(2)", "the queue is full").end == 0


# Plans


def test_the_plan_is_that_of_the_model(service):
    found = plan(service, FORM)
    wanted = service.engines["toy"].model.plan("cfg(2)", cond="cat", steps=4, solver="ddim")
    assert found.nfe == wanted.nfe == 8 and found.pictures == 4
    assert found.names == ("cond", "uncond")
    assert [sum(passes.values()) for _, passes in found.steps] == [2, 2, 2, 2]
    drawn = drawing.plan(found)
    assert drawn.count("<rect") == 8 and "<b>8</b> evaluations a picture" in drawn


def test_the_plan_says_how_long_it_takes_once_that_is_known():
    with Engine(toy_model(shape=PICTURE)) as engine:
        service = Service({"toy": engine.model})
        assert plan(service, FORM).seconds is None
        service.engines["toy"].submit(engine.model.request("cat", steps=2)).result(30)
        while service.engines["toy"].stats.running:
            time.sleep(0.01)
        pace = service.engines["toy"].stats.pace
        assert plan(service, FORM).seconds == pytest.approx(pace * 8 * 4)
        service.close()


def test_a_plan_over_a_limit_is_refused(service):
    with pytest.raises(RefusedError, match="scale of cfg may be 1000"):
        plan(service, Form(model="toy", guidance="cfg(2000)"))


# Runs


def test_previews_and_progress_are_shown_on_the_way():
    service = Service({"toy": toy_model(Slow(), shape=PICTURE)}, Limits(seconds=60))
    found = [p[0] for p in Runs(service, "me").follow("make", [FORM.request(preview_every=2)])]
    service.close()
    done = [p.done for p in found]
    assert done == sorted(done) and {1, 2, 3} <= set(done)
    assert [len(p.pictures) for p in found if p.done == 1] == [0]
    assert {len(p.pictures) for p in found if p.done in (2, 3)} == {4}


def test_a_run_is_followed_to_its_pictures(service):
    runs = Runs(service, "me")
    found = list(runs.follow("make", [FORM.request(preview_every=1)]))
    assert found[-1][0].status == "done" and found[-1][0].done == 4
    wanted = service.engines["toy"].model.sample(
        ["cat", "cat", "dog", "dog"], guidance="cfg(2)", seeds=[3, 4, 3, 4], steps=4, solver="ddim"
    )
    for shown, image in zip(found[-1][0].pictures, wanted.pil(), strict=True):
        assert opened(shown).tobytes() == image.tobytes()
    form = read_picture(read_settings(base64.b64decode(found[-1][0].pictures[0])), MODELS)
    assert (form.conds, form.seeds, form.guidance) == (FORM.conds, FORM.seeds, FORM.guidance)


def test_many_runs_are_followed_within_the_limit_of_a_client(service):
    asked = [Form(model="toy", conds=("cat",), seeds=(k,), steps=2).request() for k in range(9)]
    *_, found = Runs(service, "many").follow("plot", asked)
    assert [p.status for p in found] == ["done"] * 9 and all(len(p.pictures) == 1 for p in found)


def test_a_run_that_fails_says_why(service):
    asked = FORM.request(timeout=1e-9)
    *_, found = Runs(service, "late").follow("make", [asked])
    assert found[0].status == "failed" and "was not done in" in found[0].message
    assert "gs-failed" in drawing.progress(found)


def test_a_run_is_cancelled_by_the_next_and_when_it_is_left(service):
    runs = Runs(service, "busy")
    long = Form(model="toy", conds=("cat",), seeds=tuple(range(16)), steps=250).request()
    following = runs.follow("make", [long])
    next(following)
    (job,) = runs.last("make")
    assert runs.cancel("make") == 1
    assert job.ticket.wait(30) and job.ticket.status == "cancelled"
    assert list(following)[-1][0].status == "cancelled"
    following = runs.follow("make", [long])
    next(following)
    (job,) = runs.last("make")
    following.close()
    assert job.ticket.wait(30) and job.ticket.status == "cancelled"


def test_previews_are_at_most_24():
    assert [preview_every(n) for n in (1, 24, 25, 100, 250)] == [1, 1, 2, 5, 11]


def test_sessions_end_with_their_runs(service):
    sessions = Sessions(service)
    session = sessions.find("one", "me")
    assert sessions.find("one", "me") is session
    long = Form(model="toy", conds=("cat",), seeds=tuple(range(16)), steps=250).request()
    next(session.runs.follow("make", [long]))
    sessions.drop("one")
    assert sessions.find("one", "me") is not session


# Compare, plots, explain


def test_the_difference_of_two_pictures():
    first, second = np.full((2, 2), 100), np.array([[100, 90], [100, 110]])
    image, most = comparing.difference_picture(png(first), png(second))
    assert most == pytest.approx(10 / 255)
    assert np.asarray(opened(image)).tolist() == [[128, 1], [128, 255]]
    image, most = comparing.difference_picture(png(first), png(first))
    assert most == 0 and np.asarray(opened(image)).tolist() == [[128, 128], [128, 128]]


def test_the_cells_of_a_plot():
    form = Form(model="toy", conds=("cat", "dog"), seeds=(5, 6), guidance="cfg(2) + pag(1)")
    assert ("pag: scale", "1:scale") in plotting.axes_of(form)
    x = plotting.read_axis(form, "1:scale", "0.5, 2")
    y = plotting.read_axis(form, "steps", "4, 8, 16")
    rows = plotting.cells(form, x, y)
    assert [[(f.guidance, f.steps) for f in row] for row in rows] == [
        [(f"cfg(2) + pag({s})", n) for s in ("0.5", "2")] for n in (4, 8, 16)
    ]
    assert all(f.conds == ("cat",) and f.seeds == (5,) for row in rows for f in row)


def test_an_axis_of_expressions_comes_before_one_of_their_arguments():
    form = Form(model="toy", guidance="cfg(2)")
    x = plotting.read_axis(form, "0:scale", "1, 4")
    y = plotting.read_axis(form, "guidance", "apg(9, momentum=0.5); cfg(9)")
    found = [[f.guidance for f in row] for row in plotting.cells(form, x, y)]
    assert found == [["apg(1, momentum=0.5)", "apg(4, momentum=0.5)"], ["cfg(1)", "cfg(4)"]]


def test_the_strength_of_a_start_can_be_plotted():
    form = Form(model="toy", guidance="cfg(2)")
    assert "strength" not in [key for _, key in plotting.axes_of(form)]
    form = Form(model="toy", guidance="cfg(2)", start=Start(name="a", image="QUI="))
    assert "strength" in [key for _, key in plotting.axes_of(form)]
    assert plotting.with_value(form, "strength", "0.3").strength == 0.3


def test_suggested_values_can_be_plotted():
    form = Form(model="toy", conds=("cat",), guidance="cfg(2) + sag(1, layer='map')")
    for label, key in plotting.axes_of(form):
        if key == "negative":
            continue
        axis = plotting.read_axis(form, key, plotting.suggest(form, key))
        for value in axis.values:
            try:
                plotting.with_value(form, key, value)
            except ValueError as error:  # 0 is out of range for some
                assert value == "0", (label, error)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (("steps", "1, 2"), ("steps", "3"), "both axes"),
        (("seeds", "0-8"), ("steps", ""), "no values"),
        (("7:scale", "1"), ("steps", "3"), "has changed"),
        (("steps", ",".join("1" * 20)), ("seeds", ",".join("1" * 20)), "64 pictures"),
        (("steps", "many"), ("seeds", "1"), "must be a number"),
    ],
)
def test_a_plot_that_cannot_be(x, y, message):
    form = Form(model="toy", guidance="cfg(2)")
    with pytest.raises(ValueError, match=message):
        plotting.cells(form, plotting.read_axis(form, *x), plotting.read_axis(form, *y))


def test_a_plot_is_drawn_with_its_legend():
    form = Form(model="toy", guidance="cfg(2)")
    x, y = plotting.read_axis(form, "0:scale", "1, 2"), plotting.read_axis(form, "steps", "4, 8")
    shades = (0, 80, 160, 240)
    made = plotting.draw(form, x, y, [png(np.full((8, 8), s)) for s in shades])
    image = np.asarray(opened(made).convert("L"))
    assert opened(made).format == "PNG" and set(shades) <= set(image.flatten().tolist())
    places = [np.argwhere(image == s).mean(0) for s in (80, 160, 240)]
    assert places[1][0] > places[0][0] and places[2][1] > places[1][1]  # row by row
    assert read_settings(made)["x"] == "cfg: scale"


def test_pushes_are_kept_and_drawn(service):
    runs = Runs(service, "explain")
    form = Form(
        model="toy", conds=("cat",), seeds=(1, 2), steps=4, solver="ddim", guidance="cfg(3)"
    )
    *_, _ = runs.follow("explain", [form.request(explain=True)])
    pushes = runs.last("explain")[0].ticket.pushes
    model = service.engines["toy"].model
    states = list(
        model.trajectory(
            "cat", guidance="cfg(3)", seeds=[1, 2], steps=4, solver="ddim", explain=True
        )
    )
    assert [p.step for p in pushes] == [0, 1, 2, 3]
    for kept, state in zip(pushes, states, strict=True):
        push = state.pushes["cfg(3)"]
        assert kept.sizes["cfg(3)"] == pytest.approx(float(push.pow(2).mean().sqrt()), rel=1e-4)
        torch.testing.assert_close(kept.maps["cfg(3)"], push[0], rtol=1e-4, atol=1e-5)
    maps = maps_of(pushes)
    assert [step for step, _ in maps["cfg(3)"]] == [0, 1, 2, 3]
    drawn = drawing.pushes(pushes, maps)
    assert drawn.count("<polyline") == 1 and drawn.count("<img") == 4
    described = runs.last("explain")[0].describe()["pushes"]
    assert described[0]["terms"]["cfg(3)"] == pushes[0].sizes["cfg(3)"]


# Inverse problems


def test_a_picture_is_observed_by_each_operator():
    model = toy_model(shape=PICTURE)
    ramp = Image.fromarray((np.arange(64, dtype=np.uint8) * 4).reshape(8, 8))
    small = restoring.observe(model, ramp, "downsample", options={"factor": 2, "deviation": 9})
    means = (np.asarray(ramp, float) / 127.5 - 1).reshape(4, 2, 4, 2).mean((1, 3))
    wanted = np.round((means + 1) * 127.5)
    assert np.abs(np.asarray(opened(small.observation.image), float) - wanted).max() <= 1
    assert (
        small.observation.options == {"factor": 2}
        and opened(small.original).tobytes() == ramp.tobytes()
    )
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 8))
    painted = restoring.observe(model, ramp, "inpaint", mask=mask)
    known = np.asarray(opened(painted.observation.mask))
    assert (known[:, :4] == 0).all() and (known[:, 4:] == 255).all()
    noisy = restoring.observe(model, ramp, "identity", noise=0.2)
    again = restoring.observe(model, ramp, "identity", noise=0.2)
    assert noisy == again and noisy.observation.image != noisy.original


def test_an_observation_is_restored(service):
    model = service.engines["toy"].model
    ramp = Image.linear_gradient("L").resize((40, 20))
    made = restoring.observe(model, ramp, "downsample", options={"factor": 2})
    form = Form(model="toy", conds=("cat",), steps=3, guidance="cond + dps(0.5)")
    *_, found = Runs(service, "restore").follow(
        "restore", [form.request(observation=made.observation)]
    )
    assert found[0].status == "done" and len(found[0].pictures) == 1


def test_inpainting_without_a_mask_is_refused():
    with pytest.raises(ValueError, match="paint over"):
        restoring.observe(toy_model(shape=PICTURE), Image.new("L", (8, 8)), "inpaint")


def test_what_is_offered_for_inverse_problems():
    assert "gray" not in restoring.operators_for(toy_model(shape=PICTURE))
    assert {"dps", "pigdm"} <= set(restoring.lowering())
    assert losses_of(parse(restoring.EXPRESSION)) == ("loss",)


# The gallery


def test_the_gallery_keeps_the_newest():
    gallery = Gallery()
    gallery.add(FORM, ["aa"] * 4)
    entry = gallery.find(2)
    assert entry.form.samples == [("dog", 3)] and entry.file == "dog-seed3.png"
    assert picture_name(FORM, 1) == "cat-seed4.png"
    gallery.remove(2)
    assert gallery.find(2) is None and len(gallery.entries) == 3
    for _ in range(30):
        gallery.add(FORM, ["bb"] * 4)
    assert len(gallery.entries) == MOST and gallery.find(0) is None
    assert gallery.draw().count("<figure") == MOST


def test_a_drawn_gallery_names_pictures_and_does_not_hold_them(service):
    """What the page gets at each run is bounded, however large the pictures are."""
    sessions = Sessions(service)
    gallery = sessions.find("visit", "me").gallery
    for _ in range(MOST):
        gallery.add(FORM, ["A" * 100_000] * 4)
    drawn = gallery.draw()
    assert drawn.count("<figure") == MOST and len(drawn) < 1500 * MOST and "data:" not in drawn
    last = gallery.entries[0]
    assert drawn.count(f'"/studio/gallery/{gallery.key}/{last.id}.png"') == 2  # shown, downloaded
    assert sessions.picture(gallery.key, last.id) is last and last.png == bytes(75_000)
    assert sessions.picture(gallery.key, 0) is None  # the oldest have gone
    assert sessions.picture(sessions.find("other", "me").gallery.key, last.id) is None
    sessions.drop("visit")
    assert sessions.picture(gallery.key, last.id) is None


@pytest.mark.parametrize("text", random.Random(0).sample([*EXPRESSIONS], 6))
def test_controls_of_all_kinds_of_expressions_are_drawn(text):
    drawn = drawing.controls(builder.parts_of(text), builder.base_of(text), builder.methods())
    assert drawn.count("<section") == len(builder.parts_of(text))


def test_a_run_that_ends_during_a_look_has_its_own_pictures():
    class Ending:  # it was sampling at the first look at it, and is done at the next
        status, place, steps_done, steps = "done", 0, 4, 4
        error, warnings, preview = None, (), None
        looks = iter([False])

        @property
        def is_over(self):
            return next(self.looks, True)

    job = SimpleNamespace(
        ticket=Ending(), all_encoded=lambda: ["final"], previews=lambda: ["early"]
    )
    found = [running.JobProgress(status="running", pictures=["early"], steps=4)]
    assert running._look(job, 0, found, [3], 0.0)
    assert (found[0].status, found[0].pictures) == ("done", ["final"])


def test_what_is_not_known_is_shown_in_one_colour():
    shown = Image.new("L", (2, 1), 200)
    assert restoring._over(shown, None) is shown
    known = Image.new("L", (2, 1), 0)
    known.putpixel((1, 0), 255)
    found = restoring._over(shown, known)
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(0x6B, 0x7D, 0xB3), (200, 200, 200)]


def test_a_long_problem_is_cut_and_whole_in_its_title():
    def shown(message: str, start: int = 0, end: int = 0) -> str:
        return drawing.problem(problems.Problem(message=message, text="a<b", start=start, end=end))

    assert shown("m" * 220) == (
        f'<div class="gs-problem" role="alert"><p><span title="{"m" * 220}">{"m" * 220}</span></p>'
        "</div>"
    )
    assert f'title="{"m" * 221}">{"m" * 219}…</span>' in shown("m" * 221)
    assert "<code>a<mark>&lt;</mark>b</code>" in shown("m", 1, 2)
    assert "<code>" not in shown("m", 2, 2)
    assert [drawing._cut(t, 3) for t in ("abc", "abcd", "")] == ["abc", "ab…", ""]
