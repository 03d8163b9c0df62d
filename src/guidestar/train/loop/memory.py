"""Estimate the memory of a training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...core.rng import Draw
from ...data.source import Source
from ..objectives.objective import Built, TrainSettings


def training_memory(
    module: nn.Module, settings: TrainSettings, shape: tuple[int, ...]
) -> dict[str, float]:
    """Estimate what a training holds, in MB, by name.

    These are weights, gradients, AdamW's two moments and averages; and a batch of data. Weights
    that each pass makes of others (`guidestar.networks.low_rank`) are held beside those.

    Args:
        module: what is trained.
        settings: its batch, precision and averages.
        shape: of one sample.
    """
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters()) - trained
    made = sum(
        part.original.numel()
        for part in module.modules()
        if isinstance(part, parametrize.ParametrizationList)
    )
    size = 8 if settings.precision == "float64" else 4
    copies = 4 + 1 + len(settings.power)
    return {
        "weights and optimiser": (trained * copies + frozen + made) * size / 1e6,
        "a batch of data": settings.batch * math.prod(shape) * size / 1e6,
    }


@torch.no_grad()
def activations(built: Built, source: Source, dtype: torch.dtype = torch.float32) -> float:
    """Return the outputs of all layers for one sample, in MB: about what a sample adds in training.

    A layer is a module without modules of its own, but for those that make its weights: what these
    return does not grow with the batch.

    Args:
        built: the network and its objective.
        source: the data.
        dtype: of the network.
    """
    total, handles = [0], []

    def count(module: nn.Module, given: object, out: object) -> None:
        total[0] += out.numel() * out.element_size() if isinstance(out, Tensor) else 0

    for module in _layers(built.module):
        handles.append(module.register_forward_hook(count))
    draw = Draw([0])
    x, targets = source.batch([0], draw)
    try:
        built.objective(built.module, x.to(dtype), built.prepare(targets), draw)
    finally:
        for handle in handles:
            handle.remove()
    return total[0] / 1e6


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    parts = [
        part
        for name, part in module.named_children()
        if not (name == "parametrizations" and parametrize.is_parametrized(module))
    ]
    if not parts:
        yield module
    for part in parts:
        yield from _layers(part)
