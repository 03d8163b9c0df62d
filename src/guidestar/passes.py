"""Network passes: what a step asks of the networks, and one function that answers it.

A pass is hashable, so the same question asked by several guidances is one pass. `evaluate` groups
passes that can share a batch, runs each only for the rows that need it, and checks nothing on the
device unless asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from .denoiser import Condition, Denoiser, checkpointed
from .draw import Draw
from .layers import AGAINST, Perturbation
from .levels import Level, Value, expand, inverse_or_zero
from .prediction import Prediction


class Slot(Enum):
    """The conditions every run has: the requested one, none at all, and the negative (none by default)."""

    COND = "cond"
    NULL = "uncond"
    NEGATIVE = "neg"


@dataclass(frozen=True, eq=False)
class Point:
    """Another place to look at: ``x [b, *S]`` for the rows of the term that asks, at its own level."""

    x: Tensor
    level: Level


@dataclass(frozen=True)
class Part:
    """A part of the requested condition; what else it says is not known.

    Args:
        name: a part as the encoder names it ("image=…; text=…"), or a tensor of the condition.
    """

    name: str


def seeded(streams: Draw | None) -> Draw:
    """Return the streams of random numbers of a run that has seeds.

    Raises:
        ValueError: it has none.
    """
    if streams is None:
        raise ValueError("this guidance draws random numbers, a stream for each sample; give Guided the seeds of the samples, seeds=")
    return streams


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """What a network is told in one pass, beside x.

    Args:
        cond: the condition of the pass's samples.
        t: the time (alpha and sigma, and so what its output means, stay).
        streams: the samples' randomness at this step, where the run has seeds.
    """

    cond: Condition
    t: Value
    streams: Draw | None = None

    @property
    def draw(self) -> Draw:
        """The samples' streams of random numbers.

        Raises:
            ValueError: the run has no seeds.
        """
        return seeded(self.streams)


Edit = Callable[[Told], Told]
"""A change of what the network is told; hashable, so that equal passes stay equal."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One network evaluation.

    Args:
        cond: a `Slot`, a `Part` of the requested condition, a `Condition` of 1 or B samples, or a
            name or prompt for the encoder.
        net: which network.
        perturb: a change of the network for this pass.
        against: another condition, that the perturbation contrasts this one with; the network is
            told it as arguments whose names begin with ``against_``.
        point: another x and level than the step's (its token is unique to the asking term).
        edit: changes what the network is told, its condition or the time.
    """

    cond: Slot | Part | Condition | str | int = Slot.COND
    net: str = "main"
    perturb: Perturbation | None = None
    against: Slot | Condition | str | int | None = None
    point: Point | None = None
    edit: Edit | None = None

    def __str__(self) -> str:
        what = self.cond.value if isinstance(self.cond, Slot) else self._words()
        change = "" if not self.perturb else "watched" if self.unwatched else "perturbed"
        marks = [self.net if self.net != "main" else "", change, "elsewhere" if self.point else "", "edited" if self.edit else ""]
        return " ".join([what, *(m for m in marks if m)])

    @property
    def unwatched(self) -> Pass | None:
        """The same pass without a look at the network, if this one only looks."""
        return replace(self, perturb=None) if getattr(self.perturb, "watches", False) else None

    def _words(self) -> str:
        if isinstance(self.cond, Part):
            return f"{self.cond.name} of cond"
        return "condition" if isinstance(self.cond, Condition) else repr(self.cond)


COND, NULL, NEGATIVE = Pass(cond=Slot.COND), Pass(cond=Slot.NULL), Pass(cond=Slot.NEGATIVE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Net:
    """A denoiser with the conditions of this run.

    Args:
        denoiser: the network.
        cond: the requested condition, of 1 or B samples; none for an unconditional run.
        null: its "no condition"; none for a network that takes no condition at all.
        negative: what ``neg`` and cfg's negative mean; the null by default.
        encode: turns names or prompts into conditions; called once for each.
        part: returns the requested condition with one part of it alone, by the part's name; without
            it a part is a tensor of ``cond``, and the other tensors are the null's.
    """

    denoiser: Denoiser
    cond: Condition | None = None
    null: Condition | None = None
    negative: Condition | None = None
    encode: Callable[[Sequence[str | int]], Condition] | None = None
    part: Callable[[str], Condition] | None = None
    _encoded: dict[str | int | Part, Condition] = field(default_factory=dict, init=False, repr=False)

    def condition(self, key: Slot | Part | Condition | str | int, batch: int) -> Condition:
        """Return the condition a pass means, for ``batch`` samples."""
        return self._resolve(key).repeat(batch)

    def _encode(self, key: str | int) -> Condition:
        if self.encode is None:
            raise ValueError(f"the condition {key!r} needs an encoder: give encode=, or a Condition in its place")
        if key not in self._encoded:
            # Kept for later runs, which may differentiate: inference tensors could not take part.
            with torch.inference_mode(False), torch.no_grad():
                self._encoded[key] = self.encode([key])
        return self._encoded[key]

    def _only(self, key: Part) -> Condition:
        if key not in self._encoded:
            with torch.inference_mode(False), torch.no_grad():
                self._encoded[key] = self.part(key.name) if self.part else self._only_tensor(key.name)
        return self._encoded[key]

    def _only_tensor(self, name: str) -> Condition:
        cond, null = self._resolve(Slot.COND), self._resolve(Slot.NULL)
        if name not in cond:
            raise ValueError(f"the condition has no part {name!r}; it has {', '.join(cond)}")
        return Condition({k: v if k == name else null[k].expand(len(v), *null[k].shape[1:]) for k, v in cond.items()})

    def _resolve(self, key: Slot | Part | Condition | str | int) -> Condition:
        if isinstance(key, Part):
            return self._only(key)
        if not isinstance(key, Slot):
            return key if isinstance(key, Condition) else self._encode(key)
        if key is Slot.COND and self.cond is None:
            raise ValueError("no condition was given, but the guidance asks for the conditional pass; give cond=, or start it with 'uncond'")
        null = Condition() if self.null is None and self.cond is None else self.null
        found = self.cond if key is Slot.COND else null if key is Slot.NULL else self.negative or null
        if found is None:
            raise ValueError("the guidance asks for the unconditional pass, but the model has no null condition; give null=")
        return found

    def canonical(self, p: Pass) -> Pass:
        """Name a pass so that equal passes are equal: no negative is the null."""
        if p.cond is Slot.NEGATIVE and not self.negative:
            return replace(p, cond=Slot.NULL)
        return p


def by_name(nets: Denoiser | Mapping[str, Net], own: Mapping[str, Any]) -> Mapping[str, Net]:
    """Return networks by name, one of them "main"."""
    if not isinstance(nets, Mapping):
        return {"main": Net(denoiser=nets, **own)}
    if own:
        raise ValueError(f"with networks by name, {', '.join(own)} belongs in each Net")
    if "main" not in nets:
        raise ValueError(f"one of the networks must be named 'main', the one that is guided; these are {', '.join(sorted(nets)) or 'none'}")
    return nets


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
        max_rows: the most rows of one network call.
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
        groups.setdefault((p.net, p.perturb, p in through), []).append(p)
    answers: dict[Pass, Evaluated] = {}
    for (name, perturb, differentiable), members in groups.items():  # type: ignore[misc]
        net = _find(nets, name)
        if checkpoint and differentiable and perturb:
            raise ValueError(f"the pass '{members[0]}' changes the network while it runs, so its blocks cannot be computed again; leave checkpoint out")
        again = checkpointed(net.denoiser) if checkpoint and differentiable else nullcontext()
        with perturb(net.denoiser) if perturb else nullcontext() as seen, torch.enable_grad() if differentiable else nullcontext(), again:
            answers.update(_run(net, members, passes, q, differentiable, seen))
    return answers


def _find(nets: Mapping[str, Net], name: str) -> Net:
    if name not in nets:
        raise ValueError(f"there is no network {name!r}; this model has {', '.join(sorted(nets))}")
    return nets[name]


def _run(net: Net, members: Sequence[Pass], passes: Mapping[Pass, Tensor | None], q: Question, differentiable: bool, seen: list[Tensor] | None) -> dict[Pass, Evaluated]:
    inputs = [_input(p, passes[p], q, differentiable) for p in members]
    told = [_told(net, p, passes[p], q, level) for p, (_, level) in zip(members, inputs, strict=True)]
    conds, sizes = Condition.join([cond for cond, _ in told]), [len(x) for x, _ in inputs]
    x = torch.cat([x for x, _ in inputs]) if len(inputs) > 1 else inputs[0][0]
    joined = _call(net.denoiser, x, _join_levels([level for _, level in told], sizes), conds, None if differentiable else q.max_rows)
    looks = _looks(seen, joined)
    answers, start = {}, 0
    for p, (x_t, level), size in zip(members, inputs, sizes, strict=True):
        part = slice(start, start + size)
        prediction, start = _part(joined, part, x_t, level), start + size
        if q.check and not bool(prediction.x0.isfinite().all()):
            raise FloatingPointError(f"the network {p.net!r} returned values that are not finite in its pass '{p}' at step {q.index}")
        answers[p] = Evaluated(rows=passes[p], prediction=prediction, seen=None if looks is None else looks[part])
    return answers


def _looks(seen: list[Tensor] | None, joined: Prediction) -> Tensor | None:
    """Join what was seen in all calls; in rows without noise, for which none was made, 0."""
    if not seen:
        return None
    found, rows = torch.cat(seen), len(joined.x0)
    noisy = (torch.as_tensor(joined.level.sigma).expand(rows) != 0).nonzero()[:, 0]
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
    cond = net.condition(p.cond, q.batch)
    if p.against is not None:
        cond = Condition({**cond, **{f"{AGAINST}{name}": t for name, t in net.condition(p.against, q.batch).items()}})
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


def _call(denoiser: Denoiser, x: Tensor, level: Level, cond: Condition, max_rows: int | None) -> Prediction:
    """Call the network for the rows that have noise; a clean row is its own estimate."""
    noisy = torch.as_tensor(level.sigma) != 0
    if noisy.all():
        return _chunked(denoiser, x, level, cond, max_rows)
    clean = Prediction.from_x0(x, level, x * expand(inverse_or_zero(level.alpha), x))
    if not noisy.any():
        return clean
    rows = noisy.nonzero()[:, 0]
    on_device = rows.to(x.device)
    part = _chunked(denoiser, x[on_device], level.take(rows), cond.take(rows), max_rows)
    log_var = None if part.log_var is None else torch.zeros_like(x).index_copy(0, on_device, part.log_var)
    return replace(clean, x0=clean.x0.index_copy(0, on_device, part.x0), eps=clean.eps.index_copy(0, on_device, part.eps), log_var=log_var)


def _chunked(denoiser: Denoiser, x: Tensor, level: Level, cond: Condition, max_rows: int | None) -> Prediction:
    """Call the network for at most ``max_rows`` rows at a time."""
    if not max_rows or len(x) <= max_rows:
        return _predict(denoiser, x, level, cond)
    chunks = torch.arange(len(x)).split(max_rows)
    return Prediction.join([_predict(denoiser, x[c.to(x.device)], level.take(c), cond.take(c)) for c in chunks], x, level)


def _predict(denoiser: Denoiser, x: Tensor, level: Level, cond: Condition) -> Prediction:
    out = denoiser(x, level, cond)
    return out if isinstance(out, Prediction) else Prediction.from_x0(x, level, out)
