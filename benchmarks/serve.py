"""Measure the engine: pictures a second and latency for 16 clients, and what it costs one client.

    python benchmarks/serve.py            (about two minutes; `make bench`)

16 clients ask `fashion-mnist` for one picture after the other: 8 to 30 steps, scales from 1.5 to 5,
three expressions, ten classes, the same requests for each of three servers:

- one by one: `Model.sample`, one request at a time;
- whole requests: up to 16 requests that wait and agree in steps, solver and expression (classes
  and scales may differ) are sampled as one batch;
- the engine: rows of all requests share calls at every step.

Then a lone request, by `Model.sample`, by the engine and over HTTP, in turn. Times are of this
machine; the ratios are what counts. Every picture is compared with the first server's.
"""

from __future__ import annotations

import argparse
import queue
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch

import guidestar as gs
from guidestar.serve import Engine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CLIENTS = 16
TEMPLATES = ("cfg({})", "cfg({}) + classifier(0.5)", "cfg({}) | rescale(0.7)")
Server = Callable[["Job"], torch.Tensor]


@dataclass(frozen=True)
class Job:
    cond: str
    template: str
    scale: float
    steps: int
    seed: int

    def arguments(self) -> dict:
        guidance = self.template.format(self.scale)
        return {"guidance": guidance, "steps": self.steps, "seeds": [self.seed]}


def asks(model: gs.Model, count: int) -> list[Job]:
    draw = random.Random(0)
    return [
        Job(
            draw.choice(model.classes),
            draw.choice(TEMPLATES),
            draw.choice([1.5, 2.0, 3.0, 4.0, 5.0]),
            draw.randint(8, 30),
            k,
        )
        for k in range(count)
    ]


def one_by_one(model: gs.Model) -> Server:
    lock = threading.Lock()

    def serve(job: Job) -> torch.Tensor:
        with lock:
            return model.sample(job.cond, **job.arguments()).x

    return serve


class WholeRequests:
    """Batches whole requests that agree."""

    def __init__(self, model: gs.Model) -> None:
        self.model = model
        self.waiting: queue.Queue = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def __call__(self, job: Job) -> torch.Tensor:
        future: Future = Future()
        self.waiting.put((job, future))
        return future.result()

    def _run(self) -> None:
        pending: list[tuple[Job, Future]] = []
        while True:
            pending += [] if pending else [self.waiting.get()]
            while not self.waiting.empty():
                pending.append(self.waiting.get())
            first = pending[0][0]
            agreed = [
                (a, f) for a, f in pending if (a.steps, a.template) == (first.steps, first.template)
            ][:CLIENTS]
            pending = [pair for pair in pending if pair not in agreed]
            scales = [a.scale for a, _ in agreed]
            found = self.model.sample(
                [a.cond for a, _ in agreed],
                guidance=first.template.format(scales if len(scales) > 1 else scales[0]),
                steps=first.steps,
                seeds=[a.seed for a, _ in agreed],
            )
            for x, (_, future) in zip(found.x, agreed, strict=True):
                future.set_result(x[None])


def through(engine: Engine) -> Server:
    def serve(job: Job) -> torch.Tensor:
        request = engine.model.request(job.cond, **job.arguments())
        return engine.submit(request).result().x

    return serve


def measure(serve: Server, jobs: list[Job]) -> tuple[float, list[float], dict[int, torch.Tensor]]:
    """Return the seconds in all, the latencies, and the samples by seed."""
    latencies: list[float] = []
    found: dict[int, torch.Tensor] = {}

    def client(mine: list[Job]) -> None:
        for one in mine:
            began = time.perf_counter()
            found[one.seed] = serve(one)
            latencies.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(jobs[k::CLIENTS],)) for k in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, latencies, found


def lone(model: gs.Model, engine: Engine, rounds: int) -> None:
    """Time one request after the other, by each way in turn."""
    from helpers.serving import serving

    body = {"cond": "bag", "guidance": "cfg(3)", "steps": 20, "seed": 1}
    own = {"guidance": "cfg(3)", "steps": 20, "seeds": [1]}
    times: dict[str, list[float]] = {"Model.sample": [], "engine": [], "HTTP": []}
    with serving({"fashion-mnist": model}) as served, served.client() as client:

        def over_http() -> None:
            name = client.post("/v1/samples", json=body).json()["id"]
            with client.stream("GET", f"/v1/samples/{name}/events") as answer:
                answer.read()
            client.get(f"/v1/images/{name}/0.png").raise_for_status()

        ways = {
            "Model.sample": lambda: model.sample("bag", **own),
            "engine": lambda: engine.submit(model.request("bag", **own)).result(),
            "HTTP": over_http,
        }
        for _ in range(10 * rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print("\none request of 20 steps, medians (and the least, where other work is in the way):")
    for name, seconds in medians.items():
        print(f"  {name:<14}{1000 * seconds:8.1f} ms ({1000 * min(times[name]):.1f})")
    alone = medians["Model.sample"]
    print(f"  engine / Model.sample {medians['engine'] / alone:.3f} (at most 1.05)")
    print(f"  HTTP costs {1000 * (medians['HTTP'] - alone):.1f} ms more (at most 20)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="times that each server is measured")
    parser.add_argument("--each", type=int, default=4, help="requests of each client in a round")
    given = parser.parse_args()
    torch.set_num_threads(2)
    model = gs.load("fashion-mnist")
    engine = Engine(model)
    servers: dict[str, Server] = {
        "one by one": one_by_one(model),
        "whole requests": WholeRequests(model),
        "engine": through(engine),
    }
    jobs = asks(model, CLIENTS * given.each)
    speeds: dict[str, list[float]] = {name: [] for name in servers}
    means: dict[str, list[float]] = {name: [] for name in servers}
    for serve in servers.values():
        serve(jobs[0])  # warm up
    for _ in range(given.rounds):
        wanted: dict[int, torch.Tensor] = {}
        for name, serve in servers.items():
            seconds, latencies, found = measure(serve, jobs)
            speeds[name].append(len(jobs) / seconds)
            means[name].append(statistics.mean(latencies))
            wanted = wanted or found
            worst = max(float((found[k] - wanted[k]).abs().max()) for k in wanted)
            print(
                f"{name:<16}{speeds[name][-1]:7.2f} pictures/s, latency mean {means[name][-1]:6.2f}"
                f" s, p95 {sorted(latencies)[int(0.95 * len(latencies))]:6.2f} s; differs by "
                f"{worst:.1e}",
                flush=True,
            )
    speed = {name: statistics.median(found) for name, found in speeds.items()}
    mean = {name: statistics.median(found) for name, found in means.items()}
    print(f"\nengine / one by one      {speed['engine'] / speed['one by one']:.2f} (at least 3)")
    print(
        f"engine / whole requests  {speed['engine'] / speed['whole requests']:.2f} (at least 1.5)"
    )
    print(f"latency / one by one     {mean['engine'] / mean['one by one']:.2f} (at most 0.5)")
    stats = engine.stats
    print(f"rows a tick {stats.rows / stats.ticks:.1f}, {stats.seconds / stats.ticks:.4f} s a tick")
    lone(model, engine, given.rounds)
    engine.close()


if __name__ == "__main__":
    main()
