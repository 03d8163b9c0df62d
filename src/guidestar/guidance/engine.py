"""The guided sum of one group of samples: ``post( base + Σ weightᵢ(step) · directionᵢ )``."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..core.forms import weigh_frames
from ..core.levels import Step, Value
from ..core.passes import Net, Pass
from ..core.prediction import Prediction, Unguided
from ..core.rounds import Answers, Asking, Group, GuidedStep, Round, States, TermState, union
from ..core.slopes import Slope
from .context import Count, Live
from .groups import count_evaluations, number_of, select, spread_push, take
from .returned import check_passes, check_pushed, watching
from .reuse import Pusher, split_term
from .serialize import is_foreign
from .term import Direction, Post, Pushed, Rounds, Traits


@dataclass(eq=False)
class _Active:
    """A term whose weight is not 0 for some samples: its rows (None: all), passes and push.

    One that carries its push over for some of them stands twice. What it returns is ``checked`` at
    the first step at which it acts, if it is a user's.
    """

    key: int
    term: Pusher
    traits: Traits
    weight: Value
    rows: Tensor | None
    passes: tuple[Pass, ...]
    rounds: Rounds | None = None
    pushed: Pushed | None = None
    slope: Slope | None = None
    name: str = ""
    checked: bool = False
    live: Live | None = None

    def ask_slope(self, group: Group) -> Slope | None:
        """Note and return the gradient that the term needs beside its passes."""
        self.slope = self.term.slope(group if self.rows is None else group.take(self.rows))
        return self.slope

    def begin(self, group: Group, base: Prediction, state: TermState, answers: Answers) -> None:
        """Compute the push, or begin the rounds that it takes."""
        if self.rows is not None:
            group, base = group.take(self.rows), base.take(self.rows)
            state = take(state, self.rows)
        self.live = Live(
            group=group, state=state, base=base, requested_slope=self.slope, name=self.name
        )
        predictions = self.predictions(answers)
        with self._watching(predictions):
            found = self.term.push(self.live, *predictions)
        if isinstance(found, Generator):
            self.rounds = found
            self.proceed(None)
        else:
            self._end(found)

    def _watching(self, predictions: Sequence[Prediction]) -> AbstractContextManager[None]:
        if not self.checked or self.live is None:
            return nullcontext()
        return watching(self.name, self.live, predictions)

    def _end(self, found: Pushed) -> None:
        """Keep what the push returned."""
        if self.checked and self.live is not None:
            check_pushed(self.name, found, self.live)
        self.pushed = found

    def proceed(self, answers: Answers | None) -> None:
        """Hand over the predictions of a round (None: begin); take the next round or the push."""
        assert self.rounds is not None
        predictions = () if answers is None else self.predictions(answers)
        try:
            with self._watching(predictions):
                if answers is None:
                    self.passes = next(self.rounds)
                else:
                    self.passes = self.rounds.send(predictions)
        except StopIteration as end:
            self.rounds = None
            self._end(end.value)
            return
        if self.checked:
            check_passes(self.name, self.passes)

    def predictions(self, answers: Answers) -> tuple[Prediction, ...]:
        """Return the predictions of its passes, at its rows."""
        return tuple([answers[p].at(self.rows) for p in self.passes])


@dataclass(eq=False)
class _Needs:
    """The passes of a round, by the names under which they are evaluated.

    ``wanted`` has the rows of each use of a pass (local indices, None: all).
    """

    sum: Sum
    step: Step
    through: frozenset[Pass] = frozenset()
    instead: dict[Pass, Pass] = field(default_factory=lambda: {})
    wanted: dict[Pass, list[Tensor | None]] = field(default_factory=lambda: {})

    def add(self, passes: Sequence[Pass], rows: Tensor | None) -> tuple[Pass, ...]:
        """Add passes, and return the names under which they are evaluated."""
        names = [self.sum.canonical(p, self.step) for p in passes]
        if self.instead:
            names = [p if p in self.through else self.instead.get(p, p) for p in names]
        for p in names:
            self.wanted.setdefault(p, []).append(rows)
        return tuple(names)

    def rows(self, size: int) -> dict[Pass, Tensor | None]:
        """Return the rows of each pass, of a group of ``size`` samples."""
        return {p: union(rows, size) for p, rows in self.wanted.items()}


@dataclass(eq=False)
class _Start:
    """The first round of a step: the terms that act, the passes of base and posts, all needs."""

    active: list[_Active]
    base: Pass
    posts: list[tuple[Pass, ...]]
    needs: _Needs


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum ``base + Σ weightᵢ · pushᵢ`` and its posts.

    Args:
        base: the pass that the terms are added to.
        terms: bound to the run.
        posts: act on the sum, from left to right.
        nets: networks by name.
        options: makes a `Round` of group, passes and ``through``; holds the run's options.
        names: the terms' expressions.
        traits: of the terms.
    """

    base: Pass
    terms: Sequence[Direction]
    posts: Sequence[Post]
    nets: Mapping[str, Net]
    options: partial[Round]
    names: Sequence[str]
    traits: Sequence[Traits]

    @cached_property
    def unchecked(self) -> set[int]:
        """The terms of users that have not acted yet."""
        return {k for k, term in enumerate(self.terms) if is_foreign(type(term))}

    @cached_property
    def needs_grad(self) -> bool:
        """Whether any term computes a gradient."""
        return any(traits.gradients for traits in self.traits)

    def mode(self) -> AbstractContextManager[object]:
        """Return the context of the sum: without a graph. A term that differentiates makes one.

        Raises:
            RuntimeError: a term needs a gradient, which an outer inference mode forbids.
        """
        if not self.needs_grad:
            return torch.inference_mode()
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "this guidance needs gradients, which torch.inference_mode() forbids; call it "
                "under torch.no_grad(), or nothing"
            )
        return torch.no_grad()

    def ask(self, group: Group, states: States, explain: bool) -> Asking[GuidedStep]:
        """Yield the rounds of passes that are needed, and return the guided step of ``group``."""
        size = group.x_t.shape[0]
        with self.mode():
            start = self._start(group.step, group.rows, size, states)
            through = start.needs.through
            slopes = tuple(s for a in start.active if (s := a.ask_slope(group)))
            rows = start.needs.rows(size)
            request = self.options(group=group, passes=rows, through=through, slopes=slopes)
        first: Answers | None = None
        evaluations: int | Tensor = 0
        while True:
            answers = (yield request) if request.passes else {}
            evaluations = evaluations + count_evaluations(request.passes, size)
            with self.mode():
                if first is None:
                    first, base = answers, answers[start.base].prediction
                    for a in start.active:
                        a.begin(group, base, states[a.key], answers)
                else:
                    for a in start.active:
                        if a.rounds:
                            a.proceed(answers)
                if not (going := [a for a in start.active if a.rounds]):
                    self.unchecked.difference_update(a.key for a in start.active)
                    prediction, pushes = self._finish(start, group, first, explain)
                    return GuidedStep(prediction, _kept(states, start.active), evaluations, pushes)
                needs = _Needs(self, group.step)
                for a in going:
                    a.passes = needs.add(a.passes, a.rows)
                request = self.options(group=group, passes=needs.rows(size))

    def count(self, step: Step, rows: Tensor, stopped: bool = False) -> Count:
        """Count the passes, gradients and repeats at ``step`` for samples ``rows`` of the run."""
        size = len(rows)
        start = self._start(step.take(rows), rows, size, None, stopped)
        passes: dict[Pass | str, int] = {
            p: number_of(r, size) for p, r in start.needs.rows(size).items()
        }
        gradients = repeats = 0
        for a in start.active:
            own = number_of(a.rows, size)
            gradients += a.traits.gradients * own
            repeats += a.traits.repeats * own
            for i in range(a.traits.later):
                name = f"round {i + 2} of {self.names[a.key]}"
                passes[f"{name} again" if name in passes else name] = own
        return Count(passes, gradients, repeats)

    def canonical(self, p: Pass, step: Step) -> Pass:
        """Return the pass that is evaluated in the place of ``p``."""
        p = self.nets[p.net].canonical(p) if p.net in self.nets else p
        for post in self.posts:
            p = post.instead(p, step)
        return p

    def _start(
        self,
        step: Step,
        rows: Tensor | None,
        size: int,
        states: States | None,
        stopped: bool = False,
    ) -> _Start:
        """Find the terms that act, and the first round of passes."""
        active: list[_Active] = []
        for key, term in enumerate(self.terms):
            if stopped and term.may_stop(step):
                continue
            state = None if states is None else states[key]
            weight = term.weight(step, rows, state)
            if chosen := select(weight, size, term.name):
                traits = self.traits[key]
                parts = split_term(term, traits, step, rows, chosen, size, state, fewest=stopped)
                checked = key in self.unchecked
                for p in parts:
                    if checked:
                        check_passes(term.name, p.passes)
                    active.append(
                        _Active(
                            key=key,
                            term=p.pusher,
                            traits=p.traits,
                            weight=p.weight,
                            rows=p.rows,
                            passes=p.passes,
                            name=term.name,
                            checked=checked,
                        )
                    )
        needs = _Needs(
            self,
            step,
            frozenset([self.canonical(p, step) for a in active if (p := a.traits.differentiates)]),
        )
        for a in reversed(active):  # the first of several counts
            needs.instead.update(a.traits.instead)
        (base,) = needs.add([self.base], None)
        for a in active:
            a.passes = needs.add(a.passes, a.rows)
        posts = [needs.add(post.passes(step), None) for post in self.posts]
        return _Start(active, base, posts, needs)

    def _finish(
        self, start: _Start, group: Group, answers: Answers, explain: bool
    ) -> tuple[Prediction, dict[str, Tensor] | None]:
        """Add the pushes to the base and apply the posts; return the pushes by name too."""
        base = answers[start.base].prediction
        pushes = dict.fromkeys(self.names, torch.zeros_like(base.x0)) if explain else None
        totals: dict[bool, Tensor] = {}
        for a in start.active:
            assert a.pushed is not None
            push = spread_push(a.pushed[0], a.weight, a.rows, base.x0)
            if (frames := self.terms[a.key].frames) is not None:
                weights = torch.tensor(frames, dtype=torch.float64)
                push = weigh_frames(push, weights, group.form)
            linked = a.traits.linked
            totals[linked] = totals[linked] + push if linked in totals else push
            if pushes is not None:
                pushes[self.names[a.key]] = pushes[self.names[a.key]] + push
        prediction = base.detach(group.x_t) if self.needs_grad else base  # cut off from its graph
        for linked in (True, False):
            if linked in totals:
                prediction = prediction.shifted(totals[linked], linked=linked)
        for post, passes in zip(self.posts, start.posts, strict=True):
            predictions = [answers[p].prediction for p in passes]
            live = Live(group=group, state={}, base=base)
            prediction = post.apply(prediction, live, *predictions)
            if not isinstance(prediction, Prediction) or prediction.x0.shape != base.x0.shape:
                raise TypeError(
                    f"{post.name}: apply must return the changed Prediction of all samples, e.g. "
                    f"prediction.with_x0(x0), not {type(prediction).__name__}"
                )
        if self.terms:
            unguided = Unguided(
                x0=base.x0.detach(),
                eps=base.eps.detach(),
                terms=_acting(start.active, len(self.terms), len(base.x0)),
            )
            prediction = replace(prediction, unguided=unguided)
        return prediction, pushes


def _acting(active: Sequence[_Active], terms: int, size: int) -> tuple[Value, ...]:
    """Return for each term 1 where it acts and 0 elsewhere, as one number if all samples agree."""
    found: list[Value] = [0.0] * terms
    for key in range(terms):
        rows = [a.rows for a in active if a.key == key]
        some = union(rows, size) if rows else torch.arange(0)
        if some is None:
            found[key] = 1.0
        elif len(some):
            found[key] = torch.zeros(size, dtype=torch.float64).index_fill(0, some, 1.0)
    return tuple(found)


def _kept(states: States, active: Sequence[_Active]) -> States:
    """Return the new states of all terms; samples of weight 0 keep their old one."""
    new = list(states)
    for a in active:
        assert a.pushed is not None
        for name, value in a.pushed[1].items():
            rows = a.rows if a.rows is None else a.rows.to(value.device)
            whole = value if rows is None else new[a.key][name].index_copy(0, rows, value)
            new[a.key] = {**new[a.key], name: whole}
    return tuple(new)
