"""The motion diffusion model's transformer encoder over the frames of a motion."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.forms import CHANNELS_LAST
from .sequence import SequenceAttention


def sines(places: Tensor, width: int) -> Tensor:
    """Return ``[N, width]``: ``sin(pω_k)`` and ``cos(pω_k)`` in turn, ``ω_k = 10000^(−2k/width)``.

    Args:
        places: p ``[N]``, whole or not.
        width: even.
    """
    k = torch.arange(0, width, 2, device=places.device, dtype=torch.float32)
    angles = places.float()[:, None] * torch.exp(k * (-math.log(10_000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class MotionBlock(nn.Module):
    """``x = norm(x + attend(x)); x = norm(x + W₂ gelu(W₁ x))``, as torch's TransformerEncoderLayer.

    Args:
        width: of a token.
        heads: of attention.
        inner: width between W₁ and W₂.
        dropout: of both sums and within the second.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = SequenceAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return tokens ``[B, L, width]``; the mask ``[B, L]`` is 1 where one is attended to."""
        x = hidden_states
        x = self.norm1(x + self.dropout(self.attention(x, attention_mask=attention_mask)))
        inner = self.linear2(self.dropout(F.gelu(self.linear1(x))))
        return self.norm2(x + self.dropout(inner))


class MotionTransformer(ModelMixin, ConfigMixin):
    """Predict a motion ``[B, T, C]``: a token for each frame, and one before them for time and
    condition.

    ``z = W₂ silu(W₁ sines(t)) + condition`` stands before the frames ``W x_k``; to all of them
    their places are added as sines. A text is a vector, of which the condition is a linear map;
    the zero vector stands for none. An action is an embedding that is added as it is. Unlike in the
    original, frames beyond a motion's length (``frame_mask``) are not attended to.

    Args:
        channels: C.
        length: T.
        width: of a token.
        depth: blocks.
        heads: of attention.
        inner: width within a block; by default twice ``width``.
        text_width: of ``encoder_hidden_states [B, 1, text_width]``; None without them.
        dropout: in training.

    References:
        Human Motion Diffusion Model, section 3, https://arxiv.org/abs/2209.14916
            Guy Tevet, Sigal Raab, Brian Gordon, Yonatan Shafir, Daniel Cohen-Or, Amit H. Bermano
    """

    form = CHANNELS_LAST

    @register_to_config
    def __init__(
        self,
        channels: int,
        length: int,
        width: int = 512,
        depth: int = 8,
        heads: int = 4,
        inner: int | None = None,
        text_width: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"the width {width} must be even and a multiple of heads ({heads})")
        self.condition_width = width
        self.inward, self.outward = nn.Linear(channels, width), nn.Linear(width, channels)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.text = nn.Linear(text_width, width) if text_width else None
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            MotionBlock(width, heads, inner or 2 * width, dropout) for _ in range(depth)
        )

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Return a tensor like ``x``.

        Args:
            x: ``[B, T, C]``.
            timestep: ``[B]``, of the noise's table.
            class_labels: an embedding ``[B, width]`` (`condition_width`).
            encoder_hidden_states: a text as a vector ``[B, 1, text_width]``.
            frame_mask: ``[B, T]``, 1 where a frame is of the motion.
        """
        width = self.condition_width
        first = self.time(sines(timestep.expand(len(x)), width).to(x.dtype))
        if class_labels is not None:
            first = first + class_labels
        if self.text is not None and encoder_hidden_states is not None:
            first = first + self.text(encoder_hidden_states[:, 0])
        h = torch.cat([first[:, None], self.inward(x)], 1)
        places = sines(torch.arange(h.shape[1], device=x.device), width)
        h = self.drop(h + places.to(h.dtype))
        mask = None if frame_mask is None else F.pad(frame_mask, (1, 0), value=1.0)
        for block in self.blocks:
            h = block(h, mask)
        return self.outward(h[:, 1:])
