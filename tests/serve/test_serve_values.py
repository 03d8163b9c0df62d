"""Single values of the server, written out: times, counts, limits and what clients read."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import signal
import types
from typing import Any

import pytest
import sse_starlette.sse
import torch
from PIL import Image

import guidestar as gs
from guidestar.io.images import read_settings
from guidestar.serve import Engine, running
from guidestar.serve.admission import in_groups
from guidestar.serve.errors import (
    CancelledError,
    DeadlineError,
    EngineClosedError,
    QueueFullError,
    TooLargeError,
)
from guidestar.serve.stats import Stats
from guidestar.serve.ticket import Ticket
from guidestar.serve.web import Keys, Limits, Service, a1111_api, make_app, openai_api, run
from guidestar.serve.web.about import describe_model, plan
from guidestar.serve.web.building import at_most, build, read_expression
from guidestar.serve.web.errors import RefusedError, refused
from guidestar.serve.web.guard import Guard
from guidestar.serve.web.job import Job
from guidestar.serve.web.metrics import Metrics
from guidestar.serve.web.pictures import from_base64, to_tensor
from guidestar.serve.web.schemas import (
    ImagesRequest,
    ObservedPicture,
    PlanRequest,
    SampleRequest,
    Txt2Img,
)
from guidestar.serve.web.service import picture_size
from helpers.served import toy_model

WIDE = (3, 5, 7)


@pytest.fixture(scope="module")
def model():
    return toy_model(shape=WIDE)


def ticket(model: Any, steps: int = 8, seeds: tuple[int, ...] = (5,), **more: Any) -> Ticket:
    request = model.request("cat", seeds=seeds, steps=steps)
    engine: Any = types.SimpleNamespace(model=model, place=lambda t: 0, cancel=lambda t: None)
    return Ticket(engine, request, **more)


def ended(model: Any, submitted: float, started: float | None, end: float | None) -> Ticket:
    found = ticket(model)
    found.submitted, found.started, found.ended, found.status = submitted, started, end, "done"
    return found


def test_figures_of_requests_are_seconds_since_they_were_submitted(model):
    metrics = Metrics({})
    metrics.observe("m", ended(model, 10.0, 13.0, 14.5))
    metrics.observe("m", ended(model, 10.0, None, None))
    metrics.count_answer(200)
    metrics.count_answer(200)
    text = metrics.text().decode()
    for line in (
        'guidestar_request_seconds_sum{model="m",status="done"} 4.5',
        'guidestar_request_seconds_count{model="m",status="done"} 2.0',
        'guidestar_request_seconds_bucket{le="0.01",model="m",status="done"} 1.0',
        'guidestar_request_seconds_bucket{le="2.5",model="m",status="done"} 1.0',
        'guidestar_request_seconds_bucket{le="5.0",model="m",status="done"} 2.0',
        'guidestar_queue_seconds_sum{model="m"} 3.0',
        'guidestar_queue_seconds_count{model="m"} 1.0',
        'guidestar_http_responses_total{status="200"} 2.0',
    ):
        assert line in text, line
    bounds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
    for name in ("request", "queue"):
        found = [x.split('le="')[1].split('"')[0] for x in text.splitlines() if x.startswith(
            f"guidestar_{name}_seconds_bucket")]  # fmt: skip
        assert [float(x) for x in found[: len(bounds)]] == bounds


def test_figures_of_engines_are_their_counts():
    stats = Stats(
        queued=1, running=2, samples=3, ended={"done": 4}, ticks=5, rows=6, seconds=7.5, repeated=8
    )
    engines: Any = {"m": types.SimpleNamespace(stats=stats)}
    text = Metrics(engines).text().decode()
    for line in (
        'guidestar_queued{model="m"} 1.0',
        'guidestar_running{model="m"} 2.0',
        'guidestar_samples{model="m"} 3.0',
        'guidestar_requests_total{model="m",status="done"} 4.0',
        'guidestar_engine_ticks_total{model="m"} 5.0',
        'guidestar_engine_rows_total{model="m"} 6.0',
        'guidestar_engine_seconds_total{model="m"} 7.5',
        'guidestar_engine_repeated_total{model="m"} 8.0',
    ):
        assert line in text, line


def sent(image: Image.Image) -> str:
    made = io.BytesIO()
    image.save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()


def test_pictures_that_are_sent_keep_their_places_and_values():
    image = Image.new("RGB", (7, 5))
    image.putpixel((6, 2), (255, 51, 102))
    x = to_tensor(sent(image), WIDE, Limits(), "start")
    assert x.shape == WIDE and x.dtype == torch.float32
    assert x[:, 2, 6].tolist() == pytest.approx([1.0, -0.6, -0.2], abs=1e-6)
    assert x.sum() == pytest.approx(-105 + 2 + 0.4 + 0.8, abs=1e-4)
    grey = Image.new("L", (7, 5))
    grey.putpixel((6, 2), 255)
    x = to_tensor("data:image/png;base64," + sent(grey), (1, 5, 7), Limits(), "start")
    assert x.shape == (1, 5, 7) and x[0, 2, 6] == 1 and x.sum() == -33
    assert from_base64("QUI=", "x") == from_base64("data:,QUI=", "x") == b"AB"


def test_pictures_that_are_sent_are_of_one_size_and_within_a_limit():
    image = sent(Image.new("L", (7, 5)))
    exact, one_less = Limits(pixels=35), Limits(pixels=34)
    assert to_tensor(image, (1, 5, 7), exact, "start").shape == (1, 5, 7)
    assert to_tensor(image, (1, 3, 4), exact, "start", resize="stretch").shape == (1, 3, 4)
    for shape, limits, text in [
        ((1, 5, 7), one_less, "start cannot be read as a picture: it has more than 34 pixels"),
        ((1, 5, 8), exact, "start is 7 × 5 pixels, not 8 × 5"),
        ((1, 6, 7), exact, "start is 7 × 5 pixels, not 7 × 6"),
    ]:
        with pytest.raises(RefusedError, match=text) as found:
            to_tensor(image, shape, limits, "start")
        error = (found.value.status, found.value.kind, found.value.param)
        assert error == (422, "invalid_request_error", "start")
    with pytest.raises(RefusedError, match="mask must be a picture in base64"):
        to_tensor("a b", WIDE, exact, "mask")


def test_a_job_before_and_after_it_is_done(model):
    with Engine(model) as engine:
        asked = model.request("cat", seeds=(5, 6), steps=2, guidance="cfg(3)")
        done = engine.submit(asked, preview_every=1)
        done.result(60)
    job = Job(done, "me", "task")
    found = job.describe()
    assert found["images"] == [f"/v1/images/{job.id}/0.png", f"/v1/images/{job.id}/1.png"]
    assert {k: found[k] for k in ("id", "model", "status", "place", "steps_done", "steps")} == {
        "id": done.id, "model": "toy", "status": "done", "place": 0, "steps_done": 2, "steps": 2,
    }  # fmt: skip
    assert (found["seeds"], found["guidance"], found["error"]) == ([5, 6], "cfg(3)", None)
    assert found["created"] == int(job.created) and found["warnings"] == []
    assert (job.owner, job.task, job.counted) == ("me", "task", False)
    assert len(job.all_encoded()) == len(job.previews("jpeg")) == 2
    own = read_settings(job.encoded(1))
    assert (own["stride"], own["index"], own["number"], own["seeds"]) == (1, 1, 1, [5, 6])
    for index in (-1, 2):
        with pytest.raises(RefusedError, match="there are 2 pictures") as error:
            job.encoded(index)
        assert error.value.status == 404
    waiting = Job(ticket(model, preview_every=2), "me")
    assert waiting.previews() == [] and waiting.describe()["images"] == []
    with pytest.raises(RefusedError, match="not done yet") as error:
        waiting.encoded(0)
    assert error.value.status == 409
    waiting.ticket.end("failed", error=DeadlineError("late"))
    assert waiting.describe()["error"]["type"] == "deadline"
    with pytest.raises(RefusedError, match="late"):
        waiting.encoded(0)


def test_a_ticket_tells_each_change_and_keeps_the_previews_that_are_due(model):
    found, told = ticket(model, steps=5, preview_every=2), []
    stop = found.watch(lambda t: told.append((t.status, t.steps_done)))
    found.begin()
    kept = []
    for done in range(1, 6):
        found.advance(done, torch.full((1,), float(done)))
        kept.append(found.preview and found.preview.step)
    assert kept == [None, 2, 2, 4, 5] and found.preview is not None and found.preview.x0 == 5
    found.end("done")
    assert told == [("running", k) for k in range(6)] + [("done", 5)]
    stop()
    assert found.is_over and found.wait(0)
    assert found.started is not None and found.ended is not None
    assert found.submitted <= found.started <= found.ended
    quiet = ticket(model)
    quiet.advance(8, torch.zeros(1))
    assert quiet.preview is None and quiet.steps_done == 8
    with pytest.raises(TimeoutError, match=r"not there after 0\.01 seconds"):
        quiet.result(0.01)


def test_a_ticket_is_late_once_its_time_has_passed(model, monkeypatch):
    clock = types.SimpleNamespace(monotonic=lambda: 100.0)
    monkeypatch.setattr("guidestar.serve.ticket.time", clock)
    found, free = ticket(model, timeout=7.0), ticket(model)
    for now, late in ((100.0, False), (107.0, False), (107.5, True)):
        clock.monotonic = lambda now=now: now
        assert (found.is_late, free.is_late) == (late, False)


def test_an_estimate_of_the_seconds_left(model, monkeypatch):
    monkeypatch.setattr(a1111_api, "time", types.SimpleNamespace(monotonic=lambda: 110.0))
    found = ticket(model, steps=8)
    assert a1111_api._seconds_left(found) == 0
    found.started = 104.0
    assert a1111_api._seconds_left(found) == 0
    found.steps_done = 3
    assert a1111_api._seconds_left(found) == 10.0  # 2 s a step, 5 steps
    found.started = None
    assert a1111_api._seconds_left(found) == 0


@pytest.mark.parametrize(
    ("steps", "strength", "left"),
    [(8, 0.5, 4), (8, 1.0, 8), (8, 0.0, 1), (5, 0.5, 2), (4, 0.01, 1)],
)
def test_img2img_takes_a_share_of_the_steps(model, steps, strength, left):
    asked = SampleRequest(
        steps=steps, grid="uniform", start=sent(Image.new("RGB", (7, 5))), strength=strength
    )
    levels = gs.uniform(gs.VP.linear(), steps)
    found = build(model, asked, Limits())
    assert found.levels.steps == left
    assert float(found.levels[0].rho) == pytest.approx(float(levels[steps - left].rho))


def test_the_solvers_name_gives_the_levels_that_are_left(model):
    start = {"start": sent(Image.new("RGB", (7, 5))), "strength": 0.5}
    asked = SampleRequest(steps=8, solver="DPM++ 2M Karras", **start)
    levels = model.grid(8, "karras")
    assert float(build(model, asked, Limits()).levels[0].rho) == float(levels[4].rho)


def test_a_picture_of_another_size_is_stretched_or_cropped():
    halves = Image.new("L", (16, 4), 0)
    halves.paste(255, (8, 0, 16, 4))  # black on the left, white on the right
    halves.paste(102, (0, 0, 4, 4))  # and a stripe that cropping cuts away
    get = lambda how: to_tensor(sent(halves), (1, 4, 8), Limits(), "start", resize=how)[0, 1]
    stretched, cropped = get("stretch"), get("crop")
    assert stretched[0] == pytest.approx(-0.2, abs=0.05)  # the stripe
    assert cropped[0] == pytest.approx(-1) and cropped[-1] == pytest.approx(1)
    assert cropped.tolist() == pytest.approx([-1.0] * 4 + [1.0] * 4)


@pytest.mark.parametrize(
    ("given", "text", "param"),
    [
        ({"strength": 0.5}, "strength is of a picture to start from", "strength"),
        ({"resize": "crop"}, "resize is of a picture to start from", "resize"),
        ({"start": "", "strength": 0.5, "start_rho": 1.0}, "strength or start_rho", "strength"),
    ],
)
def test_what_does_not_go_with_a_start_is_refused(model, given, text, param):
    if "start" in given:
        given = {**given, "start": sent(Image.new("RGB", (7, 5)))}
    with pytest.raises(RefusedError, match=text) as found:
        build(model, SampleRequest(**given), Limits())
    assert found.value.param == param


def test_samplers_and_schedulers_by_a1111s_names():
    def chosen(**asked):
        return a1111_api._sampler(Txt2Img(**asked))

    assert chosen() == (None, None)
    assert chosen(sampler_name="DPM++ 2M Karras") == ("DPM++ 2M Karras", "karras")
    assert chosen(sampler_index="Euler", scheduler="Exponential") == ("Euler", "log_snr")
    assert chosen(sampler_name="DDIM", sampler_index="Euler") == ("DDIM", None)
    assert chosen(sampler_name="DPM++ 2M Karras", scheduler="Automatic")[1] is None
    with pytest.raises(RefusedError, match="no scheduler of that name; there are karras") as error:
        chosen(scheduler="x")
    assert (error.value.status, error.value.param) == (422, "scheduler")
    with pytest.raises(RefusedError, match="no such sampler; see /sdapi/v1/samplers") as error:
        chosen(sampler_name="x" * 900)
    assert error.value.param == "sampler_name" and len(str(error.value)) <= 500


def test_a1111s_fields_without_meaning_and_settings():
    assert a1111_api._ignored(Txt2Img(tiling=False, eta=None, subseed=-1, styles=[])) == []
    named = Txt2Img(tiling=True, subseed=3, steps=4, prompt="x", mask_blur_x=4)
    assert a1111_api._ignored(named) == [
        "subseed means nothing here", "tiling means nothing here",
    ]  # fmt: skip
    assert a1111_api._model(Txt2Img()) is None
    chosen = Txt2Img(override_settings={"sd_model_checkpoint": "toy [abc]"})
    assert a1111_api._model(chosen) == "toy"
    with pytest.raises(RefusedError, match="only sd_model_checkpoint is known, not CLIP"):
        a1111_api._model(Txt2Img(override_settings={"CLIP": 2, "sd_model_checkpoint": "a"}))


def test_what_a1111_tells_of_pictures(model):
    job = Job(ticket(model, steps=4, seeds=(5, 6)), "me")
    asked = Txt2Img(prompt="cat", negative_prompt="dog", cfg_scale=2, denoising_strength=0.4)
    found = a1111_api._info(job, asked, (7, 5), ["w"])
    text = "cat\nSteps: 4, Sampler: ddim, Seed: {}, Size: 7x5, Model: toy, Guidance: cfg(2)"
    assert found.pop("infotexts") == [text.format(5), text.format(6)]
    assert found == {
        "prompt": "cat", "all_prompts": ["cat"] * 2, "negative_prompt": "dog",
        "all_negative_prompts": ["dog"] * 2, "seed": 5, "all_seeds": [5, 6], "subseed": -1,
        "all_subseeds": [-1, -1], "width": 7, "height": 5, "sampler_name": "ddim",
        "cfg_scale": 2, "guidance": "cfg(2)", "steps": 4, "batch_size": 2,
        "sd_model_name": "toy", "denoising_strength": 0.4, "index_of_first_image": 0,
        "warnings": ["w"],
    }  # fmt: skip
    found = a1111_api._info(job, Txt2Img(negative_prompt=None), (7, 5), [])
    assert (found["negative_prompt"], found["all_negative_prompts"]) == ("", ["", ""])


def test_openais_scale_is_that_of_cfg():
    assert openai_api._guidance(ImagesRequest(prompt="a")) is None
    assert openai_api._guidance(ImagesRequest(prompt="a", guidance_scale=0)) == "cfg(0.0)"
    assert openai_api._guidance(ImagesRequest(prompt="a", guidance="cond")) == "cond"
    with pytest.raises(RefusedError, match="guidance or guidance_scale, not both") as error:
        openai_api._guidance(ImagesRequest(prompt="a", guidance="cond", guidance_scale=0))
    assert (error.value.status, error.value.param) == (422, "guidance")


def test_limits_are_taken_and_one_more_is_refused(model):
    limits = Limits(steps=4, samples=3, scale=2.0, prompt=8)
    good = [
        {"steps": 4}, {"n": 3}, {"seeds": [1, 2, 3]}, {"guidance": "cfg(2)"},
        {"guidance": "cfg(-2)"},
    ]  # fmt: skip
    for asked in good:
        build(model, SampleRequest(cond="cat", **asked), limits)
    for asked, param, text in [
        ({"steps": 5}, "steps", "steps may be 4 at most here, not 5"),
        ({"n": 4}, "n", "n may be 3 at most here, not 4"),
        ({"seeds": [1] * 4}, "seeds", "seeds may be 3 at most here, not 4"),
        ({"scale": -2.5}, "scale", "scale may be 2 at most here, not 2.5"),
        ({"scale": [1, 2.5]}, "scale", "scale may be 2 at most here, not 2.5"),
        ({"guidance": "cfg(3)"}, "guidance", "scale of cfg may be 2 at most here, not 3"),
        ({"guidance": "cfg(-3)"}, "guidance", "not 3"),
        ({"guidance": "cfg(1.25)"}, "guidance", "may be 8 at most here, not 9"),
        ({"cond": ["cat", "x" * 9]}, "cond", "cond may be 8 at most here, not 9"),
        ({"negative": "x" * 9}, "negative", "negative may be 8 at most"),
    ]:
        with pytest.raises(RefusedError, match=text) as error:
            build(model, SampleRequest(**{"cond": "cat", **asked}), limits)
        found = error.value
        assert (found.status, found.kind, found.param) == (422, "too_large", param)
    at_most("x", 2.0, 2.0)
    with pytest.raises(RefusedError, match="the scale of cfg may be 2"):
        read_expression("cfg([1,3])", Limits(scale=2.0, prompt=20))


def test_seeds_follow_the_first_or_are_given(model):
    def seeds(**asked):
        return build(model, SampleRequest(cond="cat", **asked), Limits()).seeds

    assert seeds(seed=7, n=3) == (7, 8, 9) and seeds(seeds=[4, 2]) == (4, 2)
    (drawn,) = seeds()
    assert 0 <= drawn < 2**31
    for asked in ({"seed": 1}, {"n": 2}, {"seed": 0}):
        with pytest.raises(RefusedError, match="give seeds, or n and seed, not both"):
            seeds(seeds=[1], **asked)
    with pytest.raises(RefusedError, match="there are no seeds"):
        seeds(seeds=[])


def test_a_request_carries_all_that_was_asked(model):
    image = Image.new("RGB", (7, 5), (255, 0, 0))
    asked = SampleRequest(
        cond="cat", negative="dog", seed=3, n=2, steps=6, solver="heun", grid="uniform",
        guidance="cfg(2)", start=sent(image), start_rho=1.0,
    )  # fmt: skip
    found = build(model, asked, Limits())
    assert found.names == ("cat", "cat") and found.solver.name == "heun"
    assert str(found.guidance) == "cfg(2)" and found.start is not None
    assert found.start.shape == (2, *WIDE)
    assert float(found.levels[0].rho) <= 1.0 and found.levels.steps < 6
    assert found.grid == "uniform"


def test_observations_are_of_the_operators_shape(model):
    def observed(seen, guidance="uncond + dps(1)", seeds=(0, 1)):
        asked = SampleRequest(
            cond="cat", guidance=guidance, seeds=list(seeds), observation=ObservedPicture(**seen)
        )
        losses = build(model, asked, Limits()).losses
        assert losses is not None
        return losses["loss"]

    mask = Image.new("L", (7, 5))
    mask.putpixel((3, 1), 255)
    shown = Image.new("RGB", (7, 5), (255, 255, 255))
    found = observed(
        {"image": sent(shown), "operator": "inpaint", "mask": sent(mask), "noise": 0.25}
    )
    assert found.noise == 0.25 and found.y.shape == (2, *WIDE)
    assert found.y.sum() == 6 and found.y[1, 2, 1, 3] == 1  # 2 samples, 3 channels, 1 pixel
    grey = Image.new("L", (7, 5))
    assert observed({"image": sent(grey), "operator": "gray"}).y.shape == (2, 1, 5, 7)
    blur = observed({"image": sent(shown), "operator": "blur", "options": {"deviation": 1.5}})
    assert blur.operator.deviation == 1.5
    for seen, text in [
        ({"operator": "x"}, "unknown operator 'x'; the operators are"),
        ({"operator": "gray", "options": {"size": 2}}, "gray has no option 'size'"),
        ({"operator": "inpaint", "options": {"mask": 2}}, "inpaint has no option 'mask'"),
        ({"operator": "downsample", "options": {"factor": 1.5}}, "downsample: factor"),
        ({"operator": "inpaint"}, "inpaint needs its mask, and no other operator has one"),
        ({"operator": "gray", "mask": sent(mask)}, "no other operator has one"),
    ]:
        with pytest.raises(RefusedError, match=text) as error:
            observed({"image": sent(shown), **seen})
        assert (error.value.status, error.value.param) == (422, "observation")
    with pytest.raises(RefusedError, match="lowers no loss, so it would not use the observed"):
        observed({"image": sent(shown), "operator": "identity"}, guidance="cfg(2)")


def test_errors_have_a_status_each():
    for error, status, kind in [
        (DeadlineError("x"), 504, "deadline"),
        (CancelledError("x"), 409, "cancelled"),
        (EngineClosedError("x"), 503, "closed"),
        (QueueFullError("x"), 503, "queue_full"),
        (TooLargeError("x"), 422, "too_large"),
        (FloatingPointError("x"), 422, "not_finite"),
        (MemoryError("x"), 507, "out_of_memory"),
        (ValueError("x"), 422, "invalid_request_error"),
    ]:
        found = refused(error)
        assert (found.status, found.kind, found.message) == (status, kind, "x")
        assert found.headers == ({"Retry-After": "5"} if status == 503 else {})
    found = refused(KeyError("secret"))
    assert found.status == 500 and "secret" not in found.message and "KeyError" in found.message
    assert RefusedError(429, "k", "m").headers == {"Retry-After": "5"}
    assert RefusedError(400, "k", "m", "p").body == {
        "error": {"message": "m", "type": "k", "param": "p", "code": "k"}, "detail": "m",
    }  # fmt: skip


def asked_of(guard: Guard, parts: list[bytes], **scope: Any) -> tuple[Any, list[Any]]:
    """Send a request to a guard; return the status and what the application behind it got."""
    arriving = [
        {"type": "http.request", "body": part, "more_body": k + 1 < len(parts)}
        for k, part in enumerate(parts)
    ]
    sent_back: list[Any] = []

    async def receive():
        return arriving.pop(0) if arriving else {"type": "http.disconnect"}

    async def send(message):
        sent_back.append(message)

    whole = {"type": "http", "method": "POST", "path": "/v1/samples", "headers": [], **scope}
    asyncio.run(guard(whole, receive, send))
    return whole, sent_back


def guarded(limits: Limits | None = None, **more: Any) -> tuple[Guard, list[Any]]:
    got: list[Any] = []

    async def app(scope, receive, send):
        got.append((scope, await receive(), await receive()))
        await send({"type": "http.response.start", "status": 204, "headers": []})

    given = {"keys": Keys(), "hosts": None, **more}
    return Guard(app, limits=limits or Limits(), metrics=Metrics({}), **given), got


def test_a_body_of_the_most_bytes_is_handed_on_whole():
    guard, got = guarded(Limits(body=4))
    _, answers = asked_of(guard, [b"ab", b"cd"], headers=[(b"Content-Length", b"4")])
    assert answers[0]["status"] == 204
    assert got[0][1] == {"type": "http.request", "body": b"abcd", "more_body": False}
    assert got[0][2] == {"type": "http.disconnect"}
    for parts, headers in [([b"ab", b"cde"], []), ([b""], [(b"content-length", b"5")])]:
        _, answers = asked_of(guard, parts, headers=headers)
        assert answers[0]["status"] == 413 and len(got) == 1
        body = json.loads(answers[1]["body"])
        assert body["detail"] == "a body may have 4 bytes at most"
        back = dict(answers[0]["headers"])
        assert back[b"content-length"] == str(len(answers[1]["body"])).encode()
        assert back[b"connection"] == b"close"


def test_who_a_client_is(caplog):
    guard, _ = guarded()
    with caplog.at_level(logging.INFO, "guidestar.access"):
        scope, _ = asked_of(guard, [b""], client=("1.2.3.4", 5))
    assert scope["state"]["owner"] == "client-1.2.3.4"
    assert caplog.messages[0].startswith("client-1.2.3.4 POST /v1/samples 204 ")
    scope, _ = asked_of(guard, [b""])
    assert scope["state"]["owner"] == "client-unknown"
    guard, _ = guarded(keys=Keys(["a-key-of-sixteen"]), hosts={"here", "[::1]"})
    good = [(b"Host", b"here:80"), (b"Authorization", b"Bearer  a-key-of-sixteen")]
    by_own_name = [(b"host", b"[::1]:80"), (b"x-api-key", b"a-key-of-sixteen")]
    for headers, method, path, status in [
        (good, "POST", "/v1/samples", 204),
        (by_own_name, "POST", "/v1/samples", 204),
        ([(b"host", b"there"), good[1]], "POST", "/v1/samples", 421),
        ([good[1]], "POST", "/v1/samples", 421),
        ([good[0], (b"authorization", b"Basic a-key-of-sixteen")], "POST", "/x", 401),
        ([good[0]], "GET", "/healthz", 204),
        ([good[0]], "GET", "/readyz", 204),
        ([good[0]], "GET", f"/v1/images/{'a' * 24}/12.png", 204),
        ([good[0]], "GET", f"/v1/images/{'a' * 23}/12.png", 401),
        ([good[0]], "POST", "/healthz", 401),
        ([good[0]], "GET", "/metrics", 401),
    ]:
        _, answers = asked_of(guard, [b""], headers=headers, method=method, path=path)
        assert answers[0]["status"] == status, (headers, path)


def test_a_wrong_field_is_named_in_at_most_so_many_characters(model):
    service = Service({"toy": model})
    try:
        app = make_app(service)
        for field in ("x", "y" * 900):
            body = json.dumps({field: 1}).encode()
            headers = [(b"content-type", b"application/json")]
            more = {"query_string": b"", "http_version": "1.1", "scheme": "http"}
            _, answers = asked_of(app, [body], headers=headers, server=("h", 1), **more)
            found = json.loads(answers[1]["body"])["error"]
            text = f"{field}: Extra inputs are not permitted"
            assert (answers[0]["status"], found["message"]) == (422, text[:500])
            assert found["param"] == field[:200]
        spec = app.app.openapi()
        tags = {path: next(iter(ways.values())).get("tags") for path, ways in spec["paths"].items()}
        assert tags["/v1/samples"] == ["samples"] and tags["/healthz"] is None
        assert tags["/v1/images/generations"] == ["openai"] and tags["/sdapi/v1/txt2img"] == [
            "a1111"
        ]
        for name in ("SampleRequest", "ObservedPicture"):
            properties = spec["components"]["schemas"][name]["properties"]
            assert [k for k, p in properties.items() if not p.get("description")] == []
    finally:
        service.close()


def test_what_is_told_of_a_model_and_a_plan(model):
    found = describe_model("m", model, (7, 5))
    assert found["id"] == "m" and found["size"] == [7, 5] and found["takes"] == "class"
    assert found["object"] == "model" and found["created"] == 0 and found["latent"] is False
    assert found["classes"] == ["cat", "dog", "blurry"] and found["nets"] == ["weak"]
    assert picture_size(model) == (7, 5)
    with pytest.raises(ValueError, match="makes no pictures, so it cannot be served"):
        picture_size(toy_model(shape=(2, 5, 7)))
    asked = PlanRequest(guidance="cfg(2)", steps=3, cond=["cat", "dog"])
    limits = Limits(steps=3, samples=2)
    found = plan(model, asked, limits)
    assert (found["nfe"], found["gradients"], len(found["steps"])) == (6, 0, 3)
    assert found["steps"][2]["index"] == 2 and found["steps"][0]["passes"] == {
        "cond": 1.0, "uncond": 1.0,
    }  # fmt: skip
    for more in ({"steps": 4}, {"cond": ["cat"] * 3}):
        with pytest.raises(RefusedError, match="at most here"):
            plan(model, asked.model_copy(update=more), limits)


def idle(engine: Engine) -> Engine:
    engine.close()
    return engine


def test_rows_of_a_tick_are_halved_and_doubled(model):
    engine = idle(Engine(model, max_rows=12))
    engine._make_room(True, True)
    assert engine._room == 6
    engine._make_room(True, False)  # at fault was a request, not their number
    assert engine._room == 6
    for _ in range(498):
        engine._make_room(False, True)
    assert engine._room == 6
    engine._make_room(False, True)
    assert engine._room == 12
    for _ in range(6):
        engine._make_room(True, True)
    assert engine._room == 1
    engine._room, engine._good = 7, 499
    engine._make_room(False, True)
    assert engine._room == 12 and engine._good == 0


def test_the_oldest_that_fit_are_chosen(model):
    engine = idle(Engine(model, max_rows=10))
    held: Any = [types.SimpleNamespace(rows=rows) for rows in (6, 5, 4, 1)]
    engine._running = held
    chosen, rows = engine._choose()
    assert ([r.rows for r in chosen], rows) == ([6, 4], 10)
    held[0].rows, held[1:] = 30, held[3:]
    chosen, rows = engine._choose()
    assert ([r.rows for r in chosen], rows) == ([30], 30)
    engine._running = []
    assert engine._choose() == ([], 0)
    for rows, most in ((1, 1), (2, 1), (3, 1), (10, 5)):
        engine.max_rows = rows
        assert in_groups(model.request("cat", steps=1), engine.max_rows).max_rows == most


def test_evaluations_are_counted_before_a_request_is_taken(model):
    asked = model.request("cat", guidance="cfg(2)", seeds=(0, 1), steps=40, solver="ddim")
    with Engine(model, max_evaluations=160, max_samples=2) as engine:
        engine.submit(asked).result(60)
        heun = model.request("cat", guidance="cfg(2)", seeds=(0, 1), steps=21, solver="heun")
        text = "takes about 164 evaluations of the network, and at most 160 may be"
        with pytest.raises(TooLargeError, match=text):
            engine.submit(heun)
        with pytest.raises(TooLargeError, match="for 2 samples, not 3; send several"):
            engine.submit(model.request("cat", seeds=(0, 1, 2), steps=1))
        with pytest.raises(ValueError, match="preview_every must be 0 or more, not -1"):
            engine.submit(asked, preview_every=-1)
    for name in ("max_rows", "max_queue"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            Engine(model, **{name: 0})
        idle(Engine(model, **{name: 1}))


def stopping(service: Any, grace: float = 3.0) -> Any:
    return run._Server(run.uvicorn.Config(lambda: None), service, grace)


def test_a_server_that_is_stopped_finishes_first_unless_told_twice(monkeypatch):
    # Signals end the event streams of a whole process; those of later tests go on.
    monkeypatch.setattr(sse_starlette.sse.AppStatus, "should_exit", False)
    slept, closed = [], []
    service = types.SimpleNamespace(draining=False, close=closed.append)
    server = stopping(service)
    now = iter([50.0, 50.5])
    clock = types.SimpleNamespace(monotonic=lambda: next(now), sleep=slept.append)
    monkeypatch.setattr(run, "time", clock)
    server.handle_exit(signal.SIGTERM, None)
    assert server._stopping.daemon  # it holds up no process that ends otherwise
    server._stopping.join()
    assert service.draining and server.should_exit and slept == [2.0]  # of 2.5 s that are left
    assert closed == [3.0]
    server.should_exit = False
    server.handle_exit(signal.SIGTERM, None)
    assert not server.should_exit
    server.handle_exit(signal.SIGINT, None)
    assert server.should_exit
    for taken, left in ((2.5, 0.5), (3.5, 0.0)):
        now = iter([50.0, 50.0 + taken])
        server._drain()
        assert slept[-1] == left


def test_a_server_says_where_it_listens(capsys):
    socket = types.SimpleNamespace(getsockname=lambda: ("1.2.3.4", 5, "x"))
    listening = types.SimpleNamespace(sockets=[socket])
    server: Any = types.SimpleNamespace(started=True, should_exit=False, servers=[listening])
    for studio, page in ((None, ""), ("page", "/studio")):
        service: Any = types.SimpleNamespace(engines={"a": 1, "b": 2}, studio=studio)
        run._announce(server, service)
        assert capsys.readouterr().err == f"serving a, b at http://1.2.3.4:5{page}\n"
    server = types.SimpleNamespace(started=False, should_exit=True, servers=[])
    run._announce(server, service)
    assert capsys.readouterr().err == ""


def test_a_server_is_told_its_limits_and_closes_its_service(monkeypatch):
    made, closed = [], []

    def ran(self):
        made.append(self)
        if len(made) > 1:
            raise SystemExit(1) if len(made) == 2 else KeyboardInterrupt

    monkeypatch.setattr(run._Server, "run", ran)
    monkeypatch.setattr(run, "_announce", lambda server, service: None)
    kinds, thread = [], run.threading.Thread

    def begun(**given):
        kinds.append(given["daemon"])
        return thread(**given)

    monkeypatch.setattr(run.threading, "Thread", begun)
    service: Any = types.SimpleNamespace(close=lambda: closed.append(1), engines={})
    assert run.run_server(print, service, host="h", port=9, grace=4.0) == 0
    config = made[0].config
    assert (config.app, config.host, config.port, made[0].grace) == (print, "h", 9, 4.0)
    assert (config.access_log, config.log_level, config.server_header) == (False, "warning", False)
    assert (config.timeout_keep_alive, config.timeout_graceful_shutdown) == (15, 5)
    assert (config.limit_concurrency, config.h11_max_incomplete_event_size) == (1000, 65536)
    with pytest.raises(OSError, match="cannot listen at h:9; is it taken"):
        run.run_server(print, service, host="h", port=9)
    assert run.run_server(print, service, host="h", port=9) == 0
    assert len(closed) == 3 and made[1].grace == 30.0 and kinds == [True] * 3


def test_pictures_are_kept_so_long_and_so_many(model, monkeypatch):
    service = Service({"toy": model}, Limits(kept=3, keep=20.0))
    service.close()
    now = 100.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("guidestar.serve.web.service.time", clock)

    def held(*ends):
        jobs = [Job(ended(model, 0.0, 0.0, e), "me") for e in ends]
        for job, end in zip(jobs, ends, strict=True):
            job.ticket.status = "running" if end is None else "done"
        service._jobs = {str(k): j for k, j in enumerate(jobs)}
        for k, j in enumerate(jobs):
            j.id = str(k)
        service._sweep()
        return list(service._jobs)

    assert held(80.0, 79.9, None) == ["0", "2"]
    assert held(90.0, 91.0, 92.0) == ["0", "1", "2"]
    assert held(90.0, 91.0, 92.0, 93.0) == ["1", "2", "3"]
    assert held(None, 91.0, 92.0, 93.0, 94.0) == ["0", "3", "4"]


@pytest.mark.parametrize(
    ("asked", "every"),
    [
        ({"partial_images": 0, "stream": True}, 0),
        ({"partial_images": 2, "stream": False}, 0),
        ({"partial_images": 3, "stream": True, "num_inference_steps": 10}, 3),
        ({"partial_images": 1, "stream": True, "num_inference_steps": 1}, 1),
        ({"partial_images": 1, "stream": True}, 2),  # of the model's own 4 steps
    ],
)
def test_how_often_openai_previews(model, monkeypatch, asked, every):
    found = []

    async def submit(request, made, names):
        found.append(made)
        assert names == {
            "cond": "prompt", "negative": "negative_prompt", "steps": "num_inference_steps",
        }  # fmt: skip
        raise RefusedError(409, "x", "x")

    monkeypatch.setattr(openai_api, "submit", submit)
    engine = types.SimpleNamespace(model=model)
    service = types.SimpleNamespace(engine=lambda name: ("toy", engine), sizes={"toy": (7, 5)})
    app = types.SimpleNamespace(state=types.SimpleNamespace(service=service))
    request: Any = types.SimpleNamespace(app=app)
    given = ImagesRequest(prompt="cat", negative_prompt="", n=2, seed=4, solver="ddim", **asked)
    with pytest.raises(RefusedError):
        asyncio.run(openai_api.generate(request, given))
    made = found[0]
    assert (made.preview_every, made.n, made.seed, made.solver) == (every, 2, 4, "ddim")
    assert (made.cond, made.negative, made.model) == ("cat", None, "toy")
    assert made.steps == asked.get("num_inference_steps")


def asking(jobs: Any) -> Any:
    """A request to a server that has these jobs; what it is asked for is kept."""
    found = types.SimpleNamespace(asked=[])
    service = types.SimpleNamespace(own=lambda *given: found.asked.append(given) or jobs)
    found.request = types.SimpleNamespace(
        app=types.SimpleNamespace(state=types.SimpleNamespace(service=service)),
        state=types.SimpleNamespace(owner="me"),
    )
    return found


def test_what_a1111_tells_of_progress(monkeypatch):
    monkeypatch.setattr(a1111_api, "_seconds_left", lambda ticket: 7.5)
    run_of = lambda **more: types.SimpleNamespace(
        **{"steps_done": 2, "steps": 8, "place": 0, "started": 1.0, **more}
    )
    job = types.SimpleNamespace(ticket=run_of(), task="t", id="i", previews=lambda: ["a", "b"])
    other = types.SimpleNamespace(ticket=run_of(), task=None, id="j", previews=lambda: [])
    tell = lambda jobs, **more: asyncio.run(a1111_api.progress(asking(jobs).request, **more))
    state = {"job": "t", "job_count": 2, "sampling_step": 2, "sampling_steps": 8,
             "interrupted": False, "skipped": False}  # fmt: skip
    assert tell([job, other]) == {
        "progress": 0.25, "eta_relative": 7.5, "state": state, "current_image": "a",
        "textinfo": None,
    }  # fmt: skip
    assert tell([job], skip_current_image=True)["current_image"] is None
    found = tell([other])
    assert found["state"]["job"] == "j" and found["current_image"] is None
    other.ticket = run_of(place=3, steps=0, steps_done=0)
    found = tell([other])
    assert found["textinfo"] == "place 3 in the queue" and found["progress"] == 0.0
    nothing = tell([])
    assert nothing == {
        "progress": 0.0, "eta_relative": 0.0, "current_image": None, "textinfo": None,
        "state": {**state, "job": "", "job_count": 0, "sampling_step": 0, "sampling_steps": 0},
    }  # fmt: skip
    own = asking([job])
    asyncio.run(a1111_api.progress(own.request, id_task="t"))
    assert own.asked == [("me", "t")]


def a1111_asks(monkeypatch, asked, start=None, *, conditional=True, send=True):
    """What a request of A1111's becomes, and its answer."""
    made: list[Any] = []
    job: Any = types.SimpleNamespace()

    async def submit(request, sampled, **more):
        made.append((sampled, more))
        return job

    async def wait(request, given):
        made.append(given)

    async def encode(given):
        return ["a", "b"]

    monkeypatch.setattr(a1111_api, "submit", submit)
    monkeypatch.setattr(a1111_api, "wait", wait)
    monkeypatch.setattr(a1111_api, "encode_base64", encode)
    monkeypatch.setattr(a1111_api, "_info", lambda *given: given[2:])
    engine = types.SimpleNamespace(model=types.SimpleNamespace(encoder=1 if conditional else None))
    service = types.SimpleNamespace(
        engine=lambda name: (name or "toy", engine),
        sizes={"toy": (7, 5), "own": (7, 5)},
        limits=Limits(samples=6),
    )
    app = types.SimpleNamespace(state=types.SimpleNamespace(service=service))
    request: Any = types.SimpleNamespace(app=app)
    answer = asyncio.run(a1111_api._make(request, Txt2Img(**asked), start or {}))
    assert made[1] is job
    return *made[0], answer


def test_what_a_request_of_a1111_becomes(monkeypatch):
    sampled, more, answer = a1111_asks(
        monkeypatch,
        {"prompt": "cat", "negative_prompt": "dog", "cfg_scale": 2.5, "batch_size": 2, "n_iter": 3,
         "seed": 9, "steps": 6, "sampler_name": "DPM++ 2M Karras", "force_task_id": "t",
         "override_settings": {"sd_model_checkpoint": "own"}, "width": 7, "height": 5,
         "tiling": True},
    )  # fmt: skip
    assert sampled.model_dump(exclude_defaults=True) == {
        "model": "own", "cond": "cat", "guidance": "cfg(2.5)", "negative": "dog", "n": 6, "seed": 9,
        "steps": 6, "solver": "DPM++ 2M Karras", "grid": "karras", "preview_every": 5,
    }  # fmt: skip
    names = {
        "cond": "prompt", "negative": "negative_prompt", "start": "init_images",
        "strength": "denoising_strength", "solver": "sampler_name", "grid": "scheduler",
    }  # fmt: skip
    assert more == {"task": "t", "names": {**names, "guidance": "cfg_scale"}}
    assert answer["images"] == ["a", "b"] and answer["parameters"]["prompt"] == "cat"
    assert "init_images" not in answer["parameters"]
    assert json.loads(answer["info"]) == [[7, 5], ["tiling means nothing here"]]
    start = {"start": "p", "strength": 0.5, "resize": "crop"}
    sampled, more, answer = a1111_asks(
        monkeypatch, {"prompt": "cat", "guidance": "cond", "send_images": False}, start
    )
    assert sampled.model_dump(exclude_defaults=True) == {
        "model": "toy", "cond": "cat", "guidance": "cond", "preview_every": 5, **start,
    }  # fmt: skip
    assert more == {"task": None, "names": names} and answer["images"] == []
    for conditional, prompt, cond in ((False, "", None), (False, "x", "x"), (True, "", "")):
        sampled, *_ = a1111_asks(monkeypatch, {"prompt": prompt}, conditional=conditional)
        assert sampled.cond == cond


@pytest.mark.parametrize("task", [None, "t"])
def test_a1111_interrupts_ones_own_requests(task):
    ended: list[str] = []
    jobs = [
        types.SimpleNamespace(ticket=types.SimpleNamespace(cancel=lambda k=k: ended.append(k)))
        for k in "ab"
    ]
    own = asking(jobs)
    given: Any = None if task is None else types.SimpleNamespace(id_task=task)
    assert asyncio.run(a1111_api.interrupt(own.request, given)) == {}
    assert ended == ["a", "b"] and own.asked == [("me", task)]


@pytest.mark.parametrize(
    ("index", "steps", "kept"),
    [(0, 40, True), (1, 40, False), (4, 40, True), (39, 40, True), (38, 40, False), (3, 9, True),
     (9, 19, True), (10, 20, True), (11, 20, False)],
)  # fmt: skip
def test_a_steps_pushes_are_measured(index, steps, kept):
    """Root mean squares of all samples, and the first sample's push at a tenth of the steps."""
    push = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    level = gs.Level(1.0, torch.tensor([0.25, 0.5]), 0.0)
    state: Any = types.SimpleNamespace(
        step=types.SimpleNamespace(index=index, grid=types.SimpleNamespace(steps=steps), t=level),
        prediction=types.SimpleNamespace(x0=torch.tensor([[1.0, -1.0], [7.0, 7.0]])),
    )
    found = running._measured(state, {"cfg(2)": push})
    assert (found.step, found.rho, found.base) == (index, 0.25, 5.0)
    assert found.sizes == {"cfg(2)": pytest.approx((50 / 4) ** 0.5)}
    assert [m.tolist() for m in found.maps.values()] == ([[3.0, 4.0]] if kept else [])
    state.step.t = gs.Level(1.0, 0.25, 0.0)
    assert running._measured(state, {}).rho == 0.25


def test_errors_and_divergence_as_a_client_gets_them(model):
    explained = running._explained
    own = ValueError("x")
    assert explained(own) is own
    found = explained(KeyboardInterrupt("stop"))
    assert isinstance(found, RuntimeError)
    assert str(found) == "the request raised KeyboardInterrupt: stop"
    found = explained(torch.cuda.OutOfMemoryError("CUDA out of memory\nmore"))
    assert isinstance(found, MemoryError)
    assert str(found) == (
        "there is not enough memory for this request; take fewer (CUDA out of memory)"
    )
    clean = model.schedule.clean
    x = torch.zeros(3, *WIDE)
    state: Any = types.SimpleNamespace(x=x, step=types.SimpleNamespace(s=clean))
    job: Any = types.SimpleNamespace(model=types.SimpleNamespace(card={}))
    assert running._warnings(job, state) == ()
    x[1] = 1e4
    (line,) = running._warnings(job, state)
    assert line.startswith("1 of 3 samples have diverged; lower the scale, take more steps")
    job.model.card = {"data_scale": 1e4}
    assert running._warnings(job, state) == ()


def openai_stream(monkeypatch, previews: Any, partial: int, encoded: Any = ("x", "y")) -> Any:
    """What openai's stream of a job of 8 steps yields, where its previews are of these steps."""
    cancelled: list[int] = []
    job: Any = types.SimpleNamespace(
        previews=lambda kind: [f"{kind} {job.ticket.preview.step}", "second"],
        ticket=types.SimpleNamespace(steps=8, preview=None, cancel=lambda: cancelled.append(1)),
    )

    async def changes(ticket):
        for step in previews:
            ticket.preview = None if step is None else types.SimpleNamespace(step=step)
            yield None

    async def encode(job, kind):
        if isinstance(encoded, Exception):
            raise encoded
        return encoded

    monkeypatch.setattr(openai_api, "changes", changes)
    monkeypatch.setattr(openai_api, "encode_base64", encode)
    monkeypatch.setattr(openai_api, "time", types.SimpleNamespace(time=lambda: 12.7))
    asked = ImagesRequest(prompt="a", partial_images=partial, output_format="png", stream=True)

    async def run():
        return [e async for e in openai_api._events(job, asked, "7x5", ["w"])]

    events = asyncio.run(run())
    assert cancelled == [1]
    return [(e["event"], json.loads(e["data"])) for e in events]


@pytest.mark.parametrize(
    ("previews", "partial", "shown"),
    [
        ([None, 2, 2, 5, 8], 3, [2, 5]),  # each once, and not the last step
        ([2, 4, 6], 2, [2, 4]),
        ([2, 4, 6], 0, []),
        ([None], 1, []),
    ],
)
def test_what_openai_streams(monkeypatch, previews, partial, shown):
    common = {"created_at": 12, "size": "7x5", "quality": "auto", "background": "auto",
              "output_format": "png"}  # fmt: skip
    kind = "image_generation.partial_image"
    wanted: list[Any] = [
        (kind, {"type": kind, **common, "b64_json": f"png {s}", "partial_image_index": k})
        for k, s in enumerate(shown)
    ]
    kind = "image_generation.completed"
    wanted += [
        (kind, {"type": kind, **common, "b64_json": p, "usage": openai_api.NO_TOKENS,
                "warnings": ["w"]})
        for p in "xy"
    ]  # fmt: skip
    assert openai_stream(monkeypatch, previews, partial) == wanted


def test_what_openai_streams_of_a_refusal(monkeypatch):
    error = RefusedError(503, "closed", "the server is going down")
    assert openai_stream(monkeypatch, [], 0, error) == [("error", error.body)]
