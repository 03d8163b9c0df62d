"""A digest of a model's weights: whether pictures in a folder are of the same model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .model import Model


def digest_of(model: Model) -> str:
    """Return a digest of all that shapes a model's samples and is in no `Settings`: the weights of
    its networks, encoders, classifiers and decoder in full, its noise levels, and the grids of its
    card. Parts that are no modules of torch are left out.
    """
    found = hashlib.blake2b(digest_size=16)
    levels = model.grid(8, "log_snr")
    numbers = [float(v) for k in range(8) for v in (levels[k].alpha, levels[k].sigma)]
    found.update(json.dumps([numbers, model.card.get("grids", {})], sort_keys=True).encode())
    for part, module in _modules(model):
        for name, tensor in sorted(module.state_dict().items()):
            found.update(f"{part}.{name} {tensor.dtype} {list(tensor.shape)}".encode())
            found.update(_bytes_of(tensor))
    return found.hexdigest()


def _modules(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that take part in sampling, each with a name."""
    parts: dict[str, object] = {
        "denoiser": model.denoiser,
        "encoder": model.encoder,
        "decode": getattr(model.decode, "vae", model.decode),
        **{f"classifiers.{name}": found for name, found in sorted(model.classifiers.items())},
    }
    for name, (denoiser, encoder) in sorted(model.nets.items()):
        parts |= {f"nets.{name}": denoiser, f"nets.{name}.encoder": encoder}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            yield name, part


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes; those of one on the CPU are not copied."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
