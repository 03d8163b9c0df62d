"""Evaluate passes: in as few network calls as possible, each pass for the rows that need it.

What needs predictions (a guided sum, a solver's step, a whole run) is a generator: it yields a
`Round` of passes and receives their predictions. `drive` runs such generators to their end. It
evaluates the rounds of several runs together, whatever their steps, guidance and solvers are.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .denoiser import Condition, Denoiser, checkpointed
from .levels import Level, Step, Value, expand, inverse_or_zero
from .passes import Inputs, Net, Pass, Perturbation
from .perturbation import AGAINST, Rows
from .prediction import Prediction, Root
from .rng import Draw

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class GuidedStep:
    """What a guided sum returns for one evaluation; it unpacks as ``(prediction, state)``.

    Args:
        prediction: the guided prediction, ``[B, *S]``.
        state: what the terms keep for the next step.
        evaluations: network evaluations of each sample: one number, or int64 ``[B]``.
        pushes: each term's weighted push of x0, by its expression, where ``explain`` was given.
    """

    prediction: Prediction
    state: Any = ()
    evaluations: int | Tensor = 0
    pushes: dict[str, Tensor] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.prediction, self.state))

    def __getitem__(self, index: int) -> Any:
        return (self.prediction, self.state)[index]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Samples of one run that are evaluated together at one step: all of them, or some.

    Args:
        x_t: ``[b, *S]``.
        step: their step.
        batch: how many samples the run has.
        rows: which samples of the run these are (None: all).
        streams: the random streams of all the run's samples at this step, where it has seeds.
    """

    x_t: Tensor
    step: Step
    batch: int
    rows: Tensor | None = None
    streams: Draw | None = None

    def take(self, rows: Tensor) -> Group:
        """Select samples (``rows``: int64 indices within this group)."""
        return replace(
            self,
            x_t=self.x_t[rows.to(self.x_t.device)],
            step=self.step.take(rows),
            rows=self.absolute(rows),
        )

    def absolute(self, rows: Tensor | None) -> Tensor | None:
        """Return which samples of the run the ``rows`` of this group are (None: all)."""
        return rows if self.rows is None else self.rows if rows is None else self.rows[rows]


class Evaluated(NamedTuple):
    """The prediction of one pass, for ``rows`` of a group (rising local indices; None: all)."""

    rows: Tensor | None
    prediction: Prediction

    def at(self, rows: Tensor | None) -> Prediction:
        """Select the prediction at ``rows`` of the group."""
        if rows is None or (self.rows is not None and rows.equal(self.rows)):
            return self.prediction
        return self.prediction.take(
            rows if self.rows is None else torch.searchsorted(self.rows, rows)
        )


Answers = Mapping[Pass, Evaluated]


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """Passes that are needed at the same time, for one group of samples.

    Args:
        group: the samples.
        passes: the rows of each pass (rising local indices; None: all of the group).
        nets: networks by name.
        through: passes whose predictions must be differentiable in their ``x_t``; these are never
            cut into several calls.
        needs_grad: whether predictions will be part of a graph (else passes run in inference mode).
        max_rows: the most rows of one network call.
        checkpoint: compute the blocks of a differentiated network again instead of keeping them.
        check: refuse outputs that are not finite (costs a synchronisation for each pass).
    """

    group: Group
    passes: Mapping[Pass, Tensor | None]
    nets: Mapping[str, Net]
    through: frozenset[Pass] = frozenset()
    needs_grad: bool = False
    max_rows: int | None = None
    checkpoint: bool = False
    check: bool = False


Asking = Generator[Round, Answers, T]
"""Yields rounds of passes, receives their predictions, and returns a result."""


class Evaluator(Protocol):
    """Evaluates rounds, each of another run or group."""

    def __call__(self, *rounds: Round) -> Sequence[Answers]:
        """Return the predictions of each round's passes."""
        ...


def evaluate(*rounds: Round) -> list[dict[Pass, Evaluated]]:
    """Evaluate the passes of each round, in as few network calls as possible.

    Raises:
        ValueError: an unknown network, or a condition that the run lacks.
        FloatingPointError: ``check``, and an output is not finite.
    """
    calls: dict[Hashable, list[_Member]] = {}
    for index, r in enumerate(rounds):
        for p, rows in r.passes.items():
            member = _member(index, r, p, rows)
            calls.setdefault(member.key(len(rounds) > 1), []).append(member)
    found: list[dict[Pass, Evaluated]] = [dict.fromkeys(r.passes) for r in rounds]  # type: ignore[misc]
    for members in calls.values():
        for member, prediction in zip(members, _evaluate_call(members), strict=True):
            found[member.index][member.asked] = Evaluated(member.rows, prediction)
    return found


def drive(*askers: Asking[T], evaluator: Evaluator = evaluate) -> list[T]:
    """Run generators to their end, side by side, and return their results.

    What they need at the same time is evaluated together, so runs that share a network share its
    calls. Each may stand at its own step, with its own guidance and solver.

    Args:
        askers: generators that yield a `Round` and receive its answers.
        evaluator: evaluates rounds; by default the networks do.
    """
    results: dict[int, T] = {}
    waiting: dict[int, Round] = {}
    answers: Mapping[int, Answers | None] = dict.fromkeys(range(len(askers)))
    while answers:
        waiting = {}
        for k, answer in answers.items():
            try:
                waiting[k] = next(askers[k]) if answer is None else askers[k].send(answer)
            except StopIteration as end:
                results[k] = end.value
        answers = dict(zip(waiting, evaluator(*waiting.values()), strict=True)) if waiting else {}
    return [results[k] for k in range(len(askers))]


def union(rows: Sequence[Tensor | None], batch: int) -> Tensor | None:
    """Join row selections; None stands for all rows."""
    selections = [r for r in rows if r is not None]
    if len(selections) < len(rows):
        return None
    joined = torch.unique(torch.cat(selections)) if len(selections) > 1 else selections[0]
    return None if len(joined) == batch else joined


@dataclass(kw_only=True, eq=False)
class _Member:
    """A pass within a network call: its rows, and the inputs of the network for them."""

    index: int
    round: Round
    asked: Pass
    rows: Tensor | None
    x: Tensor
    level: Level
    inputs: Inputs
    net: Net
    differentiable: bool

    def key(self, several: bool) -> Hashable:
        """Return what members of one call have in common; rounds of several runs must fit together
        too, and conditions of a denoiser that keeps those of different shapes ``apart``.
        """
        p = self.asked
        own = (p.perturb, self.index) if p.against is not None else None
        key = (
            id(self.net.denoiser),
            self.differentiable,
            self.differentiable and self.round.checkpoint,
            own,
        )
        if not several and not getattr(self.net.denoiser, "apart", False):
            return key
        shapes = tuple(
            (name, t.shape[1:], t.dtype, t.device) for name, t in self.inputs.cond.items()
        )
        return *key, self.x.shape[1:], self.x.dtype, self.x.device, shapes


def _member(index: int, r: Round, p: Pass, rows: Tensor | None) -> _Member:
    if p.net not in r.nets:
        raise ValueError(
            f"there is no network {p.net!r}; this model has {', '.join(sorted(r.nets))}"
        )
    net, group, differentiable = r.nets[p.net], r.group, p in r.through
    x, step = group.x_t, group.step
    if rows is not None:
        step = step.take(rows)
        x = x[rows.to(x.device)] if p.point is None else x
    x, level = (p.point.x, p.point.level) if p.point else (x, step.t)
    x = x.detach().requires_grad_() if differentiable else x
    inputs = _inputs(net, p, group, group.absolute(rows), level, step)
    return _Member(
        index=index,
        round=r,
        asked=p,
        rows=rows,
        x=x,
        level=level,
        inputs=inputs,
        net=net,
        differentiable=differentiable,
    )


def _inputs(
    net: Net, p: Pass, group: Group, absolute: Tensor | None, level: Level, step: Step
) -> Inputs:
    """Return the inputs of the network for a pass's rows, as its edit makes them."""
    cond = net.condition(p.cond, group.batch, p.net)
    if p.against is not None:
        against = net.condition(p.against, group.batch, p.net)
        cond = Condition({**cond, **{f"{AGAINST}{name}": t for name, t in against.items()}})
    cond = cond if absolute is None or not cond else cond.take(absolute)
    streams = (
        group.streams if group.streams is None or absolute is None else group.streams.take(absolute)
    )
    inputs = Inputs(cond=cond, t=level.t, step=step, streams=streams)
    if p.edit is None:
        return inputs
    edited = p.edit(inputs)
    if edited.t is not level.t and not getattr(net.denoiser, "reads_t", True):
        raise ValueError(
            f"the network {p.net!r} computes its time from the noise ratio (edm), so it cannot "
            "be given another one"
        )
    return edited


def _evaluate_call(members: list[_Member]) -> list[Prediction]:
    """Evaluate passes that can share a call, in the order of the members."""
    first = members[0]
    differentiable = first.differentiable
    perturbed = next((m for m in members if m.asked.perturb), None)
    again = nullcontext()
    if differentiable and first.round.checkpoint:
        if perturbed is not None:
            raise ValueError(
                f"the pass '{perturbed.asked}' changes the network while it runs, so its blocks "
                "cannot be computed again; leave checkpoint out"
            )
        again = checkpointed(first.net.denoiser)
    ordered = members if perturbed is None else _side_by_side(members)
    batch = _joined(ordered)
    mode = (
        torch.enable_grad()
        if differentiable
        else torch.no_grad()
        if any(m.round.needs_grad for m in members)
        else torch.inference_mode()
    )
    with mode, again:
        limit = None if differentiable else _row_limit(members, batch.x)
        whole, observed = _call(first.net.denoiser, batch, limit)
        start, found = 0, {}
        for m in ordered:
            stop = start + m.x.shape[0]
            found[id(m)] = _part(m, whole, slice(start, stop), observed, batch)
            start = stop
    return [found[id(m)] for m in members]


def _side_by_side(members: Sequence[_Member]) -> list[_Member]:
    """Order members so that those of one perturbation and run follow each other, the plain ones
    first.
    """
    kinds = list(
        dict.fromkeys([None, *((m.asked.perturb, m.index) for m in members if m.asked.perturb)])
    )
    return sorted(
        members, key=lambda m: kinds.index((m.asked.perturb, m.index) if m.asked.perturb else None)
    )


def _row_limit(members: Sequence[_Member], x: Tensor) -> int | None:
    """Return the most rows of one call: as the runs ask for, else calls of one size that suit the
    network on a CPU.
    """
    limits = [m.round.max_rows for m in members if m.round.max_rows]
    usual: int | None = getattr(members[0].net.denoiser, "cpu_rows", None)
    if limits or usual is None or x.device.type != "cpu":
        return min(limits, default=None)
    return -(-len(x) // -(-len(x) // usual))


def _part(
    m: _Member, whole: Prediction, own: slice, observed: Mapping[int, Tensor], batch: _Batch
) -> Prediction:
    """Return one member's prediction out of that of the whole call."""
    x0, eps, log_var = whole.x0, whole.eps, whole.log_var
    if own.stop - own.start < x0.shape[0]:
        x0, eps, log_var = x0[own], eps[own], None if log_var is None else log_var[own]
    found = None
    for k, values in observed.items():
        block = batch.blocks[k]
        if block.rows.start <= own.start < block.rows.stop:
            found = values[own.start - block.rows.start : own.stop - block.rows.start]
    if m.round.check and not bool(x0.isfinite().all()):
        raise FloatingPointError(
            f"the network {m.asked.net!r} returned values that are not finite in its pass "
            f"'{m.asked}' at step {m.round.group.step.index}"
        )
    root = Root(m.x, None, m.asked.net) if m.differentiable else None
    return Prediction(
        x_t=m.x, level=m.level, x0=x0, eps=eps, log_var=log_var, observed=found, root=root
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Rows of a call in which the network is perturbed."""

    key: int
    perturb: Perturbation
    rows: Rows
    inputs: Inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """The rows of a network call: ``x [n, *S]``, their levels and conditions, and where it is
    perturbed.
    """

    x: Tensor
    level: Level
    cond: Condition
    blocks: Sequence[_Block] = field(default_factory=list)

    def take(self, rows: Tensor) -> _Batch:
        blocks = [b for block in self.blocks if (b := _taken(block, rows))]
        return _Batch(
            x=self.x[rows.to(self.x.device)],
            level=self.level.take(rows),
            cond=self.cond.take(rows),
            blocks=blocks,
        )


def _taken(block: _Block, rows: Tensor) -> _Block | None:
    """Select the rows of a block that are among ``rows`` (rising)."""
    inside = (rows >= block.rows.start) & (rows < block.rows.stop)
    if not (count := int(inside.sum())):
        return None
    start = int(inside.nonzero()[0])
    own, i = rows[inside] - block.rows.start, block.inputs
    t = i.t[own] if isinstance(i.t, Tensor) else i.t
    inputs = Inputs(
        cond=i.cond.take(own), t=t, step=i.step.take(own), streams=i.streams and i.streams.take(own)
    )
    return replace(block, rows=Rows(start, start + count, len(rows)), inputs=inputs)


def _joined(members: Sequence[_Member]) -> _Batch:
    """Put the rows of members one after the other."""
    if len(members) == 1 and members[0].asked.perturb is None:
        m = members[0]
        return _Batch(x=m.x, level=_level(m), cond=m.inputs.cond)
    sizes = [m.x.shape[0] for m in members]
    x = torch.cat([m.x for m in members])
    cond = Condition.join([m.inputs.cond for m in members])
    level = _join_levels([_level(m) for m in members], sizes)
    blocks: list[_Block] = []
    start = 0
    for m, size in zip(members, sizes, strict=True):
        stop, perturb = start + size, m.asked.perturb
        if perturb is not None:
            before = (
                blocks[-1]
                if blocks and (blocks[-1].perturb, blocks[-1].key) == (perturb, m.index)
                else None
            )
            begin = before.rows.start if before else start
            inputs = (
                _join_inputs(before.inputs, begin - start, m.inputs, size) if before else m.inputs
            )
            blocks[-1 if before else len(blocks) :] = [
                _Block(key=m.index, perturb=perturb, rows=Rows(begin, stop, len(x)), inputs=inputs)
            ]
        start = stop
    return _Batch(
        x=x, level=level, cond=cond, blocks=[replace(b, key=k) for k, b in enumerate(blocks)]
    )


def _level(m: _Member) -> Level:
    """Return the level with the time that the network gets."""
    return m.level if m.inputs.t is m.level.t else m.level._replace(t=m.inputs.t)


def _join_inputs(a: Inputs, taken: int, b: Inputs, size: int) -> Inputs:
    """Join the inputs of ``−taken`` and ``size`` rows of one run."""
    sizes = [-taken, size]
    streams = (
        None
        if a.streams is None or b.streams is None
        else replace(a.streams, seeds=[*a.streams.seeds, *b.streams.seeds])
    )
    levels = [_join_levels([getattr(i.step, name) for i in (a, b)], sizes) for name in ("t", "s")]
    t = a.t if a.t is b.t else _column([a.t, b.t], sizes)
    return Inputs(
        cond=Condition.join([a.cond, b.cond]),
        t=t,
        step=a.step._replace(t=levels[0], s=levels[1]),
        streams=streams,
    )


def _join_levels(levels: Sequence[Level], sizes: Sequence[int]) -> Level:
    first = levels[0]
    if not any(isinstance(v, Tensor) for level in levels for v in level) and all(
        level == first for level in levels
    ):
        return first
    return Level(*(_column(column, sizes) for column in zip(*levels, strict=True)))


def _column(values: Sequence[Value], sizes: Sequence[int]) -> Tensor:
    return torch.cat(
        [
            torch.as_tensor(v, dtype=torch.float64).expand(n)
            for v, n in zip(values, sizes, strict=True)
        ]
    )


_Observed = dict[int, Tensor]
_Found = tuple[Prediction, _Observed]


def _call(denoiser: Denoiser, b: _Batch, max_rows: int | None) -> _Found:
    """Call the network for the rows that have noise; rows with sigma = 0 are their own estimate."""
    sigma = b.level.sigma
    if not isinstance(sigma, Tensor) and sigma:
        return _chunked(denoiser, b, max_rows)
    noisy = torch.as_tensor(sigma) != 0
    if bool(noisy.all()):
        return _chunked(denoiser, b, max_rows)
    clean = Prediction.from_x0(b.x, b.level, b.x * expand(inverse_or_zero(b.level.alpha), b.x))
    if not bool(noisy.any()):
        return clean, {}
    rows = noisy.nonzero()[:, 0]
    here = rows.to(b.x.device)
    part, observed = _chunked(denoiser, b.take(rows), max_rows)
    log_var = (
        None if part.log_var is None else torch.zeros_like(b.x).index_copy(0, here, part.log_var)
    )
    x0, eps = clean.x0.index_copy(0, here, part.x0), clean.eps.index_copy(0, here, part.eps)
    whole = {
        k: _with_clean(values, noisy[b.blocks[k].rows.slice]) for k, values in observed.items()
    }
    return replace(clean, x0=x0, eps=eps, log_var=log_var), whole


def _with_clean(values: Tensor, noisy: Tensor) -> Tensor:
    """Return what was observed in the noisy rows of a block, with 0 in the others."""
    where = noisy.nonzero()[:, 0].to(values.device)
    return values.new_zeros(len(noisy), *values.shape[1:]).index_copy(0, where, values)


def _chunked(denoiser: Denoiser, b: _Batch, max_rows: int | None) -> _Found:
    """Call the network for at most ``max_rows`` rows at a time."""
    if not max_rows or b.x.shape[0] <= max_rows:
        return _predict(denoiser, b)
    parts = [_predict(denoiser, b.take(rows)) for rows in torch.arange(len(b.x)).split(max_rows)]
    keys = dict.fromkeys(k for _, observed in parts for k in observed)
    joined = {k: torch.cat([observed[k] for _, observed in parts if k in observed]) for k in keys}
    return Prediction.join([prediction for prediction, _ in parts], b.x, b.level), joined


def _predict(denoiser: Denoiser, b: _Batch) -> _Found:
    """Call the network once, each perturbation in its rows."""
    if not b.blocks:
        return _checked(denoiser(b.x, b.level, b.cond), b), {}
    with ExitStack() as stack:
        observed = [(block.key, stack.enter_context(p)) for block, p in _contexts(denoiser, b)]
        out = denoiser(b.x, b.level, b.cond)
    return _checked(out, b), {key: torch.cat(values) for key, values in observed if values}


def _contexts(denoiser: Denoiser, b: _Batch) -> Iterator[tuple[_Block, Any]]:
    for block in b.blocks:
        everywhere = block.rows.stop - block.rows.start == block.rows.of
        yield block, block.perturb(denoiser, None if everywhere else block.rows, block.inputs)


def _checked(out: object, b: _Batch) -> Prediction:
    """Return a denoiser's output as a prediction; another shape would be broadcast in what
    follows.
    """
    x0 = out.x0 if isinstance(out, Prediction) else out
    if not isinstance(x0, Tensor) or x0.shape != b.x.shape:
        found = (
            f"a tensor {tuple(x0.shape)}" if isinstance(x0, Tensor) else f"a {type(x0).__name__}"
        )
        raise ValueError(
            f"a denoiser must return the clean estimate of each sample, {tuple(b.x.shape)} as it "
            f"was given, not {found}"
        )
    return out if isinstance(out, Prediction) else Prediction.from_x0(b.x, b.level, x0)
