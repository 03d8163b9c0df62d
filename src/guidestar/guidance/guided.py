"""A guidance bound to networks, which a solver evaluates, and the plan of its passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.evaluation import drive
from ..core.forms import form_of
from ..core.levels import Grid, Step
from ..core.passes import Encode, Net, Pass, by_name
from ..core.rng import Draw, checked_seeds
from ..core.rounds import Asking, Group, GuidedStep, Round, States
from .citations import used
from .context import Loss, SumEngine
from .engine import Sum
from .expression import parse
from .groups import join_steps, take
from .plan import Plan, StepPlan
from .reuse import initial_state
from .term import Context, Direction, Guidance, as_guidance


class Guided:
    """A guidance bound to networks and conditions: ``guided(x_t, step, state) -> GuidedStep``.

    Args:
        guidance: an expression, as text or as made in Python.
        nets: a denoiser, or networks by name: each a `Net`, or a denoiser without a condition. The
            one named "main" is guided.
        cond: the condition of a single denoiser; networks by name have theirs in each `Net`.
        null: the condition of a single denoiser that stands for none.
        negative: the condition of a single denoiser to move away from; by default the null.
        encode: turns names or prompts in the expression into conditions of a single denoiser.
        classifiers: objects with ``log_prob(x, level, target) -> [B]``, by name.
        target: the requested class of each sample, for classifiers: int64 ``[B]`` or ``[1]``.
        index: turns a class name in the expression into its index.
        prompts: the requested caption of each sample, for CLIP.
        losses: losses of a clean estimate, ``loss(x0 [B, *S]) -> [B]`` or an `Observation`, by
            name. Training-free guidance lowers the one named "loss", unless it names another.
        seeds: one integer a sample, for guidance that draws random numbers.
        max_rows: the most rows of one network call. Groups of samples are so small that all their
            passes fit. The result is the same, because everything is per sample.
        checkpoint: keep only the inputs of the blocks of a differentiated network, and compute the
            rest again: less memory, one more evaluation of each block.
        check: refuse outputs that are not finite; network, pass and step are named (costs
            synchronisations).

    Raises:
        ExpressionError: the expression does not parse.
        ValueError: the run lacks something that the guidance needs.
        TypeError: no guidance, or a condition or network of another kind.

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
        encode: Encode | None = None,
        classifiers: Mapping[str, object] | None = None,
        target: Tensor | None = None,
        index: Callable[[str | int], int] | None = None,
        prompts: Sequence[str] | None = None,
        losses: Mapping[str, Loss] | None = None,
        seeds: Sequence[int] | None = None,
        max_rows: int | None = None,
        checkpoint: bool = False,
        check: bool = False,
    ) -> None:
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, not {max_rows}")
        conditions = {"cond": cond, "null": null, "negative": negative, "encode": encode}
        self.nets = by_name(nets, conditions)
        self.guidance = parse(guidance) if isinstance(guidance, str) else as_guidance(guidance)
        self.max_rows = max_rows
        conditional = self.nets["main"].cond is not None
        self.base = Pass(cond=self.guidance.resolve_base(conditional))
        self.draw = None if seeds is None else Draw(checked_seeds(seeds))
        context = Context(
            classifiers=classifiers or {},
            target=target,
            index=index,
            conditional=conditional,
            nets=tuple(self.nets),
            prompts=prompts,
            losses=losses or {},
            base=self.base,
            encode=self.nets["main"].encode,
        )
        self.terms = tuple(term.bind(context) for term in self.guidance.terms)
        self.posts = self.guidance.posts
        self.traits = [term.traits for term in self.terms]
        names = [str(term) for term in self.guidance.terms]
        options = partial(
            Round,
            nets=self.nets,
            needs_grad=self.needs_grad,
            max_rows=max_rows,
            checkpoint=checkpoint,
            check=check,
        )
        self.sum = Sum(self.base, self.terms, self.posts, self.nets, options, names, self.traits)
        self._engine: SumEngine = self.sum
        for key, term in enumerate(self.terms):
            self._engine = term.around(self._engine, key)

    def __deepcopy__(self, memo: dict[int, object]) -> Guided:
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        vars(copy).update(deepcopy(vars(self), memo))
        return copy

    def __reduce__(self) -> str:
        raise TypeError(
            "a Guided has functions that cannot be pickled; send str(guided.guidance), and bind it "
            "to its networks there"
        )

    @property
    def needs_grad(self) -> bool:
        """Whether any term computes a gradient."""
        return any(traits.gradients for traits in self.traits)

    @property
    def splits(self) -> list[str]:
        """Terms that split the prediction: x0 moves, eps does not."""
        return [t.name for t in self.terms if not t.traits.linked]

    @property
    def reads_target(self) -> list[str]:
        """Terms that depend on the level that a step leads to."""
        return [t.name for t in self.terms if t.traits.reads_target]

    @property
    def only_solvers(self) -> dict[str, tuple[str, Mapping[str, object]]]:
        """Terms that work with one solver only: its name, and the settings that it must have."""
        return {t.name: only for t in self.terms if (only := t.traits.only_solver)}

    def __call__(
        self, x_t: Tensor, step: Step, state: States | None = None, *, explain: bool = False
    ) -> GuidedStep:
        """Guide the prediction at ``x_t``.

        Args:
            x_t: samples ``[B, *S]`` at the level ``step.t``.
            step: the step of the run.
            state: the state of the terms, as the last call returned it; none at the first.
            explain: also return each term's weighted push of x0, by its expression.

        Raises:
            ValueError: another number of samples than seeds or scales, or samples that a network
                or term refuses.
        """
        return drive(self.ask(x_t, step, state, explain=explain))[0]

    def ask(
        self, x_t: Tensor, step: Step, state: States | None = None, *, explain: bool = False
    ) -> Asking[GuidedStep]:
        """Guide the prediction as a generator: yield rounds of passes, receive their predictions.

        Generators of several runs can be driven side by side (`guidestar.core.evaluation.drive`).
        Arguments, result and errors are those of a call.
        """
        if x_t.ndim < 2:
            raise ValueError(
                f"samples are [B, *S] with at least one dimension each, not {list(x_t.shape)}; "
                "write single numbers as [B, 1]"
            )
        batch = self._check(len(x_t))
        streams = self.draw and self.draw.at(step.index).again(step.visit)
        states = state
        if self.needs_grad or not states:
            with self.sum.mode():
                x_t = x_t.clone() if self.needs_grad and x_t.is_inference() else x_t
                states = states or tuple(initial_state(term, x_t) for term in self.terms)
        form = form_of(self.nets["main"].denoiser)
        group = Group(x_t=x_t, step=step, batch=batch, streams=streams, form=form)
        size = self._together(step, batch)
        if size >= batch:
            return (yield from self._engine.ask(group, states, explain))
        parts: list[tuple[Tensor, GuidedStep]] = []
        for rows in torch.arange(batch).split(size):
            own = tuple(take(kept, rows) for kept in states)
            parts.append((rows, (yield from self._engine.ask(group.take(rows), own, explain))))
        with self.sum.mode():
            return join_steps(parts, group)

    def _together(self, step: Step, batch: int) -> int:
        """Return the size of a group of samples whose passes all fit ``max_rows`` rows."""
        if not self.max_rows:
            return batch
        passes = self.sum.count(step, torch.arange(batch)).passes
        return max(1, self.max_rows // max(1, sum(isinstance(p, Pass) for p in passes)))

    def citation(self) -> str:
        """Return the BibTeX entries of the papers behind this guidance, each once."""
        return "\n\n".join(paper.bibtex() for paper in used(self.guidance))

    def plan(
        self,
        grid: Grid,
        *,
        batch: int | None = None,
        evaluations: Callable[[Step], Sequence[Step]] = lambda step: [step],
    ) -> Plan:
        """Return the passes that a run over ``grid`` will evaluate, without running anything.

        Args:
            grid: the levels of the run.
            batch: number of samples, whose weights may differ; by default that of the seeds,
                conditions and lists of scales, or 1.
            evaluations: the evaluations of the solver in a step (`Solver.evaluations`).

        Raises:
            ValueError: seeds, conditions or lists of scales for another number of samples.
        """
        batch = self._check(max(self._sizes()) if batch is None else batch)
        for condition in (c for net in self.nets.values() for c in net.conditions):
            condition.repeat(batch)
        steps = [s for i in range(grid.steps) for s in evaluations(grid.step(i))]
        return Plan(steps=tuple(self.plan_step(step, batch) for step in steps))

    def _sizes(self) -> list[int]:
        """Return the numbers of samples of the seeds, conditions and lists of scales."""
        seeds = [] if self.draw is None else [len(self.draw.seeds)]
        lists = [len(scales) for term in self.guidance.terms for scales in term.lists.values()]
        return [1, *seeds, *lists, *(c.batch for net in self.nets.values() for c in net.conditions)]

    def _check(self, batch: int) -> int:
        """Refuse a number of samples that seeds or scales do not have."""
        if batch < 1:
            raise ValueError("there are no samples to guide (a batch of 0); give at least one")
        if self.draw is not None and len(self.draw.seeds) != batch:
            raise ValueError(
                f"{len(self.draw.seeds)} seeds were given for {batch} samples; give one for each"
            )
        self.guidance.check_samples(batch)
        return batch

    def plan_step(self, step: Step, batch: int) -> StepPlan:
        """Plan one step for ``batch`` samples; arguments as in `plan`."""
        everyone = torch.arange(batch)
        count = self._engine.count(step, everyone)
        fewest = self._engine.count(step, everyone, True)
        rho = float(torch.as_tensor(step.t.rho, dtype=torch.float64).flatten()[0])
        return StepPlan(
            index=step.index,
            rho=rho,
            passes=count.passes,
            fewest=sum(fewest.passes.values()),
            gradients=count.gradients,
            repeats=count.repeats,
            batch=batch,
        )
