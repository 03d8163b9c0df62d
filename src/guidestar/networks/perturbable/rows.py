"""Change what layers compute in some rows of a network call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from ...core.hooks import Forward, replaced
from ...core.perturbation import Attention, Rows, joined

AttentionChange = tuple[Callable[[Attention], Tensor], Rows | None]
"""A function that replaces self-attention, and its rows of the call (None: all)."""


@contextmanager
def layers_replaced(
    net: nn.Module, changes: Mapping[str, Callable[[Forward], Forward]]
) -> Iterator[None]:
    """Let layers of a network, by name, call ``change(original)`` (see `replaced`)."""
    with ExitStack() as stack:
        for name, change in changes.items():
            stack.enter_context(replaced(net.get_submodule(name), change))
        yield


def by_rows(
    changes: Sequence[AttentionChange],
    query: Tensor,
    answer: Callable[[slice, Callable[[Attention], Tensor]], Tensor],
) -> Tensor:
    """Compute attention row by row: changed in the rows of each change, plain in the others.

    Args:
        changes: changes of rows that do not overlap.
        query: ``[B, …]``, all rows of the call.
        answer: computes the attention of a slice of rows with a function of `Attention`.

    Raises:
        ValueError: the query has another number of rows than the call.
    """
    parts, done = [], 0
    for attend, rows in sorted(changes, key=lambda c: c[1].start if c[1] else 0):
        own = rows or Rows(0, len(query), len(query))
        own.check(query)
        parts += [answer(slice(done, own.start), Attention.compute)] if own.start > done else []
        parts.append(answer(own.slice, attend))
        done = own.stop
    parts += [answer(slice(done, None), Attention.compute)] if done < len(query) else []
    return joined(parts, 0)


def changed_tokens(hidden: Tensor, change: Callable[[Tensor], Tensor], rows: Rows | None) -> Tensor:
    """Return the hidden state of a block with its tokens changed in some rows.

    Args:
        hidden: ``[B, tokens, d]`` or ``[B, d, *grid]``.
        change: maps tokens ``[b, tokens, d]`` to as many.
        rows: which rows of the call (None: all).

    Raises:
        ValueError: ``hidden`` has another number of rows than the call.
    """
    if rows is not None:
        rows.check(hidden)
    own = hidden if rows is None else hidden[rows.slice]
    own = change(own.flatten(2).mT).mT.reshape(own.shape) if own.ndim > 3 else change(own)
    return own if rows is None else rows.put(hidden, own)
