"""About how much memory a training takes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...core.rng import Draw
from ...data.source import Source
from ..objectives.objective import Built


def training_memory(module: nn.Module, settings: Any, shape: tuple[int, ...]) -> dict[str, float]:
    """Estimate what a training holds, in MB: weights, gradients, two moments of AdamW, averages;
    and a batch of data.
    """
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters()) - trained
    size = 8 if settings.precision == "float64" else 4
    copies = 4 + 1 + len(settings.power)
    return {
        "weights and optimiser": (trained * copies + frozen) * size / 1e6,
        "a batch of data": settings.batch * math.prod(shape) * size / 1e6,
    }


@torch.no_grad()
def activations(built: Built, source: Source, dtype: torch.dtype = torch.float32) -> float:
    """Count the outputs of all layers for one sample, in MB: about what a sample adds to memory in
    training.
    """
    total, handles = [0], []

    def count(module: nn.Module, given: Any, out: Any) -> None:
        total[0] += out.numel() * out.element_size() if isinstance(out, Tensor) else 0

    for module in built.module.modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(count))
    draw = Draw([0])
    x, targets = source.batch([0], draw)
    try:
        built.objective(built.module, x.to(dtype), built.prepare(targets), draw)
    finally:
        for handle in handles:
            handle.remove()
    return total[0] / 1e6
