"""A term in conversation with the evaluator, and what all of them add up to."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..levels import Value
from ..prediction import Prediction
from ._core import Direction, Live, State
from ._rows import add_rows, own_state, take


@dataclass
class _Talk:
    """A term in conversation with the evaluator."""

    key: int
    term: Direction
    weight: Value
    local: Tensor | None
    talk: Any = None
    delta: Any = None
    state: State | None = None

    def begin(self, whole: Live) -> None:
        """Let the term say its push, or begin the conversation; it sees its own samples of ``whole``."""
        mine = own_state(whole.state, self.key)
        live = replace(whole, state=mine)
        if self.local is not None:
            rows = self.local if whole.rows is None else whole.rows[self.local]
            x_t, step = whole.x_t[self.local.to(whole.x_t.device)], whole.step.take(self.local)
            live = replace(whole, x_t=x_t, step=step, local=self.local, rows=rows, state=take(mine, self.local))
        answer = self.term.push(live)
        if isinstance(answer, Generator):
            self.talk = answer
        else:
            self.delta, self.state = answer


def added(base: Prediction, talks: Sequence[_Talk], whole: Live, names: Sequence[str]) -> tuple[Prediction, dict[str, Tensor]]:
    """Add the pushes to the base, which is cut off from the graph if one was differentiated; return them by name too."""
    log_var = None if base.log_var is None else base.log_var.detach()
    prediction = Prediction(x_t=whole.x_t, level=base.level, x0=base.x0.detach(), eps=base.eps.detach(), log_var=log_var)
    zeros = torch.zeros_like(base.x0)
    totals, pushes = {True: zeros, False: zeros}, dict.fromkeys(names, zeros)
    for t in talks:
        push = add_rows(zeros, t.delta, t.weight, t.local)
        totals[t.term.linked] = totals[t.term.linked] + push
        pushes[names[t.key]] = pushes[names[t.key]] + push
    for linked, total in totals.items():
        prediction = prediction if total is zeros else prediction.shifted(total, linked=linked)
    return prediction, pushes
