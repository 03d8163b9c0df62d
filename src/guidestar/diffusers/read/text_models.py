"""Read CLIP's and T5's text models from a folder, with their tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...io.documents import shown
from ..objects import Tokenizer, Tower
from .safetensors_io import encoder_settings
from .towers import architectures, build_tower, fitting, open_tokenizer, read_tokenizer, renamed


class ClipText(nn.Module):
    """One of CLIP's text encoders with its tokenizer, as SDXL, SD3 and Flux read it."""

    def __init__(self, text: Tower, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.text, self.tokenizer = text, tokenizer

    def forward(self, prompts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the states before the last layer ``[B, L, D]``, without its norm, and the pooled
        embedding ``[B, E]``.
        """
        length = length or self.tokenizer.model_max_length
        rows = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        out = self.text(rows.to(next(self.text.parameters()).device), output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds if hasattr(
            out, "text_embeds"
        ) else out.pooler_output


class T5Text(nn.Module):
    """T5's encoder with its tokenizer; captions are padded or cut to ``length`` tokens."""

    def __init__(self, text: Tower, tokenizer: Tokenizer, length: int) -> None:
        super().__init__()
        self.text, self.tokenizer, self.length = text, tokenizer, length

    def forward(self, prompts: Sequence[str], *, masked: bool = False) -> tuple[Tensor, Tensor]:
        """Return the states ``[B, L, D]``, and the mask ``[B, L]``, which T5 itself attends by if
        ``masked``.
        """
        found = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        device = next(self.text.parameters()).device
        mask = found.attention_mask.to(device)
        return self.text(found.input_ids.to(device), attention_mask=mask if masked else None)[
            0
        ], mask


def read_clip_text(folder: Path, part: str, dtype: torch.dtype) -> ClipText:
    """Read ``text_encoder{part}/`` and ``tokenizer{part}/``, which are CLIP's.

    Raises:
        ValueError: a file is missing or damaged; it is named.
    """
    text, home = (
        read_text_model(folder / f"text_encoder{part}", "CLIPText", dtype),
        folder / f"tokenizer{part}",
    )
    return ClipText(text, fitting(read_tokenizer(home), text, home))


def read_t5_text(folder: Path, part: str, length: int, dtype: torch.dtype) -> T5Text:
    """Read ``text_encoder{part}/`` and ``tokenizer{part}/``, which are T5's.

    Raises:
        ValueError: a file is missing or damaged; it is named.
    """
    text, home = (
        read_text_model(folder / f"text_encoder{part}", "T5", dtype),
        folder / f"tokenizer{part}",
    )
    return T5Text(text, fitting(_t5_tokenizer(home), text, home), length)


def read_text_model(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Tower:
    """Read a text encoder of transformers, of the class that its config.json names.

    Args:
        folder: holds config.json and model.safetensors, or its shards.
        kind: what the name of its class must begin with.
        dtype: of its parameters.

    Raises:
        ValueError: a file is missing or damaged, or the encoder is of another kind; the file is
            named.
    """
    file = folder / "config.json"
    about = encoder_settings(file)
    name = next(iter(architectures(file, about)), None)
    if name is None or name not in _KINDS or not name.startswith(kind):
        raise ValueError(
            f"{file}: the text encoder {shown(name)} is not one that this pipeline has; expected "
            f"{kind}…"
        )
    return build_tower(
        file, about, name, dtype, names=lambda module, tensors: _rename(name, module, tensors)
    )


_KINDS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")


def _rename(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if name != "T5EncoderModel":
        return renamed(tensors, module)
    if "shared.weight" in tensors:
        tensors.setdefault(
            "encoder.embed_tokens.weight", tensors["shared.weight"]
        )  # one table, of two names
    return tensors


def _t5_tokenizer(folder: Path) -> Tokenizer:
    import transformers

    kind: type[Tokenizer] = getattr(transformers, "T5TokenizerFast")  # noqa: B009  (loaded lazily)
    if not any((folder / n).is_file() for n in ("tokenizer.json", "spiece.model")):
        raise ValueError(
            f"{folder}: holds no tokenizer (tokenizer.json or spiece.model); copy it from where "
            "the T5 came from"
        )
    try:
        return open_tokenizer(kind, folder, "not readable as T5's tokenizer")
    except ValueError as error:
        more = (
            ""
            if (folder / "tokenizer.json").is_file()
            else "; a spiece.model needs: pip install sentencepiece protobuf"
        )
        raise ValueError(f"{error}{more}") from error
