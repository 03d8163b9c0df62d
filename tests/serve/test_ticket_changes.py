"""How a reader follows a request (`serve/ticket.py`): all that matters, and few wake-ups of the
loop, which is the whole cost of a request over HTTP where the steps are fast.
"""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from guidestar.serve.ticket import Ticket, changes


def ticket() -> Ticket:
    engine: Any = SimpleNamespace()
    request: Any = SimpleNamespace(levels=SimpleNamespace(steps=20))
    return Ticket(engine, request)


async def read(job: Ticket, act: Any, **more: Any) -> tuple[list[tuple[str, int]], list[Any]]:
    """Return the states that a reader gets while ``act()`` runs beside, and the loop's wake-ups."""
    loop, woken, found = asyncio.get_running_loop(), [], []
    real = loop.call_soon_threadsafe

    def counting(call, *given, **more):
        woken.append(call)
        return real(call, *given, **more)

    loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
    acting = asyncio.ensure_future(act())
    async for _ in changes(job, **more):
        found.append((job.status, job.steps_done))
    await acting
    return found, woken


def run_fast(job: Ticket) -> Any:
    async def act() -> None:
        await asyncio.sleep(0.01)
        job.begin()
        for step in range(20):
            job.advance(step + 1)
        await asyncio.sleep(0.01)
        job.end("done")

    return act


def test_changes_between_two_reads_wake_the_loop_once():
    job = ticket()
    found, woken = asyncio.run(read(job, run_fast(job)))
    assert found == [("queued", 0), ("running", 20), ("done", 20)]
    assert len(woken) == 2


@pytest.mark.parametrize(
    ("pause", "states"),
    [
        (0.0, [("queued", 0), ("running", 0), ("running", 1), ("running", 2), ("done", 2)]),
        (30.0, [("queued", 0), ("done", 2)]),
    ],
)
def test_a_pause_merges_changes_and_does_not_hold_up_the_end(pause, states):
    job = ticket()

    async def act() -> None:
        for change in (job.begin, lambda: job.advance(1), lambda: job.advance(2)):
            await asyncio.sleep(0.01)
            change()
        await asyncio.sleep(0.01)
        job.end("done")

    started = time.monotonic()
    found, _ = asyncio.run(read(job, act, pause=pause))
    assert found == states and time.monotonic() - started < 10


def test_a_change_during_a_pause_is_read_after_it():
    job = ticket()

    async def act() -> None:
        await asyncio.sleep(0.01)
        job.begin()
        await asyncio.sleep(0.01)
        job.advance(1)
        await asyncio.sleep(0.4)  # nothing happens any more, for longer than the pause
        job.end("failed")

    found, _ = asyncio.run(read(job, act, pause=0.1))
    assert found == [("queued", 0), ("running", 1), ("failed", 1)]


def test_what_changes_while_it_is_read_is_not_lost():
    """The end comes between two reads: the reader is not left waiting."""
    job = ticket()

    async def follow() -> list[str]:
        found = []
        async for _ in changes(job):
            found.append(job.status)
            if job.status == "running":
                job.advance(1)
                job.end("done")
            elif job.status == "queued":
                job.begin()
        return found

    found = asyncio.run(asyncio.wait_for(follow(), 10))
    assert found == ["queued", "running", "done"]


def test_a_reader_is_also_given_what_did_not_change():
    job = ticket()

    async def act() -> None:
        await asyncio.sleep(0.25)
        job.end("cancelled")

    found, _ = asyncio.run(read(job, act, every=0.05))
    assert found.count(("queued", 0)) >= 2 and found[-1] == ("cancelled", 0)
    assert not job._watchers
