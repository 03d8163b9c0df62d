"""The layers of a network, as a perturbation of one pass sees them.

A perturbation asks `layers_of` a denoiser for its `Layers`: contexts in which named layers do
something else. Which layers a network has, and where in them the picture is, its family says
(``networks/perturbable/layers.py``); what they do instead, the method says.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .hooks import is_compiled

FAMILIES = {"diffusers": "guidestar.networks.perturbable.layers"}
"""Which module knows the layers of a network, by the package its class comes from; imported when
first asked.
"""

AGAINST = "against_"
"""Prefix of the arguments in which a pass hands over the condition it is contrasted with
(`Pass.against`).
"""

Kind = Literal["attention", "cross", "block"]


class Rows(NamedTuple):
    """Some rows of a network call: from ``start`` up to ``stop``, of ``of``."""

    start: int
    stop: int
    of: int

    @property
    def slice(self) -> slice:
        """The rows themselves."""
        return slice(self.start, self.stop)

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return ``whole [of, …]`` with ``part [stop − start, …]`` at these rows."""
        return torch.cat([whole[: self.start], part, whole[self.stop :]])

    def check(self, tensor: Tensor) -> None:
        """Refuse a tensor within the network whose rows are not those of the call.

        Raises:
            ValueError: it has another number of them.
        """
        if len(tensor) != self.of:
            raise ValueError(
                f"a layer that is perturbed in some rows of a call was given {len(tensor)} rows "
                f"where the call has {self.of}; let this network run its passes apart, max_rows=1"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Self-attention that is about to be computed: ``softmax(QKᵀ/√d) V``.

    Args:
        query, key, value: ``[B, heads, tokens, d]``, as the layer made them (normalised, rotated),
            of the perturbed rows alone.
        image: which tokens are the picture's; the others are text.
        with_query: computes the attention as the layer would, of another query.
        find_grid: tells the height and width of the picture in tokens.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    image: slice
    with_query: Callable[[Tensor], Tensor]
    find_grid: Callable[[], tuple[int, ...]]

    @property
    def grid(self) -> tuple[int, ...]:
        """Height and width of the picture, in tokens."""
        return self.find_grid()

    def compute(self) -> Tensor:
        """Return what the layer would compute, ``[B, heads, tokens, d]``."""
        return self.with_query(self.query)

    def replace(self, whole: Tensor, image: Tensor) -> Tensor:
        """Put ``image`` in the place of the picture's tokens of ``whole``."""
        before, after = whole[:, :, : self.image.start], whole[:, :, self.image.stop :]
        return joined([before, image, after], 1) if before.shape[2] or after.shape[2] else image


Change = tuple[Callable[[Attention], Tensor], Rows | None]
"""What self-attention becomes in some rows of a call (None: in all)."""


def by_rows(
    changes: Sequence[Change],
    query: Tensor,
    answer: Callable[[slice, Callable[[Attention], Tensor]], Tensor],
) -> Tensor:
    """Answer the rows of each change by it, and those between as the layer would.

    Args:
        changes: of rows that do not overlap.
        query: ``[B, …]``, the rows of the whole call.
        answer: makes the answer of some rows, by what it is given.
    """
    parts, done = [], 0
    for attend, rows in sorted(changes, key=lambda c: c[1].start if c[1] else 0):
        mine = rows or Rows(0, len(query), len(query))
        mine.check(query)
        parts += [answer(slice(done, mine.start), Attention.compute)] if mine.start > done else []
        parts.append(answer(mine.slice, attend))
        done = mine.stop
    parts += [answer(slice(done, None), Attention.compute)] if done < len(query) else []
    return joined(parts, 0)


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Join ``[B, heads, tokens, d]`` by rows (``dim`` 0) or tokens (1), laid out as attention's own
    answer is.

    There the heads of a token lie side by side, and some processors rely on it:
    ``out.transpose(1, 2).view(B, -1, heads·d)``.
    """
    laid = [part.transpose(1, 2) for part in parts]
    return (torch.cat(laid, dim) if len(laid) > 1 else laid[0].contiguous()).transpose(1, 2)


class Layers(Protocol):
    """What can be perturbed in a network. An empty sequence of names means the family's usual
    layers, no rows all of them.

    Layers whose network's samples have their channels last (``[B, T, C]``) say so by
    ``channels_last = True``.
    """

    def find(self, kind: Kind, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Return names of layers: of attention among the picture's tokens, of attention to the
        text, or whole blocks.

        Raises:
            ValueError: the network has no such layer; the message lists those it has.
        """
        ...

    def attending(
        self, names: Sequence[str], attend: Callable[[Attention], Tensor], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which self-attention is what ``attend`` makes of it."""
        ...

    def contrasting(
        self, names: Sequence[str], contrast: Callable[[Tensor, Tensor], Tensor]
    ) -> AbstractContextManager[None]:
        """Return a context in which attention to the text is
        ``contrast(Z, Z of the condition against)``, before its output map.
        """
        ...

    def skipping(
        self, names: Sequence[str], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which blocks return what they are given."""
        ...

    def entering(
        self, names: Sequence[str], change: Callable[[Tensor], Tensor], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which blocks are given ``change(tokens [b, tokens, d])`` of the
        picture's tokens.
        """
        ...


def changed_tokens(hidden: Tensor, change: Callable[[Tensor], Tensor], rows: Rows | None) -> Tensor:
    """Return ``hidden`` (``[B, tokens, d]``, or ``[B, d, *grid]``) with its tokens changed in some
    rows.

    Raises:
        ValueError: it has other rows than the call.
    """
    if rows is not None:
        rows.check(hidden)
    mine = hidden if rows is None else hidden[rows.slice]
    mine = change(mine.flatten(2).mT).mT.reshape(mine.shape) if mine.ndim > 3 else change(mine)
    return mine if rows is None else rows.put(hidden, mine)


def layers_of(denoiser: Any) -> Layers:
    """Return the layers of a denoiser: its own, or those of the network within it.

    A denoiser has layers of its own if it has a method ``layers() -> Layers``. Else what it wraps
    is looked at (``.net``), as deep as it goes.

    Raises:
        ValueError: the layers of such a network are not known, or it is compiled.
    """
    net = denoiser
    for net in _within(denoiser):
        if hasattr(net, "_orig_mod") or is_compiled(net):  # compiled code would go on as it was
            raise ValueError(
                f"a compiled {type(net).__name__} cannot be perturbed; give the network before "
                "it is compiled"
            )
        if hasattr(type(net), "layers"):  # of the class: a list of modules may have this name
            return net.layers()
        if (home := _home(net)) is not None:
            return importlib.import_module(home).layers(net)
    raise ValueError(
        f"the layers of {type(net).__name__} are not known, so none can be perturbed; give the "
        "denoiser a method layers(), as guidestar.core.perturbation.Layers describes"
    )


def _within(denoiser: Any) -> Iterator[Any]:
    while denoiser is not None:
        yield denoiser
        denoiser = getattr(denoiser, "net", None)


def _home(net: Any) -> str | None:
    packages = (base.__module__.partition(".")[0] for base in type(net).__mro__)
    return next((FAMILIES[p] for p in packages if p in FAMILIES), None)
