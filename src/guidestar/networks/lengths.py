"""The length of a sequence as a condition: a mask of the frames that are not padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from ..core.denoiser import Condition

FRAMES = "frame_mask"
"""The name of the mask of frames among a network's conditions."""


class LengthEncoder(ModelMixin, ConfigMixin):
    """Turn a length in frames into ``frame_mask [B, T]``: 1 for the frames of the motion.

    The null is the full length; a run's unconditional passes have the lengths of its samples.

    Args:
        frames: T, the longest that was trained.
        least: the shortest.
    """

    @register_to_config
    def __init__(self, frames: int, least: int = 1) -> None:
        super().__init__()
        self.frames, self.least = frames, least

    def rows(self, values: Tensor | Sequence[int]) -> Tensor:
        """Return lengths as ``[B]``, int64."""
        return torch.as_tensor(values).long()

    def null_row(self) -> Tensor:
        """Return the full length."""
        return torch.tensor(self.frames)

    def forward(self, rows: Tensor) -> Condition:
        """Return the mask of lengths ``[B]``."""
        at = torch.arange(self.frames, device=rows.device)
        return Condition({FRAMES: (at < rows[:, None]).float()})

    def parse(self, name: str | int) -> int:
        """Read a number of frames ("" is the full length).

        Raises:
            ValueError: it is no whole number, or longer or shorter than what was trained.
        """
        if name == "":
            return self.frames
        if not str(name).isdecimal() or not self.least <= int(name) <= self.frames:
            raise ValueError(
                f"the length {str(name)!r} should be a whole number of frames from {self.least} to "
                f"{self.frames}, the longest that was trained"
            )
        return int(name)

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode lengths, one for each sample."""
        return self(self.rows([self.parse(n) for n in names]))

    def null(self, batch: int) -> Condition:
        """Return the full length for ``batch`` samples."""
        return self(self.null_row().expand(batch))
