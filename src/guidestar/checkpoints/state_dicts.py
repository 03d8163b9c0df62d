"""Checkpoints as their authors publish them: a state dict in one file, of torch or of
safetensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..diffusers.read.safetensors_io import read_safetensors
from ..io.documents import one_line


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict: ``.safetensors``, or torch's own format with ``weights_only=True``, which
    runs no code.

    A training checkpoint with an entry "ema" is read as that.

    Raises:
        ValueError: the file is missing, damaged, or holds objects that only running code would
            restore; it is named.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file}: not readable as a state dict without running code from it "
            f"({one_line(error)[:120]}); {_HOW}"
        ) from error
    found = found.get("ema", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise ValueError(
            f"{file}: holds no state dict (tensors by name), but a {type(found).__name__} of "
            f"other things; {_HOW}"
        )
    return dict(found)


_HOW = (
    "where you trust it, load it by its authors' code and save its state_dict() with "
    "safetensors.torch.save_file"
)
