"""Small random networks of each family, built on the spot, with conditions for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from guidestar import Condition, Level, Network
from guidestar.diffusers.read.network import Adapter
from guidestar.networks.cpu_fastpath import lean

BATCH, WORDS = 3, 5
LEVEL = Level(0.8, 0.6, 400.0)
SMALL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "in_channels": 2,
    "out_channels": 2,
}
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "patch_size": 2,
    "in_channels": 2,
    "sample_size": 8,
}


class FluxAdapter(nn.Module):
    """Packs pictures ``[B, C, H, W]`` into tokens of 2 × 2 pixels, as Flux takes them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        b, c, height, width = x.shape
        tokens = (
            x.reshape(b, c, height // 2, 2, width // 2, 2)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(b, -1, 4 * c)
        )
        rows, columns = torch.meshgrid(
            torch.arange(height // 2), torch.arange(width // 2), indexing="ij"
        )
        ids = torch.stack([0 * rows, rows, columns], -1).reshape(-1, 3).float()
        out = self.net(
            tokens, timestep=t / 1000, img_ids=ids, txt_ids=torch.zeros(WORDS, 3), **cond
        ).sample
        return (
            out.reshape(b, height // 2, width // 2, c, 2, 2)
            .permute(0, 3, 1, 4, 2, 5)
            .reshape(x.shape)
        )


def unet(seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**SMALL, **blocks, attention_head_dim=8, sample_size=8)


def text_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(
        **SMALL, **blocks, attention_head_dim=2, cross_attention_dim=8, sample_size=8
    )


def dit(layers: int = 3) -> DiTTransformer2DModel:
    torch.manual_seed(2)
    return DiTTransformer2DModel(
        **TRANSFORMER, out_channels=4, num_layers=layers, num_embeds_ada_norm=4
    )


def pixart() -> PixArtTransformer2DModel:
    torch.manual_seed(3)
    net = PixArtTransformer2DModel(
        **TRANSFORMER, out_channels=4, num_layers=3, cross_attention_dim=16, caption_channels=8
    )
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def sd3() -> SD3Transformer2DModel:
    torch.manual_seed(4)
    text = {
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 8,
    }
    return SD3Transformer2DModel(
        **TRANSFORMER,
        **text,
        out_channels=2,
        num_layers=3,
        qk_norm="rms_norm",
        dual_attention_layers=(1,),
    )


def flux() -> FluxTransformer2DModel:
    torch.manual_seed(5)
    text = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (2, 2, 4)}
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "patch_size": 1, "in_channels": 8}
    return FluxTransformer2DModel(**sizes, **text, num_layers=1, num_single_layers=2)


def draw(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(seed: int) -> dict[str, Tensor]:
    return {"encoder_hidden_states": draw(BATCH, WORDS, 8, seed=seed)}


def masked_words(seed: int) -> dict[str, Tensor]:
    return {
        **words(seed),
        "encoder_attention_mask": (
            torch.arange(WORDS) < torch.tensor([[5], [3], [2]]) - seed % 2
        ).float(),
    }


def pooled_words(seed: int) -> dict[str, Tensor]:
    return {**words(seed), "pooled_projections": draw(BATCH, 8, seed=seed + 50)}


@dataclass
class Family:
    net: Any
    cond: Any = lambda seed: {}
    size: tuple[int, int] = (8, 8)
    adapter: Any = Adapter

    @property
    def denoiser(self) -> Network:
        return Network(
            self.adapter(self.net),
            predicts="v",
            learned_variance=getattr(self.net.config, "out_channels", 2) == 4,
        )

    def x(self, seed: int = 7) -> Tensor:
        return draw(BATCH, 2, *self.size, seed=seed)

    def given(self, seed: int = 11) -> Condition:
        return Condition(self.cond(seed))


def labels(seed: int) -> dict[str, Tensor]:
    return {"class_labels": torch.tensor([2, 0, 1]) if seed == 11 else torch.full((BATCH,), 4)}


MAKE = {
    "unet": lambda: Family(unet(), size=(8, 12)),
    "lean": lambda: Family(lean(unet()), size=(8, 12)),
    "text": lambda: Family(text_unet(), words, (8, 12)),
    "dit": lambda: Family(dit(), labels),
    "pixart": lambda: Family(pixart(), masked_words),
    "sd3": lambda: Family(sd3(), pooled_words),
    "flux": lambda: Family(flux(), pooled_words, (8, 12), FluxAdapter),
}


def family(name: str) -> Family:
    made = MAKE[name]()
    made.net.eval().requires_grad_(False)
    return made


@contextmanager
def counting(net: nn.Module) -> Iterator[list[int]]:
    """Collect how many rows each call of a network has."""
    rows: list[int] = []
    handle = net.register_forward_hook(
        lambda m, args, kwargs, out: rows.append(len(args[0])), with_kwargs=True
    )
    yield rows
    handle.remove()
