"""The blocks of ADM's networks; parameters have the original's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.perturbation import Attention
from ..networks.perturbable.rows import AttentionChange, by_rows


def frequencies(t: Tensor, width: int) -> Tensor:
    """Return ``[cos(t f), sin(t f)]`` ``[B, width]``, ``f = 10000^(−k/half)``, k = 0 … half − 1."""
    half = width // 2
    f = torch.exp(
        -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angles = t.float()[:, None] * f
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, width % 2))


def run(block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    """Run the layers of a block; residual ones take the time embedding."""
    for layer in block.children():
        x = layer(x, emb) if isinstance(layer, Residual) else layer(x)
    return x


class ADMDownsample(nn.Module):
    """A convolution that halves the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ADMUpsample(nn.Module):
    """Every pixel four times, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_double(x))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Residual(nn.Module):
    """A residual block with a time embedding.

    It may halve or double the resolution between its first norm and convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        time: int,
        *,
        scale_shift: bool,
        resize: Literal["up", "down"] | None,
        groups: int,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(time, 2 * outputs if scale_shift else outputs)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, outputs),
            nn.SiLU(),
            nn.Dropout(0.0),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        sized = {None: lambda v: v, "up": _double, "down": lambda v: F.avg_pool2d(v, 2)}[
            self.resize
        ]
        h = self.in_layers[2](sized(self.in_layers[:2](x)))
        shifts = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shifts.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + shifts)
        return self.skip_connection(sized(x)) + h


def _heads(qkv: Tensor, heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``[B, 3C, T]`` into queries, keys and values ``[B, heads, T, C/heads]``."""
    batch, width, tokens = qkv.shape
    sizes = (3, heads) if new_order else (heads, 3)
    split = qkv.reshape(batch, *sizes, width // (3 * heads), tokens).transpose(-1, -2)
    q, k, v = split.unbind(1 if new_order else 2)
    return q, k, v


class SelfAttention(nn.Module):
    """Attention among the pixels, added to them."""

    def __init__(
        self, width: int, *, heads: int, head: int | None, new_order: bool, groups: int
    ) -> None:
        super().__init__()
        if head is not None and width % head:
            raise ValueError(
                f"a width of {width} has no heads of {head}; give another num_head_channels"
            )
        self.heads, self.new_order = heads if head is None else width // head, new_order
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attended(x)

    def attended(self, x: Tensor, changes: Sequence[AttentionChange] = ()) -> Tensor:
        """Return the layer's output, its attention changed in some rows."""
        batch, width, *sides = x.shape
        flat = x.reshape(batch, width, -1)
        q, k, v = _heads(self.qkv(self.norm(flat)), self.heads, self.new_order)
        out = (
            _change_attention(changes, q, k, v, tuple(sides))
            if changes
            else F.scaled_dot_product_attention(q, k, v)
        )
        return x + self.proj_out(out.transpose(-1, -2).reshape(batch, width, -1)).reshape(x.shape)


def _change_attention(
    changes: Sequence[AttentionChange], q: Tensor, k: Tensor, v: Tensor, sides: tuple[int, ...]
) -> Tensor:
    def answer(part: slice, attend: Callable[[Attention], Tensor]) -> Tensor:
        plain = lambda query: F.scaled_dot_product_attention(query, k[part], v[part])
        image = slice(0, q.shape[2])
        return attend(
            Attention(
                query=q[part],
                key=k[part],
                value=v[part],
                image=image,
                with_query=plain,
                find_grid=lambda: sides,
            )
        )

    return by_rows(changes, q, answer)


class AttentionPool(nn.Module):
    """Pooling by attention of the pixels' mean to all of them (CLIP's)."""

    def __init__(self, side: int, width: int, head: int, outputs: int) -> None:
        super().__init__()
        self.heads = width // head
        self.positional_embedding = nn.Parameter(torch.zeros(width, side * side + 1))
        self.qkv_proj = nn.Conv1d(width, 3 * width, 1)
        self.c_proj = nn.Conv1d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], 2) + self.positional_embedding
        q, k, v = _heads(self.qkv_proj(x), self.heads, True)
        out = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the mean is a query
        return self.c_proj(out.transpose(-1, -2).reshape(len(x), -1, 1))[:, :, 0]
