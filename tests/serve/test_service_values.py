"""Whose requests a service holds, and what it does with them, by tickets that stand still
(`serve/web/service.py`, `serve/web/building.py`).
"""

from types import SimpleNamespace
from typing import Any

import pytest

from guidestar.serve.stats import Stats
from guidestar.serve.web import service as services
from guidestar.serve.web.building import _check_texts, _seeds, at_most, levels_left, read_expression
from guidestar.serve.web.errors import RefusedError
from guidestar.serve.web.limits import Limits
from guidestar.serve.web.schemas import SampleRequest
from guidestar.serve.web.service import Service
from helpers.served import toy_model
from helpers.serving import PICTURE


class Ticket:
    """A ticket that notes how it is watched and cancelled."""

    def __init__(self, name="t", over=False):
        self.id, self.is_over, self.ended, self.cancelled, self.calls = name, over, None, 0, []

    def watch(self, call):
        self.calls.append(call)

    def cancel(self):
        self.cancelled += 1


class Engine:
    def __init__(self, model, limits):
        self.model, self.limits, self.taken, self.closed = model, limits, [], []
        self.next: Any = Ticket()
        self.stats = Stats()

    def submit(self, request, **more):
        self.taken.append((request, more))
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def close(self, grace):
        self.closed.append(grace)


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(services, "build", lambda *given: ("request", *given))
    model = toy_model(shape=PICTURE)
    made: Any = Service({"a": model, "b": model}, Limits(per_client=2, seconds=50), Engine)  # type: ignore[arg-type]
    ended: list[Any] = []
    made.metrics = SimpleNamespace(observe=lambda *given: ended.append(given))
    made.ended = ended
    yield made
    made._encoder.shutdown()


def test_engines_by_the_name_of_their_model(service):
    assert service.engine(None) == ("a", service.engines["a"])
    assert service.engine("b") == ("b", service.engines["b"])
    with pytest.raises(RefusedError, match="there is no model 'x' here; the models are a, b") as e:
        service.engine("x")
    assert e.value.status == 404
    assert service.sizes == {"a": (8, 8), "b": (8, 8)}
    assert service.engines["a"].limits is service.limits and not service.draining


@pytest.mark.parametrize(("asked", "seconds"), [(None, 50), (7, 7), (50, 50), (90, 50)])
def test_a_request_is_taken_with_its_time(service, asked, seconds):
    body: Any = SimpleNamespace(model="b", timeout=asked, preview_every=3, explain=True)
    engine = service.engines["b"]
    job = service.submit(body, "me", task="mine")
    request = ("request", engine.model, body, service.limits)
    assert engine.taken == [(request, {"preview_every": 3, "timeout": seconds, "explain": True})]
    assert (job.ticket, job.owner, job.task) == (engine.next, "me", "mine")
    assert service._jobs == {"t": job} and not service._arriving and service.ended == []
    (watch,) = engine.next.calls
    watch(engine.next)
    assert service.ended == []
    engine.next.is_over = True
    watch(engine.next)
    watch(engine.next)
    assert service.ended == [("b", engine.next)] and job.counted


def test_a_request_that_is_over_at_once_is_counted(service):
    service.engines["a"].next = Ticket(over=True)
    body: Any = SimpleNamespace(model=None, timeout=None, preview_every=0, explain=False)
    service.submit(body, "me")
    assert service.ended == [("a", service.engines["a"].next)]


def test_a_client_has_so_many_requests_under_way(service):
    body: Any = SimpleNamespace(model=None, timeout=None, preview_every=0, explain=False)
    engine = service.engines["a"]
    tickets = [Ticket(name) for name in "xyz"]
    for ticket in tickets[:2]:
        engine.next = ticket
        service.submit(body, "me")
    engine.next = tickets[2]
    with pytest.raises(
        RefusedError, match="you have 2 requests under way, as many as one may"
    ) as e:
        service.submit(body, "me")
    assert e.value.status == 429 and not service._arriving
    service.submit(body, "other")
    tickets[0].is_over = True
    engine.next = Ticket("w")
    service.submit(body, "me")
    engine.next = RuntimeError("full")
    tickets[1].is_over = True
    with pytest.raises(RuntimeError, match="full"):
        service.submit(body, "me")
    assert not service._arriving
    service._arriving["me"] = 1
    with pytest.raises(RefusedError, match="you have 2 requests"):
        service._arrive("me")
    service.draining = True
    with pytest.raises(RefusedError, match="the server is going down; it takes no more") as e:
        service.submit(body, "me")
    assert e.value.status == 503


def job(name, owner, task=None, over=False) -> Any:
    return SimpleNamespace(id=name, owner=owner, task=task, ticket=Ticket(name, over))


def test_requests_are_their_owners(service):
    jobs = [job("1", "me"), job("2", "me", "t"), job("3", "me", "t", True), job("4", "other", "t")]
    service._jobs = {j.id: j for j in jobs}
    assert service.find("1") is jobs[0] and service.find("4", "other") is jobs[3]
    for name, owner in (("9", None), ("4", "me")):
        with pytest.raises(RefusedError, match="there is no such request; it may have expired"):
            service.find(name, owner)
    assert service.own("me") == jobs[:2] and service.own("me", "t") == [jobs[1]]
    assert service.own("other") == [jobs[3]] and service.own("me", "x") == []
    service.forget(jobs[0])
    service.forget(jobs[0])
    assert jobs[0].ticket.cancelled == 2 and "1" not in service._jobs
    service.close(4.0)
    assert service.draining and [e.closed for e in service.engines.values()] == [[4.0], [4.0]]


def test_an_engine_has_the_servers_limits(monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr(services, "Engine", lambda model, **more: made.append((model, more)))
    services.start_engine("m", Limits(rows=3, queue=4, samples=5, evaluations=6))  # type: ignore[arg-type]
    assert made == [("m", {"max_rows": 3, "max_queue": 4, "max_samples": 5, "max_evaluations": 6})]
    model: Any = SimpleNamespace(name="m", card={}, image_shape=(3, 4, 6))
    assert services.picture_size(model) == (6, 4)
    model.image_shape = None
    with pytest.raises(ValueError, match="the model 'm' makes no pictures, so it cannot be served"):
        services.picture_size(model)


# --- what a client may ask for ---


def test_a_limit_is_reached_and_not_passed():
    at_most("x", 3, 3)
    at_most("x", 2.5, 3)
    with pytest.raises(RefusedError, match="x may be 3 at most here, not 3") as e:
        at_most("x", 3.5, 3)
    assert e.value.status == 422


def test_texts_and_scales_within_the_limits():
    limits = Limits(prompt=12, scale=10)
    for good in ({"cond": "x" * 12}, {"cond": ["x" * 12, 3]}, {"negative": "x" * 12}, {}):
        _check_texts(SampleRequest(**good), limits)
    for bad, text in (({"cond": "x" * 13}, "cond"), ({"cond": ["a", "x" * 13]}, "cond"),
                      ({"negative": "x" * 13}, "negative")):  # fmt: skip
        with pytest.raises(RefusedError, match=f"the length of {text} may be 12 at most here, not"):
            _check_texts(SampleRequest(**bad), limits)
    for good in ("cfg(10)", "cfg(-10)", "cfg([1, 10])", "cond"):
        assert str(read_expression(good, limits)) == good
    for bad in ("cfg(10.5)", "cfg(-10.5)", "cfg([1, 11])", "cfg([1,-11])"):
        with pytest.raises(RefusedError, match="the scale of cfg may be 10 at most here, not 1"):
            read_expression(bad, limits)
    with pytest.raises(RefusedError, match="the length of guidance may be 12 at most here, not 13"):
        read_expression("cfg(1000000.)", limits)


def test_seeds_of_a_request(monkeypatch):
    limits = Limits(samples=3)
    assert _seeds(SampleRequest(seeds=[5, 6, 7]), limits) == [5, 6, 7]
    assert _seeds(SampleRequest(seed=4, n=3), limits) == [4, 5, 6]
    drawn: list[int] = []
    monkeypatch.setattr(
        "guidestar.serve.web.building.secrets.randbelow", lambda most: drawn.append(most) or 9
    )
    assert _seeds(SampleRequest(n=2), limits) == [9, 10] and drawn == [2**31]
    for bad, text in (
        ({"seeds": [1], "seed": 1}, "give seeds, or n and seed, not both"),
        ({"seeds": [1], "n": 2}, "give seeds, or n and seed, not both"),
        ({"seeds": []}, "there are no seeds"),
        ({"seeds": [1, 2, 3, 4]}, "the number of seeds may be 3 at most here, not 4"),
        ({"n": 4}, "n may be 3 at most here, not 4"),
    ):
        with pytest.raises(RefusedError, match=text):
            _seeds(SampleRequest(**bad), limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strength", "steps"), [(1.0, 10), (0.5, 5), (0.34, 3), (0.36, 4), (0.01, 1), (0.0, 1)]
)
def test_a_share_of_the_steps_is_left(strength, steps):
    model = toy_model(shape=PICTURE)
    whole = model.grid(10, "log_snr")
    left = levels_left(model, SampleRequest(steps=10, grid="log_snr"), strength)
    assert left.steps == steps
    assert [float(v.rho) for v in left] == pytest.approx(
        [float(v.rho) for v in whole][10 - steps :]
    )
