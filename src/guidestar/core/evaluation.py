"""Evaluate passes in as few network calls as possible, each pass for the rows that need it.

`drive` runs generators that yield a `Round` of passes and receive their predictions. It evaluates
the rounds of several runs together, whatever their steps, guidance and solvers are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from .denoiser import Condition, Denoiser, checkpointed
from .levels import Level, Value, expand, inverse_or_zero
from .passes import Inputs, Net, Pass
from .perturbation import AGAINST, Rows
from .prediction import Prediction, Root
from .rounds import Answers, Asking, Evaluated, Evaluator, Group, Outcome, Round
from .slopes import join_levels, take_slopes


def drive(*askers: Asking[Outcome], evaluator: Evaluator | None = None) -> list[Outcome]:
    """Run generators to their end, side by side, and return their results.

    The rounds that they yield at the same time are evaluated together, so runs that share a network
    share its calls. Each run has its own step, guidance and solver.

    Args:
        askers: generators that yield a `Round` and receive its answers.
        evaluator: evaluates rounds; by default `evaluate`.
    """
    results: dict[int, Outcome] = {}
    answers: dict[int, Answers | None] = dict.fromkeys(range(len(askers)))
    while answers:
        waiting: dict[int, Round] = {}
        for k, answer in answers.items():
            try:
                waiting[k] = next(askers[k]) if answer is None else askers[k].send(answer)
            except StopIteration as end:
                results[k] = end.value
        found = (evaluator or evaluate)(*waiting.values()) if waiting else []
        answers = dict(zip(waiting, found, strict=True))
    return [results[k] for k in range(len(askers))]


Called = Callable[[int, float], None]
"""Notes a network call: its rows, and the seconds that it took."""


def evaluate(*rounds: Round, called: Called | None = None) -> list[dict[Pass, Evaluated]]:
    """Evaluate the passes and slopes of each round, in as few network calls as possible.

    Args:
        rounds: of one run or of several.
        called: called after each network call; on a device, its seconds are those of asking for it.

    Raises:
        ValueError: an unknown network, or a condition that the run lacks.
        FloatingPointError: ``check``, and an output is not finite.
    """
    calls: dict[Hashable, list[_Member]] = {}
    for index, r in enumerate(rounds):
        for p, rows in r.passes.items():
            member = _member(index, r, p, rows)
            calls.setdefault(member.key(len(rounds) > 1), []).append(member)
    found: list[dict[Pass, Evaluated]] = [{} for _ in rounds]
    for members in calls.values():
        for m, prediction in zip(members, _evaluate_members(members, called), strict=True):
            found[m.index][m.of] = Evaluated(m.rows, prediction)
    if slopes := [slope for r in rounds for slope in r.slopes]:
        take_slopes(slopes, min((r.max_rows for r in rounds if r.max_rows), default=None))
    return found


@dataclass(kw_only=True, eq=False)
class _Member:
    """A pass within a network call: its rows, and the inputs of the network for them."""

    index: int
    round: Round
    of: Pass
    net: Net
    rows: Tensor | None
    x: Tensor
    level: Level
    inputs: Inputs
    differentiable: bool

    def take(self, rows: Tensor) -> _Member:
        """Select some of these rows."""
        x, level = self.x[rows.to(self.x.device)], self.level.take(rows)
        return replace(self, x=x, level=level, inputs=self.inputs.take(rows))

    @property
    def network_level(self) -> Level:
        """The level, with the time that the network gets."""
        t = self.inputs.t
        return self.level if t is self.level.t else self.level._replace(t=t)

    def key(self, several: bool) -> Hashable:
        """Return what the members of one call have in common.

        A network gets one condition to contrast with, so such a pass has a call of its own. Where
        several runs meet, or a denoiser keeps conditions of different shapes ``apart``, shapes,
        dtypes and devices must agree too.
        """
        alone = (self.index, self.of) if self.of.against is not None else None
        checkpoint = self.differentiable and self.round.checkpoint
        key = id(self.net.denoiser), self.differentiable, checkpoint, alone
        if not several and not getattr(self.net.denoiser, "apart", False):
            return key
        tensors = {"": self.x, **self.inputs.cond}
        return key, *((n, t.shape[1:], t.dtype, t.device) for n, t in tensors.items())


def _member(index: int, r: Round, p: Pass, rows: Tensor | None) -> _Member:
    if p.net not in r.nets:
        known = ", ".join(sorted(r.nets))
        raise ValueError(f"there is no network {p.net!r}; this model has {known}")
    net, group = r.nets[p.net], r.group if rows is None else r.group.take(rows)
    x, level = (p.point.x, p.point.level) if p.point else (group.x_t, group.step.t)
    differentiable = bool(r.through) and p in r.through
    return _Member(
        index=index,
        round=r,
        of=p,
        net=net,
        rows=rows,
        x=x.detach().requires_grad_() if differentiable else x,
        level=level,
        inputs=_inputs(net, p, group, level.t),
        differentiable=differentiable,
    )


def _inputs(net: Net, p: Pass, group: Group, t: Value) -> Inputs:
    """Return the inputs of the network for a pass of a group, as its edit makes them."""
    cond, streams = net.condition(p.cond, group.batch, p.net), group.streams
    if p.against is not None:
        against = net.condition(p.against, group.batch, p.net)
        cond = Condition({**cond, **{f"{AGAINST}{name}": c for name, c in against.items()}})
    if group.rows is not None:
        cond, streams = cond.take(group.rows), streams and streams.take(group.rows)
    inputs = Inputs(cond=cond, t=t, step=group.step, streams=streams)
    edited = p.edit(inputs) if p.edit else inputs
    if group.step.leap and p.point is None and getattr(net.denoiser, "takes_interval", False):
        whole = edited.cond.with_interval(group.step.interval, group.x_t)
        edited = replace(edited, cond=whole)
    if edited.t is not t and not getattr(net.denoiser, "reads_t", True):
        raise ValueError(
            f"the network {p.net!r} computes its time from the noise ratio (edm), so its time "
            "cannot be changed"
        )
    return edited


def _evaluate_members(members: Sequence[_Member], called: Called | None) -> list[Prediction]:
    """Evaluate passes that can share a call, and return their predictions, in their order.

    Rows without noise are their own clean estimate; the network is called for the others.
    """
    denoiser, differentiable = members[0].net.denoiser, members[0].differentiable
    with _grad_mode(members), _checkpointing(members):
        noisy = [_noisy_rows(m.level.sigma) for m in members]
        work = [m if r is None else m.take(r) for m, r in zip(members, noisy, strict=True)]
        parts: list[list[Prediction]] = [[] for _ in members]
        for call in _calls(work, None if differentiable else _row_limit(work)):
            began = time.perf_counter()
            for k, prediction in _call(denoiser, call):
                parts[k].append(prediction)
            if called is not None:
                called(sum(m.x.shape[0] for _, m in call), time.perf_counter() - began)
        return [_complete(*found) for found in zip(members, noisy, parts, strict=True)]


def _grad_mode(members: Sequence[_Member]) -> AbstractContextManager[object]:
    if members[0].differentiable:
        return torch.enable_grad()
    needs_grad = any(m.round.needs_grad for m in members)
    return torch.no_grad() if needs_grad else torch.inference_mode()


def _checkpointing(members: Sequence[_Member]) -> AbstractContextManager[object]:
    if not (members[0].differentiable and members[0].round.checkpoint):
        return nullcontext()
    for m in members:
        if m.of.perturb:
            raise ValueError(
                f"the pass '{m.of}' changes the network while it runs, so its blocks cannot be "
                "computed again; leave checkpoint out"
            )
    return checkpointed(members[0].net.denoiser)


def _noisy_rows(sigma: Value) -> Tensor | None:
    """Return the rows where ``sigma`` is not 0 (None: all)."""
    if not isinstance(sigma, Tensor):
        return None if sigma else torch.arange(0)
    noisy = sigma != 0
    return None if bool(noisy.all()) else noisy.nonzero().flatten()


def _row_limit(members: Sequence[_Member]) -> int | None:
    """Return the most rows of one call: the runs' own limit, or calls of one size on a CPU."""
    limits = [m.round.max_rows for m in members if m.round.max_rows]
    usual: int | None = getattr(members[0].net.denoiser, "cpu_rows", None)
    count = sum(m.x.shape[0] for m in members)
    if limits or not usual or not count or members[0].x.device.type != "cpu":
        return min(limits, default=None)
    return math.ceil(count / math.ceil(count / usual))


_Call = Sequence[tuple[int, _Member]]
"""The members of one network call, each with its place among all members."""


def _calls(members: Sequence[_Member], limit: int | None) -> Iterator[_Call]:
    """Yield calls of at most ``limit`` rows, those of plain passes before the perturbed ones."""
    whole = [(k, m) for k, m in enumerate(members) if m.x.shape[0]]
    whole.sort(key=lambda pair: pair[1].of.perturb is not None)
    if limit is None or sum(m.x.shape[0] for _, m in whole) <= limit:
        yield from [whole] if whole else []
        return
    rows = [(k, i) for k, m in whole for i in range(m.x.shape[0])]
    for start in range(0, len(rows), limit):
        own = groupby(rows[start : start + limit], itemgetter(0))
        yield [(k, members[k].take(torch.tensor([i for _, i in part]))) for k, part in own]


def _call(denoiser: Denoiser, call: _Call) -> Iterator[tuple[int, Prediction]]:
    """Call the network once, each perturbation in its rows; yield the members' predictions."""
    members = [m for _, m in call]
    sizes = [m.x.shape[0] for m in members]
    one = len(members) == 1
    x = members[0].x if one else torch.cat([m.x for m in members])
    level = join_levels([m.network_level for m in members], sizes)
    cond = Condition.join([m.inputs.cond for m in members])
    observed: Sequence[list[Tensor] | None] = [None] * len(members)
    if members[-1].of.perturb is None:
        out = denoiser(x, level, cond)
    else:
        with ExitStack() as stack:
            observed = [stack.enter_context(c) for c in _perturbations(denoiser, members, sizes)]
            out = denoiser(x, level, cond)
    whole = _checked(out, x, level)
    cut = lambda t: (t,) if one else t.split_with_sizes(sizes)
    x0, eps = cut(whole.x0), cut(whole.eps)
    log_var = [None] * len(call) if whole.log_var is None else cut(whole.log_var)
    for i, (k, m) in enumerate(call):
        found = torch.cat(values) if (values := observed[i]) else None
        yield (
            k,
            Prediction(
                x_t=m.x, level=m.level, x0=x0[i], eps=eps[i], log_var=log_var[i], observed=found
            ),
        )


def _perturbations(
    denoiser: Denoiser, members: Sequence[_Member], sizes: Sequence[int]
) -> Iterator[AbstractContextManager[list[Tensor] | None]]:
    """Yield the context of each member, in its rows."""
    start, count = 0, sum(sizes)
    for m, size in zip(members, sizes, strict=True):
        rows = Rows(start, start + size, count) if len(members) > 1 else None
        perturb = m.of.perturb
        yield perturb(denoiser, rows, m.inputs) if perturb else nullcontext()
        start += size


def _checked(out: object, x: Tensor, level: Level) -> Prediction:
    """Return the output of a denoiser as a prediction; torch would broadcast another shape."""
    x0 = out.x0 if isinstance(out, Prediction) else out
    if not isinstance(x0, Tensor) or x0.shape != x.shape:
        tensor = isinstance(x0, Tensor)
        found = f"a tensor {tuple(x0.shape)}" if tensor else f"a {type(x0).__name__}"
        raise ValueError(
            "a denoiser must return the clean estimate of each sample, a tensor "
            f"{tuple(x.shape)} like its input, not {found}"
        )
    return out if isinstance(out, Prediction) else Prediction.from_x0(x, level, x0)


def _complete(m: _Member, noisy: Tensor | None, parts: list[Prediction]) -> Prediction:
    """Join the parts of a member's prediction, and put its clean rows in."""
    if noisy is not None:
        found = _with_clean_rows(m, noisy, parts)
    else:
        found = parts[0] if len(parts) == 1 else Prediction.join(parts, m.x, m.level)
    if m.round.check and not bool(found.x0.isfinite().all()):
        raise FloatingPointError(
            f"the network {m.of.net!r} returned values that are not finite in its pass '{m.of}' at "
            f"step {m.round.group.step.index}"
        )
    return replace(found, root=Root(m.x, None, m.of.net)) if m.differentiable else found


def _with_clean_rows(m: _Member, noisy: Tensor, parts: list[Prediction]) -> Prediction:
    """Return the prediction of all rows, of which the network was called for the ``noisy`` ones."""
    clean = Prediction.from_x0(m.x, m.level, m.x * expand(inverse_or_zero(m.level.alpha), m.x))
    if not parts:
        return clean
    part, here = Prediction.join(parts, m.x, m.level), noisy.to(m.x.device)

    def spread(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        zeros = values.new_zeros(len(m.x), *values.shape[1:])
        return zeros.index_copy(0, noisy.to(values.device), values)

    return replace(
        clean,
        x0=clean.x0.index_copy(0, here, part.x0),
        eps=clean.eps.index_copy(0, here, part.eps),
        log_var=spread(part.log_var),
        observed=spread(part.observed),
    )
