"""Change what goes into blocks, skip them, or silence layers, in some rows of a network call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from ...core.hooks import Forward
from ...core.perturbation import Rows
from .rows import changed_tokens


def change_input(
    change: Callable[[Tensor], Tensor], rows: Rows | None, original: Forward
) -> Forward:
    """Return a block's forward whose input tokens are changed."""
    signature = inspect.signature(original)

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        call = signature.bind(*args, **kwargs)
        call.arguments["hidden_states"] = changed_tokens(
            call.arguments["hidden_states"], change, rows
        )
        return original(*call.args, **call.kwargs)

    return forward


def skip(
    returns: tuple[str, ...],
    rows: Rows | None,
    spread: Callable[[Rows, int], Rows],
    original: Forward,
) -> Forward:
    """Return a block's forward that returns its input, in ``rows`` (None: all)."""
    signature = inspect.signature(original)

    @wraps(original)
    def forward(*args: object, **kwargs: object) -> object:
        inputs = signature.bind(*args, **kwargs).arguments
        both = [inputs.get(name) for name in returns]
        given: Any = tuple(both) if len(both) > 1 else both.pop()
        if rows is None:
            return given
        return _restore_rows(original(*args, **kwargs), given, rows, spread)

    return forward


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
