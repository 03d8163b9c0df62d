"""The text encoder of a model of prompts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ...core.denoiser import Condition
from ...networks.caption_tokens import tokens, warn_of_cuts
from ...networks.clip import masked
from ..objects import Tokenizer, Tower


class TextEncoder(nn.Module):
    """CLIP's text encoder, as Stable Diffusion uses it: ``encoder_hidden_states [B, 77, D]``.

    Prompts are padded and cut to the tokenizer's full length, so that all conditions have one
    shape; the null is the encoding of "".

    Args:
        text: transformers' CLIPTextModel, or CLIPTextModelWithProjection.
        tokenizer: its tokenizer.
        layer: which of its layers is read: "last", or "penultimate" (with the last norm, as
            Diffusers' ``clip_skip=1``).
        output: "states" of all tokens; "pooled": the one at the end, ``[B, 1, D]``; or
            "projected": CLIP's embedding of the caption, ``[B, 1, D]``, whose null is the zero
            vector (as of the motion diffusion model).
        mask: also pass the mask of padding to the network (``encoder_attention_mask [B, 77]``).
    """

    def __init__(
        self,
        text: Tower,
        tokenizer: Tokenizer,
        *,
        layer: str = "last",
        output: str = "states",
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.text, self.tokenizer = text, tokenizer
        self.layer, self.output, self.mask = layer, output, mask
        self.width = int(text.config.hidden_size)
        if output == "projected":
            if not hasattr(text, "text_projection"):
                raise ValueError(
                    'output = "projected" needs CLIP with its projection '
                    f"(CLIPTextModelWithProjection), not a {type(text).__name__}"
                )
            self.width = int(text.config.projection_dim)

    @property
    def settings(self) -> dict[str, str | bool]:
        """Its settings beside the weights, for its config.json."""
        return {"layer": self.layer, "output": self.output, "mask": self.mask}

    def rows(self, values: Sequence[str]) -> Tensor:
        """Return the tokens of captions and their mask, ``[B, 2, 77]``, int64.

        Of "projected" the mask of an empty caption is 0 everywhere, which makes it the null.
        """
        rows = tokens(self.tokenizer, values)
        if self.output == "projected":
            rows[[not v for v in values], 1] = 0
        return rows

    def null_row(self) -> Tensor:
        """Return the tokens of ""."""
        return self.rows([""])[0]

    def parse(self, name: str | int) -> str:
        """Take a caption as it is.

        Raises:
            ValueError: it holds control characters, or more than 10,000 characters.
        """
        return checked_prompt(name)

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Condition:
        """Encode tokens ``[B, 2, 77]``; the text encoder itself is never trained."""
        # As Stable Diffusion's pipeline: the padding is attended to unless the encoder's settings
        # say otherwise.
        out = self.text(
            rows[:, 0],
            attention_mask=rows[:, 1] if masked(self.text) else None,
            output_hidden_states=self.layer == "penultimate",
        )
        states = (
            out.last_hidden_state if self.layer == "last" else self._norm(out.hidden_states[-2])
        )
        if self.output == "projected":
            there = rows[:, 1].any(1, keepdim=True).to(out.text_embeds.dtype)
            return Condition(encoder_hidden_states=(out.text_embeds * there)[:, None])
        if self.output == "pooled":
            return Condition(
                encoder_hidden_states=states[torch.arange(len(rows)), self._end(rows)][:, None]
            )
        more: dict[str, Tensor] = {"encoder_attention_mask": rows[:, 1]} if self.mask else {}
        return Condition({"encoder_hidden_states": states, **more})

    def _norm(self, states: Tensor) -> Tensor:
        model = cast(nn.Module, getattr(self.text, "text_model", self.text))
        return model.get_submodule("final_layer_norm")(states)

    def _end(self, rows: Tensor) -> Tensor:
        """Return where each caption's end mark stands: the first of them, since padding may be the
        same token.
        """
        end = cast(int, self.tokenizer.eos_token_id)
        return rows[:, 0].eq(end).int().argmax(1)

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode prompts, one for each sample."""
        prompts = [self.parse(n) for n in names]
        warn_of_cuts(self.tokenizer, prompts)
        return self(self.rows(prompts).to(next(self.text.parameters()).device))

    def null(self, batch: int) -> Condition:
        """Return the encoding of "" for ``batch`` samples, or zeros."""
        row = self.null_row()[None].to(next(self.text.parameters()).device)
        return self(row).repeat(batch)


def checked_prompt(name: str | int) -> str:
    """Return a prompt as it is to be encoded.

    Raises:
        ValueError: it holds control characters, or more than 10,000 characters.
    """
    prompt = str(name)
    odd = next((c for c in prompt if unicodedata.category(c) == "Cc" and c not in "\t\n\r"), None)
    if odd is not None:
        raise ValueError(
            f"the prompt {prompt[:40]!r} holds the control character {odd!r}; take it out"
        )
    if len(prompt) > 10_000:
        raise ValueError(
            f"a prompt has at most 10,000 characters, not {len(prompt):,} ({prompt[:40]!r}…)"
        )
    return prompt
