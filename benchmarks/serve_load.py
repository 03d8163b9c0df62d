"""Load a server with many clients: no request may be lost, and no picture wrong.

    python benchmarks/serve_load.py --clients 64 --seconds 600

Starts `guidestar serve` on a free port. Each client asks for one picture after the other, over
OpenAI's API and our own, of requests of every kind, whose pictures were made before by
`Model.sample`. Some clients leave in the middle. A server that says it is busy (429, 503) is asked
again. Prints pictures a second, p50 and p95; fails if one was lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter

import httpx
import numpy as np
from PIL import Image

import guidestar as gs
from guidestar.io.images import to_pil

NEAR = 1
"""Grey levels by which a pixel may differ: rounding at the edge of two."""

EXPRESSIONS = ("cfg(3)", "cfg(2) + apg(1)", "cond + pag(1)", "cond + classifier(1)", "cond")
SOLVERS = ("ddim", "ddpm", "dpmpp-2m", "heun")


def kinds(model: gs.Model, count: int) -> list[tuple[dict, np.ndarray]]:
    """Return requests, and the pictures that they must give."""
    draw, found = random.Random(1), []
    for k in range(count):
        own = {
            "guidance": draw.choice(EXPRESSIONS),
            "solver": draw.choice(SOLVERS),
            "steps": draw.randint(2, 8),
        }
        cond = draw.choice(model.classes)
        image = to_pil(model.sample(cond, seeds=[k], **own).images)[0]
        found.append(({"cond": cond, "seed": k, **own}, np.asarray(image, dtype=int)))
    return found


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


async def by_openai(client: httpx.AsyncClient, body: dict) -> bytes:
    sent = {
        "prompt": body["cond"],
        "seed": body["seed"],
        "guidance": body["guidance"],
        "solver": body["solver"],
        "num_inference_steps": body["steps"],
    }
    answer = await client.post("/v1/images/generations", json=sent)
    answer.raise_for_status()
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


async def by_own(client: httpx.AsyncClient, body: dict) -> bytes:
    answer = await client.post("/v1/samples", json={**body, "preview_every": 2})
    answer.raise_for_status()
    name = answer.json()["id"]
    async with client.stream("GET", f"/v1/samples/{name}/events") as events:
        await events.aread()
    picture = await client.get(f"/v1/images/{name}/0.png")
    picture.raise_for_status()
    return picture.content


async def leave(client: httpx.AsyncClient, body: dict) -> None:
    """Send a request, and go before the answer is there."""
    sent = {"prompt": body["cond"], "num_inference_steps": 100}
    with contextlib.suppress(httpx.HTTPError):
        await client.post("/v1/images/generations", json=sent, timeout=0.05)


async def run(url: str, known: list, clients: int, seconds: float) -> int:
    counts: Counter[str] = Counter()
    latencies: list[float] = []
    end = time.monotonic() + seconds

    async def ask(number: int, client: httpx.AsyncClient) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            body, wanted = draw.choice(known)
            if draw.random() < 0.05:
                await leave(client, body)
                counts["left"] += 1
                continue
            began = time.monotonic()
            try:
                data = await (by_openai if draw.random() < 0.5 else by_own)(client, body)
            except httpx.HTTPStatusError as error:
                busy = error.response.status_code in (429, 503)
                counts["busy" if busy else "lost"] += 1
                if not busy:
                    print(error.response.status_code, error.response.text[:300])
                await asyncio.sleep(0.1)
                continue
            except httpx.HTTPError as error:
                counts["lost"] += 1
                print(type(error).__name__, error)
                continue
            latencies.append(time.monotonic() - began)
            right = np.abs(pixels(data) - wanted).max() <= NEAR
            counts["right" if right else "wrong"] += 1

    limits = httpx.Limits(max_connections=2 * clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        await asyncio.gather(*(ask(k, client) for k in range(clients)))
        metrics = (await client.get("/metrics")).text
    latencies.sort()
    print(
        f"{clients} clients, {seconds:g} s: {dict(counts)}; {counts['right'] / seconds:.1f} "
        f"pictures/s; p50 {statistics.median(latencies):.2f} s, p95 "
        f"{latencies[int(0.95 * len(latencies))]:.2f} s"
    )
    print("\n".join(x for x in metrics.splitlines() if x.startswith("guidestar_engine_")))
    return int(counts["lost"] + counts["wrong"] > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kinds", type=int, default=40, help="different requests")
    given = parser.parse_args()
    known = kinds(gs.load("fashion-mnist"), given.kinds)
    command = [sys.executable, "-m", "guidestar", "serve", "fashion-mnist", "--port", "0"]
    command += ["--limit", f"per-client={2 * given.clients}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        address = re.search(r"http://\S+", line)
        try:
            assert address, line
            return asyncio.run(run(address.group(), known, given.clients, given.seconds))
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main())
