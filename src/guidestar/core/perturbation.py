"""The layers of a network that a perturbation changes while one pass runs.

`layers_of` returns the `Layers` of a denoiser: contexts in which named layers do something else.
The family of the network (``networks/perturbable/layers.py``) knows its layers and which of their
tokens are the picture; the method decides what the layers do instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from .hooks import is_compiled

LAYER_MODULES = {"diffusers": "guidestar.networks.perturbable.layers"}
"""The module that knows the layers of a network, by the package of its class; imported on use."""

AGAINST = "against_"
"""Prefix of the network's arguments that hold the condition to contrast with (`Pass.against`)."""

LayerKind = Literal["attention", "cross", "block", "exchange"]


class Rows(NamedTuple):
    """Some rows of a network call: from ``start`` up to ``stop``, of ``of``."""

    start: int
    stop: int
    of: int

    @property
    def slice(self) -> slice:
        """The rows as a slice."""
        return slice(self.start, self.stop)

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return ``whole [of, …]`` with ``part [stop − start, …]`` at these rows."""
        return torch.cat([whole[: self.start], part, whole[self.stop :]])

    def check(self, tensor: Tensor) -> None:
        """Refuse a tensor within the network whose rows are not those of the call.

        Raises:
            ValueError: it has another number of rows.
        """
        if len(tensor) != self.of:
            raise ValueError(
                f"a layer that is perturbed in some rows of a call got {len(tensor)} rows, but the "
                f"call has {self.of}; run the passes of this network apart, max_rows=1"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """The inputs of self-attention ``softmax(QKᵀ/√d) V``, of the perturbed rows alone.

    Args:
        query: Q ``[B, heads, tokens, d]``, normalised and rotated as by the layer.
        key: K, likewise.
        value: V ``[B, heads, tokens, d]``.
        image: the tokens of the picture; the others are text.
        with_query: computes the layer's attention with another query.
        find_grid: returns the height and width of the picture in tokens.
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
        """Return the layer's plain attention, ``[B, heads, tokens, d]``."""
        return self.with_query(self.query)

    def replace(self, whole: Tensor, image: Tensor) -> Tensor:
        """Put ``image`` in the place of the picture's tokens of ``whole``."""
        before, after = whole[:, :, : self.image.start], whole[:, :, self.image.stop :]
        return joined([before, image, after], 1) if before.shape[2] or after.shape[2] else image


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Join ``[B, heads, tokens, d]`` by rows (``dim`` 0) or tokens (1).

    In memory the heads of a token are side by side, as in the result of torch's attention. Some
    processors rely on that: ``out.transpose(1, 2).view(B, -1, heads·d)``.
    """
    return torch.cat([part.transpose(1, 2) for part in parts], dim).transpose(1, 2)


class Layers(Protocol):
    """The layers of a network that can be perturbed.

    An empty sequence of names stands for the family's usual layers, and ``rows=None`` for all rows.
    A network whose samples have their channels last (``[B, T, C]``) has ``channels_last = True``.
    """

    def find(self, kind: LayerKind, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the names of layers of one kind.

        Args:
            kind: "attention" among the picture's tokens, "cross" to the text, whole "block"s, or
                the "exchange" of video and sound.
            names: the wanted layers.

        Raises:
            ValueError: the network has no such layer; the message lists those it has.
        """
        ...

    def list_names(self, kind: LayerKind) -> tuple[str, ...]:
        """Return the names of all layers of one kind."""
        ...

    def attending(
        self, names: Sequence[str], attend: Callable[[Attention], Tensor], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which ``attend`` computes self-attention."""
        ...

    def contrasting(
        self, names: Sequence[str], contrast: Callable[[Tensor, Tensor], Tensor]
    ) -> AbstractContextManager[None]:
        """Return a context in which attention to the text is ``contrast(Z, Z⁻)``.

        Z and Z⁻ are the attention to the text and to the text of ``Pass.against``, before the
        output map of the layer.
        """
        ...

    def skipping(
        self, names: Sequence[str], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which blocks return their input."""
        ...

    def silencing(
        self, names: Sequence[str], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which layers of the exchange of video and sound return zeros."""
        ...

    def entering(
        self, names: Sequence[str], change: Callable[[Tensor], Tensor], rows: Rows | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which blocks get ``change(tokens [b, tokens, d])`` as the picture."""
        ...


class _Perturbable(Protocol):
    """A denoiser with layers of its own."""

    def layers(self) -> Layers: ...


def layers_of(denoiser: object) -> Layers:
    """Return the layers of a denoiser: its own, or those of the network within it.

    A denoiser with a method ``layers() -> Layers`` has its own. Otherwise the network that it wraps
    (``.net``) is tried, then the next one within.

    Raises:
        ValueError: the layers of such a network are not known, or it is compiled.
    """
    net = denoiser
    for net in _within(denoiser):
        if hasattr(net, "_orig_mod") or is_compiled(net):  # compiled code would ignore the change
            raise ValueError(
                f"a compiled {type(getattr(net, '_orig_mod', net)).__name__} cannot be perturbed; "
                "give the network as it was before torch.compile"
            )
        if hasattr(type(net), "layers"):  # of the class: a list of modules may have this name
            return cast("_Perturbable", net).layers()
        if (home := _home(net)) is not None:
            return importlib.import_module(home).layers(net)
    raise ValueError(
        f"the layers of {type(net).__name__} are not known, so none can be perturbed; give the "
        "denoiser a method layers(), as guidestar.core.perturbation.Layers describes"
    )


def _within(denoiser: object) -> Iterator[object]:
    while denoiser is not None:
        yield denoiser
        denoiser = getattr(denoiser, "net", None)


def _home(net: object) -> str | None:
    packages = (base.__module__.partition(".")[0] for base in type(net).__mro__)
    return next((LAYER_MODULES[p] for p in packages if p in LAYER_MODULES), None)
