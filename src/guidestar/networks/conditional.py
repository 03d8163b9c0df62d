"""A denoiser and the encoder of its condition, trained as one module."""

from __future__ import annotations

from torch import nn

from .conditions import Conditions


class ConditionalModel(nn.Module):
    """A denoiser and the encoder of its conditions, as one module.

    Args:
        denoiser: called as ``denoiser(x_t, level, cond)``.
        encoder: makes its conditions.
    """

    def __init__(self, denoiser: nn.Module, encoder: Conditions) -> None:
        super().__init__()
        self.denoiser: nn.Module = denoiser
        self.encoder: Conditions = encoder
