"""The text encoders of Diffusers' pipelines: SDXL's two, SD3's three, Flux's two, and T5 as PixArt
reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...core.denoiser import Condition
from ...networks.caption_tokens import warn_of_cuts
from ..objects import Tokenizer
from .text_encoder import checked_prompt
from .text_models import ClipText, T5Text


class PromptEncoder(nn.Module, ABC):
    """Turns prompts into the conditions of a pipeline's network, as the pipeline does.

    The null is what the pipeline uses where no negative prompt is given.
    """

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that decides how long a prompt may be."""

    @property
    def length(self) -> int | None:
        """How many tokens a prompt may have; by default the tokenizer's length."""
        return None

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of prompts."""

    def parse(self, name: str | int) -> str:
        """Take a prompt as it is.

        Raises:
            ValueError: it holds control characters, or more than 10,000 characters.
        """
        return checked_prompt(name)

    @torch.no_grad()
    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode prompts, one for each sample; warn where one is too long."""
        prompts = [self.parse(n) for n in names]
        warn_of_cuts(self.tokenizer, prompts, self.length)
        return self.encode_prompts(prompts)

    def null(self, batch: int) -> Condition:
        """Return the null for ``batch`` samples: the encoding of ""."""
        return self.encode([""]).repeat(batch)


class SDXLText(PromptEncoder):
    """SDXL's: ``encoder_hidden_states [B, 77, D₁ + D₂]``, ``text_embeds [B, E]``,
    ``time_ids [B, 6]``.

    Args:
        first: CLIP's first text encoder.
        second: CLIP's second text encoder, which gives the pooled embedding.
        size: height and width in pixels, passed to the network as ``time_ids``: (H, W, 0, 0, H, W).
        zeros: the null, and so the encoding of "", is all zeros (force_zeros_for_empty_prompt).

    References:
        SDXL, section 2.2, https://arxiv.org/abs/2307.01952
    """

    def __init__(
        self, first: ClipText, second: ClipText, *, size: tuple[int, int], zeros: bool = True
    ) -> None:
        super().__init__()
        self.first, self.second, self.size, self.zeros = first, second, size, zeros

    @property
    def tokenizer(self) -> Tokenizer:
        return self.first.tokenizer

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        (a, _), (b, pooled) = self.first(prompts), self.second(prompts)
        states = torch.cat([a, b], -1)
        if self.zeros:
            empty = torch.tensor([p == "" for p in prompts], device=states.device)
            states, pooled = (
                states.masked_fill(empty[:, None, None], 0),
                pooled.masked_fill(empty[:, None], 0),
            )
        ids = (
            torch.tensor([[*self.size, 0, 0, *self.size]], device=states.device)
            .to(states)
            .expand(len(states), -1)
        )
        return Condition(encoder_hidden_states=states, text_embeds=pooled, time_ids=ids)


class SD3Text(PromptEncoder):
    """Stable Diffusion 3's: ``encoder_hidden_states [B, 77 + L, W]`` and
    ``pooled_projections [B, E₁ + E₂]``.

    Args:
        first, second: CLIP's text encoders; their states lie side by side, filled up with zeros to
            T5's width.
        third: T5, whose states follow; None: zeros in their place.
        width: of the states (joint_attention_dim).
        third_length: tokens of T5's part.

    References:
        Scaling Rectified Flow Transformers, section 4, https://arxiv.org/abs/2403.03206
    """

    def __init__(
        self,
        first: ClipText,
        second: ClipText,
        third: T5Text | None,
        *,
        width: int,
        third_length: int = 256,
    ) -> None:
        super().__init__()
        self.first, self.second, self.third, self.width, self.third_length = (
            first,
            second,
            third,
            width,
            third_length,
        )

    @property
    def tokenizer(self) -> Tokenizer:
        return self.third.tokenizer if self.third else self.first.tokenizer

    @property
    def length(self) -> int | None:
        return self.third.length if self.third else None

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        length = self.first.tokenizer.model_max_length
        (a, pooled), (b, pooled_2) = self.first(prompts, length), self.second(prompts, length)
        clip = torch.cat([a, b], -1)
        t5 = (
            self.third(prompts)[0].to(clip)
            if self.third
            else clip.new_zeros(len(clip), self.third_length, self.width)
        )
        states = torch.cat([F.pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5], 1)
        return Condition(
            encoder_hidden_states=states, pooled_projections=torch.cat([pooled, pooled_2], -1)
        )


class FluxText(PromptEncoder):
    """Flux's: ``encoder_hidden_states [B, L, D]`` of T5, ``pooled_projections [B, E]`` of CLIP,
    ``guidance [B]``.

    Args:
        first: CLIP's text encoder.
        second: T5.
        distilled: the scale that a guidance-distilled network takes, 3.5 in the pipeline; None
            for one that takes none. May be set at any time; our guidance comes on top of it
            (the pipeline's true_cfg_scale).
    """

    def __init__(self, first: ClipText, second: T5Text, *, distilled: float | None = None) -> None:
        super().__init__()
        self.first, self.second, self.distilled = first, second, distilled

    @property
    def tokenizer(self) -> Tokenizer:
        return self.second.tokenizer

    @property
    def length(self) -> int | None:
        return self.second.length

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        pooled, states = self.first(prompts)[1], self.second(prompts)[0]
        more = (
            {}
            if self.distilled is None
            else {"guidance": states.new_full((len(states),), self.distilled)}
        )
        return Condition(encoder_hidden_states=states, pooled_projections=pooled, **more)


class PixArtText(PromptEncoder):
    """PixArt's: ``encoder_hidden_states [B, L, D]`` of T5 with ``encoder_attention_mask [B, L]``,
    of captions in small letters.

    Args:
        only: T5.
        size: height and width in pixels, for a network that takes them (``resolution``,
            ``aspect_ratio``); else None.

    References:
        PixArt-α, https://arxiv.org/abs/2310.00426
    """

    def __init__(self, only: T5Text, *, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.only, self.size = only, size

    @property
    def tokenizer(self) -> Tokenizer:
        return self.only.tokenizer

    @property
    def length(self) -> int | None:
        return self.only.length

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        states, mask = self.only([p.lower().strip() for p in prompts], masked=True)
        cond = Condition(encoder_hidden_states=states, encoder_attention_mask=mask)
        if self.size is None:
            return cond
        sizes = {
            "resolution": [float(s) for s in self.size],
            "aspect_ratio": [self.size[0] / self.size[1]],
        }
        return Condition(
            {
                **cond,
                **{k: states.new_tensor([v]).expand(len(states), -1) for k, v in sizes.items()},
            }
        )
