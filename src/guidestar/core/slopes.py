"""Gradients that terms need beside their passes, of several runs at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from .levels import Level

Heights = Callable[[Tensor, Level, Tensor | None], Tensor]
"""``f(x [b, *S], level, target) -> [b]``, of each row by itself, differentiable in x."""


class Slope:
    """The gradient ``∇_x Σ f(x, level, target)`` at samples of one run, ``[b, *S]``.

    A term names it with its passes, so that who evaluates the round can take it together with those
    of other runs (`take_slopes`); else it is taken alone, when it is read.

    Args:
        function: f.
        key: slopes of equal keys may be taken together, by the function of any of them.
        x: samples ``[b, *S]``.
        level: of these.
        target: of these, ``[b, …]``; None for a function that needs none.

    ``found`` is the gradient, once it was taken.
    """

    def __init__(
        self,
        *,
        function: Heights,
        key: Hashable,
        x: Tensor,
        level: Level,
        target: Tensor | None = None,
    ) -> None:
        self.function, self.key = function, key
        self.x, self.level, self.target = x, level, target
        self.found: Tensor | None = None

    @property
    def gradient(self) -> Tensor:
        """The gradient ``[b, *S]``."""
        if self.found is None:
            take_slopes([self])
        assert self.found is not None
        return self.found


def take_slopes(slopes: Sequence[Slope], max_rows: int | None = None) -> None:
    """Take gradients, those of equal keys and shapes by one call of their function.

    Args:
        slopes: of one run or of several.
        max_rows: the most rows of one call.
    """
    together: dict[Hashable, list[Slope]] = {}
    for slope in slopes:
        tensors = [t for t in (slope.x, slope.target) if t is not None]
        alike = [(t.shape[1:], t.dtype, t.device) for t in tensors]
        together.setdefault((slope.key, *alike), []).append(slope)
    for found in together.values():
        sizes = [len(s.x) for s in found]
        x, level, target = found[0].x, found[0].level, found[0].target
        if len(found) > 1:
            x = torch.cat([s.x for s in found])
            level = join_levels([s.level for s in found], sizes)
            if target is not None:
                target = torch.cat([s.target for s in found if s.target is not None])
        gradients = _ascend(found[0].function, x, level, target, max_rows or len(x))
        for slope, gradient in zip(found, gradients.split_with_sizes(sizes), strict=True):
            slope.found = gradient


def _ascend(function: Heights, x: Tensor, level: Level, target: Tensor | None, size: int) -> Tensor:
    """Return the gradient at ``x``, in calls of at most ``size`` rows."""
    if len(x) <= size:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(function(leaf, level, target).sum(), leaf)[0]
    parts = []
    for rows in torch.arange(len(x)).split(size):
        there = rows.to(x.device)
        own = None if target is None else target[there]
        parts.append(_ascend(function, x[there], level.take(rows), own, size))
    return torch.cat(parts)


def join_levels(levels: Sequence[Level], sizes: Sequence[int]) -> Level:
    """Return the level of rows that are joined, ``sizes`` rows of each level."""
    first = levels[0]
    if not any(isinstance(v, Tensor) for level in levels for v in level) and all(
        level == first for level in levels
    ):
        return first
    columns = [
        [torch.as_tensor(v, dtype=torch.float64).expand(size) for v in level]
        for level, size in zip(levels, sizes, strict=True)
    ]
    return Level(*(torch.cat(column) for column in zip(*columns, strict=True)))
