"""Change what goes into blocks, skip them, or silence layers, in some rows of a network call."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import BoundArguments
from typing import Any

import torch
from torch import Tensor

from ...core.hooks import Forward
from ...core.perturbation import Rows
from .hooks import run_call, with_call
from .rows import changed_tokens


def change_input(
    change: Callable[[Tensor], Tensor], rows: Rows | None, original: Forward
) -> Forward:
    """Return a block's forward whose input tokens are changed."""

    def answer(call: BoundArguments) -> object:
        tokens = changed_tokens(call.arguments["hidden_states"], change, rows)
        return run_call(original, call, {"hidden_states": tokens})

    return with_call(original, answer)


def skip(
    returns: tuple[str, ...],
    rows: Rows | None,
    spread: Callable[[Rows, int], Rows],
    original: Forward,
) -> Forward:
    """Return a block's forward that returns its input, in ``rows`` (None: all)."""

    def answer(call: BoundArguments) -> object:
        both = [call.arguments.get(name) for name in returns]
        given: Any = tuple(both) if len(both) > 1 else both.pop()
        if rows is None:
            return given
        return _restore_rows(run_call(original, call), given, rows, spread)

    return with_call(original, answer)


def silence(rows: Rows | None, original: Forward) -> Forward:
    """Return a layer's forward that returns zeros, in ``rows`` (None: all)."""

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> Tensor:
        out: Tensor = original(*args, **kwargs)
        if rows is None:
            return torch.zeros_like(out)
        rows.check(out)
        return rows.put(out, torch.zeros_like(out[rows.slice]))

    return forward


def _restore_rows(done: Any, given: Any, rows: Rows, spread: Callable[[Rows, int], Rows]) -> Any:
    """Return a block's output, with its input in ``rows``; the last joint block outputs no text."""
    if isinstance(given, tuple):
        return tuple(
            None if d is None else _restore_rows(d, g, rows, spread)
            for d, g in zip(done, given, strict=True)
        )
    own = spread(rows, len(done))
    own.check(done)
    return own.put(done, given[own.slice])
