"""Losses of training-free guidance: any differentiable loss, or the distance to an observation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .context import Loss, one_each
from .operators import Inpaint, Linear, OfDecoded, get_operator
from .term import Context, Live
from .weights import finite


@dataclass(frozen=True, eq=False)
class Observation:
    """The distance of a clean estimate to an observation: ``‖y − A(x0)‖``, for each sample.

    Args:
        operator: A: a differentiable function ``[B, *S] -> [B, *O]``, or the name of an operator
            ("gray", "blur", "downsample", "identity"). pigdm and mmps need a linear one with its
            transpose.
        y: the observation: a tensor ``[B, *O]``, one for each sample of the run, or ``[1, *O]`` for
            all of them; or one number for all values.
        noise: standard deviation of the noise in y, for pigdm and mmps.
        distance: "norm" (not squared), "squared", or any ``distance(y, A(x0)) -> [B]``.

    Raises:
        ValueError: an argument of another kind or range.
    """

    operator: str | Callable[[Tensor], Tensor]
    y: Tensor | float
    _: KW_ONLY
    noise: float = 0.0
    distance: Literal["norm", "squared"] | Callable[[Tensor, Tensor], Tensor] = "norm"

    def __post_init__(self) -> None:
        if isinstance(self.operator, str):
            object.__setattr__(self, "operator", get_operator(self.operator))
        if not isinstance(self.y, Tensor) and not finite(self.y):
            kind = type(self.y).__name__
            raise ValueError(f"observation: y must be a tensor [B, *O], or one number, not {kind}")
        if not finite(self.noise) or self.noise < 0:
            raise ValueError(
                f"observation: the noise must be finite and 0 or more, not {self.noise!r}"
            )
        if not callable(self.distance) and self.distance not in ("norm", "squared"):
            raise ValueError(
                "observation: the distance must be norm, squared or a function, not "
                f"{self.distance!r}"
            )

    def of(self, live: Live) -> Observation:
        """Return the observation of these samples."""
        if not isinstance(self.y, Tensor):
            return self
        x = live.x_t
        return replace(self, y=live.own_rows(self.y).to(x.device, x.dtype, non_blocking=True))

    def both(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and ``A(x0)``, each ``[B, *O]``. A mask also hides its pixels in y.

        Raises:
            ValueError: they differ in shape.
        """
        assert not isinstance(self.operator, str)
        shown = self.operator(x0)
        y = self.y if isinstance(self.y, Tensor) else torch.full_like(shown, self.y)
        if y.shape[1:] != shown.shape[1:] or len(y) not in (1, len(shown)):
            raise ValueError(
                f"observation: y is {tuple(y.shape)}, but the operator makes "
                f"{tuple(shown.shape)} of the samples"
            )
        own = self.operator.operator if isinstance(self.operator, OfDecoded) else self.operator
        return own(y) if isinstance(own, Inpaint) else y, shown

    def residual(self, x0: Tensor) -> Tensor:
        """Return ``y − A(x0)``, ``[B, *O]``."""
        y, shown = self.both(x0)
        return y - shown

    def __call__(self, x0: Tensor) -> Tensor:
        """Return the loss of each sample, ``[B]``."""
        if callable(self.distance):
            return self.distance(*self.both(x0))
        distance = torch.linalg.vector_norm(self.residual(x0).flatten(1), dim=1)
        return distance if self.distance == "norm" else distance**2

    @property
    def linear(self) -> bool:
        """Whether the operator has a transpose."""
        return isinstance(self.operator, Linear)


def find_loss(name: str, loss: str | Loss, context: Context) -> Loss:
    """Return a loss of the run by its name, or a loss as it is.

    Args:
        name: of the term, for the message.
        loss: the loss, or its name.
        context: the run.

    Raises:
        ValueError: the run has no such loss.
    """
    if not isinstance(loss, str):
        return loss
    if loss not in context.losses:
        known = ", ".join(sorted(context.losses)) or "none"
        raise ValueError(
            f"{name}: there is no loss {loss!r} (there is {known}); give losses="
            f"{{{loss!r}: …}} to the run, or in Python the loss itself, {name}(1, function)"
        )
    return context.losses[loss]


def loss_of_samples(name: str, loss: Loss, live: Live) -> Loss:
    """Return the loss of these samples, which checks that it returns one number for each.

    Args:
        name: of the term, for the message.
        loss: of all samples of the run.
        live: these samples.
    """
    own = loss.of(live) if isinstance(loss, Observation) else loss

    def checked(x0: Tensor) -> Tensor:
        return one_each(f"{name}: the loss", own(x0), x0)

    return checked


def gradient(energy: Loss, x0: Tensor) -> Tensor:
    """Return ``∇_{x0} energy(x0)`` ``[B, *S]``, without a network."""
    with torch.enable_grad():
        x = x0.detach().requires_grad_()
        return torch.autograd.grad(energy(x).sum(), x)[0]
