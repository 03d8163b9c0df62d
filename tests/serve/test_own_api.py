"""The server's own API, over real sockets."""

from __future__ import annotations

import json
import threading
import time

import pytest

import guidestar as gs
from guidestar.io.images import read_settings, to_pil
from guidestar.serve.web import Keys, Limits
from helpers.served import toy_model
from helpers.serving import PICTURE, opened, picture, pixels, serving


@pytest.fixture(scope="module")
def served():
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def reference():
    return toy_model(shape=PICTURE)


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


def finished(client, name):
    for _ in range(2000):
        found = client.get(f"/v1/samples/{name}").json()
        if found["status"] in ("done", "failed", "cancelled"):
            return found
        time.sleep(0.005)
    raise AssertionError(found)


def read_events(client, name):
    found = []
    with client.stream("GET", f"/v1/samples/{name}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            if line.startswith("data: "):
                found.append((kind, json.loads(line[6:])))
    return found


def test_submit_follow_and_fetch(client, reference):
    asked = {"cond": "cat", "guidance": "cfg(3)", "seed": 5, "n": 2, "steps": 6, "solver": "ddim"}
    answer = client.post("/v1/samples", json={**asked, "preview_every": 2})
    assert answer.status_code == 202
    taken = answer.json()
    assert taken["seeds"] == [5, 6] and taken["steps"] == 6 and taken["guidance"] == "cfg(3)"
    events = read_events(client, taken["id"])
    kind, last = events[-1]
    assert kind == "done" and last["steps_done"] == 6
    assert [e["step"] for k, e in events if k == "preview"][-1] == 6
    wanted = reference.sample("cat", guidance="cfg(3)", seeds=[5, 6], steps=6, solver="ddim")
    for k, path in enumerate(last["images"]):
        answer = client.get(path)
        assert answer.headers["content-type"] == "image/png"
        assert pixels(answer.content) == pixels(to_pil(wanted.images)[k])
        settings = read_settings(answer.content)
        again = reference.again(settings)
        assert pixels(to_pil(again.images)[settings["index"]]) == pixels(answer.content)


def test_everything_that_sample_takes(client, reference):
    asked = {"cond": ["cat", "dog"], "seeds": [3, 9], "steps": 4, "negative": "blurry"}
    more = {"guidance": "cfg([2, 3]) + apg(1)", "solver": "dpmpp-2m", "grid": "karras"}
    taken = client.post("/v1/samples", json={**asked, **more}).json()
    done = finished(client, taken["id"])
    wanted = reference.sample(["cat", "dog"], seeds=[3, 9], steps=4, negative="blurry", **more)
    got = [pixels(client.get(path).content) for path in done["images"]]
    assert got == [pixels(image) for image in to_pil(wanted.images)]


def test_a_start_and_an_observation(client, reference):
    asked = {"cond": "cat", "seed": 1, "steps": 6, "start": picture(), "start_rho": 1.0}
    done = finished(client, client.post("/v1/samples", json=asked).json()["id"])
    from guidestar.serve.web.limits import Limits
    from guidestar.serve.web.pictures import to_tensor

    start = to_tensor(picture(), PICTURE, Limits(), "start")[None]
    wanted = reference.sample("cat", seeds=[1], steps=6, start=start, start_rho=1.0)
    assert pixels(client.get(done["images"][0]).content) == pixels(to_pil(wanted.images)[0])

    share = {"cond": "cat", "seed": 1, "steps": 6, "start": picture((16, 8)), "strength": 0.5}
    asked = {**share, "resize": "crop"}
    done = finished(client, client.post("/v1/samples", json=asked).json()["id"])
    start = to_tensor(picture((16, 8)), PICTURE, Limits(), "start", resize="crop")[None]
    rho = float(reference.grid(6)[3].rho)  # three of six steps are left
    wanted = reference.sample("cat", seeds=[1], steps=6, start=start, start_rho=rho)
    assert done["steps"] == 3
    assert pixels(client.get(done["images"][0]).content) == pixels(to_pil(wanted.images)[0])

    seen = {"image": picture((4, 4)), "operator": "downsample", "options": {"factor": 2}}
    asked = {"cond": "cat", "seed": 1, "steps": 4, "guidance": "cond + dps(0.5)"}
    done = finished(
        client, client.post("/v1/samples", json={**asked, "observation": seen}).json()["id"]
    )
    y = to_tensor(picture((4, 4)), (1, 4, 4), Limits(), "image")[None]
    observed = gs.Observation(gs.get_operator("downsample", factor=2), y)
    wanted = reference.sample(
        "cat", seeds=[1], steps=4, guidance="cond + dps(0.5)", losses={"loss": observed}
    )
    assert pixels(client.get(done["images"][0]).content) == pixels(to_pil(wanted.images)[0])


def test_what_was_observed_with_a_mask(client):
    seen = {"image": picture(), "operator": "inpaint", "mask": picture(shade=0)}
    asked = {"cond": "cat", "guidance": "cond + mpgd(0.2)", "steps": 3, "observation": seen}
    assert finished(client, client.post("/v1/samples", json=asked).json()["id"])["status"] == "done"


BAD = {
    "an unknown field": ({"prompt": "cat"}, 422, "prompt", "Extra inputs are not permitted"),
    "an unknown model": ({"model": "other"}, 404, "model", "the models are toy"),
    "a path as model": ({"model": "../../etc/passwd"}, 404, "model", "the models are toy"),
    "an expression": ({"guidance": "cfg(3"}, 422, "guidance", "cfg(3"),
    "an unknown class": ({"cond": "cow"}, 422, "cond", "unknown class 'cow'"),
    "a class of several": ({"cond": ["cat", "cow"], "n": 2}, 422, "cond", "unknown class 'cow'"),
    "classes for other samples": ({"cond": ["cat", "dog"], "n": 3}, 422, "cond", "2 conditions"),
    "an unknown negative": ({"negative": "cow"}, 422, "negative", "unknown class 'cow'"),
    "an unknown solver": ({"solver": "leap"}, 422, "solver", "unknown solver"),
    "a setting of a solver": ({"solver": "ddim(x=1)"}, 422, "solver", "no setting 'x'"),
    "a solver that cannot": (
        {"solver": "heun", "guidance": "cfgpp(0.5)"},
        422,
        "solver",
        "heun",
    ),
    "an unknown grid": ({"grid": "none"}, 422, "grid", "unknown grid 'none'"),
    "a grid that was not fitted": ({"grid": "fitted"}, 422, "grid", "no grid was fitted"),
    "a level without steps": ({"start_rho": 1e-9}, 422, "start_rho", "no step of this grid"),
    "a scale that is no input": ({"scale": 2}, 422, "scale", "takes no scale as an input"),
    "a network that is not here": (
        {"guidance": "autoguidance(2, net=none)"},
        422,
        "guidance",
        "none",
    ),
    "scales of other samples": ({"guidance": "cfg([1, 2])", "n": 3}, 422, "guidance", "2"),
    "too many samples": ({"n": 17}, 422, "n", "n may be 16 at most here, not 17"),
    "too many seeds": ({"seeds": list(range(17))}, 422, "seeds", "16 at most"),
    "too many steps": ({"steps": 251}, 422, "steps", "250 at most"),
    "a scale": ({"guidance": "cfg(1001)"}, 422, "guidance", "the scale of cfg may be 1000"),
    "listed scales": ({"guidance": "cfg([1, 2000])", "n": 2}, 422, "guidance", "the scale of cfg"),
    "a long prompt": ({"cond": "x" * 4001}, 422, "cond", "length of cond"),
    "a long expression": (
        {"guidance": "cond" + " + cfg(1)" * 900},
        422,
        "guidance",
        "length of guid",
    ),
    "both seeds": ({"seeds": [1], "n": 2}, 422, "seeds", "not both"),
    "a number that is none": ({"steps": "many"}, 422, "steps", "integer"),
    "no picture": ({"start": "###"}, 422, "start", "base64"),
    "a picture of another size": ({"start": picture((9, 8))}, 422, "start", "9 × 8 pixels"),
    "a loss without its data": ({"guidance": "cond + dps(1)"}, 422, "guidance", "loss"),
    "an observation for nobody": (
        {"observation": {"image": picture(), "operator": "gray"}},
        *(422, "observation", "lowers no loss"),
    ),
    "a file as mask": (
        {
            "guidance": "cond + dps(1)",
            "observation": {
                "image": picture(),
                "operator": "inpaint",
                "options": {"mask": "/etc/passwd"},
            },
        },
        *(422, "observation.options.mask", "number"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_named(client, kind):
    asked, status, param, text = BAD[kind]
    answer = client.post("/v1/samples", json={"cond": "cat", **asked})
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert text in error["message"] and len(error["message"]) < 900
    assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b'{"cond": NaN}', "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b"{}", "text/plain", 422),
        (b"[" * 100_000, "application/json", 400),
    ],
)
def test_malformed_bodies(client, body, kind, status):
    answer = client.post("/v1/samples", content=body, headers={"content-type": kind})
    assert answer.status_code == status and "message" in answer.json()["error"]


def test_what_is_not_there(client):
    for path in ("/v1/samples/none", "/v1/images/none/0.png", "/v1/models/none", "/none"):
        answer = client.get(path)
        assert answer.status_code == 404 and "message" in answer.json()["error"]
    assert client.get("/v1/plan").status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "param", "text"),
    [
        ("samples", b'{"cond": -1}', "cond", "cond: Input should be a valid string, or Input "
         "should be greater than or equal to 0, or Input should be a valid list"),
        ("samples", b'{"scale": "x"}', "scale", "scale: Input should be a valid number, unable to "
         "parse string as a number, or Input should be a valid list"),
        ("samples", b'{"cond": ["cat", -1]}', "cond", "cond: Input should be a valid string, or "),
        ("samples", b'{"n": 0}', "n", "n: Input should be greater than or equal to 1"),
        ("samples", b'{"observation": {"image": "", "operator": "blur", "noise": -1}}',
         "observation.noise", "observation.noise: Input should be greater than or equal to 0"),
        ("samples", b'{"n": 1', None, "the body is no valid JSON (Expecting ',' delimiter)"),
        ("samples", b'\xff\xfe', None, "the body is no valid JSON ("),
        # What is only found where a client's request is translated into ours.
        ("images/generations", b'{"prompt": "\\ud800"}', "prompt", "prompt: Input should be a "
         "valid string, unable to parse raw data as a unicode string"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_as_the_client_knows_it(client, path, body, param, text):
    """No name of a class or a kind of pydantic's is in it, nor several lines."""
    headers = {"content-type": "application/json"}
    answer = client.post(f"/v1/{path}", content=body, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["param"] == param
    assert error["message"].startswith(text), error["message"]
    assert not {"\n", "constrained", "SampleRequest", "pydantic"} & {*error["message"].split(" ")}
    assert "\n" not in error["message"]


def test_delete_cancels(client, served):
    taken = client.post("/v1/samples", json={"cond": "cat", "steps": 250, "n": 16}).json()
    assert client.get(f"/v1/images/{taken['id']}/0.png").status_code == 409
    assert client.delete(f"/v1/samples/{taken['id']}").status_code == 204
    assert client.get(f"/v1/samples/{taken['id']}").status_code == 404
    done = finished(client, client.post("/v1/samples", json={"cond": "cat"}).json()["id"])
    assert done["status"] == "done"


def test_a_failure_is_told(client):
    asked = {"cond": "cat", "guidance": "cfg(2)", "steps": 250, "n": 16, "timeout": 0.02}
    name = client.post("/v1/samples", json=asked).json()["id"]
    failed = finished(client, name)
    assert failed["status"] == "failed" and failed["error"]["type"] == "deadline"
    assert client.get(f"/v1/images/{name}/0.png").status_code == 504
    assert read_events(client, name)[-1][0] == "failed"


def test_models_methods_and_plans(client, served):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "toy" and model["classes"] == ["cat", "dog", "blurry"]
    assert model["size"] == [8, 8] and client.get("/v1/models/toy").json() == model
    found = client.get("/v1/methods").json()
    names = {m["name"] for m in found["methods"]}
    assert names == set(gs.METHODS) and "dpmpp-2m" in found["solvers"]
    assert {m["name"] for m in found["methods"] if m["lowers_a_loss"]} >= {"dps", "tfg"}
    plan = client.post("/v1/plan", json={"guidance": "cfg(3)", "steps": 5, "cond": "cat"}).json()
    assert plan["nfe"] == 10 and len(plan["steps"]) == 5
    assert plan["steps"][0]["passes"] == {"cond": 1.0, "uncond": 1.0}
    assert client.post("/v1/plan", json={"guidance": "cfg("}).status_code == 422
    assert client.post("/v1/plan", json={"steps": 9999}).status_code == 422
    asked = {"guidance": "cfg(3)", "steps": 8, "cond": "cat", "strength": 0.5}
    plan = client.post("/v1/plan", json=asked).json()
    assert plan["nfe"] == 8 and len(plan["steps"]) == 4
    assert plan["steps"][0]["rho"] == float(served.model.grid(8)[4].rho)


def test_probes_and_figures(client):
    finished(client, client.post("/v1/samples", json={"cond": "cat", "steps": 3}).json()["id"])
    assert client.get("/healthz").text == "ok" and client.get("/readyz").text == "ok"
    figures = client.get("/metrics").text
    for name in ("request_seconds_bucket", "engine_rows_total", "engine_ticks_total", "queued"):
        assert f"guidestar_{name}" in figures
    for word in ("calls", "rows", "seconds"):
        (line,) = (x for x in figures.splitlines() if x.startswith(f"guidestar_network_{word}_tot"))
        assert float(line.rpartition(" ")[2]) > 0
    lines = dict(line.rsplit(" ", 1) for line in figures.splitlines() if line[0] != "#")
    assert float(lines['guidestar_requests_total{model="toy",status="done"}']) >= 1


def test_no_page_of_another_site_reads_answers(client):
    answer = client.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_full_queue_and_too_many_of_one_client():
    limits = Limits(rows=1, queue=1, per_client=3, seconds=60)
    with serving(limits=limits) as served, served.client() as client:
        long = {"cond": "cat", "steps": 250, "n": 16, "guidance": "cond"}
        first = client.post("/v1/samples", json=long).json()
        while client.get(f"/v1/samples/{first['id']}").json()["status"] == "queued":
            time.sleep(0.005)
        assert client.post("/v1/samples", json=long).json()["place"] == 1
        full = client.post("/v1/samples", json=long)
        assert full.status_code == 503 and full.json()["error"]["type"] == "queue_full"
        assert int(full.headers["retry-after"]) > 0
    with serving(limits=Limits(rows=1, per_client=2, seconds=60)) as served:
        with served.client() as client:
            taken = [client.post("/v1/samples", json=long) for _ in range(3)]
        assert [t.status_code for t in taken] == [202, 202, 429]


def test_pictures_are_kept_for_a_while_and_no_more_than_some():
    with serving(limits=Limits(kept=3, seconds=60)) as served, served.client() as client:
        names = []
        for k in range(6):
            names.append(client.post("/v1/samples", json={"cond": "cat", "seed": k}).json()["id"])
            finished(client, names[-1])
        statuses = [client.get(f"/v1/samples/{name}").status_code for name in names]
        assert statuses == [404] * 2 + [200] * 4  # those of the last request are above the number
    with serving(limits=Limits(keep=0.01, seconds=60)) as served, served.client() as client:
        first = client.post("/v1/samples", json={"cond": "cat"}).json()["id"]
        finished(client, first)
        time.sleep(0.02)
        client.post("/v1/samples", json={"cond": "cat"})
        assert client.get(f"/v1/samples/{first}").status_code == 404


KEY, OTHER = "a-key-of-one-client-123", "a-key-of-another-one-45"


def test_keys_are_needed_and_clients_apart():
    with serving(keys=Keys([KEY, OTHER])) as served:
        with served.client() as stranger:
            assert stranger.get("/v1/models").status_code == 401
            assert stranger.post("/sdapi/v1/txt2img", json={}).status_code == 401
            assert stranger.get("/metrics").status_code == 401
            assert stranger.get("/healthz").status_code == 200
        for header in ({"Authorization": f"Bearer {KEY}x"}, {"X-API-Key": ""}):
            with served.client(**header) as wrong:
                assert wrong.get("/v1/models").json()["error"]["type"] == "invalid_api_key"
        with (
            served.client(Authorization=f"Bearer {KEY}") as mine,
            served.client(**{"X-API-Key": OTHER}) as theirs,
        ):
            name = mine.post("/v1/samples", json={"cond": "cat"}).json()["id"]
            assert finished(mine, name)["status"] == "done"
            assert theirs.get(f"/v1/samples/{name}").status_code == 404
            assert theirs.delete(f"/v1/samples/{name}").status_code == 404


def test_another_name_of_the_host_is_refused():
    with serving(hosts={"127.0.0.1"}) as served, served.client() as client:
        assert client.get("/healthz").status_code == 200
        answer = client.get("/healthz", headers={"Host": "evil.example:80"})
        assert answer.status_code == 421 and answer.json()["error"]["type"] == "wrong_host"


def test_many_clients_at_once_get_their_own(served, reference):
    wanted = {
        k: pixels(
            to_pil(
                reference.sample(
                    ("cat", "dog")[k % 2], guidance=f"cfg({1 + k})", seeds=[k], steps=2 + k % 4
                ).images
            )[0]
        )
        for k in range(12)
    }
    wrong = []

    def ask(k):
        with served.client() as client:
            asked = {"cond": ("cat", "dog")[k % 2], "guidance": f"cfg({1 + k})", "seed": k}
            name = client.post("/v1/samples", json={**asked, "steps": 2 + k % 4}).json()["id"]
            done = finished(client, name)
            if pixels(client.get(done["images"][0]).content) != wanted[k]:
                wrong.append(k)

    threads = [threading.Thread(target=ask, args=(k,)) for k in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_log_has_no_prompts(served, client, caplog):
    with caplog.at_level("INFO", logger="guidestar.access"):
        client.post("/v1/samples?cond=hidden", json={"cond": "cat", "negative": "blurry"})
    (record,) = caplog.records
    assert "POST /v1/samples 202" in record.getMessage()
    assert not any(word in record.getMessage() for word in ("cat", "blurry", "hidden"))


def test_opened_pictures_are_pngs(client):
    done = finished(client, client.post("/v1/samples", json={"cond": "cat"}).json()["id"])
    assert opened(client.get(done["images"][0]).content).format == "PNG"
