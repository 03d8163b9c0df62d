"""The engine: every request gives what `Model.sample` gives for it alone, whatever else runs."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import guidestar as gs
from guidestar.serve import (
    CancelledError,
    DeadlineError,
    Engine,
    EngineClosedError,
    QueueFullError,
    TooLargeError,
)
from helpers.served import (
    CLASSES,
    EXPRESSIONS,
    SHAPE,
    SOLVERS,
    equal,
    held,
    near,
    toy_model,
)
from helpers.toys import Critic, Judge, Spy, log_prob, toy

LOSSES = {"loss": near}
HEUN_CANNOT = ("cfgpp", "dps", "mpgd", "lgd", "tfg")
PATIENCE = 60


@st.composite
def asks(draw):
    """The arguments of a request of any kind."""
    expression = draw(st.sampled_from(EXPRESSIONS))
    solver = draw(st.sampled_from(sorted(gs.SOLVERS)))
    split = any(name in expression for name in HEUN_CANNOT)
    if split and not gs.SOLVERS[solver].accepts_split:
        solver = "ddim"
    seeds = draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))
    one = st.sampled_from(CLASSES)
    return {
        "cond": draw(st.lists(one, min_size=len(seeds), max_size=len(seeds))),
        "guidance": expression,
        "solver": solver,
        "steps": draw(st.integers(1, 4)),
        "grid": draw(st.sampled_from(["uniform", "log_snr", "karras"])),
        "seeds": seeds,
        "negative": draw(st.sampled_from([None, "blurry"])),
        "losses": LOSSES,
        "max_rows": draw(st.sampled_from([None, None, 1, 2])),
    }


@pytest.fixture(scope="module")
def reference():
    return toy_model()


@pytest.fixture
def engine():
    with Engine(toy_model(), max_rows=16) as engine:
        yield engine


@settings(max_examples=30, deadline=None)
@given(st.lists(asks(), min_size=2, max_size=40), st.sampled_from([1, 5, 16, 64]))
def test_random_mixes_give_what_each_gives_alone(asked, max_rows):
    reference = toy_model()
    with Engine(toy_model(), max_rows=max_rows) as engine:
        with held(engine):
            tickets = [engine.submit(engine.model.request(**a)) for a in asked]
        for a, ticket in zip(asked, tickets, strict=True):
            equal(ticket.result(PATIENCE), reference.sample(**a))
            assert ticket.steps_done == ticket.steps == a["steps"]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_kind_beside_another(engine, reference, expression, solver):
    if solver == "heun" and any(name in expression for name in HEUN_CANNOT):
        pytest.skip("heun refuses a prediction that is split")
    asked = {"guidance": expression, "solver": solver, "steps": 3, "losses": LOSSES}
    with held(engine):
        tickets = [
            engine.submit(engine.model.request("cat", seeds=[0, 1], **asked)),
            engine.submit(engine.model.request("dog", seeds=[2], guidance="cfg(4)", steps=5)),
            engine.submit(engine.model.request("dog", seeds=[3], **asked)),
        ]
    equal(tickets[0].result(PATIENCE), reference.sample("cat", seeds=[0, 1], **asked))
    plain = reference.sample("dog", seeds=[2], guidance="cfg(4)", steps=5)
    equal(tickets[1].result(PATIENCE), plain)
    equal(tickets[2].result(PATIENCE), reference.sample("dog", seeds=[3], **asked))


def test_solvers_around_solvers_and_starts_from_data(engine, reference):
    start = torch.linspace(-1, 1, 24).view(1, *SHAPE)
    known = gs.RePaint(solver=gs.DDIM(eta=1.0), known=start, mask=torch.ones(1, *SHAPE[1:]))
    kinds = [
        {"solver": gs.TimeTravel(solver=gs.DDIM(eta=1.0), times=2), "steps": 3},
        {"solver": known, "steps": 3},
        {"start": start, "start_rho": 1.0, "steps": 6},
        {"grid": gs.karras(reference.schedule, 4), "guidance": gs.cfg(2.5)},
    ]
    with held(engine):
        tickets = [engine.submit(engine.model.request("cat", **kind)) for kind in kinds]
    for kind, ticket in zip(kinds, tickets, strict=True):
        equal(ticket.result(PATIENCE), reference.sample("cat", **kind))


def test_rows_of_other_steps_scales_and_solvers_share_calls():
    """Ten requests of two rows each fit into one call a tick, whatever their steps."""
    spy = Spy()
    with Engine(toy_model(spy), max_rows=64) as engine:
        with held(engine):
            tickets = [
                engine.submit(
                    engine.model.request(
                        "cat",
                        guidance=f"cfg({2 + k / 10})",
                        seeds=[k],
                        steps=3 + k % 3,
                        solver=("ddim", "dpmpp-2m")[k % 2],
                    )
                )
                for k in range(10)
            ]
        for ticket in tickets:
            ticket.result(PATIENCE)
    shared = [call for call in spy.calls if len(call) == 20]
    assert len(shared) == 3  # all run for three steps
    assert len(spy.calls) == 1 + 5  # the first request, then as many as the longest has steps


def test_gradients_are_not_taken_through_rows_of_others():
    """A shared graph would make every gradient run back through all requests."""
    spy = Spy()
    with Engine(toy_model(spy), max_rows=64) as engine:
        with held(engine):
            asked = {"guidance": "cond + dps(0.2)", "steps": 2, "losses": LOSSES}
            tickets = [
                engine.submit(engine.model.request("cat", seeds=[k], **asked)) for k in range(3)
            ]
        for ticket in tickets:
            ticket.result(PATIENCE)
    assert all(len(call) == 1 for call in spy.calls)


@pytest.mark.parametrize("term", ["classifier(0.5)", "discriminator(0.5)"])
def test_gradients_of_one_classifier_share_a_call(reference, term):
    """Six requests at other steps, levels and classes: one call of the classifier a tick."""
    sizes = []

    def counted(x, level, target):
        sizes.append(len(x))
        return log_prob(x, level, target)

    model = toy_model()
    judges = {"classifier": Judge(answer=counted), "discriminator": Critic(answer=counted)}
    with Engine(replace(model, classifiers=judges), max_rows=64) as engine:
        with held(engine):
            asked = [
                {"guidance": f"cond + {term}", "seeds": [k, k + 9], "steps": 3 + k % 3}
                for k in range(6)
            ]
            names = [CLASSES[k % 2] for k in range(6)]
            tickets = [
                engine.submit(engine.model.request(name, **own))
                for name, own in zip(names, asked, strict=True)
            ]
        found = [ticket.result(PATIENCE) for ticket in tickets]
    assert sizes == [12, 12, 12, 8, 4]  # five ticks, as the longest has steps
    for samples, name, own in zip(found, names, asked, strict=True):
        equal(samples, reference.sample(name, **own))


def test_a_function_of_the_user_is_called_for_its_own_run_alone():
    sizes = []

    def own(x, level, target):
        sizes.append(len(x))
        return log_prob(x, level, target)

    with Engine(toy_model(), max_rows=64) as engine:
        with held(engine):
            guidance = gs.cond + gs.classifier(0.5, log_prob=own)
            tickets = [
                engine.submit(engine.model.request("cat", guidance=guidance, seeds=[k], steps=2))
                for k in range(3)
            ]
        for ticket in tickets:
            ticket.result(PATIENCE)
    assert sizes == [1] * 6


def test_network_calls_are_counted():
    spy = Spy()
    with Engine(toy_model(spy)) as engine:
        engine.submit(engine.model.request("cat", seeds=[0, 1], steps=3)).result(PATIENCE)
    stats = engine.stats
    assert (stats.calls, stats.call_rows) == (len(spy.calls), spy.rows) == (3, 12)
    assert 0 < stats.call_seconds <= stats.seconds


def test_a_tick_has_at_most_max_rows_and_the_oldest_go_first():
    spy = Spy()
    with Engine(toy_model(spy), max_rows=6) as engine:
        order: list[int] = []
        with held(engine):
            tickets = [
                engine.submit(engine.model.request("cat", seeds=[k], steps=4)) for k in range(9)
            ]
            tickets.append(engine.submit(engine.model.request("cat", seeds=range(20), steps=4)))
            for k, ticket in enumerate(tickets):
                ticket.watch(lambda t, k=k: order.append(k) if t.is_over else None)
            assert [ticket.place for ticket in tickets] == list(range(1, 11))
        for ticket in tickets:
            ticket.result(PATIENCE)
    assert order == list(range(10))
    assert max(map(len, spy.calls)) <= 6
    assert [ticket.place for ticket in tickets] == [0] * 10


def test_a_large_request_leaves_room_for_others(engine):
    with held(engine):
        large = engine.submit(engine.model.request("cat", seeds=range(64), steps=30))
        small = engine.submit(engine.model.request("dog", seeds=[1], steps=3))
    small.result(PATIENCE)
    assert not large.is_over
    large.cancel()


def test_previews_are_the_clean_estimates(engine, reference):
    found = []
    request = engine.model.request("cat", seeds=[3, 4], steps=5, guidance="cfg(2)")
    with held(engine):
        ticket = engine.submit(request, preview_every=2)
        ticket.watch(lambda t: found.append(t.preview))
    ticket.result(PATIENCE)
    previews = {p.step: p.x0 for p in found if p is not None}
    assert sorted(previews) == [2, 4, 5]
    states = {
        s.step.index + 1: s
        for s in reference.trajectory("cat", seeds=[3, 4], steps=5, guidance="cfg(2)")
    }
    for step, x0 in previews.items():
        torch.testing.assert_close(x0, states[step].prediction.x0, rtol=1e-5, atol=1e-5)
    assert ticket.preview is not None and ticket.preview.step == 5


def test_no_previews_unless_wanted(engine):
    ticket = engine.submit(engine.model.request("cat"))
    ticket.result(PATIENCE)
    assert ticket.preview is None


def test_cancelled_in_the_middle_and_in_the_queue(reference):
    asked = {"seeds": [1], "steps": 4, "guidance": "cfg(3)"}
    with Engine(toy_model(), max_rows=4) as engine:
        with held(engine):
            runs = engine.submit(engine.model.request("cat", steps=2000))
            other = engine.submit(engine.model.request("dog", **asked))
            waits = engine.submit(engine.model.request("cat", steps=2000))
            waits.cancel()
        deadline = time.monotonic() + PATIENCE
        while not runs.steps_done and time.monotonic() < deadline:
            time.sleep(0.001)
        runs.cancel()
        for ticket in (runs, waits):
            with pytest.raises(CancelledError, match="cancelled"):
                ticket.result(PATIENCE)
            assert ticket.status == "cancelled"
        assert 0 < runs.steps_done < 2000 and waits.steps_done == 0
        equal(other.result(PATIENCE), reference.sample("dog", **asked))
        runs.cancel()  # what is over stays as it was
        after = engine.submit(engine.model.request("dog", **asked))
        equal(after.result(PATIENCE), reference.sample("dog", **asked))


def test_a_deadline_in_the_middle_and_in_the_queue(reference):
    asked = {"seeds": [1], "steps": 4}
    with Engine(toy_model(), max_rows=4) as engine:
        late = engine.submit(engine.model.request("cat", steps=5000), timeout=0.2)
        with pytest.raises(DeadlineError, match=r"not done in 0.2 seconds: \d+ of 5000 steps"):
            late.result(PATIENCE)
        assert 0 < late.steps_done < 5000 and late.status == "failed"
        with held(engine):
            waits = engine.submit(engine.model.request("cat"), timeout=0.01)
            other = engine.submit(engine.model.request("dog", **asked), timeout=PATIENCE)
            time.sleep(0.05)
        with pytest.raises(DeadlineError, match="0 of 4 steps"):
            waits.result(PATIENCE)
        equal(other.result(PATIENCE), reference.sample("dog", **asked))


class Boom(Exception):
    pass


def raising(after: int, error: BaseException):
    """Return a loss that raises at its n-th call."""
    calls = []

    def loss(x0):
        calls.append(1)
        if len(calls) > after:
            raise error
        return near(x0)

    return {"loss": loss}


def huge(x0):
    return near(x0) + torch.empty(1 << 60).sum()


FAILURES = {
    "a user's function": (raising(2, Boom("mine")), Boom, "mine"),
    "one that would end the thread": (raising(1, SystemExit(3)), RuntimeError, "SystemExit: 3"),
    "one that interrupts": (raising(0, KeyboardInterrupt()), RuntimeError, "KeyboardInterrupt"),
    "memory": ({"loss": huge}, MemoryError, "not enough memory for this request"),
    "a loss of another shape": ({"loss": lambda x0: x0.sum()}, ValueError, "one number for each"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_function_fails_alone(engine, reference, kind):
    losses, error, text = FAILURES[kind]
    asked = {"guidance": "cond + dps(0.2)", "steps": 4, "seeds": [5, 6]}
    with held(engine):
        good = [
            engine.submit(engine.model.request("dog", losses=LOSSES, **asked)),
            engine.submit(engine.model.request("dog", seeds=[1], steps=6)),
        ]
        bad = engine.submit(engine.model.request("cat", losses=losses, **asked))
    with pytest.raises(error, match=text):
        bad.result(PATIENCE)
    assert bad.status == "failed"
    equal(good[0].result(PATIENCE), reference.sample("dog", losses=LOSSES, **asked))
    equal(good[1].result(PATIENCE), reference.sample("dog", seeds=[1], steps=6))


def picky(x, level, c):
    """The toy, whose answer to dogs is no number, and which refuses the word "blurry"."""
    if bool((c == 1.7).any()):
        raise Boom("no blurry pictures")
    return torch.where((c < -0.8).view(-1, 1, 1, 1), torch.nan, toy(x, level, c))


def test_a_failing_network_fails_those_whose_rows_it_fails(reference):
    asked = {"guidance": "cfg(2)", "steps": 3}
    with Engine(toy_model(Spy(picky)), max_rows=64) as engine:
        with held(engine):
            tickets = {
                name: [
                    engine.submit(engine.model.request(name, seeds=[k], **asked)) for k in range(3)
                ]
                for name in CLASSES
            }
        for ticket in tickets["blurry"]:
            with pytest.raises(Boom, match="no blurry pictures"):
                ticket.result(PATIENCE)
        for ticket in tickets["dog"]:
            with pytest.raises(
                FloatingPointError, match=r"'main' returned values .* 'cond' at step 0"
            ):
                ticket.result(PATIENCE)
        for k, ticket in enumerate(tickets["cat"]):
            equal(ticket.result(PATIENCE), reference.sample("cat", seeds=[k], **asked))
        assert engine.stats.repeated


def test_the_search_for_what_failed_leaves_room_too():
    spy = Spy(picky)
    with Engine(toy_model(spy), max_rows=4) as engine:
        ticket = engine.submit(engine.model.request("dog", seeds=range(9), guidance="cond"))
        with pytest.raises(FloatingPointError, match="'main' returned"):
            ticket.result(PATIENCE)
    assert max(map(len, spy.calls)) == 2


def test_a_scale_that_is_too_large_is_named_as_by_sample(engine, reference):
    asked = {"guidance": "cfg(2) + classifier(1e36)", "steps": 6}
    with pytest.raises(FloatingPointError) as alone:
        reference.sample("cat", **asked)
    ticket = engine.submit(engine.model.request("cat", **asked))
    with pytest.raises(FloatingPointError) as served:
        ticket.result(PATIENCE)
    assert str(served.value) == str(alone.value)


def test_too_little_memory_together_is_enough_in_parts(reference):
    """A network that has no memory for more than four rows: all requests are served, and later
    ticks take fewer rows.
    """

    def small(x, level, c):
        if len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return toy(x, level, c)

    with Engine(toy_model(Spy(small)), max_rows=32) as engine:
        with held(engine):
            tickets = [
                engine.submit(engine.model.request("cat", seeds=[k], steps=6)) for k in range(12)
            ]
        for k, ticket in enumerate(tickets):
            equal(ticket.result(PATIENCE), reference.sample("cat", seeds=[k], steps=6))
        assert 1 <= engine.stats.repeated <= 4


def test_a_full_queue_is_named():
    with Engine(toy_model(), max_rows=2, max_queue=2) as engine:
        with held(engine):
            tickets = [engine.submit(engine.model.request("cat")) for _ in range(2)]
            with pytest.raises(QueueFullError, match="2 requests wait already"):
                engine.submit(engine.model.request("cat"))
            tickets[0].cancel()
        tickets[1].result(PATIENCE)
        engine.submit(engine.model.request("cat")).result(PATIENCE)


def test_a_closed_engine_finishes_what_it_can():
    engine = Engine(toy_model(), max_rows=2)
    with held(engine):
        done = engine.submit(engine.model.request("cat", steps=3))
        long = engine.submit(engine.model.request("cat", steps=2000))
        waits = engine.submit(engine.model.request("cat", steps=2000))
    engine.close(grace=0.5)
    assert done.status == "done"
    for ticket in (long, waits):
        with pytest.raises(EngineClosedError, match="before this request was done"):
            ticket.result(0)
    assert long.steps_done > 0 and not engine.is_open
    with pytest.raises(EngineClosedError, match="takes no more requests"):
        engine.submit(engine.model.request("cat"))
    engine.close()


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"guidance": "cond + dps(1)"}, "loss"),
        ({"guidance": "cond + classifier(1, net='other')"}, "other"),
        ({"guidance": "cfgpp(0.5)", "solver": "heun"}, "heun"),
        ({"guidance": "cfg([1, 2])"}, "2"),
    ],
)
def test_what_sample_refuses_is_refused_at_once(engine, asked, text):
    with pytest.raises(ValueError, match=text):
        engine.submit(engine.model.request("cat", **asked))


def test_limits_are_checked():
    with pytest.raises(ValueError, match="max_rows must be at least 1, not 0"):
        Engine(toy_model(), max_rows=0)
    with Engine(toy_model(), max_samples=3, max_evaluations=120) as engine:
        with pytest.raises(TooLargeError, match="3 samples, not 4; send several"):
            engine.submit(engine.model.request("cat", seeds=range(4)))
        asked = {"guidance": "cfg(2)", "seeds": range(3)}
        engine.submit(engine.model.request("cat", steps=20, **asked)).result(PATIENCE)
        with pytest.raises(TooLargeError, match=r"about 126 evaluations .* at most 120"):
            engine.submit(engine.model.request("cat", steps=21, **asked))
        with pytest.raises(TooLargeError, match="about 222 evaluations"):
            engine.submit(engine.model.request("cat", steps=19, solver="heun", **asked))
        with pytest.raises(ValueError, match="preview_every"):
            engine.submit(engine.model.request("cat"), preview_every=-1)


def test_waiting_ends_with_the_time_given(engine):
    with held(engine) as ticket, pytest.raises(TimeoutError, match=r"after 0\.01 seconds"):
        ticket.result(0.01)


def test_a_watcher_that_raises_harms_nobody(engine, reference):
    with held(engine):
        ticket = engine.submit(engine.model.request("cat", seeds=[4]))
        ticket.watch(lambda t: 1 / 0)
    equal(ticket.result(PATIENCE), reference.sample("cat", seeds=[4]))


def test_samples_that_diverged_are_named(engine):
    ticket = engine.submit(engine.model.request("cat", guidance="cfg(2000)", steps=3))
    ticket.result(PATIENCE)
    assert "1 of 1 samples have diverged" in ticket.warnings[0]


def test_what_was_done_is_counted(engine):
    for k in range(3):
        engine.submit(engine.model.request("cat", seeds=[k], steps=4, guidance="cfg(2)")).result(
            PATIENCE
        )
    deadline = time.monotonic() + PATIENCE
    while engine.stats.ended.get("done", 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    stats = engine.stats
    assert stats.ended == {"done": 3} and stats.ticks == 12 and stats.rows == 24
    assert stats.seconds > 0 and stats.queued == stats.running == stats.samples == 0


@pytest.mark.slow
def test_nothing_is_kept_of_hundreds_of_requests():
    """The engine holds no tensor once tickets are gone."""
    with Engine(toy_model(), max_rows=16) as engine:

        def some(count):
            tickets = []
            for k in range(count):
                bad = k % 7 == 3
                request = engine.model.request(
                    CLASSES[k % 3],
                    guidance="cond + dps(0.1)" if bad else EXPRESSIONS[k % 6],
                    losses=raising(0, Boom("x")) if bad else None,
                    seeds=[k],
                    steps=1 + k % 3,
                )
                tickets.append(engine.submit(request, preview_every=1))
                if k % 5 == 4:
                    tickets[-1].cancel()
                if len(tickets) > 40:
                    tickets.pop(0).wait(PATIENCE)
            for ticket in tickets:
                assert ticket.wait(PATIENCE)

        def tensors():
            gc.collect()
            return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

        engine.model.denoiser.inputs = engine.model.denoiser.calls = (
            engine.model.denoiser.levels
        ) = Sink()
        some(50)
        before = tensors()
        some(300)
        time.sleep(0.05)
        assert tensors() <= before + 5


class Sink(list):
    """A list that keeps nothing."""

    def append(self, _):
        pass
