"""Linear operators of inverse problems, each with its transpose.

A linear operator A maps samples ``[B, *S]`` to observations ``[B, *O]``, one by one. Its transpose
maps back: ``⟨A x, y⟩ = ⟨x, Aᵀ y⟩``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from ..core.arguments import MOST_COUNT, check_arguments, check_counts, find_mismatch


@runtime_checkable
class Linear(Protocol):
    """A linear operator A from ``[B, *S]`` to ``[B, *O]``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``A x`` ``[B, *O]``."""
        ...

    def transpose(self, y: Tensor) -> Tensor:
        """Return ``Aᵀ y`` ``[B, *S]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """``A x = x``, for a picture that is observed with noise."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def transpose(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpaint:
    """``A x = m x``: the pixels where the mask is 1.

    Args:
        mask: 1 where a pixel is known and 0 elsewhere; of the shape of a sample, or one that
            broadcasts to it (``[H, W]``, ``[1, H, W]``).

    Raises:
        ValueError: in a call, several masks.
    """

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        if self.mask.ndim >= x.ndim and len(self.mask) != 1:
            raise ValueError(
                f"inpaint: there must be one mask for all samples, not {tuple(self.mask.shape)} "
                f"for {tuple(x.shape)}"
            )
        return x * self.mask.to(x.device, x.dtype, non_blocking=True)

    def transpose(self, y: Tensor) -> Tensor:
        return self(y)


@dataclass(frozen=True, kw_only=True)
class Downsample:
    """Means over squares of ``factor × factor`` pixels, in the last two dimensions.

    Args:
        factor: the side of a square, in pixels.

    Raises:
        ValueError: the factor is below 1; in a call, it does not divide height and width.
    """

    factor: int = 4

    def __post_init__(self) -> None:
        check_counts(self, "downsample")
        if self.factor < 1:
            raise ValueError(f"downsample: the factor must be at least 1, not {self.factor}")

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim < 3 or x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(
                f"downsample: {self.factor} must divide height and width, which are "
                f"{tuple(x.shape[-2:])}"
            )
        return x.unflatten(-1, (-1, self.factor)).unflatten(-3, (-1, self.factor)).mean((-3, -1))

    def transpose(self, y: Tensor) -> Tensor:
        k = self.factor
        return y.repeat_interleave(k, -1).repeat_interleave(k, -2) / k**2


@dataclass(frozen=True, kw_only=True)
class Blur:
    """Gaussian blur of the last two dimensions, with zeros beyond the border: ``Aᵀ = A``.

    Args:
        deviation: standard deviation of the kernel, in pixels, above 0.
        radius: of the kernel, in pixels; by default three deviations.

    Raises:
        ValueError: an argument that is out of range.
    """

    deviation: float = 2.0
    radius: int | None = None

    def __post_init__(self) -> None:
        check_counts(self, "blur")
        check_arguments(self, "blur", "deviation")
        if not 0 < self.deviation <= MOST_COUNT / 3 or (
            self.radius is not None and self.radius < 0
        ):
            raise ValueError(
                f"blur: the deviation must be above 0 and at most {MOST_COUNT / 3:.0f}, and the "
                f"radius not below 0, not {self.deviation} and {self.radius}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        return self._along(self._along(x).mT).mT

    def transpose(self, y: Tensor) -> Tensor:
        return self(y)

    def _along(self, x: Tensor) -> Tensor:
        """Blur the last dimension."""
        reach = self.radius if self.radius is not None else round(3 * self.deviation)
        offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=torch.float64)
        kernel = torch.exp(-(offsets**2) / (2 * self.deviation**2))
        rows = x.reshape(-1, 1, x.shape[-1])
        kernel = (kernel / kernel.sum()).to(x.dtype)[None, None]
        return functional.conv1d(rows, kernel, padding=reach).reshape(x.shape)


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Mix the channels, a sample's first dimension, by a matrix; by default to grey (Rec. 601).

    Args:
        matrix: a row for each output channel, a column for each input channel.

    Raises:
        ValueError: it is no matrix; in a call, the sample has another number of channels.
    """

    matrix: tuple[tuple[float, ...], ...] = ((0.299, 0.587, 0.114),)

    def __post_init__(self) -> None:
        unfit = find_mismatch(type(self), "matrix", self.matrix)
        if unfit or len({len(row) for row in self.matrix}) != 1 or not self.matrix[0]:
            raise ValueError(
                "gray: the matrix must have rows of one length, a number for each channel, not "
                f"{self.matrix!r}"
            )

    def _matrix(self, x: Tensor) -> Tensor:
        return torch.tensor(self.matrix, dtype=x.dtype).to(x.device, non_blocking=True)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[1] != len(self.matrix[0]):
            raise ValueError(
                f"gray: the matrix mixes {len(self.matrix[0])} channels, but there are {x.shape[1]}"
            )
        return torch.einsum("oc,bc...->bo...", self._matrix(x), x)

    def transpose(self, y: Tensor) -> Tensor:
        return torch.einsum("oc,bo...->bc...", self._matrix(y), y)


@dataclass(frozen=True, kw_only=True, eq=False)
class OfDecoded:
    """``A(decode(z))``: an operator on the images of latents. It has no transpose, as decoding is
    not linear.

    Args:
        decode: a differentiable function from latents ``[B, *S]`` to images ``[B, C, H, W]``.
        operator: A, of images.
    """

    decode: Callable[[Tensor], Tensor]
    operator: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(self.decode(x))


OPERATORS: dict[str, type[Linear]] = {
    "identity": Identity,
    "inpaint": Inpaint,
    "downsample": Downsample,
    "blur": Blur,
    "gray": Colour,
}
"""Every operator by name."""


def get_operator(name: str, **options: object) -> Linear:
    """Return the operator of that name, with its arguments by name.

    Raises:
        ValueError: there is no such operator, or it has no such arguments.

    Example:
        >>> get_operator("downsample", factor=2)
        Downsample(factor=2)
    """
    if name not in OPERATORS:
        raise ValueError(f"unknown operator {name!r}; the operators are {', '.join(OPERATORS)}")
    try:
        return OPERATORS[name](**options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
