"""How the samples that a pipeline's scheduler steps lie: in which order, or packed how.

A pipeline packs its latents once, before its first step. What its own function does is noted then,
as an order of numbers, so that terms can find channels, frames and the grid again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor

from ...core.forms import CHANNELS_LAST, PLAIN, SampleForm
from ..objects import Answer, Pipeline
from .classes import plain_kind
from .traced import Traced

FRAMES_FIRST = SampleForm(open=lambda x: x.transpose(1, 2), close=lambda x: x.transpose(1, 2))

_ORDERS = {
    "CogVideoX": FRAMES_FIRST,
    "AnyFlow": FRAMES_FIRST,
    "Kandinsky5": CHANNELS_LAST,
    "LongCatAudio": CHANNELS_LAST,
    "StableAudio": PLAIN,
}
"""Orders of pipelines, by how their names begin, that are no ``[B, C, *S]`` or could be tokens."""

Shape = tuple[int, ...]


class Packings:
    """The orders in which a pipeline packed tensors during a run.

    Args:
        pipe: the pipeline.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe, self.found = pipe, dict[Shape, dict[Shape, SampleForm]]()
        kind = plain_kind(type(pipe)).__name__
        self.order = next((f for name, f in _ORDERS.items() if kind.startswith(name)), None)
        self.unknown = _unknown(kind)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what the pipeline's own functions of packing do, within this context."""
        own = vars(self.pipe)
        names = [n for n in dir(type(self.pipe)) if n.startswith("_pack") and "latents" in n]
        before = {name: own[name] for name in names if name in own}
        for name in names:
            own[name] = self._noting(getattr(self.pipe, name))
        try:
            yield
        finally:
            for name in names:
                own.pop(name, None)
            own |= before

    def form(self, samples: Tensor) -> SampleForm:
        """Return the form of samples ``[B, …]`` of the run."""
        if self.order is not None:
            return self.order
        if samples.ndim != 3:
            return PLAIN
        forms = self.found.get(tuple(samples.shape[1:]), {})
        return next(iter(forms.values())) if len(forms) == 1 else self.unknown

    def _noting(self, pack: Callable[..., Answer]) -> Callable[..., Answer]:
        names = inspect.signature(pack)

        def packed(*args: object, **kwargs: object) -> Answer:
            made = pack(*args, **kwargs)
            given = names.bind(*args, **kwargs).arguments
            first, latents = next(iter(given.items()))
            if isinstance(latents, Tensor) and not isinstance(latents, Traced):
                numbers = torch.arange(latents.numel()).reshape(latents.shape)
                order = pack(**{**given, first: numbers})
                self._note(order, tuple(latents.shape[1:]), given.get("num_channels_latents"))
            return made

        return packed

    def _note(self, order: Tensor, shape: Shape, channels: object) -> None:
        """Note a packing: ``order`` is what it makes of numbers from 0 on of samples of ``shape``.

        Functions that do more than to change the order are left out.
        """
        row = order[0].flatten()
        if not row.sort().values.equal(torch.arange(row.numel())):
            return
        frames_first = len(shape) == 4 and shape[0] != channels == shape[1]
        form = _form_of_order(row, order.shape[1:], shape, frames_first=frames_first)
        self.found.setdefault(tuple(order.shape[1:]), {})[shape] = form


def _form_of_order(row: Tensor, packed: Shape, shape: Shape, *, frames_first: bool) -> SampleForm:
    back = row.argsort()

    def unpack(x: Tensor) -> Tensor:
        plain = x.flatten(1)[:, back.to(x.device)].unflatten(1, shape)
        return plain.transpose(1, 2) if frames_first else plain

    def pack(x: Tensor) -> Tensor:
        plain = x.transpose(1, 2) if frames_first else x
        return plain.flatten(1)[:, row.to(x.device)].unflatten(1, packed)

    return SampleForm(open=unpack, close=pack)


def _unknown(kind: str) -> SampleForm:
    def refuse(x: Tensor) -> NoReturn:
        raise ValueError(
            f"the samples of {kind} are {list(x.shape)} here, and which of them are channels, "
            "frames and places is not known (where latents= is given, the pipeline does not pack "
            "them itself: give generator= instead); leave out fdg, sag and frames="
        )

    return SampleForm(open=refuse, close=refuse)


__all__ = ["FRAMES_FIRST", "Packings"]
