"""Token perturbation guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ...core.denoiser import Denoiser
from ...core.passes import Inputs, Perturbation, seeded
from ...core.perturbation import Rows, layers_of
from ...core.rng import Draw
from ..bases.perturbation_contrast import Perturbed
from ..expression import register


@register
@dataclass(frozen=True)
class TPG(Perturbed):
    """Token perturbation guidance: away from a network whose blocks get shuffled tokens.

    ``D̂ = c + s (c − c_p)``. In c_p some blocks k get ``S_k h`` instead of their tokens h, with a
    permutation S_k drawn for each sample, step and block. The whole block works on the shuffled
    tokens, its skip connection included, and their order is not restored. Only the picture's tokens
    are shuffled, not those of the text.

    Args:
        scale: s, usually 3, alone or beside cfg. No condition is needed.
        layers: names of blocks, exactly; by default those in the middle. The paper shuffles most of
            the down blocks of SDXL.
        of: as in pag.

    1 evaluation more than the other terms. Linear, so it is the same in every space. Needs the
    samples' seeds; public code draws one permutation for the whole batch.

    References:
        Token Perturbation Guidance for Diffusion Models, https://arxiv.org/abs/2506.10036
            Javad Rajabi, Soroush Mehraban, Seyedmorteza Sadat, Babak Taati
    """

    name = "tpg"

    def change(self) -> Perturbation:
        return ShuffledTokens(layers=tuple(self.layers))


@dataclass(frozen=True, kw_only=True)
class ShuffledTokens:
    """Shuffles the picture's tokens at the input of blocks, for each sample and block.

    Args:
        layers: names of blocks.
    """

    layers: tuple[str, ...] = ()
    name: ClassVar[str] = "tpg"

    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> AbstractContextManager[None]:
        return self._shuffling(denoiser, rows, inputs.streams if inputs else None)

    @contextmanager
    def _shuffling(
        self, denoiser: Denoiser, rows: Rows | None, draw: Draw | None
    ) -> Iterator[None]:
        layers = layers_of(denoiser)
        with ExitStack() as stack:
            for name in layers.find("block", self.layers):
                stack.enter_context(layers.entering((name,), partial(_shuffle, draw, name), rows))
            yield


def _shuffle(draw: Draw | None, block: str, tokens: Tensor) -> Tensor:
    """Return tokens ``[b, n, d]`` in the order that each sample draws for a block."""
    order = seeded(draw).normal(f"tpg.{block}", tokens.shape[1:2]).argsort(1)
    return tokens.gather(1, order.to(tokens.device)[..., None].expand_as(tokens))
