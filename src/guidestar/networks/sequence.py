"""A small transformer over sequences and vectors, conditioned by adaptive normalisation."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.forms import CHANNELS_LAST


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class SequenceAttention(nn.Module):
    """Attention of tokens to each other, or to a context of width ``context``."""

    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads, self.is_cross_attention = heads, context is not None
        self.query, self.key_value, self.out = (
            nn.Linear(width, width),
            nn.Linear(context or width, 2 * width),
            nn.Linear(width, width),
        )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``[B, L, width]``, returned in that shape, to the tokens that the mask keeps.

        The context is ``[B, M, context]``, its mask ``[B, M]``.
        """
        x, context, mask = hidden_states, encoder_hidden_states, attention_mask
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(x if context is None else context).chunk(2, -1)
        mixed = F.scaled_dot_product_attention(
            split(self.query(x)),
            split(key),
            split(value),
            attn_mask=None if mask is None else mask[:, None, None].bool(),
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class SequenceBlock(nn.Module):
    """``x += g₁ attend(norm(x)); x += g₂ mlp(norm(x))``, the identity before training.

    Shifts, scales and gates come from the embedding.
    """

    def __init__(self, width: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = SequenceAttention(width, heads)
        self.cross = SequenceAttention(width, heads, context) if context else None
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        if self.cross is not None:
            nn.init.zeros_(self.cross.out.weight)
            nn.init.zeros_(self.cross.out.bias)

    def forward(
        self, hidden_states: Tensor, emb: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Return tokens ``[B, L, width]`` like those given."""
        x = hidden_states
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(emb)).chunk(6, -1)
        x = x + gate1[:, None] * self.attention(_modulate(self.norm1(x), shift1, scale1))
        if self.cross is not None and context is not None:
            x = x + self.cross(x, context, mask)
        return x + gate2[:, None] * self.mlp(_modulate(self.norm2(x), shift2, scale2))


class SequenceTransformer(ModelMixin, ConfigMixin):
    """Predict from sequences ``[B, T, C]`` or vectors ``[B, C]`` (one token), as DiT from images.

    Args:
        channels: C.
        length: T; None for vectors.
        width: of a token.
        depth: blocks.
        heads: of attention.
        patch: frames that make one token; T must be a multiple.
        cross_attention_dim: width of ``encoder_hidden_states``; None without them.

    References:
        Scalable Diffusion Models with Transformers, https://arxiv.org/abs/2212.09748
    """

    form = CHANNELS_LAST

    @register_to_config
    def __init__(
        self,
        channels: int,
        length: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch: int = 1,
        cross_attention_dim: int | None = None,
    ) -> None:
        super().__init__()
        if (length or 1) % patch or width % heads:
            raise ValueError(
                f"a length of {length} must be a multiple of patch ({patch}), and the width "
                f"{width} of heads ({heads})"
            )
        self.patch, self.condition_width = patch, width
        self.inward = nn.Linear(patch * channels, width)
        self.position = nn.Parameter(torch.randn((length or 1) // patch, width) * 0.02)
        self.frequencies = Timesteps(width, True, 0)
        self.time = TimestepEmbedding(width, width)
        self.blocks = nn.ModuleList(
            SequenceBlock(width, heads, cross_attention_dim) for _ in range(depth)
        )
        self.norm, self.modulation, self.outward = (
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Linear(width, 2 * width),
            nn.Linear(width, patch * channels),
        )
        for layer in (self.modulation, self.outward):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return a tensor like ``x``.

        Args:
            x: ``[B, T, C]`` or ``[B, C]``.
            timestep: ``[B]``.
            class_labels: an embedding ``[B, width]`` (`condition_width`).
            encoder_hidden_states: ``[B, L, E]``, attended to.
            encoder_attention_mask: ``[B, L]``, 1 where a state counts.
        """
        emb = self.time(self.frequencies(timestep.expand(len(x))).to(x.dtype))
        emb = emb if class_labels is None else emb + class_labels
        h = self.inward(x.reshape(len(x), -1, self.patch * x.shape[-1])) + self.position
        for block in self.blocks:
            h = block(h, emb, encoder_hidden_states, encoder_attention_mask)
        shift, scale = self.modulation(F.silu(emb)).chunk(2, -1)
        return self.outward(_modulate(self.norm(h), shift, scale)).reshape(x.shape)
