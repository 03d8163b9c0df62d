"""Replicas that sample for a server: what is lost with one is sampled again by another."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.cli import main
from guidestar.serve import (
    CancelledError,
    DeadlineError,
    EngineClosedError,
    QueueFullError,
    Stats,
    TooLargeError,
)
from guidestar.serve.replicas import (
    Replica,
    ReplicaLostError,
    ReplicaReport,
    ReplicaScale,
    ReplicatedEngine,
    read_scale,
)
from guidestar.serve.replicas.reports import describe, restore
from guidestar.serve.stats import increased
from guidestar.serve.web import Limits, Service
from helpers.served import CLASSES, EXPRESSIONS, SOLVERS, Slow, equal, near, toy_model
from helpers.serving import PICTURE, pixels, serving
from helpers.toys import Spy


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def replicas():
    made: list[Replica] = []

    def make(network: Any = None) -> Replica:
        replica = Replica(lambda: {"toy": toy_model(network, PICTURE)}, max_rows=8)
        made.append(replica)
        return replica

    yield make
    for replica in made:
        replica.close()


class Several:
    """Sends requests to replicas in turn, and loses those of ``dead`` on the way.

    Args:
        replicas: that sample.
        dead: how many reports come at most of each request to a replica, by its place; never
            the last.
    """

    def __init__(self, *replicas: Replica, dead: dict[int, int] | None = None) -> None:
        self.replicas, self.dead = replicas, dead or {}
        self.sent: list[int] = []

    async def __call__(self, request, *, preview_every, explain):
        place = len(self.sent) % len(self.replicas)
        self.sent.append(place)
        reports = self.replicas[place].sample(
            "toy", request, preview_every=preview_every, explain=explain
        )
        count = 0
        async with contextlib.aclosing(reports):
            async for report in reports:
                over = report.status not in ("queued", "running")
                if place in self.dead and (over or count == self.dead[place]):
                    raise ReplicaLostError("killed")
                count += 1
                yield report


def engine_of(several, loop, **more: Any) -> ReplicatedEngine:
    return ReplicatedEngine(toy_model(shape=PICTURE), several, loop, **more)


@pytest.mark.parametrize("guidance", EXPRESSIONS)
def test_samples_are_those_of_the_model_though_the_first_replica_is_lost(guidance, loop, replicas):
    several = Several(replicas(), replicas(), dead={0: 2})
    engine = engine_of(several, loop)
    losses = {"loss": near} if any(w in guidance for w in ("dps", "mpgd", "lgd", "tfg")) else None
    asked = {"guidance": guidance, "seeds": [3, 4], "steps": 3, "losses": losses}
    ticket = engine.submit(engine.model.request("cat", **asked), preview_every=1, explain=True)
    found = ticket.result(30)
    assert several.sent == [0, 1]
    equal(found, engine.model.sample("cat", **asked))
    assert [push.step for push in ticket.pushes] == [0, 1, 2]  # of one run, not of both
    assert ticket.steps_done == 3 and ticket.preview is not None and ticket.preview.step == 3
    torch.testing.assert_close(ticket.preview.x0.shape, found.x.shape)


def test_many_requests_with_a_replica_that_loses_all(loop, replicas):
    several = Several(replicas(), replicas(), replicas(), dead={1: 0})
    engine = engine_of(several, loop)
    asked = [
        {"seeds": [k], "steps": 2 + k % 4, "solver": SOLVERS[k % 5], "guidance": f"cfg({1 + k})"}
        for k in range(20)
    ]
    requests = [engine.model.request(CLASSES[k % 3], **own) for k, own in enumerate(asked)]
    tickets = [engine.submit(request) for request in requests]
    for k, ticket in enumerate(tickets):
        equal(ticket.result(60), engine.model.sample(CLASSES[k % 3], **asked[k]))
    stats = engine.stats
    assert (stats.queued, stats.running, stats.ended) == (0, 0, {"done": 20})
    assert len(several.sent) > 20 and stats.rows > 0 and stats.calls >= stats.ticks > 0


def test_a_request_that_ends_every_replica_fails(loop, replicas, monkeypatch):
    monkeypatch.setattr("guidestar.serve.replicas.engine.PAUSE", 0.0)
    several = Several(replicas(), dead={0: 1})
    engine = engine_of(several, loop)
    with pytest.raises(RuntimeError, match="5 replicas were lost"):
        engine.submit(engine.model.request("cat", seeds=[0], steps=2)).result(30)
    assert several.sent == [0] * 5 and engine.stats.ended == {"failed": 1}


def test_a_replica_that_goes_down_hands_its_requests_on(loop, replicas):
    first = replicas()
    first.close()
    several = Several(first, replicas())
    engine = engine_of(several, loop)
    engine.submit(engine.model.request("cat", seeds=[0], steps=2)).result(30)
    assert several.sent == [0, 1]
    with pytest.raises(RuntimeError, match="the engine of toy has stopped"):
        first.check_health()
    several.replicas[1].check_health()


def broken(x, level, cond):
    raise OSError("the disk is gone")


def test_what_fails_fails_alone_and_once(loop, replicas):
    several = Several(replicas(Spy(broken)))
    engine = engine_of(several, loop)
    with pytest.raises(RuntimeError, match="OSError: the disk is gone"):
        engine.submit(engine.model.request("cat", seeds=[0], steps=2)).result(30)
    assert several.sent == [0]


def test_cancelling_and_deadlines_reach_the_replica(loop, replicas):
    replica = replicas(Slow())
    engine = engine_of(Several(replica), loop)
    request = engine.model.request("cat", seeds=[0], steps=200)
    cancelled, late = engine.submit(request), engine.submit(request, timeout=0.3)
    at_once = engine.submit(request)
    at_once.cancel()
    while not cancelled.steps_done:
        time.sleep(0.01)
    cancelled.cancel()
    for ticket, kind in ((cancelled, CancelledError), (at_once, CancelledError)):
        with pytest.raises(kind):
            ticket.result(30)
        assert ticket.status == "cancelled"
    with pytest.raises(DeadlineError, match=r"not done in 0.3 seconds: \d+ of 200"):
        late.result(30)
    deadline = time.monotonic() + 20
    while replica.engines["toy"].stats.running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert engine.stats.ended == {"cancelled": 2, "failed": 1}
    cancelled.cancel()  # does nothing to what is over
    assert not engine._cancelled and not engine._live


def test_what_is_refused_is_refused_at_once(loop, replicas):
    engine = engine_of(Several(replicas(Slow())), loop, max_queue=1, max_samples=2)
    with pytest.raises(TooLargeError, match="2 samples, not 3"):
        engine.submit(engine.model.request("cat", seeds=[0, 1, 2]))
    request = engine.model.request("cat", seeds=[0], steps=100)
    first = engine.submit(request)
    while first.started is None:
        time.sleep(0.01)
    with engine._lock:  # so that nothing begins meanwhile
        engine._live[first].get_loop().call_soon_threadsafe(time.sleep, 0.2)
    second = engine.submit(request)
    assert (first.place, second.place) == (0, 1)
    with pytest.raises(QueueFullError, match="1 requests wait already"):
        engine.submit(request)
    engine.close(0.0)
    for ticket in (first, second):
        with pytest.raises(EngineClosedError):
            ticket.result(10)
    with pytest.raises(EngineClosedError):
        engine.submit(request)
    assert not engine.is_open and not engine.is_ready


def test_closing_with_grace_finishes(loop, replicas):
    engine = engine_of(Several(replicas()), loop)
    ticket = engine.submit(engine.model.request("cat", seeds=[0], steps=20))
    engine.close(30.0)
    assert ticket.status == "done"


def test_it_is_ready_where_there_are_replicas(loop, replicas):
    count = [0]
    engine = engine_of(Several(replicas()), loop, replicas=lambda: count[0])
    assert engine.is_open and not engine.is_ready and engine.stats.replicas == 0
    count[0] = 2
    assert engine.is_ready and engine.stats.replicas == 2


def test_a_server_of_replicas_answers_as_any(loop, replicas):
    """All routes, while one of two replicas loses everything."""
    several = Several(replicas(), replicas(), dead={0: 1})
    seen: list[ReplicatedEngine] = []

    def start(model: gs.Model, limits: Limits) -> ReplicatedEngine:
        seen.append(ReplicatedEngine(model, several, loop, max_queue=limits.queue))
        return seen[-1]

    with serving(start=start) as served, served.client() as client:
        asked = {"cond": "dog", "seed": 7, "steps": 6, "preview_every": 2, "explain": True}
        name = client.post("/v1/samples", json=asked).json()["id"]
        with client.stream("GET", f"/v1/samples/{name}/events") as events:
            text = events.read().decode()
        assert "event: done" in text and "event: preview" in text
        found = client.get(f"/v1/samples/{name}").json()
        assert found["status"] == "done" and len(found["pushes"]) == 6
        own = client.get(f"/v1/images/{name}/0.png").content
        body = {"prompt": "dog", "seed": 7, "num_inference_steps": 6}
        openai = client.post("/v1/images/generations", json=body).json()["data"][0]["b64_json"]
        assert pixels(own) == pixels(openai)
        assert client.get("/readyz").status_code == 200
        metrics = client.get("/metrics").text
        assert 'guidestar_requests_total{model="toy",status="done"} 2.0' in metrics
        assert 'guidestar_replicas{model="toy"} 1.0' in metrics
        assert client.delete(f"/v1/samples/{name}").status_code == 204
        seen[0].close()
        assert client.get("/readyz").status_code == 503
    assert 0 in several.sent and 1 in several.sent


def test_a_service_starts_its_own_engines():
    service = Service({"toy": toy_model(shape=PICTURE)})
    assert next(iter(service.engines.values())).is_ready
    service.close()


def test_errors_come_back_as_what_they_were():
    for error in (
        TooLargeError("a"),
        ValueError("b"),
        FloatingPointError("c"),
        MemoryError("d"),
        EngineClosedError("e"),
    ):
        back = restore(*describe(error))
        assert type(back) is type(error) and str(back) == str(error)
    back = restore(*describe(gs.guidance.ExpressionError("cfg(", 4, "an end")))
    assert type(back) is ValueError
    back = restore(*describe(KeyError("x")))
    assert type(back) is RuntimeError and str(back) == "KeyError: 'x'"


def test_counts_of_replicas_are_added_once():
    total = increased(Stats(queued=1, ticks=5, rows=9), Stats(ticks=7, rows=20, pace=0.5))
    assert (total.queued, total.ticks, total.rows, total.pace) == (1, 12, 29, 0.5)
    total = increased(total, Stats(ticks=8, rows=21), Stats(ticks=7, rows=20))
    assert (total.ticks, total.rows) == (13, 30)


def test_reports_that_overtake_each_other_are_counted_once(loop, replicas):
    engine = engine_of(Several(replicas()), loop)
    for ticks in (4, 2, 6):
        engine._count(ReplicaReport(replica="a", status="done", stats=Stats(ticks=ticks)))
    engine._count(ReplicaReport(replica="b", status="done", stats=Stats(ticks=3)))
    assert engine.stats.ticks == 9


@pytest.mark.parametrize(
    ("text", "least", "most"), [("1", 1, 1), ("3", 3, 3), ("1-4", 1, 4), ("2-2", 2, 2)]
)
def test_numbers_of_replicas(text, least, most):
    assert read_scale(text, 5) == ReplicaScale(least=least, most=most, target=5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ray", "--replicas", "two"], "a number or a range, e.g. 2 or 1-4, not 'two'"),
        (["--ray", "--replicas", "3-"], "a number or a range"),
        (["--ray", "--replicas", "0"], "at least 1"),
        (["--ray", "--replicas", "4-2"], "not 4-2"),
        (["--ray", "--per-replica", "0"], "at least 1, not 0"),
        (["--replicas", "2"], "go with --ray"),
        (["--ray-address", "auto"], "go with --ray"),
    ],
)
def test_the_command_refuses(arguments, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "fashion-mnist", *arguments])
    assert stopped.value.code == 2 and text in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "guidestar.serve.replicas.cluster", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "fashion-mnist", "--ray"])
    assert stopped.value.code == 1
    assert "pip install 'guidestar[ray]'" in capsys.readouterr().err
