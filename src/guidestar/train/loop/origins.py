"""Digests of the text encoders, tokenizers and VAEs that a part's training reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...diffusers.read.text_encoder import TextEncoder
from ...networks.caption_tokens import CaptionTokenizer
from ...networks.clip import CLIP
from ...networks.conditional import ConditionalModel
from ..recipe.schema import Recipe


def read_origins(
    recipe: Recipe, part: str, module: nn.Module, vae: Path | None = None
) -> dict[str, str]:
    """Return digests of what a part reads from elsewhere, by name, for its checkpoint.

    With another VAE, tokenizer or text encoder a training cannot go on, as latents and tokens
    differ.

    Args:
        recipe: the recipe.
        part: the part that is trained.
        module: the part's network, with the weights that it starts from.
        vae: folder of the autoencoder whose latents it learns.
    """
    found = {} if vae is None else {"data.vae (its files)": of_files(vae)}
    for name, encoder in _texts(recipe, part, module):
        found[f"{name} (its tokenizer)"] = of_tokenizer(encoder.tokenizer)
        frozen = not any(p.requires_grad for p in encoder.text.parameters())
        if frozen:  # else it is trained itself
            found[f"{name} (its text encoder)"] = of_tensors(encoder.text.state_dict())
    return found


def _texts(recipe: Recipe, part: str, module: nn.Module) -> list[tuple[str, CLIP | TextEncoder]]:
    """Return the text towers of a part, by the keys of the recipe."""
    if isinstance(module, CLIP):
        return [(part, module)]
    if not isinstance(module, ConditionalModel):
        return []
    parts = module.encoder.parts.items()
    return [(f"conditions.{n}.encoder", p) for n, p in parts if isinstance(p, TextEncoder)]


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors, by their names."""
    return _digest(
        piece
        for name, t in sorted(tensors.items())
        for piece in (
            f"{name} {t.dtype} {tuple(t.shape)}".encode(),
            t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(),
        )
    )


def of_tokenizer(tokenizer: CaptionTokenizer) -> str:
    """Return a digest of the vocabulary, and of the tokens of a sentence."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    probe = "A red coat, 2 boots & café – naïve; the quick brown fox jumps over a lazy dog!"
    length = str(tokenizer.model_max_length).encode()
    return _digest([vocabulary, json.dumps(list(tokenizer(probe)["input_ids"])).encode(), length])


def of_files(folder: Path) -> str:
    """Return a digest of a folder's settings and weights."""
    files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors"))
    return _digest(piece for f in files for piece in (f.name.encode(), f.read_bytes()))


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
