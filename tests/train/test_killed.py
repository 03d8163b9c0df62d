"""Whenever a training is killed, and wherever in the writing of a checkpoint, it resumes to the
same bits.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
STEPS = 4  # as in helpers/killed.py


@pytest.fixture(scope="module")
def runs():
    """Run trainings in children of one process, each killed where we say."""
    command = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "killed.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def run(path, kill=None):
            server.stdin.write(json.dumps({"path": str(path), "kill": kill}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield run
        server.stdin.close()


@pytest.fixture
def place(tmp_path):
    """Return a folder in memory where there is one: a thousand flushes to a disk take a minute."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    return runs(tmp_path_factory.mktemp("whole") / "c.pt")


def test_what_is_counted_is_all_that_touches_the_disk(whole):
    assert not whole["killed"] and set(whole["events"]) == {
        "write",
        "fsync",
        "fsync of the folder",
        "replace",
        "link",
    }
    # The former checkpoint gets its second name, then the new one is flushed and takes its place,
    # and that is flushed.
    tail = [e for e in whole["events"] if e != "write"]
    assert (
        tail == ["link", "replace", "fsync", "replace", "fsync of the folder"]
        and whole["events"][0] == "write"
    )


def test_a_kill_at_any_write_flush_or_rename_loses_nothing(runs, whole, place):
    for event, name in enumerate(whole["events"]):
        path = place / f"{event}" / "c.pt"
        assert runs(path, {"event": event})["killed"], name
        assert path.exists()  # of the save before, or already the new one
        again = runs(path)
        assert not again["killed"] and again["sha"] == whole["sha"], (event, name)
        assert sorted(p.name for p in path.parent.iterdir()) == ["c.1.pt", "c.pt"]


def test_a_disk_that_fills_up_at_any_write_flush_or_rename_loses_nothing(runs, whole, place):
    for event, name in enumerate(whole["events"]):
        path = place / f"{event}" / "c.pt"
        full = runs(path, {"full": event})
        if (
            name == "link"
        ):  # a link that fails is a file system without links: the former checkpoint is copied
            assert full["events"][event + 1] == "replace"
        assert "No space left on device" in full["failed"] and full["failed"].endswith(
            f"the last good checkpoint is intact, {path}"
        ), name
        assert {p.name for p in path.parent.iterdir()} <= {
            "c.1.pt",
            "c.pt",
        }  # nothing half-written stays
        assert runs(path)["sha"] == whole["sha"], (event, name)


@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_steps_change_nothing(runs, whole, place, seed):
    path = place / "c.pt"
    for step in sorted(random.Random(seed).sample(range(STEPS), 3)):
        assert runs(path, {"step": step})["killed"]
    assert runs(path)["sha"] == whole["sha"]


def test_a_former_checkpoint_serves_as_well(runs, whole, place):
    path = place / "c.pt"
    assert runs(path, {"step": STEPS - 1})["killed"]
    (place / "c.1.pt").replace(path)
    assert runs(path)["sha"] == whole["sha"]
