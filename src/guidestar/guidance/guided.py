"""A guidance bound to networks: what a solver calls, and what can be planned before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..answers import Evaluated, Question, evaluate, union
from ..denoiser import Condition, Denoiser
from ..draw import Draw, checked_seeds
from ..levels import Grid, Step, Value, expand, inverse_or_zero
from ..passes import Later, Net, Pass, by_name
from ..prediction import Prediction
from ._core import Context, Direction, Guidance, Live, Post, State, as_guidance
from ._rows import Answer, Answers, Awake, alive, assembled, others, own_state, remember, take
from ._talk import _Talk, added
from .expression import parse
from .papers import used
from .plan import Plan, StepPlan


class Guided:
    """A guidance bound to networks and conditions: ``guided(x_t, step, gstate) -> (prediction, gstate)``.

    Args:
        guidance: an expression, as text or as made in Python.
        nets: a denoiser, or networks by name (each a `Net`, or a denoiser that takes no condition);
            "main" is the one that is guided.
        cond, null, negative: conditions of a single denoiser (with ``nets`` they are in each `Net`).
        encode: turns names or prompts in the expression into conditions of a single denoiser.
        classifiers: objects with ``log_prob(x, level, target)``, by name.
        target: the requested class of each sample, for classifiers: int64 ``[B]`` or ``[1]``.
        index: turns a class name in the expression into its index.
        prompts: the requested caption of each sample, for CLIP.
        losses: losses of a clean estimate, ``loss(x0 [B, *S]) -> [B]`` or an `Observation`, by name;
            the one named "loss" is what training-free guidances lower unless told otherwise.
        seeds: one integer a sample, for guidances that draw random numbers.
        max_rows: the most rows of one network call. Samples are taken in groups small enough that
            all their passes fit; exact, because everything is per sample.
        checkpoint: where a network is differentiated, keep only the inputs of its blocks and compute
            the rest again (less memory, one more evaluation of each block).
        check: refuse outputs that are not finite, naming network, pass and step (costs
            synchronisations).

    ``guided.evaluations`` counts the network evaluations of each sample since it was made.

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
        nets: Denoiser | Net | Mapping[str, Net | Denoiser],
        *,
        cond: Condition | None = None,
        null: Condition | None = None,
        negative: Condition | None = None,
        encode: Callable[[Sequence[str | int]], Condition] | None = None,
        classifiers: Mapping[str, Any] | None = None,
        target: Tensor | None = None,
        index: Callable[[str | int], int] | None = None,
        prompts: Sequence[str] | None = None,
        losses: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        seeds: Sequence[int] | None = None,
        max_rows: int | None = None,
        checkpoint: bool = False,
        check: bool = False,
    ) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, not {max_rows}")
        own = {"cond": cond, "null": null, "negative": negative, "encode": encode}
        nets = by_name(nets, {name: value for name, value in own.items() if value is not None})
        self.guidance = parse(guidance) if isinstance(guidance, str) else as_guidance(guidance)
        self.nets, self.max_rows, self.checkpoint, self.check = nets, max_rows, checkpoint, check
        conditional = nets["main"].cond is not None
        self.base = Pass(cond=self.guidance.resolve_base(conditional))
        self.draw = None if seeds is None else Draw(checked_seeds(seeds))
        self.evaluations: list[int] = []
        self.answer: Callable[..., dict[Pass, Evaluated]] = evaluate  # what evaluates passes: a bridge that is told predictions puts its own here
        about = {"target": target, "index": index, "prompts": prompts, "encode": nets["main"].encode, "base": self.base}
        context = Context(classifiers=classifiers or {}, losses=losses or {}, conditional=conditional, nets=tuple(nets), **about)
        self.names = [str(term) for term in self.guidance.terms]
        self.terms = tuple(term.bind(context) for term in self.guidance.terms)
        self.posts: tuple[Post, ...] = self.guidance.posts

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
        if x_t.ndim < 2:
            raise ValueError(f"samples are [B, *S] with at least one dimension each, not {list(x_t.shape)}; write single numbers as [B, 1]")
        self._check(len(x_t))
        with self._mode():
            x_t = x_t.clone() if self.needs_grad and x_t.is_inference() else x_t
            state = gstate or self._start(x_t)
            awake = {key: term.awake(own_state(state, key)) for key, term in enumerate(self.terms)}
            whole = Question(x_t=x_t, level=step.t, rows=None, batch=len(x_t), max_rows=self.max_rows, check=self.check, index=step.index, draw=self._draw(step))
            self.evaluations = self.evaluations if len(self.evaluations) == len(x_t) else [0] * len(x_t)
            groups, still = self._groups(len(x_t), step, awake)
            parts = []
            for rows in groups:
                q, at, memory = (whole, step, state) if len(rows) == len(x_t) else (whole.take(rows), step.take(rows), take(state, rows))
                parts.append(self._rest(q, memory) if rows is still else self._some(q, at, memory, awake))
            prediction, state, pushes = assembled(parts, groups, whole)
        return (prediction, state, pushes) if explain else (prediction, state)

    def _draw(self, step: Step) -> Draw | None:
        return self.draw and self.draw.at(step.index).again(step.visit)

    def _start(self, x_t: Tensor) -> State:
        return {f"{key}/{name}": value for key, term in enumerate(self.terms) for name, value in term.start(x_t).items()}

    def _weight(self, key: int, step: Step, rows: Tensor | None, awake: Awake) -> Value:
        weight, mask = self.terms[key].weight(step, rows), awake.get(key)
        if mask is None:
            return weight
        return torch.where(mask if rows is None else mask[rows], torch.as_tensor(weight, dtype=torch.float64), 0.0)

    def _still(self, batch: int, step: Step, awake: Awake) -> Tensor:
        """Return the samples that some term holds still."""
        still = torch.zeros(batch, dtype=torch.bool)
        for key, term in enumerate(self.terms):
            if term.still(step):
                _, rows, live = alive(self._weight(key, step, None, awake), batch, term.name)
                still[slice(None) if rows is None else rows] |= live
        return still.nonzero()[:, 0]

    def _groups(self, batch: int, step: Step, awake: Awake) -> tuple[list[Tensor], Tensor]:
        """Return the samples to evaluate together, group by group, and those that are held still, the last group."""
        still = self._still(batch, step, awake)
        moving = others(batch, still)
        together = batch if not self.max_rows else max(1, self.max_rows // max(1, len(self._asked(step, None, batch, awake)[0])))
        return [*(g for g in moving.split(together) if len(g)), *([still] if len(still) else [])], still

    def _asked(self, step: Step, rows: Tensor | None, size: int, awake: Awake) -> tuple[dict[Pass, Tensor | None], list[_Talk]]:
        """Return the first round of passes with their rows, and the terms that are live."""
        wanted: dict[Pass, list[Tensor | None]] = {self._canonical(self.base, step): [None]}
        talks = []
        for key, term in enumerate(self.terms):
            weight, local, live = alive(self._weight(key, step, rows, awake), size, term.name)
            if live:
                talks.append(_Talk(key, term, weight, local))
                for p in term.passes(step):
                    wanted.setdefault(self._canonical(p, step), []).append(local)
        for post in self.posts:
            for p in post.passes(step):
                wanted.setdefault(self._canonical(p, step), []).append(None)
        for p in [p for p in wanted if p.unwatched in wanted]:
            # A pass that is looked at answers for the same pass, but not where that one is differentiated.
            # The first of several looks does: for the others the plain pass is gone.
            if p.unwatched in wanted and p.unwatched not in self._through(talks, step):
                wanted[p] += wanted.pop(p.unwatched)  # type: ignore[arg-type]
        return {p: union(r, size) for p, r in wanted.items()}, talks

    def _through(self, talks: Sequence[_Talk], step: Step) -> frozenset[Pass]:
        return frozenset(self._canonical(t.term.differentiates, step) for t in talks if t.term.differentiates)

    def _canonical(self, p: Pass, step: Step) -> Pass:
        p = self.nets[p.net].canonical(p) if p.net in self.nets else p
        for post in self.posts:
            p = post.instead(p, step)
        return p

    def _evaluate(self, passes: Mapping[Pass, Tensor | None], q: Question, through: frozenset[Pass] = frozenset()) -> dict[Pass, Evaluated]:
        everyone = torch.arange(q.batch) if q.rows is None else q.rows
        for rows in passes.values():
            for row in (everyone if rows is None else everyone[rows]).tolist():
                self.evaluations[row] += 1
        answers = self.answer(passes, q, self.nets, through, checkpoint=self.checkpoint)
        return {p: answers[p] for p in passes}  # in their order: the first look at a pass answers for it

    def _rest(self, q: Question, state: State) -> Answer:
        """Hold samples still: ``x0 = eps = x_t/(alpha + sigma)``, the pair whose velocity is 0."""
        held = q.x_t * expand(inverse_or_zero(q.level.alpha + q.level.sigma), q.x_t)
        return Prediction(x_t=q.x_t, level=q.level, x0=held, eps=held), state, dict.fromkeys(self.names, torch.zeros_like(held))

    def _some(self, q: Question, step: Step, state: State, awake: Awake) -> Answer:
        passes, talks = self._asked(step, q.rows, len(q.x_t), awake)
        answers = Answers(self._evaluate(passes, q, self._through(talks, step)), lambda p: self._canonical(p, step))
        whole = Live(x_t=q.x_t, step=step, base=self.base, answers=answers, samples=q.batch, local=None, rows=q.rows, state=state, streams=q.draw)
        for talk in talks:
            talk.begin(whole)
        self._converse([t for t in talks if t.talk], q, step)
        prediction, pushes = added(answers[self.base].prediction, talks, whole, self.names)
        for post in self.posts:
            prediction = post.apply(prediction, whole)
        return prediction, remember(state, ((t.key, t.local, t.state) for t in talks)), pushes

    def _converse(self, talks: list[_Talk], q: Question, step: Step) -> None:
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
                    wanted.setdefault(self._canonical(p, step), []).append(t.local)
            answers = self._evaluate({p: union(r, len(q.x_t)) for p, r in wanted.items()}, q) if wanted else {}
            replies = {t.key: {p: answers[self._canonical(p, step)].at(t.local) for p in asked[t.key]} for t in talks}

    def citation(self) -> str:
        """Return the BibTeX entries of the papers behind this guidance, each once."""
        return "\n\n".join(paper.bibtex() for paper in used(self.guidance))

    def plan(self, grid: Grid, *, batch: int | None = None, evaluations: Callable[[Step], Sequence[Step]] = lambda step: [step]) -> Plan:
        """Tell which passes a run over ``grid`` will evaluate, without running anything.

        Args:
            grid: the levels of the run.
            batch: how many samples (weights may differ between them); by default as many as seeds,
                conditions and lists of scales are for, 1 where they serve any number.
            evaluations: where the solver evaluates in a step (`Solver.evaluations`).

        Raises:
            ValueError: seeds, conditions or lists of scales are for other numbers of samples.
        """
        batch = self._check(max(self._sizes()) if batch is None else batch)
        for told in (c for net in self.nets.values() for c in net.conditions):
            told.repeat(batch)
        steps = [s for i in range(grid.steps) for s in evaluations(grid.step(i))]
        return Plan(steps=tuple(self._plan_step(step, batch) for step in steps))

    def _sizes(self) -> list[int]:
        """Return for how many samples each of what this is bound to is."""
        seeds = [] if self.draw is None else [len(self.draw.seeds)]
        lists = [len(scales) for term in self.guidance.terms for scales in term.lists.values()]
        return [1, *seeds, *lists, *(c.batch for net in self.nets.values() for c in net.conditions)]

    def _check(self, batch: int) -> int:
        """Refuse a number of samples that this is not for."""
        if batch < 1:
            raise ValueError("there are no samples to guide (a batch of 0); give at least one")
        if self.draw is not None and len(self.draw.seeds) != batch:
            raise ValueError(f"{len(self.draw.seeds)} seeds were given for {batch} samples; give one for each")
        self.guidance.check_samples(batch)
        return batch

    def _plan_step(self, step: Step, batch: int) -> StepPlan:
        moving = others(batch, self._still(batch, step, {}))
        asleep = {key: torch.zeros(batch, dtype=torch.bool) for key, term in enumerate(self.terms) if term.may_sleep(step)}
        count, gradients = self._counted(step, moving, {})
        fewest = sum(self._counted(step, moving, asleep)[0].values())
        rho = float(torch.as_tensor(step.t.rho).flatten()[0])
        return StepPlan(index=step.index, rho=rho, passes=count, fewest=fewest, gradients=gradients, batch=batch)

    def _counted(self, step: Step, rows: Tensor, awake: Awake) -> tuple[dict[Pass, int], int]:
        """Count the samples of each pass, and the gradients."""
        if not len(rows):
            return {}, 0
        size = len(rows)
        passes, talks = self._asked(step.take(rows), rows, size, awake)
        count = {p: size if r is None else len(r) for p, r in passes.items()}
        for t in talks:
            for i in range(t.term.later):
                count[Pass(cond=Later(term=self.names[t.key], key=t.key, round=i + 2))] = size if t.local is None else len(t.local)
        return count, sum(t.term.gradients * (size if t.local is None else len(t.local)) for t in talks)
