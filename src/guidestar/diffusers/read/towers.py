"""Read text and image encoders of transformers, and their tokenizers, from untrusted folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...io.documents import as_value_error, check_values, many, maybe, read_json, shown, text
from ..objects import Config, Tokenizer, Tower
from .safetensors_io import Rename, build_filled

_CONFIGS = {
    "CLIPTextModel": "CLIPTextConfig",
    "CLIPTextModelWithProjection": "CLIPTextConfig",
    "CLIPVisionModelWithProjection": "CLIPVisionConfig",
    "T5EncoderModel": "T5Config",
}
"""Encoders of transformers that are read, and the classes of their settings."""


def build_tower(
    file: Path,
    about: Config,
    kind: str,
    dtype: torch.dtype,
    names: Rename[Tower] = lambda _, tensors: tensors,
) -> Tower:
    """Build an encoder of transformers, and fill it with the weights in the folder of its settings.

    It is also called once without memory, so that wrong settings fail here and not later.

    Args:
        file: where the settings were found.
        about: they are.
        kind: its class.
        dtype: of its parameters.
        names: renames tensors (`build_filled`).

    Raises:
        ValueError: the settings are refused, or the weights missing, damaged or of other shapes.
    """
    import transformers

    def make() -> Tower:
        module = getattr(transformers, kind)(
            getattr(transformers, _CONFIGS[kind]).from_dict(dict(about))
        )
        if next(module.parameters()).is_meta:
            _try_call(module)
        return module

    refusal = f"{file}: {kind} refuses these settings"
    return build_filled(file, about, make, refusal, dtype, stem="model", names=names)


def _try_call(module: Tower) -> None:
    """Call an encoder without memory, as it will be called."""
    config = module.config
    with torch.no_grad():
        if hasattr(config, "image_size"):
            side = config.image_size
            module(pixel_values=torch.zeros(1, config.num_channels, side, side, device="meta"))
        else:
            ids = torch.zeros(
                1,
                min(4, getattr(config, "max_position_embeddings", 4)),
                dtype=torch.int64,
                device="meta",
            )
            module(ids)
            module(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)


def architectures(file: Path, about: Config) -> list[str]:
    """Return the classes that the settings of an encoder name.

    Raises:
        ValueError: they are no texts; the file is named.
    """
    check_values(file, about, {"architectures": maybe(many(text))})
    return list(about.get("architectures") or ())


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read CLIP's tokenizer from its folder.

    Raises:
        ValueError: it is missing or corrupt.
    """
    from transformers import CLIPTokenizer

    if not any((folder / n).is_file() for n in ("tokenizer.json", "vocab.json")):
        raise ValueError(
            f"{folder}: holds no tokenizer (tokenizer.json, or vocab.json and merges.txt); copy "
            "it from where the CLIP came from"
        )
    return open_tokenizer(CLIPTokenizer, folder, "not readable as a CLIPTokenizer")


_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def open_tokenizer(kind: type[Tokenizer], folder: Path, refusal: str) -> Tokenizer:
    """Read a tokenizer of transformers, and try it.

    Raises:
        ValueError: one of its files is no JSON (it is named), or it fails.
    """
    for file in (folder / name for name in _TOKENIZER if (folder / name).is_file()):
        read_json(file)
    with as_value_error(f"{folder}: {refusal}"):
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True)
        length = tokenizer.model_max_length
        if isinstance(length, bool) or not isinstance(length, int | float) or length < 2:
            raise ValueError(f"model_max_length must be a whole number from 2, not {shown(length)}")
        found = tokenizer(
            ["", "a b"], padding="max_length", max_length=8, truncation=True, return_tensors="pt"
        )
        tokenizer.decode(found.input_ids[1])
        _ = found.attention_mask + tokenizer.eos_token_id
    return tokenizer


def fitting(tokenizer: Tokenizer, encoder: Tower, folder: Path) -> Tokenizer:
    """Return a tokenizer that suits its text encoder.

    Raises:
        ValueError: it has more tokens than the encoder, or its texts are longer; the folder is
            named.
    """
    config, length = encoder.config, tokenizer.model_max_length
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and (length != int(length) or length > most):
        raise ValueError(
            f"{folder}: model_max_length must be a whole number up to the text encoder's {most} "
            f"positions, not {shown(length)}"
        )
    if (last := max(tokenizer.get_vocab().values())) >= config.vocab_size:
        raise ValueError(
            f"{folder}: it has a token of the number {last}, and the text encoder only "
            f"{config.vocab_size} tokens"
        )
    return tokenizer


def renamed(tensors: Mapping[str, Tensor], text: nn.Module) -> dict[str, Tensor]:
    """Name CLIP's tensors as this version of transformers does: 5 dropped a prefix, 4.31 the
    position ids.
    """
    prefix = "text_model."
    used = prefix if any(name.startswith(prefix) for name in text.state_dict()) else ""
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("embeddings.position_ids")
    }
    return {
        name if name.startswith("text_projection") else used + name.removeprefix(prefix): tensor
        for name, tensor in kept.items()
    }
