"""What engines do with requests at each turn, by engines that stand still and clocks set by hand
(`serve/engine.py`, `serve/running.py`, `serve/ticket.py`, `serve/replicas/engine.py`).
"""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.levels import Level
from guidestar.serve import engine as engines
from guidestar.serve import running as runs
from guidestar.serve import ticket as tickets
from guidestar.serve.engine import Engine
from guidestar.serve.errors import CancelledError, DeadlineError, EngineClosedError
from guidestar.serve.replicas import engine as replicated
from guidestar.serve.replicas.engine import ReplicaLostError, ReplicatedEngine
from guidestar.serve.replicas.reports import ReplicaReport, report
from guidestar.serve.running import Running
from guidestar.serve.stats import Stats
from guidestar.serve.ticket import Pushes, Ticket
from helpers.served import toy_model
from helpers.serving import PICTURE


@pytest.fixture(scope="module")
def model():
    return toy_model(shape=PICTURE)


def idle(model, **more) -> Any:
    engine = Engine(model, **more)
    engine.close()
    engine._closing = None
    return engine


def ticket(engine, steps=4, seeds=(0, 1), **more) -> Ticket:
    asked = engine.model.request("cat", seeds=seeds, steps=steps, solver="ddim", guidance="cond")
    return Ticket(engine, asked, **more)


def take(engine, one, limited="limited"):
    with engine._lock:
        engine._take(one, limited, "guided")


class Held:
    """A running request that notes what it is given."""

    def __init__(self, ticket, rows=2):
        self.ticket, self.rows, self.wanted, self.notes = ticket, rows, f"round {rows}", []

    def stop(self, error, cancelled=False):
        self.notes.append((error, cancelled))
        self.ticket.end("cancelled" if cancelled else "failed", error=error)

    def begin(self):
        self.notes.append("begun")

    def proceed(self, answer):
        self.notes.append(answer)


# --- the engine ---


def test_an_engine_goes_on_while_there_is_something_to_do_and_time(model, monkeypatch):
    engine = idle(model)
    monkeypatch.setattr(engines, "time", SimpleNamespace(monotonic=lambda: 10.0))
    for queue, running, closing, goes_on in (
        ([1], [], None, True), ([], [1], None, True), ([1], [], 10.5, True), ([1], [], 10.0, False),
        ([1], [], 9.0, False), ([], [], 10.5, False), ([], [1], 11.0, True),
    ):  # fmt: skip
        engine._queue, engine._running, engine._closing = queue, running, closing
        assert engine._wait() is goes_on
    engine._queue, engine._running, engine._closing = [], [], None
    engine._cancelled = {1}

    def wake():
        engine._queue.append(1)

    monkeypatch.setattr(engine._lock, "wait", wake)
    assert engine._wait() is True and engine._cancelled == set()


def test_an_engine_is_closed_once(model, monkeypatch):
    engine = idle(model)
    monkeypatch.setattr(engines, "time", SimpleNamespace(monotonic=lambda: 10.0))
    engine.close(grace=2.0)
    assert engine._closing == 12.0
    engine.close(grace=7.0)
    assert engine._closing == 12.0 and not engine.is_open and not engine.is_ready
    with Engine(model) as alive:
        assert alive.is_open and alive.is_ready
        alive._closing = 1e18
        assert not alive.is_open
        alive._closing = None


def test_places_and_counts_of_those_that_wait(model):
    engine = idle(model)
    one, two, other = ticket(engine), ticket(engine), ticket(engine, seeds=(0, 1, 2))
    take(engine, one, "limited")
    take(engine, two, "limited")
    assert list(engine._queue) == [(one, "limited", "guided"), (two, "limited", "guided")]
    assert [engine.place(t) for t in (one, two, other)] == [1, 2, 0]
    assert engine._count_waiting() == 2 and two.place == 2
    engine._running = [Held(other)]
    assert (engine.stats.queued, engine.stats.running, engine.stats.samples) == (2, 1, 3)
    assert repr(engine) == "Engine('toy', 1 running, 2 queued)"
    engine.cancel(one)
    two.end("done")
    engine.cancel(two)
    assert engine._cancelled == {one}


def test_what_is_cancelled_or_late_is_taken_out(model, monkeypatch):
    engine = idle(model)
    now = [0.0]
    monkeypatch.setattr(tickets, "time", SimpleNamespace(monotonic=lambda: now[0]))
    waits, late, gone = ticket(engine), ticket(engine, timeout=5.0), ticket(engine)
    runs_on, stopped, slow = ticket(engine), ticket(engine), ticket(engine, timeout=5.0)
    for t in (waits, late, gone):
        take(engine, t, "limited")
    held = [Held(t) for t in (runs_on, stopped, slow)]
    engine._running = list(held)
    engine._cancelled = {gone, stopped}
    now[0] = 6.0
    engine._drop()
    assert [t for t, *_ in engine._queue] == [waits] and engine._running == held[:1]
    assert (late.status, gone.status, stopped.status, slow.status) == (
        "failed", "cancelled", "cancelled", "failed",
    )  # fmt: skip
    assert isinstance(late.error, DeadlineError) and isinstance(gone.error, CancelledError)
    assert held[0].notes == [] and isinstance(held[1].notes[0][0], CancelledError)
    assert isinstance(held[2].notes[0][0], DeadlineError) and held[2].notes[0][1] is False
    assert engine._cancelled == set() and engine.stats.ended == {"failed": 2, "cancelled": 2}


def test_requests_begin_while_there_is_room(model, monkeypatch):
    engine = idle(model, max_rows=4)
    monkeypatch.setattr(engines, "Running", lambda t, limited, guided: Held(t, limited))
    given = [ticket(engine) for _ in range(4)]
    for t, rows in zip(given, (2, 1, 1, 1), strict=True):
        take(engine, t, rows)
    engine._admit()
    assert [r.ticket for r in engine._running] == given[:3]
    assert all(r.notes == ["begun"] for r in engine._running) and len(engine._queue) == 1
    engine._running[0].rows = 5
    engine._admit()
    assert len(engine._queue) == 1
    engine._running.clear()
    engine._admit()
    assert [r.ticket for r in engine._running] == given[3:] and not engine._queue


@pytest.mark.parametrize("failing", [False, True])
def test_a_tick_evaluates_the_oldest_and_tells_each(model, monkeypatch, failing):
    engine = idle(model, max_rows=4)
    clock = iter([1.0, 3.5])
    monkeypatch.setattr(engines, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    asked: list[Any] = []

    def evaluate(wanted, limit, repeat, called):
        asked.append((wanted, limit, called))
        if failing:
            repeat(MemoryError("x"))
        return ["a", "b"][: len(wanted)]

    made: list[Any] = []
    monkeypatch.setattr(engines, "evaluate_together", evaluate)
    monkeypatch.setattr(engine, "_make_room", lambda *given: made.append(given))
    engine._tick()
    assert asked == []
    one, two, three = (Held(ticket(engine), rows) for rows in (3, 1, 2))
    engine._running = [one, two, three]
    engine._tick()
    assert asked == [(["round 3", "round 1"], None, engine._note_call)]
    assert (one.notes, two.notes, three.notes) == (["a"], ["b"], [])
    assert made == [(failing, True)]
    stats = engine.stats
    assert (stats.ticks, stats.rows, stats.seconds, stats.repeated) == (1, 4, 2.5, int(failing))
    engine._note_call(3, 0.5)
    assert (engine.stats.calls, engine.stats.call_rows, engine.stats.call_seconds) == (1, 3, 0.5)
    clock = iter([0.0, 0.0])
    large = Held(ticket(engine), 9)
    engine._running = [large]
    engine._tick()
    assert asked[1][:2] == (["round 9"], 4)


def test_faults_of_a_request_do_not_make_room(model, monkeypatch):
    engine = idle(model, max_rows=4)
    made: list[Any] = []
    fault = ValueError("x")

    def evaluate(wanted, limit, repeat, called):
        repeat(ValueError("y"))
        return [fault]

    monkeypatch.setattr(engines, "evaluate_together", evaluate)
    monkeypatch.setattr(engine, "_make_room", lambda *given: made.append(given))
    held = Held(ticket(engine), 2)
    engine._running = [held]
    engine._tick()
    assert held.notes == [fault] and made == [(False, False)]


def test_all_that_is_left_fails_where_an_engine_is_closed(model):
    engine = idle(model)
    waits, held = ticket(engine), Held(ticket(engine))
    take(engine, waits, "limited")
    engine._running = [held]
    engine._stop_all(EngineClosedError("closed"))
    assert not engine._queue and not engine._running
    assert waits.status == held.ticket.status == "failed"
    assert isinstance(waits.error, EngineClosedError) and str(waits.error) == "closed"
    assert waits.error is not held.ticket.error and str(held.ticket.error) == "closed"
    assert engine.stats.ended == {"failed": 2}


# --- one request ---


class Walk:
    """A generator by hand: answers in turn, errors raised, the value of its end."""

    def __init__(self, *answers):
        self.answers, self.given, self.closed = list(answers), [], False

    def __next__(self):
        return self.send(None)

    def send(self, value):
        self.given.append(value)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def throw(self, error):
        self.given.append(error)
        return self.send("thrown")

    def close(self):
        self.closed = True


def running(model, monkeypatch, *answers, finished: Any = "samples"):
    engine = idle(model)
    held, walk = ticket(engine), Walk(*answers)
    asked: list[Any] = []
    monkeypatch.setattr(runs, "walk_request", lambda *a, **k: asked.append((a, k)) or walk)
    monkeypatch.setattr(runs, "count_rows", len)
    ends = list(finished) if isinstance(finished, list) else [finished]

    def finish(*given):
        asked.append(given)
        end = ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(runs, "finish", finish)
    monkeypatch.setattr(runs, "_warnings", lambda *given: ("warned",))
    made: Any = Running(held, "limited", "guided")  # type: ignore[arg-type]
    assert asked.pop(0) == (
        (model, "limited", "guided"), {"watch": made._watch, "explain": False}
    )  # fmt: skip
    return made, held, walk, asked


def test_a_request_walks_from_round_to_round(model, monkeypatch):
    state = SimpleNamespace()
    made, held, walk, asked = running(model, monkeypatch, "abc", "ab", "a", StopIteration(state))
    assert (made.wanted, made.rows, held.status) == (None, 0, "queued")
    made.begin()
    assert (made.wanted, made.rows, held.status) == ("abc", 3, "running")
    made.proceed({"answers": 1})
    assert (made.wanted, made.rows) == ("ab", 2)
    made.proceed(ValueError("x"))
    assert (made.wanted, made.rows) == ("a", 1) and isinstance(walk.given[2], ValueError)
    made.proceed({})
    assert (made.wanted, made.rows, held.status) == (None, 0, "done")
    assert held.samples == "samples" and held.warnings == ("warned",)
    assert asked == [(model, held.request, state)]


def test_a_request_that_fails(model, monkeypatch):
    made, held, walk, _ = running(model, monkeypatch, "abc", ValueError("x"))
    made.begin()
    made.proceed({})
    assert held.status == "failed" and str(held.error) == "x" and walk.closed
    assert (made.wanted, made.rows) == (None, 0)
    made, held, walk, _ = running(model, monkeypatch, "abc")
    made.begin()
    made.stop(CancelledError("y"), True)
    assert held.status == "cancelled" and walk.closed and str(held.error) == "y"
    made, held, _, _ = running(model, monkeypatch, StopIteration(1), finished=ValueError("z"))
    made.begin()
    assert held.status == "failed" and str(held.error) == "z"


@pytest.mark.parametrize(("blame", "text"), [("cfg makes them", "cfg makes them"), ("", "lost")])
def test_samples_that_are_not_finite_are_walked_again(model, monkeypatch, blame, text):
    made, held, _, _ = running(
        model, monkeypatch, StopIteration(1), finished=FloatingPointError("lost")
    )
    again = Walk("ab", StopIteration(blame))
    asked: list[Any] = []
    monkeypatch.setattr(runs, "find_blame", lambda *given: asked.append(given) or again)
    made.begin()
    assert asked == [(model, "limited")] and made.wanted == "ab" and held.status == "running"
    made.proceed({})
    assert held.status == "failed" and isinstance(held.error, FloatingPointError)
    assert str(held.error) == text


def test_what_is_watched_of_a_step(model, monkeypatch):
    made, held, _, _ = running(model, monkeypatch)
    held.preview_every = 3
    grid = SimpleNamespace(steps=4)
    prediction = SimpleNamespace(x0=torch.ones(2, 1))
    for index, pushes in ((1, None), (2, {"cfg": torch.ones(2, 1)})):
        step = SimpleNamespace(index=index, grid=grid, t=Level(1.0, 2.0, 0.0))
        made._watch(SimpleNamespace(step=step, prediction=prediction, pushes=pushes))
        assert held.steps_done == index + 1
    assert len(held.pushes) == 1 and held.pushes[0].sizes == {"cfg": 1.0}
    assert held.pushes[0].rho == 2.0 and held.preview is not None and held.preview.step == 3


# --- an engine of replicas ---


class Loop:
    """A loop that calls at once, and notes tasks."""

    def __init__(self):
        self.called, self.tasks = [], []

    def call_soon_threadsafe(self, call, *given):
        self.called.append((call.__name__, given))

    def create_task(self, work):
        work.close()
        self.tasks.append(Task())
        return self.tasks[-1]


class Task:
    def __init__(self, error=None, cancelled=False):
        self.error, self.was, self.asked, self.done = error, cancelled, 0, []

    def add_done_callback(self, call):
        self.done.append(call)

    def cancel(self):
        self.asked += 1

    def cancelled(self):
        return self.was

    def exception(self):
        return self.error


def several(model, **more) -> Any:
    return ReplicatedEngine(model, "sample", Loop(), **more)  # type: ignore[arg-type]


def test_requests_of_replicas_start_wait_and_are_counted(model):
    engine = several(model, replicas=lambda: 3)
    one, two = ticket(engine), ticket(engine, seeds=(0, 1, 2))
    engine._take(one, "limited", "guided")
    engine._take(two, "limited", "guided")
    assert engine._loop.called == [("_start", (one,)), ("_start", (two,))]
    assert [engine.place(t) for t in (one, two, ticket(engine))] == [1, 2, 0]
    assert engine._count_waiting() == 2
    two.begin()
    assert [engine.place(t) for t in (one, two)] == [1, 0] and engine._count_waiting() == 1
    stats = engine.stats
    assert (stats.queued, stats.running, stats.samples, stats.replicas) == (1, 1, 3, 3)
    engine._start(one)
    assert engine._live[one] is engine._loop.tasks[0] and engine._loop.tasks[0].asked == 0
    engine.cancel(two)
    assert engine._loop.called[2:] == [("_stop", (two,))] and engine._cancelled == {two}
    engine._start(two)
    assert engine._loop.tasks[1].asked == 1
    engine._stop(two)
    engine._stop(ticket(engine))
    assert engine._loop.tasks[1].asked == 2
    engine.cancel(ticket(engine))
    assert len(engine._loop.called) == 3


@pytest.mark.parametrize(
    ("error", "cancelled", "status", "kind"),
    [
        (None, True, "cancelled", CancelledError),
        (None, False, "failed", EngineClosedError),
        (TimeoutError(), False, "failed", DeadlineError),
        (RuntimeError("x"), False, "failed", RuntimeError),
    ],
)
def test_how_a_request_of_replicas_ends(model, error, cancelled, status, kind):
    engine = several(model)
    one, over = ticket(engine, timeout=90.0), ticket(engine)
    engine._live = {one: None, over: None}
    if cancelled:
        engine._cancelled.add(one)
    engine._end(one, Task(error, cancelled=error is None))
    assert one.status == status and type(one.error) is kind
    over.end("done")
    engine._end(over, Task(RuntimeError("y")))
    assert over.status == "done" and over.error is None
    assert engine._live == {} and engine._cancelled == set()
    engine._live = {one: None}
    engine._end(one, Task())
    assert engine._ended == {status: 2, "done": 1}


def test_reports_bring_a_ticket_on(model):
    engine = several(model)
    one = ticket(engine, preview_every=1)
    make = lambda **more: ReplicaReport(**{"replica": "a", "status": "running", **more})
    engine._note(one, make(status="queued", steps_done=3))
    assert (one.status, one.steps_done, one.started) == ("queued", 0, None)
    seen = tickets.Preview(1, torch.ones(1))
    push: Any = Pushes(step=0, rho=1.0, sizes={}, base=1.0, maps={})
    engine._note(one, make(steps_done=1, preview=seen, pushes=[push]))
    assert (one.status, one.steps_done, one.preview, one.pushes) == ("running", 1, seen, [push])
    started = one.started
    engine._note(one, make(steps_done=2, pushes=[push]))
    assert one.started == started and one.preview is seen and len(one.pushes) == 2
    done = make(status="done", steps_done=4, samples="s", warnings=("w",), stats=Stats(ticks=5))
    engine._note(one, done)
    assert (one.status, one.steps_done, one.samples, one.warnings) == ("done", 4, "s", ("w",))
    assert one.error is None and engine._counted.ticks == 5
    other = ticket(engine)
    engine._note(other, make(status="failed", error=("ValueError", "x"), stats=Stats(ticks=7)))
    assert other.status == "failed" and type(other.error) is ValueError
    assert engine._counted.ticks == 7
    engine._count(make(stats=Stats(ticks=6)))  # overtaken
    engine._count(make(replica="b", stats=Stats(ticks=10)))
    assert engine._counted.ticks == 17


def test_as_many_replicas_as_are_remembered(model, monkeypatch):
    engine = several(model)
    monkeypatch.setattr(replicated, "REMEMBERED", 2)
    for name in ("a", "b", "a", "c"):
        engine._count(ReplicaReport(replica=name, status="done", stats=Stats(ticks=1)))
    assert list(engine._counted_of) == ["a", "c"]


@pytest.mark.parametrize("losses", [0, 4, 5])
def test_a_lost_replica_is_replaced_up_to_five_times(model, monkeypatch, losses):
    engine = several(model)
    one = ticket(engine)
    one.pushes.append("push")  # type: ignore[arg-type]
    slept: list[float] = []
    tries = [0]

    async def sample(ticket):
        tries[0] += 1
        if tries[0] <= losses:
            raise ReplicaLostError("x")
        return True

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(engine, "_sample_once", sample)
    monkeypatch.setattr(replicated, "asyncio", SimpleNamespace(sleep=sleep))
    if losses < 5:
        asyncio.run(engine._sample_until_done(one))
    else:
        with pytest.raises(RuntimeError, match="5 replicas were lost while they sampled this"):
            asyncio.run(engine._sample_until_done(one))
    assert slept == [0.2] * losses and one.pushes == ([] if losses else ["push"])


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        ([("running", None), ("done", None)], ""),
        ([("failed", ("ValueError", "x"))], ""),
        ([("failed", ("EngineClosedError", "x"))], "the replica goes down"),
        ([("running", None)], "the reports ended before the request was over"),
    ],
)
def test_one_replica_samples_a_request(model, given, lost):
    engine = several(model)
    one = ticket(engine, preview_every=3, explain=True)
    asked: list[Any] = []

    async def sample(request, **more):
        asked.append((request, more))
        for status, error in given:
            yield ReplicaReport(replica="a", status=status, error=error)

    engine._sample = sample
    if lost:
        with pytest.raises(ReplicaLostError, match=lost):
            asyncio.run(engine._sample_once(one))
    else:
        assert asyncio.run(engine._sample_once(one)) is True
    assert asked == [(one.request, {"preview_every": 3, "explain": True})]


@pytest.mark.parametrize(("timeout", "left"), [(None, None), (9.0, 7.0), (2.0, 0.0), (1.0, 0.0)])
def test_the_time_that_is_left_to_a_request(model, monkeypatch, timeout, left):
    engine = several(model)
    one = ticket(engine, timeout=timeout)
    one.submitted = 100.0
    asked: list[Any] = []

    class Within:
        async def __aenter__(self):
            asked.append("entered")

        async def __aexit__(self, *_):
            asked.append("left")

    async def sample(ticket):
        asked.append(ticket)

    monkeypatch.setattr(engine, "_sample_until_done", sample)
    within = lambda seconds: asked.append(seconds) or Within()
    monkeypatch.setattr(replicated, "asyncio", SimpleNamespace(timeout=within))
    monkeypatch.setattr(replicated, "time", SimpleNamespace(monotonic=lambda: 102.0))
    asyncio.run(engine._follow(one))
    assert asked == [left, "entered", one, "left"]


def test_an_engine_of_replicas_closes(model, monkeypatch):
    engine = several(model, replicas=lambda: 0)
    assert engine.is_open and not engine.is_ready
    one = ticket(engine)
    engine._live = {one: None}
    waited: list[Any] = []
    monkeypatch.setattr(
        engine._lock, "wait_for", lambda ready, time: waited.append((ready(), time))
    )
    engine.close(3.0)
    assert waited == [(False, 3.0), (False, 5.0)] and not engine.is_open
    assert engine._loop.called == [("_stop", (one,))]


def test_what_a_replica_reports(model):
    engine = idle(model)
    one, stats = ticket(engine), Stats(ticks=3)
    found = report("a", one, -1, 0, stats)
    assert (found.replica, found.status, found.preview, found.pushes) == ("a", "queued", None, ())
    assert found.samples is None and found.error is None and found.stats is stats
    one.begin()
    one.pushes.extend(["p", "q", "r"])  # type: ignore[list-item]
    one.preview, one.steps_done = tickets.Preview(2, torch.ones(1)), 2
    found = report("a", one, 1, 2, stats)
    assert found.pushes == ("r",) and found.preview is not None and found.preview.step == 2
    assert report("a", one, 2, 3, stats).preview is None and found.steps_done == 2
    one.end("failed", error=KeyError("x"), warnings=("w",))
    found = report("a", one, 2, 3, stats)
    assert found.error == ("RuntimeError", "KeyError: 'x'") and found.warnings == ("w",)
