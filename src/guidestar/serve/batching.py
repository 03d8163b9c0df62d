"""Evaluate the rounds of many requests together, so that a fault stays with whose it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.evaluation import Called, evaluate
from ..core.passes import Pass
from ..core.rounds import Answers, Evaluated, Round


def count_rows(wanted: Round) -> int:
    """Return how many rows a round is: those of all its passes and slopes."""
    size = len(wanted.group.x_t)
    passes = sum(size if rows is None else len(rows) for rows in wanted.passes.values())
    return passes + sum(len(slope.x) for slope in wanted.slopes)


def evaluate_together(
    rounds: Sequence[Round],
    max_rows: int | None = None,
    repeat: Callable[[BaseException], None] = lambda error: None,
    called: Called | None = None,
) -> Sequence[Answers | BaseException]:
    """Evaluate rounds with as few network calls as possible; return each one's answers, or why
    there are none.

    If a call fails, its rounds are evaluated in halves until those that fail are alone.

    Args:
        rounds: of different requests.
        max_rows: the most rows of one call; by default as many as suit the network.
        called: called after each network call.
        repeat: called with the error before a call of several rounds is repeated in halves.
    """
    try:
        return _evaluate(rounds, max_rows, called)
    except BaseException as error:
        if len(rounds) == 1:
            return [error]
        repeat(error)
    half = len(rounds) // 2
    return [
        *evaluate_together(rounds[:half], max_rows, repeat, called),
        *evaluate_together(rounds[half:], max_rows, repeat, called),
    ]


def _evaluate(
    rounds: Sequence[Round], max_rows: int | None, called: Called | None
) -> list[Answers]:
    """Evaluate what no gradient is taken through in shared calls, and the rest request by request.

    A gradient of one request would run back through all rows of a shared call.
    """
    shared = [replace(r, passes=_some(r, False), max_rows=max_rows) for r in rounds]
    answers: list[dict[Pass, Evaluated]] = [{} for _ in rounds]
    filled = [k for k, r in enumerate(shared) if r.passes or r.slopes]
    for k, found in zip(filled, evaluate(*(shared[k] for k in filled), called=called), strict=True):
        answers[k].update(found)
    for k, r in enumerate(rounds):
        if r.through:
            answers[k].update(
                evaluate(replace(r, passes=_some(r, True), slopes=()), called=called)[0]
            )
    return [{p: found[p] for p in r.passes} for r, found in zip(rounds, answers, strict=True)]


def _some(r: Round, differentiated: bool) -> Mapping[Pass, Tensor | None]:
    return {p: rows for p, rows in r.passes.items() if (p in r.through) == differentiated}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
