"""One request on its way: its generators, the round that it waits for, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..core.evaluation import Answers, Asking, Round
from ..guidance import Guided
from ..model.request import Request
from ..model.walking import find_blame, finish, walk_request
from ..sampling import State, diverged
from .batching import count_rows, is_out_of_memory
from .ticket import MAPS, Pushes, Ticket


class Running:
    """A request that is being sampled.

    It walks the same generator as `Model.sample`. Where that ends with samples that are not finite,
    a second walk finds the term or the network that made them so.

    Args:
        ticket: of the request.
        request: the same, with its samples in groups that leave room for others.
        guided: its guidance, bound.
    """

    def __init__(self, ticket: Ticket, request: Request, guided: Guided) -> None:
        self.ticket = ticket
        self._request = request
        self.wanted: Round | None = None
        self.rows = 0
        self._failure: FloatingPointError | None = None
        self._walk: Asking[Any] = walk_request(
            ticket.model, request, guided, watch=self._watch, explain=ticket.explain
        )

    def begin(self) -> None:
        """Start, up to the first round."""
        self.ticket.begin()
        self._step(None)

    def proceed(self, answers: Answers | BaseException) -> None:
        """Go on with the answers of its round, or with the error that there was instead."""
        self._step(answers)

    def stop(self, error: BaseException, cancelled: bool = False) -> None:
        """End it before it is done."""
        self._leave()
        self.ticket.end("cancelled" if cancelled else "failed", error=error)

    def _leave(self) -> None:
        self.wanted, self.rows = None, 0
        self._walk.close()

    def _step(self, answers: Answers | BaseException | None) -> None:
        try:
            self.wanted = (
                next(self._walk)
                if answers is None
                else self._walk.throw(answers)
                if isinstance(answers, BaseException)
                else self._walk.send(answers)
            )
            self.rows = count_rows(self.wanted)
        except StopIteration as end:
            self._finish(end.value)
        except BaseException as error:  # a user's function may raise anything
            self.stop(_explained(error))

    def _finish(self, result: Any) -> None:
        self.wanted, self.rows = None, 0
        ticket = self.ticket
        if self._failure is not None:  # the second walk is over: `result` says whose fault it was
            self.stop(FloatingPointError(result or str(self._failure)))
            return
        state: State = result
        try:
            samples = finish(ticket.model, ticket.request, state)
        except FloatingPointError as error:
            self._failure = error
            self._walk = find_blame(ticket.model, self._request)
            self._step(None)
            return
        except BaseException as error:
            self.stop(_explained(error))
            return
        ticket.end("done", samples=samples, warnings=_warnings(ticket, state))

    def _watch(self, state: State) -> None:
        if state.pushes is not None:
            self.ticket.pushes.append(_measured(state, state.pushes))
        self.ticket.advance(state.step.index + 1, state.prediction.x0)


def _measured(state: State, pushes: Mapping[str, Tensor]) -> Pushes:
    """Measure the pushes of a step."""
    index, steps = state.step.index, state.step.grid.steps
    every = max(1, steps // MAPS)
    kept = pushes if index % every == 0 or index == steps - 1 else {}
    rho = state.step.t.rho
    return Pushes(
        step=index,
        rho=float(rho[0]) if isinstance(rho, Tensor) else rho,
        sizes={term: _size(push) for term, push in pushes.items()},
        base=_size(state.prediction.x0),
        maps={term: push[0].detach().cpu() for term, push in kept.items()},
    )


def _size(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def _explained(error: BaseException) -> BaseException:
    """Return an error as the client gets it."""
    if is_out_of_memory(error):
        text = str(error).partition("\n")[0]
        return MemoryError(f"there is not enough memory for this request; take fewer ({text})")
    if not isinstance(error, Exception):  # SystemExit and its like are not for the client's thread
        return RuntimeError(f"the request raised {type(error).__name__}: {error}")
    return error


def _warnings(ticket: Ticket, state: State) -> tuple[str, ...]:
    """Say which samples have left every plausible range."""
    scale = float(ticket.model.card.get("data_scale", 1.0))
    gone = diverged(state.x, state.step.s, scale=scale)
    count = int(gone.sum())
    if not count:
        return ()
    return (
        f"{count} of {len(gone)} samples have diverged; lower the scale, take more steps, or "
        "confine the guidance to an interval of noise ratios",
    )
