"""What the server's endpoints share: who waits, who is ready, which figures there are
(`serve/web/common.py`, `app.py`, `metrics.py`).
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from guidestar.serve.stats import Stats, Tally, increased
from guidestar.serve.web import app as apps
from guidestar.serve.web import common
from guidestar.serve.web.errors import RefusedError
from guidestar.serve.web.metrics import Metrics


@pytest.mark.parametrize(
    ("over", "gone", "cancelled"),
    [
        ((False, False, True), (False, False, False), False),
        ((False, False), (False, True), True),
        ((True,), (True,), False),
    ],
)
def test_a_request_is_cancelled_once_its_client_has_gone(monkeypatch, over, gone, cancelled):
    asked: list[Any] = []
    ticket: Any = SimpleNamespace(is_over=False, cancel=lambda: asked.append("cancelled"))
    left = iter(gone)

    async def changes(ticket, every, *, pause):
        asked.append((every, pause))
        for state in over:
            ticket.is_over = state
            yield

    async def is_disconnected():
        return next(left)

    monkeypatch.setattr(common, "changes", changes)
    request: Any = SimpleNamespace(is_disconnected=is_disconnected)
    job: Any = SimpleNamespace(ticket=ticket)
    if cancelled:
        with pytest.raises(RefusedError, match="the client has gone") as found:
            asyncio.run(common.wait(request, job))
        assert found.value.status == 499
    else:
        asyncio.run(common.wait(request, job))
    assert asked == [(0.5, 0.5), *["cancelled"] * cancelled]


def test_requests_are_submitted_and_encoded_beside_the_loop(monkeypatch):
    asked: list[Any] = []
    service = SimpleNamespace(
        submit=lambda *given, **more: asked.append((given, more)) or "job",
        limits=SimpleNamespace(receive=7.5),
    )
    request: Any = SimpleNamespace(
        app=SimpleNamespace(state=SimpleNamespace(service=service)),
        state=SimpleNamespace(owner="me"),
    )
    body: Any = "body"
    assert asyncio.run(common.submit(request, body, task="t")) == "job"
    assert asked == [(("body", "me"), {"task": "t"})]
    job: Any = SimpleNamespace(all_encoded=lambda kind: [kind])
    assert asyncio.run(common.encode_base64(job)) == ["png"]
    assert asyncio.run(common.encode_base64(job, "webp")) == ["webp"]
    made: list[Any] = []
    monkeypatch.setattr(
        common, "EventSourceResponse", lambda *given, **more: made.append((given, more))
    )
    found: Any = "found"
    common.events(request, found)
    assert made == [(("found",), {"ping": 15, "send_timeout": 7.5})]


def test_a_server_is_ready_while_its_engines_are():
    engines = {"a": SimpleNamespace(is_ready=True), "b": SimpleNamespace(is_ready=True)}
    service: Any = SimpleNamespace(
        draining=False, engines=engines, metrics=SimpleNamespace(text=lambda: b"figures")
    )
    app = FastAPI()
    apps._add_handlers(app)
    apps._add_probes(app, service)
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/healthz").text == client.get("/readyz").text == "ok"
    assert client.get("/metrics").text == "figures"
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
    engines["b"].is_ready = False
    found = client.get("/readyz")
    assert found.status_code == 503
    assert "the engine of b has stopped, or has no replica now" in found.text
    engines["a"].is_ready = False
    assert "the engine of a, b has stopped" in client.get("/readyz").text
    engines["a"].is_ready = engines["b"].is_ready = True
    service.draining = True
    found = client.get("/readyz")
    assert found.status_code == 503 and "the server is going down" in found.text
    assert client.get("/healthz").status_code == 200
    missing = client.get("/other")
    assert missing.status_code == 404 and "Not Found" in missing.text


def test_figures_are_those_of_engines_and_requests():
    stats = Stats(
        queued=1, running=2, samples=3, replicas=4, ticks=5, rows=6, seconds=7.5, repeated=8,
        calls=9, call_rows=10, call_seconds=11.5, ended={"done": 12, "failed": 13},
    )  # fmt: skip
    made = Metrics({"m": SimpleNamespace(stats=stats)})  # type: ignore[dict-item]
    ticket: Any = SimpleNamespace(submitted=100.0, started=100.5, ended=100.75, status="done")
    made.observe("m", ticket)
    made.observe("m", SimpleNamespace(submitted=5.0, started=None, ended=None, status="failed"))  # type: ignore[arg-type]
    for status in (200, 200, 503):
        made.count_answer(status)
    text = made.text().decode()
    for name, value in {
        "queued": 1, "running": 2, "samples": 3, "replicas": 4, "engine_ticks_total": 5,
        "engine_rows_total": 6, "engine_seconds_total": 7.5, "engine_repeated_total": 8,
        "network_calls_total": 9, "network_rows_total": 10, "network_seconds_total": 11.5,
    }.items():  # fmt: skip
        assert f'guidestar_{name}{{model="m"}} {float(value)}\n' in text, name
    labels = lambda status: f'{{model="m",status="{status}"}}'
    assert f"guidestar_requests_total{labels('done')} 12.0" in text
    assert f"guidestar_requests_total{labels('failed')} 13.0" in text
    assert f"guidestar_request_seconds_sum{labels('done')} 0.75" in text
    assert f"guidestar_request_seconds_sum{labels('failed')} 0.0" in text
    assert 'guidestar_queue_seconds_count{model="m"} 1.0' in text
    assert 'guidestar_queue_seconds_sum{model="m"} 0.5' in text
    assert 'guidestar_http_responses_total{status="200"} 2.0' in text
    assert 'guidestar_http_responses_total{status="503"} 1.0' in text


def test_counts_grow_and_add_up():
    tally = Tally()
    tally.note_tick(4, 2.0, False)
    tally.note_tick(2, 2.0, True)
    tally.note_call(3, 0.5)
    tally.note_call(4, 0.25)
    tally.note_end("done")
    tally.note_end("done")
    tally.note_end("failed")
    found = tally.stats(queued=1, running=2, samples=3)
    assert found == Stats(
        queued=1, running=2, samples=3, ended={"done": 2, "failed": 1}, ticks=2, rows=6,
        seconds=4.0, pace=0.5 + 0.1 * (1.0 - 0.5), calls=2, call_rows=7, call_seconds=0.75,
        repeated=1,
    )  # fmt: skip
    more = increased(Stats(queued=5, ticks=10, rows=1, pace=9.0), found)
    assert (more.queued, more.ticks, more.rows, more.pace) == (5, 12, 7, 0.55)
    less = increased(Stats(ticks=10, repeated=1), found, Stats(ticks=1, calls=1, repeated=1))
    assert (less.ticks, less.calls, less.repeated, less.seconds) == (11, 1, 1, 4.0)
