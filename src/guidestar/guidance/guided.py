"""A guidance bound to networks: what a solver calls, and what can be planned before it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Condition, Denoiser
from ..levels import Grid, Step, Value, expand
from ..passes import Evaluated, Net, Pass, Question, evaluate, union
from ..prediction import Prediction
from ._core import Context, Direction, Guidance, Live, Post, State, as_guidance
from .expression import parse


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one step will ask of the networks.

    Args:
        index: of the step.
        rho: its noise ratio (of the first sample, where they differ).
        passes: each pass, and for how many of the samples.
        gradients: how many gradients, and for how many of the samples, summed.
        batch: how many samples there are.
    """

    index: int
    rho: float
    passes: Mapping[Pass, int]
    gradients: int
    batch: int

    @property
    def nfe(self) -> float:
        """Network evaluations a sample, on average over the batch."""
        return sum(self.passes.values()) / self.batch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every pass of a run, known before anything runs."""

    steps: tuple[StepPlan, ...]

    @property
    def nfe(self) -> float:
        """Network evaluations a sample over the whole run, on average over the batch."""
        return sum(step.nfe for step in self.steps)

    @property
    def gradients(self) -> float:
        """Gradients a sample over the whole run."""
        return sum(step.gradients / step.batch for step in self.steps)

    def __str__(self) -> str:
        lines = [f"{'step':>4}  {'rho':>9}  {'NFE':>5}  passes"]
        for s in self.steps:
            names = [str(p) if n == s.batch else f"{p} ({n} of {s.batch})" for p, n in s.passes.items()]
            names += [f"gradient x {s.gradients / s.batch:g}"] if s.gradients else []
            lines.append(f"{s.index:>4}  {s.rho:>9.4g}  {s.nfe:>5.3g}  {', '.join(names) or 'none'}")
        return "\n".join([*lines, f"total NFE {self.nfe:g} a sample, gradients {self.gradients:g}"])


@dataclass
class _Talk:
    """A term in conversation with the evaluator."""

    key: int
    term: Direction
    weight: Value
    local: Tensor | None
    talk: Any = None
    delta: Tensor | None = None
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
        max_rows: the most rows of one network call. Samples are taken in groups small enough that
            all their passes fit; exact, because everything is per sample.
        check: refuse outputs that are not finite, naming pass and step (costs synchronisations).

    Raises:
        ValueError: the expression does not parse, or asks for what the run lacks.

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
        max_rows: int | None = None,
        check: bool = False,
    ) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, not {max_rows}")
        if not isinstance(nets, Mapping):
            nets = {"main": Net(denoiser=nets, cond=cond, null=null, negative=negative, encode=encode)}
        self.guidance = parse(guidance) if isinstance(guidance, str) else as_guidance(guidance)
        self.nets, self.max_rows, self.check = nets, max_rows, check
        conditional = nets["main"].cond is not None
        context = Context(classifiers=classifiers or {}, target=target, index=index, conditional=conditional, nets=tuple(nets))
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
    def only_solvers(self) -> dict[str, str]:
        """Terms that work with one solver alone, and its name."""
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
            state = gstate or {}
            groups = self._groups(len(x_t), step)
            if len(groups) == 1:
                prediction, state, pushes = self._some(x_t, step, state, None, len(x_t), explain)
            else:
                parts = [self._some(x_t[g.to(x_t.device)], step.take(g), {k: v[g.to(v.device)] for k, v in state.items()}, g, len(x_t), explain) for g in groups]
                prediction = Prediction.join([p for p, _, _ in parts], x_t, step.t)
                state, pushes = ({k: torch.cat([part[i][k] for part in parts]) for k in parts[0][i]} for i in (1, 2))
        return (prediction, state, pushes) if explain else (prediction, state)

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
        return {p: union(r, size) for p, r in wanted.items()}, talks

    def _canonical(self, p: Pass) -> Pass:
        return self.nets[p.net].canonical(p) if p.net in self.nets else p

    def _some(self, x_t: Tensor, step: Step, state: State, rows: Tensor | None, batch: int, explain: bool) -> tuple[Prediction, State, State]:
        question = Question(x_t=x_t, level=step.t, rows=rows, batch=batch, max_rows=self.max_rows, check=self.check)
        passes, talks = self._asked(step, rows, len(x_t))
        through = frozenset(self._canonical(t.term.differentiates) for t in talks if t.term.differentiates)
        answers = _Answers(evaluate(passes, question, self.nets, through), self._canonical)
        for talk in talks:
            self._begin(talk, x_t, step, state, rows, answers)
        self._converse([t for t in talks if t.talk], question)
        base = answers[self.base].prediction
        linked, split, pushes = torch.zeros_like(base.x0), None, {}
        for t in talks:
            zeros = torch.zeros_like(base.x0)
            if t.term.linked:
                linked = add_rows(linked, t.delta, t.weight, t.local)
            else:
                split = add_rows(zeros if split is None else split, t.delta, t.weight, t.local)
            if explain:
                pushes[self.names[t.key]] = add_rows(zeros, t.delta, t.weight, t.local)
        prediction = base.shifted(linked) if any(t.term.linked for t in talks) else base
        prediction = prediction if split is None else prediction.shifted(split, linked=False)
        whole = Live(x_t=x_t, step=step, base=self.base, answers=answers, local=None, rows=rows, state={})
        for post in self.posts:
            prediction = post.apply(prediction, whole)
        return prediction, self._remember(state, talks, x_t), pushes

    def _begin(self, t: _Talk, x_t: Tensor, step: Step, state: State, rows: Tensor | None, answers: _Answers) -> None:
        local = t.local
        mine = {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{t.key}/")} or t.term.start(x_t)
        if local is not None:
            on_device = local.to(x_t.device)
            mine = {k: v[on_device] for k, v in mine.items()}
            x_t, step = x_t[on_device], step.take(local)
            rows = local if rows is None else rows[local]
        answer = t.term.push(Live(x_t=x_t, step=step, base=self.base, answers=answers, local=local, rows=rows, state=mine))
        if isinstance(answer, Generator):
            t.talk = answer
        else:
            t.delta, t.state = answer

    def _converse(self, talks: list[_Talk], question: Question) -> None:
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
            size = len(question.x_t)
            answers = evaluate({p: union(r, size) for p, r in wanted.items()}, question, self.nets) if wanted else {}
            replies = {t.key: {p: answers[self._canonical(p)].at(t.local) for p in asked[t.key]} for t in talks}

    def _remember(self, state: State, talks: list[_Talk], x_t: Tensor) -> State:
        new = dict(state)
        for t in talks:
            for name, value in (t.state or {}).items():
                key = f"{t.key}/{name}"
                if t.local is not None:
                    value = state.get(key, t.term.start(x_t)[name]).index_copy(0, t.local.to(value.device), value)
                new[key] = value
        return new

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
        self._answers, self._canonical = answers, canonical

    def __getitem__(self, p: Pass) -> Evaluated:
        return self._answers[self._canonical(p)]

    def __iter__(self):
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


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

