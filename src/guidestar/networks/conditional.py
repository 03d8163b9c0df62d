"""A denoiser and the encoder of its condition, trained as one module."""

from __future__ import annotations

from torch import nn


class ConditionalModel(nn.Module):
    """Hold a ``denoiser`` and the ``encoder`` that makes its conditions, so that both train
    together.
    """

    def __init__(self, denoiser: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.denoiser, self.encoder = denoiser, encoder
