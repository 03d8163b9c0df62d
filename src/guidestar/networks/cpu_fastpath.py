"""Faster forward passes of Diffusers' networks on the CPU, with the same results.

Between its convolutions a residual block of Diffusers allocates a tensor for every activation,
addition and scaling; without gradients these can happen in place. Its upsampling repeats every
pixel four times and then convolves, where most products are of the same pair of numbers; adding the
weights first needs fewer than half the multiplications. The same numbers up to the last bits.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)


def lay_out(network: nn.Module, form: torch.memory_format) -> None:
    """Lay the weights of convolutions out in memory: channels last, or contiguous."""
    network.to(memory_format=form)  # pyright: ignore[reportCallIssue]


def lean(network: Module) -> Module:
    """Let the plain blocks of ``network`` do without wasted work wherever no gradient is needed.

    Residual blocks work in place:
    ``h = conv2(silu(norm2(conv1(silu(norm1(x))) + W silu(temb))));  out = shortcut(x) + h``.
    Upsampling by two with a 3×3 convolution becomes four 2×2 convolutions of the small image.
    Blocks of other kinds (scale-shift norms, resampling, scaled outputs) stay as they are. Weights
    are laid out channels last, for which the CPU's convolutions are faster.
    """
    lay_out(network, torch.channels_last)
    for module in network.modules():
        if isinstance(module, ResnetBlock2D) and _is_plain(module):
            module.forward = MethodType(_forward, module)
        if isinstance(module, Upsample2D) and _is_plain_upsampling(module):
            module.forward = MethodType(_upsample, module)
    return network


def plain_attention(network: nn.Module) -> None:
    """Let a Diffusers network compute attention by plain products of matrices.

    On the CPU the backward pass of the fused kernel takes, for some tens of tokens, more time than
    all linear layers together; in bfloat16 a training step of a small transformer took 0.57 of the
    time without it, and one of a small U-Net 0.91.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    module: Any
    for module in network.modules():
        if type(getattr(module, "processor", None)) is AttnProcessor2_0:
            module.set_processor(AttnProcessor())


def _is_plain(block: ResnetBlock2D) -> bool:
    resamples = block.upsample is not None or block.downsample is not None
    usual = (
        block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.output_scale_factor == 1
    )
    return (
        usual
        and not resamples
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.time_emb_proj is not None
    )


def _forward(self: Any, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if torch.is_grad_enabled() or self.training:
        return ResnetBlock2D.forward(self, input_tensor, temb, *args, **kwargs)
    h = self.conv1(F.silu(self.norm1(input_tensor), inplace=True))
    h += self.time_emb_proj(F.silu(temb))[:, :, None, None]
    h = self.conv2(F.silu(self.norm2(h), inplace=True))
    return h.add_(input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor))


def _is_plain_upsampling(block: Upsample2D) -> bool:
    conv = (
        block.conv
        if block.use_conv
        and not block.use_conv_transpose
        and block.interpolate
        and block.norm is None
        else None
    )
    return type(conv) is nn.Conv2d and (
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    ) == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


# Which of three weights meet the same pixel of the small image: for the even and the odd pixels of
# the large one.
_MEET = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])


def _upsample(
    self: Any, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    x, size = hidden_states, (2 * hidden_states.shape[2], 2 * hidden_states.shape[3])
    if (
        torch.is_grad_enabled()
        or self.training
        or x.device.type != "cpu"
        or output_size not in (None, size)
    ):
        return Upsample2D.forward(self, x, output_size, *args, **kwargs)
    conv, meet, around = self.conv, _MEET.to(x), F.pad(x, (1, 1, 1, 1))
    weight = torch.einsum("apk,bql,oikl->aboipq", meet, meet, conv.weight)
    memory = (
        torch.channels_last
        if x.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )
    out = torch.empty((len(x), conv.out_channels, *size), dtype=x.dtype, memory_format=memory)
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        # out[2i + a, 2j + b] = Σ over p, q of weight[a, b, …, p, q] · x[i + a − 1 + p, j + b − 1 +
        # q]
        small = around[:, :, a : a + x.shape[2] + 1, b : b + x.shape[3] + 1]
        out[:, :, a::2, b::2] = F.conv2d(small, weight[a, b], conv.bias)
    return out
