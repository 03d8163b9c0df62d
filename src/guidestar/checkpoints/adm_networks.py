"""ADM's networks: the U-Net of "Diffusion Models Beat GANs", and the classifier, half of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.levels import Level
from .adm_blocks import (
    ADMDownsample,
    ADMUpsample,
    AttentionPool,
    Residual,
    SelfAttention,
    frequencies,
    run,
)
from .adm_layers import ADMLayers


class Heads(TypedDict):
    """How a layer of attention is split into heads (see `SelfAttention`)."""

    heads: int
    head: int | None
    new_order: bool


_MULTIPLES = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
"""Width of each resolution in units of ``num_channels``, by the size of the picture."""


@dataclass(frozen=True, kw_only=True)
class UNetSettings:
    """A diffusion network, by the flags of the original's scripts.

    Args:
        image_size: pixels of a side.
        num_channels: width of the first resolution.
        num_res_blocks: residual blocks at each resolution.
        channel_mult: width of each resolution in units of ``num_channels``; by default by the size.
        attention_resolutions: sides in pixels at which there is attention.
        num_heads: of attention, where ``num_head_channels`` is None.
        num_head_channels: width of a head.
        num_heads_upsample: heads on the way up, where they differ.
        classes: how many; None for an unconditional network.
        learn_sigma: it predicts its variance too.
        use_scale_shift_norm: the time scales and shifts the second norm, in place of being added
            before it.
        resblock_updown: residual blocks change the resolution, in place of convolutions.
        use_new_attention_order: queries, keys and values are split before the heads are.
        channels: of the picture.
        groups: of the group normalisations (32 in every published network).
    """

    image_size: int
    num_channels: int
    num_res_blocks: int = 2
    channel_mult: Sequence[float] | None = None
    attention_resolutions: Sequence[int] = (32, 16, 8)
    num_heads: int = 4
    num_head_channels: int | None = 64
    num_heads_upsample: int | None = None
    classes: int | None = 1000
    learn_sigma: bool = True
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False
    channels: int = 3
    groups: int = 32


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """A noise-aware classifier, by the flags of the original's scripts.

    Args:
        image_size: pixels of a side.
        width: of the first resolution.
        depth: residual blocks at each resolution.
        channel_mult: as in `UNetSettings`.
        attention_resolutions: as in `UNetSettings`.
        num_head_channels: width of a head.
        use_scale_shift_norm: as in `UNetSettings`.
        resblock_updown: as in `UNetSettings`.
        pool: how the picture becomes one vector: by attention, by its mean, or by the means of all
            blocks.
        classes: number of classes.
        channels: as in `UNetSettings`.
        groups: as in `UNetSettings`.
    """

    image_size: int
    width: int = 128
    depth: int = 2
    channel_mult: Sequence[float] | None = None
    attention_resolutions: Sequence[int] = (32, 16, 8)
    num_head_channels: int = 64
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = "attention"
    classes: int = 1000
    channels: int = 3
    groups: int = 32


class ADM(nn.Module):
    """The U-Net: ``net(x [B, C, H, W], t [B], class_labels [B]) -> [B, C or 2C, H, W]``.

    References:
        Diffusion Models Beat GANs on Image Synthesis, section 3, https://arxiv.org/abs/2105.05233
    """

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        s, make = settings, _Maker(settings.num_channels, settings)
        heads: Heads = {
            "heads": s.num_heads,
            "head": s.num_head_channels,
            "new_order": s.use_new_attention_order,
        }
        self.width, self.classes = s.num_channels, s.classes
        self.time_embed = _time_embed(s.num_channels)
        if s.classes is not None:
            self.label_emb = nn.Embedding(s.classes, 4 * s.num_channels)
        self.input_blocks, skips = make.down(s.num_res_blocks, heads)
        self.middle_block = make.middle(heads)
        self.output_blocks = make.up(
            s.num_res_blocks, skips, {**heads, "heads": s.num_heads_upsample or s.num_heads}
        )
        self.out = nn.Sequential(
            nn.GroupNorm(s.groups, make.width),
            nn.SiLU(),
            nn.Conv2d(make.first, s.channels * (2 if s.learn_sigma else 1), 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Predict the noise (and the variance) in ``x`` at times ``t``, indices of the table of
        betas.
        """
        if (class_labels is None) != (self.classes is None):
            raise ValueError(
                f"this network {'takes no' if self.classes is None else 'takes a'} class, "
                f"but class_labels were {'given' if self.classes is None else 'not given'}"
            )
        emb = self.time_embed(frequencies(t, self.width).to(x.dtype))
        emb = emb if class_labels is None else emb + self.label_emb(class_labels)
        skips = []
        for block in self.input_blocks:
            x = run(block, x, emb)
            skips.append(x)
        x = run(self.middle_block, x, emb)
        for block in self.output_blocks:
            x = run(block, torch.cat([x, skips.pop()], 1), emb)
        return self.out(x)

    def layers(self) -> ADMLayers:
        """Return its layers, which perturbations change."""
        return ADMLayers(self)


class ADMClassifier(nn.Module):
    """The half U-Net with a head: ``log_prob(x, level, target)``, for `classifier`; logits by
    ``net(x, t)``.

    It takes the index of the table of betas it was trained on: use it with a model of the same
    table.
    """

    def __init__(self, settings: ClassifierSettings) -> None:
        super().__init__()
        s, make = settings, _Maker(settings.width, settings)
        heads: Heads = {"heads": 1, "head": s.num_head_channels, "new_order": False}
        self.width, self.pool, self.config = s.width, s.pool, {"classes": tuple(range(s.classes))}
        self.time_embed = _time_embed(s.width)
        self.input_blocks, skips = make.down(s.depth, heads)
        self.middle_block = make.middle(heads)
        self.out = _head(s, make.width, make.scale, sum(skips) + make.width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits ``[B, K]``."""
        emb, means = self.time_embed(frequencies(t, self.width).to(x.dtype)), []
        for block in [*self.input_blocks, self.middle_block]:
            x = run(block, x, emb)
            means.append(x.mean((2, 3)))
        return self.out(torch.cat(means, 1) if self.pool.startswith("spatial") else x)

    def log_prob(self, x: Tensor, level: Level | None, target: Tensor) -> Tensor:
        """Return ``log p(target | x, level)``, ``[B]``."""
        if level is None:
            raise ValueError("a noise-aware classifier needs the noise level; give the level of x")
        t = torch.as_tensor(level.t, dtype=torch.float32).expand(len(x)).to(x.device)
        logits = self(x.to(next(self.parameters()).dtype), t)
        return F.log_softmax(logits, 1).gather(1, target.to(x.device)[:, None])[:, 0]


def _time_embed(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))


def _head(s: ClassifierSettings, width: int, scale: int, features: int) -> nn.Sequential:
    if s.pool == "attention":
        return nn.Sequential(
            nn.GroupNorm(s.groups, width),
            nn.SiLU(),
            AttentionPool(s.image_size // scale, width, s.num_head_channels, s.classes),
        )
    if s.pool == "adaptive":
        return nn.Sequential(
            nn.GroupNorm(s.groups, width),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, s.classes, 1),
            nn.Flatten(),
        )
    if s.pool == "spatial":
        return nn.Sequential(nn.Linear(features, 2048), nn.ReLU(), nn.Linear(2048, s.classes))
    if s.pool == "spatial_v2":
        return nn.Sequential(
            nn.Linear(features, 2048),
            nn.GroupNorm(s.groups, 2048),
            nn.SiLU(),
            nn.Linear(2048, s.classes),
        )
    raise ValueError(f"the pool must be attention, adaptive, spatial or spatial_v2, not {s.pool!r}")


class _Maker:
    """Make the blocks of a network in their order, and keep its current width and scale."""

    def __init__(self, channels: int, settings: UNetSettings | ClassifierSettings) -> None:
        multiples = settings.channel_mult or _MULTIPLES.get(settings.image_size)
        if multiples is None:
            raise ValueError(
                f"the widths of a network for {settings.image_size} pixels are not known; give "
                "channel_mult="
            )
        self.s, self.time = settings, 4 * channels
        self.widths = [int(m * channels) for m in multiples]
        self.first = self.width = self.widths[0]
        self.scale = 1

    def down(self, count: int, heads: Heads) -> tuple[nn.ModuleList, list[int]]:
        """Make the way down, and return the width after each of its blocks."""
        blocks, skips = (
            nn.ModuleList([nn.ModuleList([nn.Conv2d(self.s.channels, self.width, 3, padding=1)])]),
            [self.width],
        )
        for level, width in enumerate(self.widths):
            for _ in range(count):
                blocks.append(self._level(self.width, width, heads))
                skips.append(width)
            if level != len(self.widths) - 1:
                blocks.append(nn.ModuleList([self._resize("down")]))
                skips.append(width)
                self.scale *= 2
        return blocks, skips

    def middle(self, heads: Heads) -> nn.ModuleList:
        return nn.ModuleList(
            [
                self._residual(self.width, self.width),
                SelfAttention(self.width, groups=self.s.groups, **heads),
                self._residual(self.width, self.width),
            ]
        )

    def up(self, count: int, skips: list[int], heads: Heads) -> nn.ModuleList:
        """Make the way up, whose blocks also get the outputs of the way down."""
        blocks, skips = nn.ModuleList(), list(skips)
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(count + 1):
                block = self._level(self.width + skips.pop(), width, heads)
                if level and i == count:
                    block.append(self._resize("up"))
                    self.scale //= 2
                blocks.append(block)
        return blocks

    def _level(self, inputs: int, width: int, heads: Heads) -> nn.ModuleList:
        block = nn.ModuleList([self._residual(inputs, width)])
        self.width = width
        if self.scale in {self.s.image_size // r for r in self.s.attention_resolutions}:
            block.append(SelfAttention(width, groups=self.s.groups, **heads))
        return block

    def _residual(
        self, inputs: int, outputs: int, resize: Literal["up", "down"] | None = None
    ) -> Residual:
        return Residual(
            inputs,
            outputs,
            self.time,
            scale_shift=self.s.use_scale_shift_norm,
            resize=resize,
            groups=self.s.groups,
        )

    def _resize(self, way: Literal["up", "down"]) -> nn.Module:
        if self.s.resblock_updown:
            return self._residual(self.width, self.width, way)
        return ADMUpsample(self.width) if way == "up" else ADMDownsample(self.width)
