"""Rows: samples selected, put back and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..answers import Evaluated, Question
from ..levels import Value, expand
from ..passes import Pass
from ..prediction import Prediction
from ._core import State

Awake = Mapping[int, Tensor | None]
"""By term, which samples it still acts on (``[B]``, on the CPU); None or missing: all."""

Answer = tuple[Prediction, State, State]
"""A prediction, what the terms remember, and each term's push."""


class Answers(Mapping[Pass, Evaluated]):
    """Answers by pass, under any of a pass's equal names; a plain pass is answered by the first look at it."""

    def __init__(self, answers: Mapping[Pass, Evaluated], canonical: Callable[[Pass], Pass]) -> None:
        first = {p.unwatched: a for p, a in reversed(list(answers.items())) if p.unwatched}
        self._answers = {**first, **answers}
        self._canonical = canonical

    def __getitem__(self, p: Pass) -> Evaluated:
        return self._answers[self._canonical(p)]

    def __iter__(self):
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


def others(batch: int, rows: Tensor) -> Tensor:
    """Return the samples that are not among ``rows``."""
    everyone = torch.arange(batch)
    return everyone[~torch.isin(everyone, rows)]


def own_state(state: State, key: int) -> State:
    """Return what one term remembers."""
    return {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{key}/")}


def take(state: State, rows: Tensor) -> State:
    """Select samples."""
    return {name: value[rows.to(value.device)] for name, value in state.items()}


def _join(parts: Sequence[State]) -> State:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def assembled(parts: Sequence[Answer], groups: Sequence[Tensor], q: Question) -> Answer:
    """Put the answers for groups of samples together, in the order of the samples."""
    if len(parts) == 1:
        return parts[0]
    predictions, states, pushes = zip(*parts, strict=True)
    joined, rows = Prediction.join(list(predictions), q.x_t, q.level), torch.cat(list(groups))
    if rows.equal(torch.arange(q.batch)):
        return joined, _join(states), _join(pushes)
    order = rows.argsort()
    return replace(joined.take(order), x_t=q.x_t, level=q.level), take(_join(states), order), take(_join(pushes), order)


def remember(state: State, news: Iterable[tuple[int, Tensor | None, State | None]]) -> State:
    """Put what the terms remember back in its place; rows of weight 0 keep what they had."""
    new = dict(state)
    for term, local, memory in news:
        for name, value in (memory or {}).items():
            key = f"{term}/{name}"
            new[key] = value if local is None else state[key].index_copy(0, local.to(value.device), value)
    return new


def alive(weight: Value, size: int, name: str) -> tuple[Value, Tensor | None, bool]:
    """Return the weights of the samples whose weight is not 0, which they are, and whether there are any."""
    if not isinstance(weight, Tensor):
        return weight, None, weight != 0
    if len(weight) != size:
        raise ValueError(f"{name} has {len(weight)} scales for {size} samples; give one number, or one for each sample")
    chosen = weight != 0
    if chosen.all():
        return weight, None, True
    local = chosen.nonzero()[:, 0]
    return weight[local], local, bool(chosen.any())


def add_rows(total: Tensor, delta: Tensor, weight: Value, rows: Tensor | None) -> Tensor:
    """Return ``total`` plus ``weight · delta`` at ``rows`` (None: everywhere)."""
    weighted = expand(weight, delta) * delta
    return total + weighted if rows is None else total.index_add(0, rows.to(total.device), weighted)
