"""What is cut to a length, and what is kept within a size, at the last number that fits."""

from __future__ import annotations

import asyncio
import base64
import io
from types import SimpleNamespace
from typing import Any

import gradio
import pytest
import torch
from fastapi import FastAPI
from gradio.themes import colors
from PIL import Image

from guidestar.io.images import to_bytes
from guidestar.serve.studio import gallery as galleries
from guidestar.serve.studio import mount, plotting, problems
from guidestar.serve.studio.form import Form
from guidestar.serve.studio.gallery import Gallery, picture_name
from guidestar.serve.studio.page import CSS
from guidestar.serve.studio.starts import read_start
from guidestar.serve.web import a1111_api, motion_files, samples_api
from guidestar.serve.web.errors import RefusedError, invalid
from guidestar.serve.web.schemas import Txt2Img


def test_names_of_pictures_are_cut():
    form = Form(model="m", conds=("a b" * 20,), seeds=(3,))
    assert picture_name(form, 0) == "a-ba-ba-ba-ba-ba-ba-ba-ba-ba-ba-ba-ba-ba-seed3.png"
    assert picture_name(Form(model="m", seeds=(1, 2)), 1) == "uncond-seed2.png"


def test_pictures_are_kept_within_their_bytes(monkeypatch):
    monkeypatch.setattr(galleries, "_MOST_BYTES", 10)
    found = Gallery()
    form = Form(model="m", seeds=(1,))
    for image in ("aaaaa", "bbbbb"):
        found.add(form, [image])
    assert [e.image for e in found.entries] == ["bbbbb", "aaaaa"]  # ten together
    found.add(form, ["c"])
    assert [e.image for e in found.entries] == ["c", "bbbbb"]
    found.add(form, ["d" * 50])  # more than all may have, and the newest
    assert [e.image for e in found.entries] == ["d" * 50]
    assert [e.id for e in found.entries] == [3]


def test_an_error_names_its_term_among_its_first_words():
    text = "cond + cfg(2) + pag(1)"
    words = " ".join(f"w{k}" for k in range(11))
    found = problems.locate(text, f"{words} pag is wrong")
    assert (found.start, found.end) == (16, 19)
    found = problems.locate(text, f"{words} w pag is wrong")
    assert (found.start, found.end, found.text) == (0, 0, text)
    assert problems.locate(text, "cfg: too large").start == 7
    assert problems.locate("mycfg(2)", "cfg is wrong").end == 0


def test_a_start_is_named_by_twenty_signs(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "a.png")
    assert len(read_start(str(tmp_path / "a.png"), 24, 4).name) == 20


def test_messages_about_fields_are_cut():
    error = {"type": "x", "loc": ("body", "f" * 300), "msg": "m" * 600}
    found = invalid([error])
    assert found.message == f"{'f' * 300}: {'m' * 600}"[:500] and len(found.message) == 500
    assert found.param == "f" * 200
    wrong = {"type": "json_invalid", "loc": (), "msg": "", "ctx": {"error": "e" * 600}}
    assert invalid([wrong]).message == f"the body is no valid JSON ({'e' * 600}"[:500]
    one = [{"type": "x", "loc": ("body", "a"), "msg": m} for m in ("p", "q", "p")]
    found = invalid([*one, {"type": "x", "loc": ("body", "b"), "msg": "r"}])
    assert (found.message, found.param) == ("a: p, or q", "a")


@pytest.mark.parametrize(
    ("asked", "strength", "resize"),
    [
        ({}, 0.75, "stretch"), ({"denoising_strength": 0.0}, 0.0, "stretch"),
        ({"denoising_strength": 0.3, "resize_mode": 1}, 0.3, "crop"),
        ({"resize_mode": 0}, 0.75, "stretch"), ({"resize_mode": 2}, 0.75, "stretch"),
    ],
)  # fmt: skip
def test_a_start_of_a1111_and_its_strength(monkeypatch, asked, strength, resize):
    made: list[Any] = []

    async def make(*given: Any) -> dict[str, Any]:
        made.append(given)
        return {}

    monkeypatch.setattr(a1111_api, "_make", make)
    request: Any = object()
    body = Txt2Img(init_images=["p"], **asked)
    assert asyncio.run(a1111_api.img2img(request, body)) == {}
    start = {"start": "p", "strength": strength, "resize": resize}
    assert made == [(request, body, start)]
    for wrong, field in (
        ({"init_images": []}, "init_images"), ({"init_images": ["a", "b"]}, "init_images"),
        ({"init_images": ["a"], "mask": "m"}, "mask"),
    ):  # fmt: skip
        with pytest.raises(RefusedError) as error:
            asyncio.run(a1111_api.img2img(request, Txt2Img(**wrong)))
        assert error.value.param == field
    plain = Txt2Img(prompt="x")
    asyncio.run(a1111_api.txt2img(request, plain))
    assert made[1] == (request, plain, {})
    for wrong in ({"init_images": ["p"]}, {"denoising_strength": 0.5}):
        with pytest.raises(RefusedError, match="txt2img starts from noise"):
            asyncio.run(a1111_api.txt2img(request, Txt2Img(**wrong)))
    assert len(made) == 2


def test_the_page_is_mounted_without_anything_of_others(monkeypatch):
    asked: dict[str, Any] = {}
    started: list[Any] = []
    mounted = SimpleNamespace(add_middleware=lambda kind: asked.update(middleware=kind))

    def mount_app(app: Any, page: Any, **more: Any) -> Any:
        asked.update(more, page=page)
        return mounted

    def thread(**given: Any) -> Any:
        started.append(given)
        return SimpleNamespace(start=lambda: started.append("started"))

    monkeypatch.setattr(gradio, "mount_gradio_app", mount_app)
    monkeypatch.setattr("guidestar.serve.studio.page.make_page", lambda service, sessions: service)
    monkeypatch.setattr(mount, "threading", SimpleNamespace(Thread=thread))
    limits = SimpleNamespace(body=99)
    service: Any = SimpleNamespace(engines={"a": "A", "b": "B"}, limits=limits)
    assert mount.mount_studio(FastAPI(), service) is mounted
    theme = asked.pop("theme")
    assert "system-ui" in theme.font and "ui-monospace" in theme.font_mono
    assert theme.primary_500 == colors.indigo.c500
    assert asked.pop("css") == CSS
    assert asked == {
        "page": service, "middleware": mount.Confined, "path": "/studio", "footer_links": [],
        "show_error": False, "ssr_mode": False, "max_file_size": 99, "enable_monitoring": False,
        "mcp_server": False, "pwa": False, "run_history": False,
    }  # fmt: skip
    threads = [{"target": mount._measure, "args": (e,), "daemon": True} for e in "AB"]
    assert started == [threads[0], "started", threads[1], "started"]


def test_a_plot_of_one_picture():
    png = base64.b64encode(to_bytes(Image.new("RGB", (8, 8), "red"))).decode()
    form = Form(model="m", seeds=(1,), guidance="cfg(2)")
    axis = lambda key, value: plotting.Axis(key=key, label=key, values=(value,))
    made = Image.open(io.BytesIO(plotting.draw(form, axis("x", "1"), axis("y", "2"), [png])))
    colours = made.convert("RGB").getcolors(1 << 20)
    assert colours is not None and {c: n for n, c in colours}[(255, 0, 0)] == 32 * 32


def test_a_form_asks_for_all_that_it_says():
    form = Form(
        model="m", conds=("a", "b"), seeds=(3, 4), guidance=" cfg(2) ", negative=" no ", scale=1.5,
        steps=7, solver=" ddim ", grid="karras",
    )  # fmt: skip
    found = form.request(preview_every=2, explain=True)
    assert (found.model, found.guidance, found.negative) == ("m", "cfg(2)", "no")
    assert (found.cond, found.seeds) == (["a", "a", "b", "b"], [3, 4, 3, 4])
    assert (found.steps, found.solver, found.grid, found.scale) == (7, "ddim", "karras", 1.5)
    assert (found.preview_every, found.explain, found.start) == (2, True, None)
    bare = Form(model="m", seeds=(3,), guidance=" ", solver=" ", grid="").request()
    assert (bare.cond, bare.guidance, bare.negative) == (None, None, None)
    assert (bare.solver, bare.grid) == (None, None)


def test_a_motion_that_moves_carries_its_settings(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(motion_files, "animation_bytes", lambda *given: asked.append(given) or b"f")
    monkeypatch.setattr(motion_files.SampledMotion, "drawn", lambda self: "frames")
    body: Any = SimpleNamespace(rate=12.5)
    motion = motion_files.SampledMotion(body=body, numbers=torch.zeros(4, 3))
    assert motion.encoded({"a": 1}, "png") == b"f"
    motion.encoded(None, "webp")
    motion.encoded(None, "jpeg")
    assert asked == [
        ("frames", 12.5, "png", {"guidestar": '{"a": 1}'}), ("frames", 12.5, "webp", {}),
        ("frames", 12.5, "gif", {}),
    ]  # fmt: skip


@pytest.mark.parametrize("every", [0, 3])
def test_changes_are_merged_where_there_are_no_previews(monkeypatch, every):
    asked: list[Any] = []

    async def changes(ticket: Any, *, pause: float) -> Any:
        asked.append((ticket, pause))
        for step in (1, 1, 2):
            ticket.preview = SimpleNamespace(step=step)
            yield

    monkeypatch.setattr(samples_api, "changes", changes)
    ticket = SimpleNamespace(preview_every=every, preview=None, status="running")
    job: Any = SimpleNamespace(ticket=ticket, previews=lambda: ["p"], describe=lambda: {"id": 1})

    async def read() -> list[Any]:
        return [event async for event in samples_api._events(job)]

    found = asyncio.run(read())
    assert asked == [(ticket, 0.0 if every else samples_api.POLL_SECONDS)]
    preview = lambda step: {"event": "preview", "data": f'{{"step": {step}, "images": ["p"]}}'}
    running = {"event": "running", "data": '{"id": 1}'}
    assert found == [preview(1), running, running, preview(2), running]
