"""The objective of a super-resolution stage: denoising under a smaller picture with noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...core.rng import Draw
from ...networks.low_resolution import LOW, augmented, reduced
from .denoising import Conditional
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class SuperResolution(Objective):
    """`Conditional`, with the data's own smaller pictures as a further condition.

    The smaller picture is the mean over squares of ``x0``; to it noise is added,
    ``√(1 − s²) low + s ε``, whose level s is drawn for each sample, uniform in [0, largest)
    ("augmentation level").

    Args:
        conditional: the loss.
        size: pixels of a side of the smaller picture.
        largest: of the levels.

    References:
        Cascaded Diffusion Models, https://arxiv.org/abs/2106.15282
        Imagen, https://arxiv.org/abs/2205.11487
    """

    conditional: Conditional
    size: int
    largest: float

    def __call__(self, net, x0: Tensor, target: Mapping[str, Tensor], draw: Draw) -> Tensor:
        """Return the loss ``[B]``; ``target`` are the rows of the other conditions."""
        level = self.largest * draw.uniform("augmentation level")
        rows = augmented(reduced(x0, self.size), level, draw)
        return self.conditional(net, x0, {**target, LOW: rows}, draw)
