"""Answers to passes: in as few network calls as possible, each pass for the rows that need it.

`evaluate` groups passes that can share a batch, perturbed ones among them, runs each only for its
rows, and checks nothing on the device unless asked to.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from .denoiser import Condition, Denoiser, checkpointed
from .draw import Draw
from .layers import AGAINST, Perturbation, Rows
from .levels import Level, expand, inverse_or_zero
from .passes import Net, Pass, Told
from .prediction import Prediction

CPU_ROWS = 32
"""On a CPU, the rows of a call of the network: more leave its caches, and gain nothing (the shipped networks take 1.2 times as long for 128 at once)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """The answer to one pass: a prediction for ``rows`` (local indices, None for all), and what was seen in the network."""

    rows: Tensor | None
    prediction: Prediction
    seen: Tensor | None = None

    def positions(self, rows: Tensor | None) -> Tensor | None:
        """Return where ``rows`` lie within this answer's rows (None: it is those rows)."""
        if rows is None or self.rows is None:
            return rows
        return None if rows.equal(self.rows) else torch.searchsorted(self.rows, rows)

    def at(self, rows: Tensor | None) -> Prediction:
        """Select the prediction at ``rows``."""
        where = self.positions(rows)
        return self.prediction if where is None else self.prediction.take(where)

    def seen_at(self, rows: Tensor | None) -> Tensor | None:
        """Select what was seen at ``rows``; None if nothing was."""
        where = self.positions(rows)
        return self.seen if self.seen is None or where is None else self.seen[where.to(self.seen.device)]


def union(rows: Sequence[Tensor | None], batch: int) -> Tensor | None:
    """Join row selections; None stands for all rows."""
    if any(r is None for r in rows):
        return None
    joined = torch.unique(torch.cat([r for r in rows if r is not None]))
    return None if len(joined) == batch else joined


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What a round of passes is about: samples at a level, some of a larger batch.

    Args:
        x_t: ``[b, *S]``.
        level: of ``x_t``.
        rows: which samples of the run these are (None: all of them).
        batch: how many samples the run has.
        max_rows: the most rows of one network call; by default any number, but on a CPU `CPU_ROWS`.
        check: refuse outputs that are not finite (costs a synchronisation for each pass).
        index: of the step, for the message.
        draw: the randomness of all the run's samples, at this step.
    """

    x_t: Tensor
    level: Level
    rows: Tensor | None
    batch: int
    max_rows: int | None = None
    check: bool = False
    index: int = 0
    draw: Draw | None = None

    def take(self, rows: Tensor) -> Question:
        """Select samples of the whole run (``rows``: int64 indices)."""
        return replace(self, x_t=self.x_t[rows.to(self.x_t.device)], level=self.level.take(rows), rows=rows)


def evaluate(
    passes: Mapping[Pass, Tensor | None],
    q: Question,
    nets: Mapping[str, Net],
    through: frozenset[Pass] = frozenset(),
    *,
    checkpoint: bool = False,
) -> dict[Pass, Evaluated]:
    """Run ``passes``, each for its rows, in as few network calls as possible.

    Args:
        passes: the rows of each pass (local indices, rising; None for all).
        q: the samples.
        nets: networks by name.
        through: passes whose predictions must be differentiable in their ``x_t``; these are never
            cut into several calls.
        checkpoint: compute the blocks of a differentiated network again instead of keeping them.

    Raises:
        ValueError: an unknown network, or a condition that the run lacks.
        FloatingPointError: ``q.check``, and an output is not finite.
    """
    groups: dict[Hashable, list[Pass]] = {}
    for p in passes:
        groups.setdefault((p.net, p in through, p.against is not None and p.perturb), []).append(p)
    answers: dict[Pass, Evaluated] = {}
    for (name, differentiable, _), members in groups.items():  # type: ignore[misc]
        net, changed = _find(nets, name), [p for p in members if p.perturb]
        if checkpoint and differentiable and changed:
            raise ValueError(f"the pass '{changed[0]}' changes the network while it runs, so its blocks cannot be computed again; leave checkpoint out")
        again = checkpointed(net.denoiser) if checkpoint and differentiable else nullcontext()
        with torch.enable_grad() if differentiable else nullcontext(), again:
            answers.update(_run(net, _side_by_side(members), passes, q, differentiable))
    return answers


def _side_by_side(members: Sequence[Pass]) -> list[Pass]:
    """Order passes so that those of one perturbation follow each other, the plain ones first."""
    kinds = list(dict.fromkeys([None, *(p.perturb for p in members)]))
    return sorted(members, key=lambda p: kinds.index(p.perturb))


def _find(nets: Mapping[str, Net], name: str) -> Net:
    if name not in nets:
        raise ValueError(f"there is no network {name!r}; this model has {', '.join(sorted(nets))}")
    return nets[name]


def _run(net: Net, members: Sequence[Pass], passes: Mapping[Pass, Tensor | None], q: Question, differentiable: bool) -> dict[Pass, Evaluated]:
    inputs = [_input(p, passes[p], q, differentiable) for p in members]
    told = [_told(net, p, passes[p], q, level) for p, (_, level) in zip(members, inputs, strict=True)]
    conds, sizes = Condition.join([cond for cond, _ in told]), [len(x) for x, _ in inputs]
    x = torch.cat([x for x, _ in inputs]) if len(inputs) > 1 else inputs[0][0]
    owners = tuple(p.perturb for p, size in zip(members, sizes, strict=True) for _ in range(size))
    batch = _Batch(x=x, level=_join_levels([level for _, level in told], sizes), cond=conds, owners=owners)
    joined, seen = _call(net.denoiser, batch, None if differentiable else q.max_rows or _usual_rows(x))
    looks = {p: _looks(rows, batch, p) for p, rows in seen.items()}
    answers, start = {}, 0
    for p, (x_t, level), size in zip(members, inputs, sizes, strict=True):
        prediction = _part(joined, slice(start, start + size), x_t, level)
        if q.check and not bool(prediction.x0.isfinite().all()):
            raise FloatingPointError(f"the network {p.net!r} returned values that are not finite in its pass '{p}' at step {q.index}")
        own = slice(start - owners.index(p.perturb), start - owners.index(p.perturb) + size)
        answers[p], start = Evaluated(rows=passes[p], prediction=prediction, seen=looks[p.perturb][own] if p.perturb in looks else None), start + size
    return answers


def _usual_rows(x: Tensor) -> int | None:
    """Return how many rows to ask about at once: on a CPU calls of one size, of at most `CPU_ROWS`."""
    calls = -(-len(x) // CPU_ROWS)
    return -(-len(x) // calls) if x.device.type == "cpu" and calls > 1 else None


def _looks(seen: Sequence[Tensor], batch: _Batch, perturb: Perturbation) -> Tensor:
    """Join what a perturbation saw in all calls; in its rows without noise, for which none was made, 0."""
    mine = torch.tensor([owner == perturb for owner in batch.owners])
    noisy = (torch.as_tensor(batch.level.sigma).expand(len(mine)) != 0)[mine].nonzero()[:, 0]
    found, rows = torch.cat(list(seen)), int(mine.sum())
    return found if len(noisy) == rows else found.new_zeros(rows, *found.shape[1:]).index_copy(0, noisy.to(found.device), found)


def _part(joined: Prediction, part: slice, x_t: Tensor, level: Level) -> Prediction:
    log_var = None if joined.log_var is None else joined.log_var[part]
    return Prediction(x_t=x_t, level=level, x0=joined.x0[part], eps=joined.eps[part], log_var=log_var)


def _input(p: Pass, rows: Tensor | None, q: Question, differentiable: bool) -> tuple[Tensor, Level]:
    x, level = (p.point.x, p.point.level) if p.point else (q.x_t, q.level)
    if rows is not None and p.point is None:
        x, level = x[rows.to(x.device)], level.take(rows)
    return (x.detach().requires_grad_() if differentiable else x), level


def _told(net: Net, p: Pass, rows: Tensor | None, q: Question, level: Level) -> tuple[Condition, Level]:
    """Return the condition of a pass's rows, and their level with the time that the network is told."""
    cond = net.condition(p.cond, q.batch, p.net)
    if p.against is not None:
        cond = Condition({**cond, **{f"{AGAINST}{name}": t for name, t in net.condition(p.against, q.batch, p.net).items()}})
    absolute = rows if q.rows is None else q.rows if rows is None else q.rows[rows]
    cond = cond if absolute is None or not cond else cond.take(absolute)
    if p.edit is None:
        return cond, level
    draw = q.draw if q.draw is None or absolute is None else q.draw.take(absolute)
    told = p.edit(Told(cond=cond, t=level.t, streams=draw))
    if told.t is not level.t and not getattr(net.denoiser, "reads_t", True):
        raise ValueError(f"the network {p.net!r} computes its time from the noise ratio (edm), so it cannot be told another one")
    return told.cond, level._replace(t=told.t)


def _join_levels(levels: Sequence[Level], sizes: Sequence[int]) -> Level:
    if not any(isinstance(v, Tensor) for level in levels for v in level) and all(level == levels[0] for level in levels):
        return levels[0]
    columns = zip(*([torch.as_tensor(v, dtype=torch.float64).expand(n) for v in level] for level, n in zip(levels, sizes, strict=True)), strict=True)
    return Level(*(torch.cat(column) for column in columns))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """Rows that one network is asked about: ``x [n, *S]``, their levels and conditions, and what is perturbed for each."""

    x: Tensor
    level: Level
    cond: Condition
    owners: tuple[Perturbation | None, ...]

    def take(self, rows: Tensor) -> _Batch:
        owners = tuple(self.owners[i] for i in rows.tolist())
        return _Batch(x=self.x[rows.to(self.x.device)], level=self.level.take(rows), cond=self.cond.take(rows), owners=owners)

    def perturbed(self) -> Iterator[tuple[Perturbation, Rows | None]]:
        """Yield each perturbation and its rows (None: all)."""
        start, n = 0, len(self.owners)
        for perturb, owned in groupby(self.owners):
            stop = start + len(list(owned))
            if perturb is not None:
                yield perturb, None if stop - start == n else Rows(start, stop, n)
            start = stop


_Seen = dict[Perturbation, list[Tensor]]
_Answer = tuple[Prediction, _Seen]


def _call(denoiser: Denoiser, b: _Batch, max_rows: int | None) -> _Answer:
    """Call the network for the rows that have noise; a clean row is its own estimate."""
    noisy = torch.as_tensor(b.level.sigma) != 0
    if noisy.all():
        return _chunked(denoiser, b, max_rows)
    clean = Prediction.from_x0(b.x, b.level, b.x * expand(inverse_or_zero(b.level.alpha), b.x))
    if not noisy.any():
        return clean, {}
    rows = noisy.nonzero()[:, 0]
    on_device = rows.to(b.x.device)
    part, seen = _chunked(denoiser, b.take(rows), max_rows)
    log_var = None if part.log_var is None else torch.zeros_like(b.x).index_copy(0, on_device, part.log_var)
    return replace(clean, x0=clean.x0.index_copy(0, on_device, part.x0), eps=clean.eps.index_copy(0, on_device, part.eps), log_var=log_var), seen


def _chunked(denoiser: Denoiser, b: _Batch, max_rows: int | None) -> _Answer:
    """Call the network for at most ``max_rows`` rows at a time."""
    if not max_rows or len(b.x) <= max_rows:
        return _predict(denoiser, b)
    answers = [_predict(denoiser, b.take(rows)) for rows in torch.arange(len(b.x)).split(max_rows)]
    seen: _Seen = {}
    for _, found in answers:
        for perturb, looks in found.items():
            seen.setdefault(perturb, []).extend(looks)
    return Prediction.join([prediction for prediction, _ in answers], b.x, b.level), seen


def _predict(denoiser: Denoiser, b: _Batch) -> _Answer:
    """Call the network once, each perturbation in its rows."""
    with ExitStack() as stack:
        contexts = [(perturb, stack.enter_context(perturb(denoiser, rows))) for perturb, rows in b.perturbed()]
        out = denoiser(b.x, b.level, b.cond)
    return _checked(out, b), {perturb: looks for perturb, looks in contexts if looks is not None}


def _checked(out: object, b: _Batch) -> Prediction:
    """Return what a denoiser answers as a prediction; another shape would be broadcast in what follows."""
    x0 = out.x0 if isinstance(out, Prediction) else out
    if not isinstance(x0, Tensor) or x0.shape != b.x.shape:
        told = f"a tensor {tuple(x0.shape)}" if isinstance(x0, Tensor) else f"a {type(x0).__name__}"
        raise ValueError(f"a denoiser must return the clean estimate of each sample, {tuple(b.x.shape)} as it was given, not {told}")
    return out if isinstance(out, Prediction) else Prediction.from_x0(b.x, b.level, x0)
