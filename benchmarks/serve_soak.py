"""Send thousands of short requests of all kinds through an engine, and watch its memory.

    python benchmarks/serve_soak.py [--requests 10000]

Every hundredth sample is compared with `Model.sample`; some requests fail or are cancelled on
purpose. It fails if a sample differs, an ending is wrong, or memory has grown by more than the
bound after the first tenth.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from guidestar.serve import Engine
from helpers.served import CLASSES, EXPRESSIONS, SOLVERS, near, toy_model
from helpers.toys import Spy

GROWTH = 8 * 2**20
"""Bytes by which resident memory may grow: what the allocator keeps at hand."""


class Forgetful(Spy):
    """The toy network, without its memory of calls."""

    def __call__(self, x, level, cond):
        found = super().__call__(x, level, cond)
        self.calls.clear()
        self.inputs.clear()
        self.levels.clear()
        return found


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def failing(x0: torch.Tensor) -> torch.Tensor:
    raise ArithmeticError("on purpose")


def arguments(k: int) -> dict:
    expression = EXPRESSIONS[k % len(EXPRESSIONS)]
    losses = {"loss": failing if k % 11 == 5 else near}
    solver = SOLVERS[k // 7 % 4]  # heun refuses what splits
    return {
        "cond": CLASSES[k % 3],
        "guidance": expression,
        "losses": losses,
        "solver": solver,
        "steps": 1 + k % 3,
        "seeds": range(k, k + 1 + k % 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    count = parser.parse_args().requests
    warnings.simplefilter("ignore")
    reference = toy_model(Forgetful())
    ended: dict[str, int] = {}
    compared = wrong = 0
    start, began = 0, time.perf_counter()
    with Engine(toy_model(Forgetful()), max_rows=32) as engine:
        waiting: list = []
        for k in range(count):
            given = arguments(k)
            ticket = engine.submit(engine.model.request(**given), preview_every=1)
            if k % 13 == 7:
                ticket.cancel()
            waiting.append((k, given, ticket))
            if len(waiting) >= 64:
                j, theirs, oldest = waiting.pop(0)
                oldest.wait()
                ended[oldest.status] = ended.get(oldest.status, 0) + 1
                if j % 100 == 0 and oldest.status == "done":
                    alone = reference.sample(**theirs)
                    compared += 1
                    wrong += not torch.allclose(alone.x, oldest.result().x, rtol=1e-5, atol=1e-5)
            if k == count // 10:
                start = resident()
            if k % max(1, count // 10) == 0:
                print(f"{k:6d} requests, {resident() / 2**20:7.1f} MiB, {dict(ended)}", flush=True)
        for _, _, ticket in waiting:
            ticket.wait()
        waiting.clear()
    seconds = time.perf_counter() - began
    grown = resident() - start
    print(
        f"{count} requests in {seconds:.0f} s, {compared} compared, {wrong} wrong, "
        f"memory grew by {grown / 2**20:.1f} MiB after the first tenth; {engine.stats}"
    )
    return int(wrong > 0 or grown > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
