"""A small CLIP text tower with its projection, in a folder."""

from __future__ import annotations

import torch


def save_clip(folder, width: int):
    """A CLIP's text tower with its projection, whose tokens are letters."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(words)}
    torch.manual_seed(4)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "vocab_size": len(vocab), "projection_dim": width}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **ends)).eval()
    text.save_pretrained(folder / "text_encoder")
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77).save_pretrained(folder / "tokenizer")
    return text
