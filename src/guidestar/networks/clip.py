"""CLIP: pictures and captions in one space; one for clean pictures, and a noise-aware one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.levels import Level, expand, inverse_or_zero
from .caption_tokens import tokens, warn_of_cuts


class Vision(nn.Module):
    """CLIP's image tower, over pictures ``[B, 3, H, W]`` in [−1, 1] of any size.

    A noise-aware one adds an embedding of ``sigma/(alpha + sigma)`` to every token.

    Args:
        tower: transformers' CLIPVisionModelWithProjection.
        noise_aware: takes the noise level too; its input is scaled to unit size.
        mean: of the pixels (in [0, 1]) that the tower expects.
        std: their standard deviation.
    """

    def __init__(
        self,
        tower: Any,
        *,
        noise_aware: bool = False,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.tower, self.noise_aware, self.mean, self.std = (
            tower,
            noise_aware,
            tuple(mean),
            tuple(std),
        )
        width = tower.config.hidden_size
        self.frequencies = Timesteps(width, True, 0)
        self.time = TimestepEmbedding(width, width) if noise_aware else None

    def forward(self, x: Tensor, level: Level | None = None) -> Tensor:
        """Return embeddings ``[B, D]``, not normalised; a noise-aware tower needs the level."""
        if self.time is None:
            return self.tower(pixel_values=self._pixels(x)).image_embeds
        if level is None:
            raise ValueError("a noise-aware CLIP needs the noise level; give the level of x")
        body = self.tower.vision_model
        share = torch.as_tensor(level.sigma, dtype=torch.float64) / (
            torch.as_tensor(level.alpha, dtype=torch.float64) + level.sigma
        )
        times = (1000 * share).expand(len(x)).to(x.device)
        tokens = body.embeddings(self._pixels(x * expand(inverse_or_zero(level.norm), x)))
        tokens = body.pre_layrnorm(
            tokens + self.time(self.frequencies(times).to(tokens.dtype))[:, None]
        )
        return self.tower.visual_projection(
            body.post_layernorm(body.encoder(inputs_embeds=tokens).last_hidden_state[:, 0])
        )

    def _pixels(self, x: Tensor) -> Tensor:
        """Bring pictures to the size and the units of the tower."""
        side, channels = self.tower.config.image_size, self.tower.config.num_channels
        if x.shape[1] != channels:
            raise ValueError(
                f"this CLIP takes samples of {channels} channels, not {x.shape[1]}"
                + ("; decode latents first" if channels == 3 else "")
            )
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bicubic", antialias=True)
        if self.mean == self.std == (0.5, 0.5, 0.5):
            return x
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device).view(-1, 1, 1)
            for v in (self.mean, self.std)
        )
        return ((x + 1) / 2 - mean) / std


class CLIP(nn.Module):
    """Score how well a picture fits a caption: ``exp(logit_scale)·⟨f(x), g(caption)⟩``.

    Both embeddings have unit length.

    Args:
        text: transformers' CLIPTextModelWithProjection.
        tokenizer: its tokenizer.
        vision: the image tower.
        log_scale: logarithm of the factor (CLIP starts at ln(1/0.07)).
        rho_max: noise ratio above which a noise-aware CLIP was found to know too little to guide.

    References:
        Learning Transferable Visual Models From Natural Language Supervision,
        https://arxiv.org/abs/2103.00020
        GLIDE (noise-aware CLIP), section 2.4, https://arxiv.org/abs/2112.10741
    """

    def __init__(
        self,
        text: Any,
        tokenizer: Any,
        vision: Vision,
        *,
        log_scale: float = math.log(1 / 0.07),
        rho_max: float | None = None,
    ) -> None:
        super().__init__()
        self.text, self.tokenizer, self.vision, self.rho_max = text, tokenizer, vision, rho_max
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    @property
    def noise_aware(self) -> bool:
        """Whether it needs the noise level."""
        return self.vision.noise_aware

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Return the tokens of captions and their mask, ``[B, 2, L]``, int64."""
        return tokens(self.tokenizer, captions)

    def embed_tokens(self, rows: Tensor) -> Tensor:
        """Embed tokens ``[B, 2, L]`` as unit vectors ``[B, D]``."""
        out = self.text(
            input_ids=rows[:, 0], attention_mask=rows[:, 1] if masked(self.text) else None
        )
        return F.normalize(out.text_embeds.float())

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Embed captions as unit vectors ``[n, D]``."""
        device = self.log_scale.device
        return torch.cat(
            [self.embed_tokens(self.tokens(part).to(device)) for part in _parts(captions, 256)]
        )

    def embed_text(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts as unit vectors ``[n, D]``; warn of each that is too long."""
        warn_of_cuts(self.tokenizer, prompts)
        return self.embed_captions(prompts)

    def embed_image(self, x: Tensor, level: Level | None = None) -> Tensor:
        """Embed pictures ``[B, 3, H, W]`` in [−1, 1] as unit vectors ``[B, D]``."""
        return F.normalize(self.vision(x.to(self.log_scale.dtype), level).float())

    def log_prob(self, x: Tensor, level: Level | None, target: Tensor) -> Tensor:
        """Return ``exp(logit_scale)·⟨f(x), target⟩`` ``[B]``, of captions' embeddings ``[B, D]``.

        A CLIP for clean pictures ignores the level and takes ``x`` as data.
        """
        image = self.embed_image(x, level if self.noise_aware else None)
        return self.log_scale.float().exp() * (image * target.to(image)).sum(-1)


def _parts(items: Sequence[str], size: int) -> Iterator[list[str]]:
    return (list(items[i : i + size]) for i in range(0, len(items), size))


def masked(text: Any) -> bool:
    """Return whether a text encoder masks padding in its attention."""
    return bool(getattr(text.config, "use_attention_mask", False))


def make_clip(
    tokenizer: Any,
    *,
    size: int,
    width: int,
    layers: int,
    heads: int,
    patch: int,
    text_width: int,
    text_layers: int,
    text_heads: int,
    embed: int,
) -> CLIP:
    """Make a fresh CLIP of transformers' towers.

    Args:
        tokenizer: of its captions.
        size: pixels of a side.
        width: of the image tower.
        layers: of the image tower.
        heads: of the image tower's attention.
        patch: pixels of a side of a patch.
        text_width: of the text tower.
        text_layers: of the text tower.
        text_heads: of the text tower's attention.
        embed: length of the embeddings.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    marks = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=text_layers,
        num_attention_heads=text_heads,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=embed,
        **marks,
    )
    text.use_attention_mask = True  # as networks that read its states do
    return CLIP(
        CLIPTextModelWithProjection(text),
        tokenizer,
        make_vision(size=size, width=width, layers=layers, heads=heads, patch=patch, embed=embed),
    )


def make_vision(
    *,
    size: int,
    width: int,
    layers: int,
    heads: int,
    patch: int,
    embed: int,
    channels: int = 3,
    noise_aware: bool = False,
) -> Vision:
    """Make a fresh image tower, also of latents of ``channels``; arguments as in `make_clip`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=size,
        patch_size=patch,
        projection_dim=embed,
        num_channels=channels,
    )
    return Vision(CLIPVisionModelWithProjection(config), noise_aware=noise_aware)
