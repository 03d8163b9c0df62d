"""Motions over HTTP and in the studio: pictures that move, BVH files and joints."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
import torch

from guidestar.data.motions import MotionSettings, motion_folder
from guidestar.io.images import read_settings
from guidestar.model.motions import motions, write_motions
from guidestar.motion import read_bvh
from helpers.motions import random_mover, write_walkers
from helpers.served import toy_model
from helpers.serving import opened, serving

RUN = {"cond": "fast; length=9", "guidance": "cfg(2)", "seed": 3, "n": 2, "steps": 4}


@pytest.fixture(scope="module")
def mover(tmp_path_factory):
    folder = write_walkers(tmp_path_factory.mktemp("moving") / "clips", each=1, frames=20)
    data = motion_folder(folder, MotionSettings(frames=12, names="{action}_{}"))
    return random_mover(data, 12)


@pytest.fixture(scope="module")
def served(mover):
    with serving({"mover": mover, "toy": toy_model(shape=(1, 8, 8))}) as served:
        yield served


def finished(client, body):
    name = client.post("/v1/samples", json=body).json()["id"]
    events = client.get(f"/v1/samples/{name}/events").text
    return client.get(f"/v1/samples/{name}").json(), events


def test_a_motion_is_sent_as_a_moving_picture_and_as_files(served, mover, tmp_path):
    wanted = mover.sample(
        "fast; length=9", guidance="cfg(2)", seeds=[3, 4], steps=4, solver="ddim", grid="uniform"
    )
    write_motions(mover, wanted, tmp_path)
    files = sorted(tmp_path.glob("*.bvh"))
    with served.client() as client:
        made, events = finished(client, {**RUN, "preview_every": 2})
        assert made["status"] == "done" and "event: preview" in events
        assert [len(made[k]) for k in ("images", "bvh", "npz")] == [2, 2, 2]
        for k, file in enumerate(files):
            moving = opened((answer := client.get(made["images"][k])).content)
            assert answer.headers["content-type"] == "image/png"
            assert (moving.format, moving.n_frames, moving.size) == ("PNG", 9, (240, 348))
            (tmp_path / "moving.png").write_bytes(answer.content)
            settings = read_settings(tmp_path / "moving.png")
            assert settings["cond"] == ["fast; length=9"] * 2 and settings["index"] == k
            text = client.get(made["bvh"][k])
            assert text.headers["content-type"].startswith("text/plain")
            (tmp_path / "sent.bvh").write_bytes(text.content)
            sent, own = read_bvh(tmp_path / "sent.bvh"), read_bvh(file)
            assert sent.joints == own.joints and sent.seconds == own.seconds == 0.05
            torch.testing.assert_close(sent.values, own.values, atol=1e-3, rtol=1e-3)
            sent, own = (
                np.load(io.BytesIO(client.get(made["npz"][k]).content)),
                np.load(file.with_suffix(".npz")),
            )
            assert sent["names"].tolist() == own["names"].tolist() and sent["joints"].shape[0] == 9
            np.testing.assert_allclose(sent["joints"], own["joints"], atol=1e-2)
        place = made["bvh"][0]
        assert client.get(place.replace("0.bvh", "9.bvh")).status_code == 404
        assert client.get(place.replace("0.bvh", "0.exe")).status_code == 422
        assert len(motions(mover, wanted)) == 2


def test_pictures_have_no_files_of_motions(served):
    with served.client() as client:
        made, _ = finished(client, {"model": "toy", "cond": "cat", "steps": 2})
        assert "bvh" not in made and made["status"] == "done"
        answer = client.get(f"/v1/motions/{made['id']}/0.npz")
        assert answer.status_code == 404
        assert "a picture is no motion" in answer.json()["error"]["message"]
        answer = client.post("/v1/samples", json={**RUN, "cond": "fast; length=30"})
        assert answer.status_code in (400, 422)
        message = answer.json()["error"]["message"]
        assert "'30' should be a whole number of frames from 4 to 12" in message


def test_openai_and_the_list_of_models_know_motions(served):
    with served.client() as client:
        body = {"model": "mover", "prompt": "slow", "n": 1, "output_format": "webp"}
        made = client.post("/v1/images/generations", json=body).json()
        moving = opened(made["data"][0]["b64_json"])
        assert (moving.format, moving.n_frames) == ("WEBP", 12)
        found = {m["id"]: m for m in client.get("/v1/models").json()["data"]}
        assert found["mover"]["size"] == [240, 348] and found["toy"]["size"] == [8, 8]


@pytest.mark.filterwarnings("ignore")  # Gradio's own warnings
def test_the_studio_shows_motions(served):
    pytest.importorskip("gradio")
    from guidestar.serve.studio.page import make_page
    from guidestar.serve.studio.running import Runs
    from guidestar.serve.web.schemas import SampleRequest

    async def page():
        return make_page(served.service)

    assert asyncio.run(page()).title == "guidestar studio"
    runs = Runs(served.service, "visitor")
    [last] = list(runs.follow("make", [SampleRequest(**RUN, preview_every=2)]))[-1]
    assert last.status == "done"
    assert [opened(p).n_frames for p in last.pictures] == [9, 9]
