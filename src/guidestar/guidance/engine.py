"""The guided sum of one group of samples: ``post( base + Σ weightᵢ(step) · directionᵢ )``."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.evaluation import Answers, Asking, Evaluated, Group, GuidedStep, Round, union
from ..core.levels import Step, Value, expand
from ..core.passes import Net, Pass
from ..core.prediction import Prediction
from .context import Count, Live, State, States
from .term import Direction, Post, Pushed, Rounds, Traits

Wanted = dict[Pass, list[Tensor | None]]
"""Passes, and the rows (local indices, None: all) of each that asks for it."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the networks are evaluated; `Guided` describes them."""

    nets: Mapping[str, Net]
    needs_grad: bool
    max_rows: int | None = None
    checkpoint: bool = False
    check: bool = False

    def mode(self) -> AbstractContextManager[Any]:
        """Return the context in which a sum is computed: without a graph, which terms make where
        they differentiate.
        """
        if not self.needs_grad:
            return torch.inference_mode()
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "this guidance needs gradients, which torch.inference_mode() forbids; call it "
                "under torch.no_grad(), or nothing"
            )
        return torch.no_grad()


@dataclass(eq=False)
class _Active:
    """A term whose weight is not 0 for some samples: which they are, and what it needs and
    gives.
    """

    key: int
    term: Direction
    traits: Traits
    weight: Value
    rows: Tensor | None
    passes: tuple[Pass, ...]
    rounds: Rounds | None = None
    pushed: Pushed | None = None

    def begin(self, whole: Live, state: State, answers: Answers) -> None:
        """Compute the push, or begin the rounds that it takes."""
        predictions = tuple(answers[p].at(self.rows) for p in self.passes)
        if (local := self.rows) is None:
            live = replace(whole, state=state, predictions=predictions)
        else:
            live = replace(
                whole,
                x_t=whole.x_t[local.to(whole.x_t.device)],
                step=whole.step.take(local),
                rows=local if whole.rows is None else whole.rows[local],
                base=whole.base.take(local),
                state=take(state, local),
                predictions=predictions,
            )
        found = self.term.push(live, *predictions)
        if isinstance(found, Generator):
            self.rounds = found
            self.proceed(None)
        else:
            self.pushed = found

    def proceed(self, predictions: tuple[Prediction, ...] | None) -> None:
        """Hand over the predictions of a round (None: begin), and take the next round or the
        push.
        """
        assert self.rounds is not None
        try:
            self.passes = (
                next(self.rounds) if predictions is None else self.rounds.send(predictions)
            )
        except StopIteration as end:
            self.rounds, self.pushed = None, end.value


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum ``base + Σ weightᵢ · pushᵢ`` and its posts.

    Args:
        base: the pass that the terms are added to.
        terms: bound to the run.
        traits: of the terms.
        posts: what acts on the sum, from left to right.
        options: how the networks are evaluated.
        names: the terms' expressions.
    """

    base: Pass
    terms: Sequence[Direction]
    traits: Sequence[Traits]
    posts: Sequence[Post]
    options: Options
    names: Sequence[str]

    def ask(self, group: Group, states: States, explain: bool) -> Asking[GuidedStep]:
        """Yield the rounds of passes that are needed, and return the guided step of ``group``."""
        size = len(group.x_t)
        with self.options.mode():
            active, wanted = self._first(group.step, group.rows, size, states)
            through = self._through(active, group.step)
            renamed = _observing(wanted, through)
            first = self._round(group, {p: union(r, size) for p, r in wanted.items()}, through)
        answers = yield first
        evaluations = _evaluations(first.passes, size)
        with self.options.mode():
            answers = _Renamed(answers, renamed) if renamed else answers
            base = answers[self.canonical(self.base, group.step)].prediction
            whole = Live(
                x_t=group.x_t,
                step=group.step,
                batch=group.batch,
                rows=group.rows,
                state={},
                base=base,
                streams=group.streams,
            )
            for a in active:
                a.begin(whole, states[a.key], answers)
        while going := [a for a in active if a.rounds]:
            with self.options.mode():
                wanted = self._wanted(going, group.step)
                later = self._round(group, {p: union(r, size) for p, r in wanted.items()})
            found = (yield later) if wanted else {}
            evaluations = evaluations + _evaluations(later.passes, size)
            with self.options.mode():
                for a in going:
                    a.proceed(tuple(found[p].at(a.rows) for p in a.passes))
        with self.options.mode():
            prediction, pushes = self._added(base, group.x_t, active, explain)
            for post in self.posts:
                predictions = tuple(
                    answers[self.canonical(p, group.step)].prediction
                    for p in post.passes(group.step)
                )
                prediction = post.apply(prediction, whole, *predictions)
            return GuidedStep(prediction, _kept(states, active), evaluations, pushes)

    def count(self, step: Step, rows: Tensor, stopped: bool = False) -> Count:
        """Count the passes and gradients at ``step`` for samples ``rows`` of the run."""
        size = len(rows)
        active, wanted = self._first(step.take(rows), rows, size, None, stopped)
        _observing(wanted, self._through(active, step))
        passes: dict[Pass | str, int] = {
            p: _length(union(r, size), size) for p, r in wanted.items()
        }
        gradients = 0
        for a in active:
            mine = _length(a.rows, size)
            gradients += a.traits.gradients * mine
            for i in range(a.traits.later):
                name = f"round {i + 2} of {self.names[a.key]}"
                passes[f"{name} again" if name in passes else name] = mine
        return Count(passes, gradients)

    def canonical(self, p: Pass, step: Step) -> Pass:
        """Return the pass that is evaluated in the place of ``p``."""
        p = self.options.nets[p.net].canonical(p) if p.net in self.options.nets else p
        for post in self.posts:
            p = post.instead(p, step)
        return p

    def _first(
        self,
        step: Step,
        rows: Tensor | None,
        size: int,
        states: States | None,
        stopped: bool = False,
    ) -> tuple[list[_Active], Wanted]:
        """Return the terms that act, and the first round of passes."""
        active: list[_Active] = []
        for key, term in enumerate(self.terms):
            if stopped and term.may_stop(step):
                continue
            weight, local, acts = select(
                term.weight(step, rows, states[key] if states is not None else None),
                size,
                term.name,
            )
            if acts:
                active.append(
                    _Active(key, term, self.traits[key], weight, local, term.passes(step))
                )
        wanted: Wanted = {self.canonical(self.base, step): [None]}
        self._wanted(active, step, wanted)
        for post in self.posts:
            for p in post.passes(step):
                wanted.setdefault(self.canonical(p, step), []).append(None)
        return active, wanted

    def _wanted(
        self, active: Sequence[_Active], step: Step, wanted: Wanted | None = None
    ) -> Wanted:
        """Collect the passes of terms, under the names by which they are evaluated."""
        wanted = {} if wanted is None else wanted
        for a in active:
            a.passes = tuple(self.canonical(p, step) for p in a.passes)
            for p in a.passes:
                wanted.setdefault(p, []).append(a.rows)
        return wanted

    def _through(self, active: Sequence[_Active], step: Step) -> frozenset[Pass]:
        return frozenset(self.canonical(p, step) for a in active if (p := a.traits.differentiates))

    def _round(
        self,
        group: Group,
        passes: Mapping[Pass, Tensor | None],
        through: frozenset[Pass] = frozenset(),
    ) -> Round:
        o = self.options
        return Round(
            group=group,
            passes=passes,
            nets=o.nets,
            through=through,
            needs_grad=o.needs_grad,
            max_rows=o.max_rows,
            checkpoint=o.checkpoint,
            check=o.check,
        )

    def _added(
        self, base: Prediction, x_t: Tensor, active: Sequence[_Active], explain: bool
    ) -> tuple[Prediction, dict[str, Tensor] | None]:
        """Add the pushes to the base, cut off from its graph; return them by name too."""
        pushes = dict.fromkeys(self.names, torch.zeros_like(base.x0)) if explain else None
        totals: dict[bool, Tensor] = {}
        for a in active:
            assert a.pushed is not None
            push = _spread(a.pushed[0], a.weight, a.rows, base.x0)
            linked = a.traits.linked
            totals[linked] = totals[linked] + push if linked in totals else push
            if pushes is not None:
                pushes[self.names[a.key]] = pushes[self.names[a.key]] + push
        log_var = None if base.log_var is None else base.log_var.detach()
        prediction = Prediction(
            x_t=x_t, level=base.level, x0=base.x0.detach(), eps=base.eps.detach(), log_var=log_var
        )
        for linked in (True, False):
            if linked in totals:
                prediction = prediction.shifted(totals[linked], linked=linked)
        return prediction, pushes


class _Renamed(dict[Pass, Evaluated]):
    """Answers, where a pass that observes the network answers for the plain one too."""

    def __init__(self, answers: Answers, renamed: Mapping[Pass, Pass]) -> None:
        super().__init__(answers)
        self.update({plain: answers[p] for plain, p in renamed.items()})


def _observing(wanted: Wanted, through: frozenset[Pass]) -> dict[Pass, Pass]:
    """Let a pass that observes the network answer for the plain one, but not where that is
    differentiated.

    The first of several does: for the others the plain pass is gone.
    """
    renamed: dict[Pass, Pass] = {}
    for p in [p for p in wanted if p.observes]:
        plain = replace(p, perturb=None)
        if plain in wanted and plain not in through:
            wanted[p] += wanted.pop(plain)
            renamed[plain] = p
    return renamed


def _length(rows: Tensor | None, size: int) -> int:
    return size if rows is None else len(rows)


def _evaluations(passes: Mapping[Pass, Tensor | None], size: int) -> int | Tensor:
    """Count the evaluations of each sample: one number where it is the same for all."""
    everywhere = sum(rows is None for rows in passes.values())
    some = [rows for rows in passes.values() if rows is not None]
    return everywhere + torch.bincount(torch.cat(some), minlength=size) if some else everywhere


def select(weight: Value, size: int, name: str) -> tuple[Value, Tensor | None, bool]:
    """Return the weights that are not 0, their rows (None: all), and whether there are any."""
    if not isinstance(weight, Tensor):
        return weight, None, weight != 0
    if len(weight) != size:
        raise ValueError(
            f"{name} has {len(weight)} scales for {size} samples; give one number, or one for "
            "each sample"
        )
    chosen = weight != 0
    if bool(chosen.all()):
        return weight, None, True
    rows = chosen.nonzero()[:, 0]
    return weight[rows], rows, len(rows) > 0


def _spread(delta: Tensor, weight: Value, rows: Tensor | None, like: Tensor) -> Tensor:
    """Return ``weight · delta`` at ``rows`` (None: everywhere), 0 elsewhere."""
    weighted = expand(weight, delta) * delta
    return (
        weighted
        if rows is None
        else torch.zeros_like(like).index_add(0, rows.to(like.device), weighted)
    )


def take(state: State, rows: Tensor) -> State:
    """Select samples of what a term keeps."""
    return {name: value[rows.to(value.device)] for name, value in state.items()}


def _kept(states: States, active: Sequence[_Active]) -> States:
    """Return what the terms keep; samples of weight 0 keep what they had."""
    new = list(states)
    for a in active:
        assert a.pushed is not None
        for name, value in a.pushed[1].items():
            rows = a.rows if a.rows is None else a.rows.to(value.device)
            whole = value if rows is None else states[a.key][name].index_copy(0, rows, value)
            new[a.key] = {**new[a.key], name: whole}
    return tuple(new)


def join_steps(parts: Sequence[tuple[Tensor, GuidedStep]], group: Group) -> GuidedStep:
    """Put the guided steps of some samples each together, in the order of the samples.

    Args:
        parts: rows of ``group``, each once, and their step.
        group: all samples.
    """
    steps = [part for _, part in parts]
    order = torch.cat([rows for rows, _ in parts]).argsort()
    joined = Prediction.join([s.prediction for s in steps], group.x_t, group.step.t).take(order)
    prediction = replace(joined, x_t=group.x_t, level=group.step.t)
    states = tuple(_ordered(own, order) for own in zip(*(s.state for s in steps), strict=True))
    counts = torch.cat([torch.as_tensor(s.evaluations).expand(len(rows)) for rows, s in parts])[
        order
    ]
    pushes = [s.pushes for s in steps if s.pushes is not None]
    return GuidedStep(prediction, states, counts, _ordered(pushes, order) if pushes else None)


def _ordered(parts: Sequence[State], order: Tensor) -> State:
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return take(joined, order)
