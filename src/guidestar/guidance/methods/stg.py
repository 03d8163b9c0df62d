"""Spatiotemporal guidance as the users of LTX know it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from ...core.arguments import check_arguments
from ...core.denoiser import Denoiser
from ...core.passes import Inputs, Perturbation
from ...core.perturbation import Layers, Rows, layers_of
from ..bases.perturbation_contrast import Perturbed
from ..expression import register
from .pag import IdentityAttention


@register
@dataclass(frozen=True)
class STG(Perturbed):
    """Spatiotemporal guidance of LTX: away from a network without attention in some blocks.

    ``D̂ = c + s (c − c_p)``. In c_p all self-attention of some blocks, of a video and of its sound,
    returns each token's own value: ``softmax(QKᵀ/√d) V → V``. It is pag, with blocks for layers;
    ``slg`` leaves out whole blocks, as the paper's other form does. LTX rescales the sum to the
    size of c: ``cfg(3) + stg(1) | rescale(0.7, space='x0')``.

    Args:
        scale: s, usually 1 beside cfg.
        layers: names of layers of self-attention, in the place of blocks.
        of: as in pag.
        blocks: numbers of blocks, counted from 0; by default block 29 of LTX-2 and 19 of LTX, and
            the middle one of other networks and of smaller ones.

    1 evaluation more than the other terms. Linear, so it is the same in every space.

    References:
        Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling,
        https://arxiv.org/abs/2411.18664
            Junha Hyung, Kinam Kim, Susung Hong, Min-Jung Kim, Jaegul Choo
    """

    blocks: int | Sequence[int] = ()
    name = "stg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "blocks")
        blocks = (self.blocks,) if isinstance(self.blocks, int) else tuple(self.blocks)
        object.__setattr__(self, "blocks", blocks)
        if blocks and self.layers:
            raise ValueError("stg: give blocks or layers, not both")
        if min(blocks, default=0) < 0:
            raise ValueError(f"stg: blocks are counted from 0, but one is {min(blocks)}")

    def change(self) -> Perturbation:
        assert not isinstance(self.blocks, int)  # a tuple since it was made
        return UnattendedBlocks(layers=tuple(self.layers), blocks=tuple(self.blocks))


@dataclass(frozen=True, kw_only=True)
class UnattendedBlocks:
    """Replaces all self-attention of some blocks by the identity.

    Args:
        layers: names of layers of self-attention.
        blocks: numbers of blocks, where no layers are named.
    """

    layers: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    name: ClassVar[str] = "stg"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        layers = layers_of(denoiser)
        names = self.layers or _of_blocks(layers, self.blocks)
        return IdentityAttention(layers=names)(denoiser, rows, inputs)


def _of_blocks(layers: Layers, blocks: tuple[int, ...]) -> tuple[str, ...]:
    """Return the names of the layers of self-attention of some blocks; none for the usual ones."""
    default: int | None = getattr(layers, "guided_block", None)
    wanted = blocks or (() if default is None else (default,))
    if not wanted:
        return ()
    there = layers.list_names("attention")
    numbers = {name: int(found[1]) for name in there if (found := re.search(r"\.(\d+)\.", name))}
    if missing := set(wanted) - set(numbers.values()):
        raise ValueError(
            f"stg: the network has no self-attention in block {min(missing)}; its blocks are "
            f"{min(numbers.values(), default=0)} to {max(numbers.values(), default=0)}"
        )
    return tuple(name for name, number in numbers.items() if number in wanted)
