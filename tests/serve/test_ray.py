"""`guidestar serve --ray`: two replicas, of which one is killed under load."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

import guidestar as gs
from guidestar.io.images import to_pil
from helpers.serving import opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: pip install 'guidestar[ray]'"
    ),
]

REQUESTS = 24
STEPS = 30
MARK = "GUIDESTAR_TEST_MARK"
PATIENCE = 900
"""Seconds: each step takes half a minute to two where others keep both cores busy."""


def marked(mark: str) -> Iterator[int]:
    """Yield the processes that inherited a mark, but for this one."""
    for folder in Path("/proc").iterdir():
        try:
            found = folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes()
        except OSError:  # it has ended, or is another user's
            continue
        if found and int(folder.name) != os.getpid():
            yield int(folder.name)


def replicas(mark: str) -> list[int]:
    """Return the processes of the replicas."""
    names = {pid: Path(f"/proc/{pid}/cmdline") for pid in marked(mark)}
    found = []
    for pid, file in names.items():
        try:
            found += [pid] if b"ServeReplica" in file.read_bytes() else []
        except OSError:
            continue
    return found


def nearly_equal(found: bytes, wanted) -> bool:
    """Tell whether pictures agree up to one grey level: rounding at the edge of two."""
    pairs = zip(opened(found).tobytes(), wanted.tobytes(), strict=True)
    return all(abs(a - b) <= 1 for a, b in pairs)


class Cluster:
    """The command with ``--ray``, and a client of it; all its processes end with it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.mark = f"{MARK}={uuid.uuid4().hex}"
        self.log = folder / "log"
        self.client: Any = None
        command = [sys.executable, "-m", "guidestar", "serve", "fashion-mnist", "--port", "0"]
        environment = {**os.environ, **dict([self.mark.split("=")]), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, "--ray", *options], stderr=errors, cwd=folder, env=environment
            )

    def __enter__(self) -> Cluster:
        try:
            self.wait_for(lambda: self.address, "an address")
            self.client = httpx.Client(base_url=self.address, timeout=300)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.client is not None:
            self.client.close()
        self.process.kill()
        self.process.wait()
        for pid in marked(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def address(self) -> str:
        found = re.search(r"serving fashion-mnist at (\S+)", self.log.read_text())
        return found.group(1) if found else ""

    @property
    def count(self) -> float:
        return metric(self.client, "guidestar_replicas")

    def wait_for(self, reached: Callable[[], object], what: str, pause: float = 0.2) -> None:
        """Wait for what takes as long as the machine is busy, but not for a server that ended."""
        end = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, f"the server has ended: {self.log.read_text()}"
            assert time.monotonic() < end, (
                f"{what} did not come within {PATIENCE} s; {self.log.read_text()}"
            )
            time.sleep(pause)


def test_a_killed_replica_loses_no_request(tmp_path):
    """Those that it sampled are sampled by the other, from the same seeds."""
    with Cluster(tmp_path, "--replicas", "2") as cluster:
        cluster.wait_for(lambda: cluster.count == 2, "the second replica")
        check_pictures(cluster.client, cluster.mark)
        assert metric(cluster.client, "guidestar_engine_rows_total") > 0
        cluster.wait_for(
            lambda: cluster.count == 2 and len(replicas(cluster.mark)) == 2,
            "another in the place of the one that was killed",
        )
        check_end(cluster.client, cluster.process)
    assert "replica was lost" in cluster.log.read_text()


def test_replicas_follow_the_queue(tmp_path):
    """A second one is added while there are more requests than one is for, and removed after."""
    with Cluster(tmp_path, "--replicas", "1-2", "--per-replica", "2") as cluster:
        client = cluster.client
        cluster.wait_for(lambda: cluster.count == 1, "a replica")
        assert len(replicas(cluster.mark)) == 1
        body = {"cond": "bag", "steps": 250, "n": 4}
        names: list[str] = []

        def busy() -> bool:
            """Keep twelve requests under way, until there are two replicas."""
            live = metric(client, "guidestar_queued") + metric(client, "guidestar_running")
            for _ in range(int(12 - live)):
                names.append(client.post("/v1/samples", json=body).json()["id"])
            return cluster.count == 2

        cluster.wait_for(busy, "a second replica")
        assert len(replicas(cluster.mark)) == 2
        for name in names:
            client.delete(f"/v1/samples/{name}")
        cluster.wait_for(lambda: cluster.count == 1, "the end of the second replica")
        made = client.post("/v1/samples", json={"cond": "bag", "steps": 2}).json()
        with client.stream("GET", f"/v1/samples/{made['id']}/events") as events:
            assert "event: done" in events.read().decode()


def metric(client: httpx.Client, name: str) -> float:
    text = client.get("/metrics").text
    found = re.search(rf"^{name}{{.*}} (\S+)", text, re.MULTILINE)
    assert found, text
    return float(found.group(1))


def check_pictures(client: httpx.Client, mark: str) -> None:
    """Send requests, kill a replica while it samples, and compare all pictures."""
    asked = [
        {"cond": k % 10, "guidance": "cfg(3) + apg(1)", "seed": k, "steps": STEPS}
        for k in range(REQUESTS)
    ]
    names = []
    for body in asked:
        answer = client.post("/v1/samples", json={**body, "preview_every": 10})
        assert answer.status_code == 202, answer.text
        names.append(answer.json()["id"])
    waiting: dict[int, str] = {}

    def wait_by_openai() -> None:  # a client that waits for its answer notices nothing either
        body = {"prompt": "bag", "seed": 5, "num_inference_steps": STEPS}
        answer = client.post("/v1/images/generations", json=body)
        waiting[answer.status_code] = answer.json()["data"][0]["b64_json"]

    thread = threading.Thread(target=wait_by_openai)
    thread.start()
    while metric(client, "guidestar_running") == 0:
        time.sleep(0.02)
    assert metric(client, "guidestar_queued") + metric(client, "guidestar_running") > 2
    os.kill(replicas(mark)[0], signal.SIGKILL)
    model = gs.load("fashion-mnist")
    for name, body in zip(names, asked, strict=True):
        with client.stream("GET", f"/v1/samples/{name}/events") as events:
            assert "event: done" in events.read().decode()
        found = client.get(f"/v1/samples/{name}").json()
        assert (found["status"], found["seeds"]) == ("done", [body["seed"]])
        wanted = model.sample(
            body["cond"], guidance=body["guidance"], seeds=[body["seed"]], steps=STEPS
        )
        picture = client.get(found["images"][0]).content
        assert nearly_equal(picture, to_pil(wanted.images)[0]), body
    thread.join()
    wanted = model.sample("bag", seeds=[5], steps=STEPS)
    assert nearly_equal(waiting[200], to_pil(wanted.images)[0])


def check_end(client: httpx.Client, process: subprocess.Popen) -> None:
    """SIGTERM: what is under way is finished, what is new refused, and nothing stays."""
    name = client.post("/v1/samples", json={"cond": "bag", "steps": 60}).json()["id"]
    process.send_signal(signal.SIGTERM)
    while client.get("/readyz").status_code != 503:
        time.sleep(0.01)
    assert client.post("/v1/samples", json={"cond": "bag"}).status_code == 503
    while client.get(f"/v1/samples/{name}").json()["status"] != "done":
        time.sleep(0.05)
    assert process.wait(120) == 0
