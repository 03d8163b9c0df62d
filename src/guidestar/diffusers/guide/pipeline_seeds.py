"""The seeds of a pipeline's samples: of what it draws its latents from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ..objects import Arguments, Pipeline


def generators(pipe: Pipeline, arguments: Arguments) -> list[torch.Generator]:
    """Return what the pipeline draws its latents from: the generators that it was given, or its
    device's own.
    """
    given = arguments.get("generator")
    if isinstance(given, list | tuple):
        return list(given)
    return [_default_generator(pipe._execution_device) if given is None else given]


def _default_generator(device: torch.device) -> torch.Generator:
    """Return what torch draws from on a device where it is given no generator."""
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()  # a pipeline that is offloaded may be the first to use it
    return torch.cuda.default_generators[
        torch.cuda.current_device() if device.index is None else device.index
    ]


def seed_of(streams: Sequence[Tensor], k: int) -> int:
    """Return the seed of sample k, from the state of its own generator, or of the one for all and
    k.
    """
    state, more = (streams[k], 0) if len(streams) > 1 else (streams[0], k)
    digest = hashlib.blake2b(bytes(state.tolist()) + str(more).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
