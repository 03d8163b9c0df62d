"""Condition encoders of Diffusers folders: class labels, our own class table, CLIP's text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..denoiser import Condition
from .weights import fill, one_line, read_json, read_module, read_safetensors, weights_file


class Encoder(Protocol):
    """Turns names or prompts into conditions. Encoders of classes also have ``classes`` and ``index(name)``."""

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode names or prompts, one for each sample."""
        ...

    def null(self, batch: int) -> Condition | None:
        """Return "no condition" for ``batch`` samples; None where the network has none."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """Class indices as the condition of a network that holds the table itself: ``class_labels [B]``, int64.

    Args:
        classes: a name for each class in the order of their indices; commas separate synonyms.
        null_index: the row of the table that means "no class"; None if it has none.
    """

    classes: tuple[str, ...]
    null_index: int | None = None

    def index(self, name: str | int) -> int:
        """Find a class by name, synonym or index ("" is the null).

        Raises:
            ValueError: there is no such class.
        """
        if name == "" and self.null_index is not None:
            return self.null_index
        wanted = str(name).strip().lower()
        names = ((i, [c.lower(), *(part.strip().lower() for part in c.split(","))]) for i, c in enumerate(self.classes))
        found = next((i for i, known in names if wanted in known), None)
        if found is None and wanted.isdecimal() and int(wanted) < len(self.classes):
            found = int(wanted)
        if found is None:
            listed = ", ".join(f"{i} {c}" for i, c in enumerate(self.classes[:10]))
            raise ValueError(f"unknown class {name!r}; the {len(self.classes)} classes are {listed}{', …' if len(self.classes) > 10 else ''}")
        return found

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode class names or indices, one for each sample."""
        return Condition(class_labels=torch.tensor([self.index(n) for n in names], dtype=torch.int64))

    def null(self, batch: int) -> Condition | None:
        """Return the null condition for ``batch`` samples; None where the network has no null class."""
        return None if self.null_index is None else Condition(class_labels=torch.full((batch,), self.null_index))


class TextEncoder(nn.Module):
    """CLIP's text encoder, as Stable Diffusion uses it: ``encoder_hidden_states [B, 77, D]``.

    Prompts are padded and cut to the tokenizer's full length, so that all conditions have one
    shape; the null is the encoding of "".

    Args:
        text: transformers' CLIPTextModel.
        tokenizer: its tokenizer.
    """

    def __init__(self, text: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.text, self.tokenizer = text, tokenizer
        self.width = int(text.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def rows(self, values: Sequence[str]) -> Tensor:
        """Return the tokens of captions and their mask, ``[B, 2, 77]``, int64."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(list(values), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return torch.stack([tokens.input_ids, tokens.attention_mask], dim=1)

    def null_row(self) -> Tensor:
        """Return the tokens of ""."""
        return self.rows([""])[0]

    def parse(self, name: str | int) -> str:
        """Take a caption as it is."""
        return str(name)

    @torch.no_grad()
    def forward(self, rows: Tensor) -> Condition:
        """Encode tokens ``[B, 2, 77]``; the text encoder itself is never trained."""
        # As Stable Diffusion's pipeline: the padding is attended to unless the encoder's settings say otherwise.
        mask = rows[:, 1] if getattr(self.text.config, "use_attention_mask", False) else None
        return Condition(encoder_hidden_states=self.text(rows[:, 0], attention_mask=mask)[0])

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode prompts, one for each sample."""
        return self(self.rows([self.parse(n) for n in names]).to(next(self.text.parameters()).device))

    def null(self, batch: int) -> Condition:
        """Return the encoding of "" for ``batch`` samples."""
        return self.encode([""]).repeat(batch)


def read_encoder(folder: str | Path, network: ModelMixin, *, dtype: torch.dtype = torch.float32) -> Encoder | None:
    """Read how the conditions of ``network`` are made; None where it takes none, or only the caller knows.

    - A "condition" sub-folder: one of guidestar's own, or several (`models.conditions`).
    - DiT: class indices, the null after the last class. UNet2DModel with ``num_class_embeds``:
      class indices, and no null, unless names are given (``id2label`` in model_index.json or in
      the network's config) for all rows but the last: that is the null then.
    - UNet2DConditionModel with one CLIP text encoder and its tokenizer: prompts.

    Raises:
        ValueError: a file of the encoder is missing or corrupt; it is named.
    """
    folder = Path(folder)
    if (folder / "condition" / "config.json").is_file():
        return read_condition(folder / "condition", dtype=dtype)
    if isinstance(network, DiTTransformer2DModel):
        count = network.config["num_embeds_ada_norm"]
        return ClassLabels(classes=_names(folder, network, count) or _numbered(count), null_index=count)
    if isinstance(network, UNet2DModel) and network.config["num_class_embeds"] is not None and network.config["class_embed_type"] is None:
        return _unet_labels(folder, network, network.config["num_class_embeds"])
    if isinstance(network, UNet2DConditionModel) and _is_plain_clip(folder):
        return read_text(folder, dtype)
    return None


def read_condition(folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Read a condition encoder as guidestar writes it (see `folder.write_condition`).

    Raises:
        ValueError: a file is missing or corrupt; it is named.
    """
    from ..models.conditions import ClassEncoder, Conditions, LabelEncoder, VectorEncoder

    about = read_json(folder / "config.json")
    if about.get("_class_name") == "Conditions":
        return Conditions({name: read_condition(folder / name, dtype=dtype) for name in about.get("names", ())})
    if about.get("_class_name") == "TextEncoder":
        return read_text(folder, dtype)
    return read_module(folder, known={c.__name__: c for c in (ClassEncoder, LabelEncoder, VectorEncoder)}, dtype=dtype)


def _unet_labels(folder: Path, network: ModelMixin, rows: int) -> ClassLabels:
    named = _names(folder, network, rows - 1)
    if named:
        return ClassLabels(classes=named, null_index=rows - 1)
    return ClassLabels(classes=_names(folder, network, rows) or _numbered(rows))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count))


def _names(folder: Path, network: ModelMixin, count: int) -> tuple[str, ...] | None:
    """Return the names of ``count`` classes, where the folder gives exactly so many."""
    index = folder / "model_index.json"
    labels = (read_json(index) if index.is_file() else {}).get("id2label") or dict(network.config).get("id2label")
    if not isinstance(labels, dict) or set(labels) != set(_numbered(count)):
        return None
    return tuple(str(labels[n]) for n in _numbered(count))


def _is_plain_clip(folder: Path) -> bool:
    settings = folder / "text_encoder" / "config.json"
    if not settings.is_file() or not (folder / "tokenizer").is_dir() or (folder / "text_encoder_2").is_dir():
        return False
    return "CLIPTextModel" in (read_json(settings).get("architectures") or ())


def read_text(folder: Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Read CLIP's text encoder and tokenizer from ``text_encoder/`` and ``tokenizer/``.

    Raises:
        ValueError: a file is missing or corrupt; it is named.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    settings = folder / "text_encoder" / "config.json"
    try:
        text = CLIPTextModel(CLIPTextConfig.from_dict(read_json(settings)))
    except Exception as error:
        raise ValueError(f"{settings}: CLIPTextModel refuses these settings ({one_line(error)})") from error
    file = weights_file(settings.parent, ("model.safetensors", "model.fp16.safetensors"))
    fill(text, file, _renamed(read_safetensors(file), text), dtype)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    except Exception as error:
        raise ValueError(f"{folder / 'tokenizer'}: not readable as a CLIPTokenizer ({one_line(error)})") from error
    return TextEncoder(text, tokenizer)


def _renamed(tensors: Mapping[str, Tensor], text: nn.Module) -> dict[str, Tensor]:
    """Name tensors as this version of transformers does: 5 dropped a prefix, 4.31 the position ids."""
    prefix = "text_model."
    used = prefix if any(name.startswith(prefix) for name in text.state_dict()) else ""
    return {used + name.removeprefix(prefix): tensor for name, tensor in tensors.items() if not name.endswith("embeddings.position_ids")}
