"""What a guided step costs beside its networks: microseconds a step, for a network that does
nothing.

    taskset -c 0 python benchmarks/step.py

The least of many rounds, as a busy machine only ever adds.
"""

from __future__ import annotations

from time import perf_counter

import torch

from guidestar import VP, Condition, Guided, log_snr

EXPRESSIONS = ("cond", "cfg(3)", "cfg(3) + apg(2)", "cfg(3) + apg(2) + tcfg(2) + mambo(3)")
BATCH, ROUNDS, CALLS = 16, 2000, 5


def microseconds(expression: str) -> float:
    """Return what one call of a guided sum costs, at 16 samples of 8 numbers."""
    conditions = {name: Condition(c=torch.zeros(BATCH)) for name in ("cond", "null")}
    guided = Guided(expression, lambda x, level, cond: x, **conditions)
    step, x = log_snr(VP.linear(), 20).step(10), torch.zeros(BATCH, 8)
    state = guided(x, step)[1]
    best = float("inf")
    for _ in range(ROUNDS):
        begun = perf_counter()
        for _ in range(CALLS):
            guided(x, step, state)
        best = min(best, (perf_counter() - begun) / CALLS)
    return best * 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    for expression in EXPRESSIONS:
        print(f"{microseconds(expression):6.1f} us  {expression}")
