"""Which answers of a network are the prompt's and which the negative's, learnt from what a pipeline
makes of them.

A pipeline's own guidance is an affine map of its network's answers: ``s`` of the prompt's and
``1 − s`` of the negative's reach its scheduler. So each block of rows is pushed a little, all
others held at the same answer, and the push of what the scheduler gets is compared with that where
all blocks are pushed. A pipeline for which that does not hold is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .calls import AnswerRows, NetCall
from .traced import Tape, Traced

TOLERANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Place:
    """A block of rows: the ``block``-th of the rows of the ``call``-th call of a step."""

    call: int
    block: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the rows of each part are.

    Args:
        batch: how many samples there are.
        parts: the places by name: cond, and uncond and image where the pipeline has them.
        coefficients: what the pipeline's own guidance multiplies each place with, in their order.
        flat: how many rows of the scheduler's one sample has (frames of a video).
        at_end: where the calls of a step have answers of different lengths, the tokens that they
            share are the last (else the first).
    """

    batch: int
    parts: dict[str, Place]
    coefficients: dict[Place, float]
    flat: int = 1
    at_end: bool = True

    def places(self) -> Iterator[Place]:
        """Return all blocks of rows, those without a part too."""
        return iter(self.coefficients)

    @property
    def scale(self) -> float:
        """The scale of the pipeline's own guidance."""
        return self.coefficients[self.parts["cond"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Combination:
    """What a pipeline makes of its answers at one step: the argument of its scheduler's step.

    Args:
        name: the pipeline's class.
        tape: of the operations.
        calls: of the network.
        wanted: what reaches the scheduler.
        sample: the scheduler's noisy sample.
        channels: how many channels are probed.
        at_end: as in `Layout`.
        along: the dimension within which answers are pushed at right angles, so that a rescaling
            to norms along it leaves the push.
    """

    name: str
    tape: Tape
    calls: Sequence[NetCall]
    wanted: Traced
    sample: Tensor
    channels: int | None = None
    at_end: bool = True
    along: int = -1

    def of(self, blocks: Mapping[Place, AnswerRows]) -> Tensor:
        """Return what reaches the scheduler where the blocks of rows are these answers."""
        leaves: dict[Traced, Tensor] = {}
        for k, call in enumerate(self.calls):
            own = [rows for place, rows in blocks.items() if place.call == k]
            whole = [torch.cat(r) for r in zip(*own, strict=True)]
            forms = [t.shape[1:] for t in call.row_forms]
            leaves |= call.leaves_of(
                [_fit(t, form, self.at_end) for t, form in zip(whole, forms, strict=True)]
            )
        return self.tape.run(leaves, self.wanted)

    def everywhere(self, layout: Layout, rows: AnswerRows) -> Tensor:
        """Return what reaches the scheduler where all blocks are the same answer."""
        return replace(self, at_end=layout.at_end).of(dict.fromkeys(layout.places(), rows))

    def mean(self, made: Tensor) -> Tensor:
        """Return it without the variance that a network may predict beside the mean."""
        if self.channels:
            return made[:, : self.channels]
        if made.ndim == self.sample.ndim and made.shape[1] == 2 * self.sample.shape[1]:
            return made[:, : self.sample.shape[1]]
        return made


def _fit(t: Tensor, form: Sequence[int], at_end: bool) -> Tensor:
    """Give rows another call's length: cut tokens off, or put zeros in their place."""
    for dim, size in enumerate(form, 1):
        more = size - t.shape[dim]
        if more < 0:
            t = t.narrow(dim, -more if at_end else 0, size)
        elif more:
            zeros = t.new_zeros(*t.shape[:dim], more, *t.shape[dim + 1 :])
            t = torch.cat([zeros, t] if at_end else [t, zeros], dim)
    return t


def learn(c: Combination, order: Sequence[str] = ()) -> Layout:
    """Learn the layout of a pipeline's step.

    Args:
        c: what the pipeline makes of its answers.
        order: the names of three parts, in the order of their rows, where a pipeline has three.

    Raises:
        ValueError: what reaches the scheduler is not the pipeline's guidance of its network's
            answers.
    """
    refused = None
    for attempt in _list_readings(c):
        found = _learn(attempt, order)
        if isinstance(found, Layout):
            return found
        refused = refused or found
    assert refused is not None  # there is one reading at least
    raise refused


def _list_readings(c: Combination) -> Iterator[Combination]:
    """Return the ways to read what a pipeline makes of its answers, the usual one first."""
    yield c
    forms = [shape for form in _list_forms(c) for shape, _ in form]
    if len(set(forms)) > 1:
        yield replace(c, at_end=False)
    if max(map(len, forms)) > 3:
        yield replace(c, along=2)
    several = len(c.calls) > 1 or c.calls[0].rows > 1
    if c.wanted.ndim > 3 and several and c.wanted.shape[1] > 3:
        # Some pipelines guide the first three channels alone, as DiT's original code does.
        yield replace(c, channels=3)


def _learn(c: Combination, order: Sequence[str]) -> Layout | ValueError:
    counts = [call.rows for call in c.calls]
    fits = [b for b in range(1, min(counts) + 1) if all(n % b == 0 for n in counts)]
    best = None
    steps, tolerance = _steps_of(c)
    for batch, step in product(fits, steps):
        if sum(counts) // batch > 6 or (len(c.sample) % batch and batch > 1):
            continue
        found, off = _coefficients(c, batch, step)
        best = off if best is None else min(best, off)
        if off < tolerance:
            parts = _named(c.name, found, order)
            return Layout(
                batch=batch,
                parts=parts,
                coefficients=found,
                flat=max(1, len(c.sample) // batch),
                at_end=c.at_end,
            )
    return ValueError(
        f"{c.name} does not hand its scheduler a guidance of what its network answers "
        f"(an affine map of whole rows, off by {best:.2g}), so it cannot be guided"
        if best is not None
        else f"{c.name} calls its network with rows that are not those of its samples "
        f"({counts} for {len(c.sample)}), so it cannot be guided"
    )


def _coefficients(c: Combination, batch: int, step: float) -> tuple[dict[Place, float], float]:
    """Return what each block is multiplied with, and how far the map is from an affine one, by
    answers that are pushed by a share ``step`` of themselves.
    """
    places = [
        Place(call=k, block=b) for k, call in enumerate(c.calls) for b in range(call.rows // batch)
    ]
    held = _draw(batch, _longest_form(c), c.calls[0].devices)
    turned = [_turned(t, c.along) * step for t in held]

    def pushed(chosen: Sequence[Place]) -> Tensor:
        both: list[dict[Place, AnswerRows]] = [
            {
                p: [t + sign * d for t, d in zip(held, turned, strict=True)]
                if p in chosen
                else held
                for p in places
            }
            for sign in (1, -1)
        ]
        up, down = (c.mean(c.of(blocks)).double() for blocks in both)
        return (up - down) / 2

    whole = pushed(places)
    size = whole.norm()
    if not float(size):
        return dict.fromkeys(places, 0.0), float("inf")
    found, off = {}, 0.0
    for place in places if len(places) > 1 else ():
        own = pushed([place])
        found[place] = float((own * whole).sum() / size**2)
        off = max(
            off, float((own - found[place] * whole).norm() / size) / max(1, abs(found[place]))
        )
    return found or {places[0]: 1.0}, max(off, abs(sum(found.values()) - 1) if found else 0.0)


def _list_forms(c: Combination) -> list[list[tuple[torch.Size, torch.dtype]]]:
    return [[(t.shape[1:], t.dtype) for t in call.row_forms] for call in c.calls]


def _longest_form(c: Combination) -> list[tuple[torch.Size, torch.dtype]]:
    """Return the form of the longest answer, of which those of the other calls are parts."""
    forms = _list_forms(c)
    longest = max(forms, key=lambda form: sum(shape.numel() for shape, _ in form))
    for form in forms:
        alike = len(form) == len(longest) and all(
            kind == other
            and len(shape) == len(whole)
            and sum(a != b for a, b in zip(shape, whole, strict=True)) <= 1
            for (shape, kind), (whole, other) in zip(form, longest, strict=False)
        )
        if not alike:
            raise ValueError(
                f"{c.name}'s network answers in other shapes in the calls of one step, so it "
                "cannot be guided"
            )
    return longest


def _draw(batch: int, forms: Any, devices: Sequence[torch.device]) -> list[Tensor]:
    """Draw an answer."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, *shape, generator=generator).to(device, dtype)
        for (shape, dtype), device in zip(forms, devices, strict=True)
    ]


def _turned(t: Tensor, along: int = -1) -> Tensor:
    """Return a direction at right angles to ``t`` within a dimension, so that a pipeline's
    rescaling to norms along it leaves it, to first order.
    """
    if along >= t.ndim:
        along = -1
    if t.shape[along] == 1:
        return _turned(t.flatten(1)).reshape(t.shape)
    t = t.movedim(along, -1)
    pairs = t.shape[-1] // 2
    odd, even = t[..., 1 : 2 * pairs : 2], t[..., 0 : 2 * pairs : 2]
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return torch.cat([turned, torch.zeros_like(t[..., 2 * pairs :])], -1).movedim(-1, along)


def _steps_of(c: Combination) -> tuple[tuple[float, ...], float]:
    """Return how far to push, and how exact the result then is, by the precision.

    In half precision a long push is exacter where the map is affine. Where it is rescaled, a high
    scale takes a long push out of the range in which it looks affine.
    """
    kinds = [t.dtype for call in c.calls for t in call.row_forms]
    half = any(torch.finfo(kind).bits == 16 for kind in (*kinds, c.wanted.dtype))
    return ((0.2, 0.05, 0.02), 0.3) if half else ((0.01, 0.001), TOLERANCE)


def _named(name: str, found: dict[Place, float], order: Sequence[str]) -> dict[str, Place]:
    """Name the blocks by their coefficients: the prompt's is the largest."""
    used = {p: k for p, k in found.items() if len(found) < 3 or abs(k) > TOLERANCE}
    cond = max(used, key=lambda p: used[p])
    if len(used) == 1:
        return {"cond": cond}
    if used[cond] < 1 - TOLERANCE:
        raise ValueError(
            f"{name} mixes its network's answers by {', '.join(f'{k:.3g}' for k in used.values())}"
            "; give a guidance scale above 1, so that it is clear which is the prompt's"
        )
    if len(used) == 2:
        return {"cond": cond, "uncond": next(p for p in used if p != cond)}
    if len(used) == len(order):
        return dict(zip(order, used, strict=True))
    raise ValueError(
        f"{name} mixes {len(used)} answers of its network, and which is which is not known; leave "
        "its further guidance out (LTX-2: stg_scale=0, modality_scale=1, and those of its sound)"
    )
