"""The classes of known networks, and which of their modules are layers of which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ...core.perturbation import LayerKind
from ..motion import MotionBlock, MotionTransformer
from ..sequence import SequenceAttention, SequenceBlock, SequenceTransformer
from .joint_attention import BLOCKS

UNETS = (UNet2DModel, UNet2DConditionModel)

JOINT_NETS = (SD3Transformer2DModel, FluxTransformer2DModel)

KNOWN_NETWORKS = (
    *UNETS,
    DiTTransformer2DModel,
    PixArtTransformer2DModel,
    *JOINT_NETS,
    SequenceTransformer,
    MotionTransformer,
)

OF_SEQUENCES = (SequenceTransformer, MotionTransformer)


def _is_self_attention(m: nn.Module) -> bool:
    return isinstance(m, FluxAttention) or (
        isinstance(m, DiffusersAttention | SequenceAttention) and not m.is_cross_attention
    )


def _is_cross_attention(m: nn.Module) -> bool:
    """Return whether the text of this attention can be exchanged: cross- or joint attention."""
    if not isinstance(m, DiffusersAttention):
        return isinstance(m, FluxAttention) or (
            isinstance(m, SequenceAttention) and m.is_cross_attention
        )
    return m.context_pre_only is not None or (m.is_cross_attention and m.added_kv_proj_dim is None)


def _is_block(m: nn.Module) -> bool:
    """Return whether a module can be skipped, since it adds to its input.

    Residual blocks of U-Nets cannot: they change the width.
    """
    return isinstance(m, (BasicTransformerBlock, SequenceBlock, MotionBlock, *BLOCKS)) or (
        isinstance(m, DiffusersAttention) and m.residual_connection
    )


IS_OF_KIND: Mapping[LayerKind, Callable[[nn.Module], bool]] = {
    "attention": _is_self_attention,
    "cross": _is_cross_attention,
    "block": _is_block,
    "exchange": lambda m: False,
}

KIND_WORDS: Mapping[LayerKind, str] = {
    "attention": "layer of self-attention",
    "cross": "layer of attention to text that can be contrasted",
    "block": "block that can be skipped",
    "exchange": "layer of attention between video and sound",
}
