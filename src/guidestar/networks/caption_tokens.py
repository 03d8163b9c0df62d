"""Captions as tokens of transformers' tokenizers, and tokenizers that are trained on captions."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..io.documents import JSONObject


class CaptionTokenizer(Protocol):
    """A tokenizer of transformers, as far as CLIP uses it."""

    model_max_length: int

    def __call__(self, text: Any, **settings: Any) -> Any:
        """Return the tokens (``input_ids``) and mask (``attention_mask``) of texts."""
        ...

    def decode(self, token_ids: Any) -> Any:
        """Return the text of tokens."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return the index of each token."""
        ...


TOKENIZING = threading.Lock()
"""Held while captions become tokens: a tokenizer of transformers holds its padding and truncation
as state, so two threads must not use it at the same time.
"""


def tokens(tokenizer: CaptionTokenizer, captions: Sequence[str]) -> Tensor:
    """Return captions' tokens and mask ``[B, 2, L]``, int64, padded or cut to the full length."""
    length = tokenizer.model_max_length
    with TOKENIZING:
        found = tokenizer(
            [str(c) for c in captions],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
    return torch.stack([found.input_ids, found.attention_mask], dim=1)


def warn_of_cuts(
    tokenizer: CaptionTokenizer, captions: Sequence[str], length: int | None = None
) -> None:
    """Warn of each prompt longer than ``length``, with the words after which it is cut.

    The default length is the tokenizer's full length.
    """
    most = int(length or tokenizer.model_max_length)
    for caption in dict.fromkeys(captions):
        if len(caption) < most - 1:  # a token is a character at least
            continue
        with TOKENIZING:
            every = tokenizer(caption, truncation=False, verbose=False).input_ids
        if len(every) > most:
            kept = " ".join(tokenizer.decode(every[1 : most - 1]).split())
            warnings.warn(
                f"the prompt is longer than the {most} tokens that the text encoder takes; it "
                f"was cut after {kept[-40:].strip()!r}",
                stacklevel=2,
            )


def make_tokenizer(captions: Sequence[str], *, vocabulary: int, length: int) -> Any:
    """Train a CLIPTokenizer's byte pairs on captions; any text can be encoded, as bytes if need be.

    Args:
        captions: texts.
        vocabulary: how many tokens, at least 514 (each byte, within a word and at its end, and two
            marks).
        length: tokens of a caption, with its two marks.
    """
    from tokenizers import trainers
    from transformers import CLIPTokenizer

    if vocabulary < 514:
        raise ValueError(
            "a vocabulary holds each byte twice and two marks: at least 514 tokens, not "
            f"{vocabulary}"
        )
    bare = CLIPTokenizer()
    alphabet = sorted(_bytes())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2 - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bare.backend_tokenizer.train_from_iterator(iter(captions), trainer)
    merges = [tuple(m) for m in _model(bare)["merges"]]
    words = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    vocab = {
        w: i for i, w in enumerate(dict.fromkeys([*words, "<|startoftext|>", "<|endoftext|>"]))
    }
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)  # type: ignore[arg-type]


def _bytes() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def _model(tokenizer: Any) -> JSONObject:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]
