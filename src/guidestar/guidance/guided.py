"""A guidance bound to networks: what a solver calls, and what can be planned before it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Condition, Denoiser
from ..levels import Grid, Step, Value, expand
from ..passes import Evaluated, Net, Pass, Question, by_name, evaluate, union
from ..prediction import Prediction
from ._core import Context, Direction, Guidance, Live, Post, State, as_guidance
from .expression import parse
from .plan import Plan, StepPlan


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


class Guided:
    """A guidance bound to networks and conditions: ``guided(x_t, step, gstate) -> (prediction, gstate)``.

    Args:
        guidance: an expression, as text or as made in Python.
        nets: a denoiser, or networks by name (`Net`); "main" is the one that is guided.
        cond, null, negative: conditions of a single denoiser (with ``nets`` they are in each `Net`).
        encode: turns names or prompts in the expression into conditions of a single denoiser.
        classifiers: objects with ``log_prob(x, level, target)``, by name.
        target: the requested class of each sample, for classifiers: int64 ``[B]`` or ``[1]``.
        index: turns a class name in the expression into its index.
        prompts: the requested caption of each sample, for CLIP.
        max_rows: the most rows of one network call. Samples are taken in groups small enough that
            all their passes fit; exact, because everything is per sample.
        check: refuse outputs that are not finite, naming network, pass and step (costs
            synchronisations).

    Raises:
        ExpressionError: the expression does not parse.
        ValueError: it asks for what the run lacks.

    Example:
        >>> from guidestar import Guided, VP, uniform
        >>> guided = Guided("cond", lambda x, level, cond: 0 * x, cond=Condition())
        >>> guided.plan(uniform(VP.linear(), 4)).nfe
        4.0
    """

    def __init__(
        self,
        guidance: str | Guidance | Direction,
        nets: Denoiser | Mapping[str, Net],
        *,
        cond: Condition | None = None,
        null: Condition | None = None,
        negative: Condition | None = None,
        encode: Callable[[Sequence[str | int]], Condition] | None = None,
        classifiers: Mapping[str, Any] | None = None,
        target: Tensor | None = None,
        index: Callable[[str | int], int] | None = None,
        prompts: Sequence[str] | None = None,
        max_rows: int | None = None,
        check: bool = False,
    ) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, not {max_rows}")
        own = {"cond": cond, "null": null, "negative": negative, "encode": encode}
        nets = by_name(nets, {name: value for name, value in own.items() if value is not None})
        self.guidance = parse(guidance) if isinstance(guidance, str) else as_guidance(guidance)
        self.nets, self.max_rows, self.check = nets, max_rows, check
        conditional = nets["main"].cond is not None
        context = Context(classifiers=classifiers or {}, target=target, index=index, conditional=conditional, nets=tuple(nets), prompts=prompts)
        self.names = [str(term) for term in self.guidance.terms]
        self.terms = tuple(term.bind(context) for term in self.guidance.terms)
        self.posts: tuple[Post, ...] = self.guidance.posts
        self.base = Pass(cond=self.guidance.resolve_base(conditional))

    @property
    def needs_grad(self) -> bool:
        """Whether any term computes a gradient."""
        return any(term.needs_grad for term in self.terms)

    @property
    def splits(self) -> list[str]:
        """Terms that split the prediction (x0 moves, eps does not)."""
        return [t.name for t in self.terms if not t.linked]

    @property
    def reads_target(self) -> list[str]:
        """Terms that depend on the level a step leads to."""
        return [t.name for t in self.terms if t.reads_target]

    @property
    def only_solvers(self) -> dict[str, tuple[str, dict[str, object]]]:
        """Terms that work with one solver alone, its name and how it must be set."""
        return {t.name: t.only_solver for t in self.terms if t.only_solver}

    def _mode(self) -> AbstractContextManager[Any]:
        if not self.needs_grad:
            return torch.inference_mode()
        if torch.is_inference_mode_enabled():
            raise RuntimeError("this guidance needs gradients, which torch.inference_mode() forbids; call it under torch.no_grad(), or nothing")
        return torch.no_grad()

    def __call__(self, x_t: Tensor, step: Step, gstate: State | None = None, *, explain: bool = False) -> Any:
        """Guide the prediction at ``x_t``.

        Args:
            x_t: samples ``[B, *S]`` at the level ``step.t``.
            step: where the run stands.
            gstate: what the terms remember, as the last call returned it.
            explain: also return each term's weighted push of x0, by its expression.

        Returns:
            The guided prediction and the new state; with ``explain``, the pushes as a third.
        """
        with self._mode():
            x_t = x_t.clone() if self.needs_grad and x_t.is_inference() else x_t
            state = gstate or self._start(x_t)
            whole = Question(x_t=x_t, level=step.t, rows=None, batch=len(x_t), max_rows=self.max_rows, check=self.check, index=step.index)
            groups = self._groups(len(x_t), step)
            if len(groups) == 1:
                prediction, state, pushes = self._some(whole, step, state, explain)
            else:
                parts = [self._some(whole.take(g), step.take(g), _take(state, g), explain) for g in groups]
                predictions, states, explained = zip(*parts, strict=True)
                prediction, state, pushes = Prediction.join(list(predictions), x_t, step.t), _join(states), _join(explained)
        return (prediction, state, pushes) if explain else (prediction, state)

    def _start(self, x_t: Tensor) -> State:
        return {f"{key}/{name}": value for key, term in enumerate(self.terms) for name, value in term.start(x_t).items()}

    def _groups(self, batch: int, step: Step) -> list[Tensor]:
        rows = torch.arange(batch)
        if not self.max_rows:
            return [rows]
        together = max(1, self.max_rows // max(1, len(self._asked(step, None, batch)[0])))
        return list(rows.split(together))

    def _asked(self, step: Step, rows: Tensor | None, size: int) -> tuple[dict[Pass, Tensor | None], list[_Talk]]:
        """Return the first round of passes with their rows, and the terms that are live."""
        wanted: dict[Pass, list[Tensor | None]] = {self._canonical(self.base): [None]}
        talks = []
        for key, term in enumerate(self.terms):
            weight, local, live = _live(term.weight(step, rows), size, term.name)
            if live:
                talks.append(_Talk(key, term, weight, local))
                for p in term.passes(step):
                    wanted.setdefault(self._canonical(p), []).append(local)
        for post in self.posts:
            for p in post.passes(step):
                wanted.setdefault(self._canonical(p), []).append(None)
        for p in [p for p in wanted if p.unwatched in wanted]:
            # A pass that is looked at answers for the same pass, but not where that one is differentiated.
            if p.unwatched not in self._through(talks):
                wanted[p] += wanted.pop(p.unwatched)  # type: ignore[arg-type]
        return {p: union(r, size) for p, r in wanted.items()}, talks

    def _through(self, talks: Sequence[_Talk]) -> frozenset[Pass]:
        return frozenset(self._canonical(t.term.differentiates) for t in talks if t.term.differentiates)

    def _canonical(self, p: Pass) -> Pass:
        return self.nets[p.net].canonical(p) if p.net in self.nets else p

    def _some(self, q: Question, step: Step, state: State, explain: bool) -> tuple[Prediction, State, State]:
        passes, talks = self._asked(step, q.rows, len(q.x_t))
        answers = _Answers(evaluate(passes, q, self.nets, self._through(talks)), self._canonical)
        whole = Live(x_t=q.x_t, step=step, base=self.base, answers=answers, local=None, rows=q.rows, state=state)
        for talk in talks:
            self._begin(talk, whole)
        self._converse([t for t in talks if t.talk], q)
        prediction, pushes = self._add(answers[self.base].prediction, talks, whole)
        for post in self.posts:
            prediction = post.apply(prediction, whole)
        return prediction, _remember(state, talks), pushes if explain else {}

    def _begin(self, t: _Talk, whole: Live) -> None:
        mine = {k.partition("/")[2]: v for k, v in whole.state.items() if k.startswith(f"{t.key}/")}
        live = replace(whole, state=mine)
        if t.local is not None:
            rows = t.local if whole.rows is None else whole.rows[t.local]
            x_t, step = whole.x_t[t.local.to(whole.x_t.device)], whole.step.take(t.local)
            live = replace(whole, x_t=x_t, step=step, local=t.local, rows=rows, state=_take(mine, t.local))
        answer = t.term.push(live)
        if isinstance(answer, Generator):
            t.talk = answer
        else:
            t.delta, t.state = answer

    def _add(self, base: Prediction, talks: list[_Talk], whole: Live) -> tuple[Prediction, dict[str, Tensor]]:
        """Add the pushes to the base, which is cut off from the graph if one was differentiated."""
        log_var = None if base.log_var is None else base.log_var.detach()
        prediction = Prediction(x_t=whole.x_t, level=base.level, x0=base.x0.detach(), eps=base.eps.detach(), log_var=log_var)
        zeros = torch.zeros_like(base.x0)
        totals, pushes = {True: zeros, False: zeros}, dict.fromkeys(self.names, zeros)
        for t in talks:
            push = add_rows(zeros, t.delta, t.weight, t.local)
            totals[t.term.linked] = totals[t.term.linked] + push
            pushes[self.names[t.key]] = pushes[self.names[t.key]] + push
        for linked, total in totals.items():
            prediction = prediction if total is zeros else prediction.shifted(total, linked=linked)
        return prediction, pushes

    def _converse(self, talks: list[_Talk], q: Question) -> None:
        """Run further rounds in lockstep: each round's passes of all terms are evaluated together."""
        replies: dict[int, Any] = {}
        while talks:
            asked: dict[int, tuple[Pass, ...]] = {}
            for t in talks:
                try:
                    asked[t.key] = t.talk.send(replies.get(t.key))
                except StopIteration as end:
                    t.delta, t.state = end.value
            talks = [t for t in talks if t.key in asked]
            wanted: dict[Pass, list[Tensor | None]] = {}
            for t in talks:
                for p in asked[t.key]:
                    wanted.setdefault(self._canonical(p), []).append(t.local)
            answers = evaluate({p: union(r, len(q.x_t)) for p, r in wanted.items()}, q, self.nets) if wanted else {}
            replies = {t.key: {p: answers[self._canonical(p)].at(t.local) for p in asked[t.key]} for t in talks}

    def plan(self, grid: Grid, *, batch: int = 1, evaluations: Callable[[Step], Sequence[Step]] = lambda step: [step]) -> Plan:
        """Tell which passes a run over ``grid`` will evaluate, without running anything.

        Args:
            grid: the levels of the run.
            batch: how many samples (weights may differ between them).
            evaluations: where the solver evaluates in a step (`Solver.evaluations`).
        """
        steps = [s for i in range(grid.steps) for s in evaluations(grid.step(i))]
        return Plan(steps=tuple(self._plan_step(step, batch) for step in steps))

    def _plan_step(self, step: Step, batch: int) -> StepPlan:
        passes, talks = self._asked(step, None, batch)
        count = {p: batch if rows is None else len(rows) for p, rows in passes.items()}
        for t in talks:
            for i in range(t.term.later):
                count[Pass(cond=f"round {i + 2} of {t.term}")] = batch if t.local is None else len(t.local)
        gradients = sum(batch if t.local is None else len(t.local) for t in talks if t.term.needs_grad)
        rho = float(torch.as_tensor(step.t.rho).flatten()[0])
        return StepPlan(index=step.index, rho=rho, passes=count, gradients=gradients, batch=batch)


class _Answers(Mapping[Pass, Evaluated]):
    """Answers by pass, under any of a pass's equal names."""

    def __init__(self, answers: Mapping[Pass, Evaluated], canonical: Callable[[Pass], Pass]) -> None:
        self._answers = {**{p.unwatched: a for p, a in answers.items() if p.unwatched}, **answers}
        self._canonical = canonical

    def __getitem__(self, p: Pass) -> Evaluated:
        return self._answers[self._canonical(p)]

    def __iter__(self):
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


def _take(state: State, rows: Tensor) -> State:
    return {name: value[rows.to(value.device)] for name, value in state.items()}


def _join(parts: Sequence[State]) -> State:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _remember(state: State, talks: list[_Talk]) -> State:
    """Put what the terms remember back in its place; rows of weight 0 keep what they had."""
    new = dict(state)
    for t in talks:
        for name, value in (t.state or {}).items():
            key = f"{t.key}/{name}"
            new[key] = value if t.local is None else state[key].index_copy(0, t.local.to(value.device), value)
    return new


def _live(weight: Value, size: int, name: str) -> tuple[Value, Tensor | None, bool]:
    """Return the weights of the samples whose weight is not 0, which they are, and whether there are any."""
    if not isinstance(weight, Tensor):
        return weight, None, weight != 0
    if len(weight) != size:
        raise ValueError(f"{name} has {len(weight)} scales for {size} samples; give one number, or one for each sample")
    alive = weight != 0
    if alive.all():
        return weight, None, True
    local = alive.nonzero()[:, 0]
    return weight[local], local, bool(alive.any())


def add_rows(total: Tensor, delta: Tensor, weight: Value, rows: Tensor | None) -> Tensor:
    """Return ``total`` plus ``weight · delta`` at ``rows`` (None: everywhere)."""
    weighted = expand(weight, delta) * delta
    return total + weighted if rows is None else total.index_add(0, rows.to(total.device), weighted)
