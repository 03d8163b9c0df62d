"""Class-conditional image networks: Diffusers' UNet2DModel, with its class table outside.

The U-Net takes the class as an embedding (``class_embed_type="identity"``); the table, whose last
row is the null, is the condition encoder, so a model cannot be sampled with another null than the
one it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from ..denoiser import Condition


class ClassEncoder(ModelMixin, ConfigMixin):
    """Turn class indices into a condition; the row after the last class is the null.

    Args:
        classes: names of the classes, in the order of their indices.
        width: length of the embedding (the U-Net's time embedding: four times its first width).
    """

    @register_to_config
    def __init__(self, classes: Sequence[str], width: int) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.table = nn.Embedding(len(classes) + 1, width)

    @property
    def null_index(self) -> int:
        """Index of "no condition"."""
        return len(self.classes)

    def forward(self, labels: Tensor) -> Condition:
        """Embed labels ``[B]`` (int64; `null_index` for none)."""
        return Condition(class_labels=self.table(labels))

    def null(self, batch: int) -> Condition:
        """Return the null condition for ``batch`` samples."""
        return self(torch.full((batch,), self.null_index, device=self.table.weight.device))

    def index(self, name: str | int) -> int:
        """Find a class by name or index ("" is the null).

        Raises:
            ValueError: there is no such class.
        """
        if name == "":
            return self.null_index
        lowered = [c.lower() for c in self.classes]
        if isinstance(name, str) and name.lower() in lowered:
            return lowered.index(name.lower())
        if str(name).isdecimal() and int(name) < len(self.classes):
            return int(name)
        listed = ", ".join(f"{i} {c}" for i, c in enumerate(self.classes))
        raise ValueError(f"unknown class {name!r}; the classes are {listed}")

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode class names or indices, one for each sample."""
        return self(torch.tensor([self.index(n) for n in names], device=self.table.weight.device))


def unet(*, size: int, channels: int, widths: Sequence[int], layers: int, groups: int, head: int) -> UNet2DModel:
    """Build a U-Net with attention at its lowest resolution only."""
    plain = len(widths) - 1
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=layers,
        block_out_channels=tuple(widths),
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        class_embed_type="identity",
        norm_num_groups=groups,
        attention_head_dim=head,
    )
