"""What is cut to a length, and what is kept within a size, at the last number that fits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from PIL import Image

from guidestar.serve.studio import gallery as galleries
from guidestar.serve.studio import problems
from guidestar.serve.studio.form import Form
from guidestar.serve.studio.gallery import Gallery, picture_name
from guidestar.serve.studio.starts import read_start
from guidestar.serve.web import a1111_api
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
