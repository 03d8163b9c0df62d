"""Condition encoders of Diffusers folders: class labels, our own class table, CLIP's text
encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from ...core.denoiser import Condition
from ...io.documents import as_value_error, check_values, maybe, read_json
from .safetensors_io import encoder_settings, read_module
from .settings import LABELS, check_own
from .text_encoder import TextEncoder
from .towers import architectures, build_tower, fitting, read_tokenizer, renamed


class ConditionReader(Protocol):
    """Turns names or prompts into conditions. Encoders of classes also have ``classes`` and
    ``index(name)``.
    """

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode names or prompts, one for each sample."""
        ...

    def null(self, batch: int) -> Condition | None:
        """Return "no condition" for ``batch`` samples; None where the network has none."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClassLabels:
    """Class indices as the condition of a network that holds the table itself:
    ``class_labels [B]``, int64.

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
        names = (
            (i, [c.lower(), *(part.strip().lower() for part in c.split(","))])
            for i, c in enumerate(self.classes)
        )
        found = next((i for i, known in names if wanted in known), None)
        if found is None and wanted.isdecimal() and int(wanted) < len(self.classes):
            found = int(wanted)
        if found is None:
            listed = ", ".join(f"{i} {c}" for i, c in enumerate(self.classes[:10]))
            raise ValueError(
                f"unknown class {name!r}; the {len(self.classes)} classes are "
                f"{listed}{', …' if len(self.classes) > 10 else ''}"
            )
        return found

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode class names or indices, one for each sample."""
        return Condition(
            class_labels=torch.tensor([self.index(n) for n in names], dtype=torch.int64)
        )

    def null(self, batch: int) -> Condition | None:
        """Return the null condition for ``batch`` samples; None where the network has no null
        class.
        """
        return (
            None
            if self.null_index is None
            else Condition(class_labels=torch.full((batch,), self.null_index))
        )


def read_encoder(
    folder: str | Path, network: ModelMixin, *, dtype: torch.dtype = torch.float32
) -> ConditionReader | None:
    """Read how the conditions of ``network`` are made; None where it takes none, or only the caller
    knows.

    - A "condition" sub-folder: one of guidestar's own, or several (`networks.conditions`).
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
        return ClassLabels(
            classes=_names(folder, network, count) or _number_names(count), null_index=count
        )
    if (
        isinstance(network, UNet2DModel)
        and network.config["num_class_embeds"] is not None
        and network.config["class_embed_type"] is None
    ):
        return _unet_labels(folder, network, network.config["num_class_embeds"])
    if isinstance(network, UNet2DConditionModel) and _is_plain_clip(folder):
        return read_text_encoder(folder, dtype)
    return None


def is_masked(network: object) -> bool:
    """Return whether a network takes the mask of a caption's padding (PixArt)."""
    return type(network).__name__.startswith("PixArt")


def read_condition(folder: Path, *, dtype: torch.dtype = torch.float32) -> ConditionReader:
    """Read a condition encoder that `guidestar.diffusers.write.write_condition` wrote.

    Raises:
        ValueError: a file is missing or corrupt; it is named.
    """
    from ...networks.condition_encoders import ClassEncoder, LabelEncoder, VectorEncoder
    from ...networks.conditions import Conditions
    from ...networks.lengths import LengthEncoder
    from ...networks.low_resolution import LowResolution

    file = folder / "config.json"
    about = read_json(file)
    check_own(file, about)
    if about.get("_class_name") == "Conditions":
        parts = {
            name: cast(nn.Module, read_condition(folder / name, dtype=dtype))
            for name in about["names"]
        }
        with as_value_error(f"{file}: these conditions do not go together"):
            return Conditions(parts)
    if about.get("_class_name") == "TextEncoder":
        # Where a caption is the only condition, CLIP is in the folder above, as in Diffusers.
        text = read_text_encoder(
            folder if (folder / "text_encoder").is_dir() else folder.parent, dtype
        )
        return TextEncoder(
            text.text,
            text.tokenizer,
            **{k: about[k] for k in ("layer", "output", "mask") if k in about},
        )
    return read_module(
        folder,
        known={
            c.__name__: c
            for c in (ClassEncoder, LabelEncoder, VectorEncoder, LengthEncoder, LowResolution)
        },
        dtype=dtype,
    )


def _unet_labels(folder: Path, network: ModelMixin, rows: int) -> ClassLabels:
    named = _names(folder, network, rows - 1)
    if named:
        return ClassLabels(classes=named, null_index=rows - 1)
    return ClassLabels(classes=_names(folder, network, rows) or _number_names(rows))


def _number_names(count: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count))


def _names(folder: Path, network: ModelMixin, count: int) -> tuple[str, ...] | None:
    """Return the names of ``count`` classes, where the folder gives exactly so many."""
    index = folder / "model_index.json"
    about = read_json(index) if index.is_file() else {}
    check_values(index, about, {"id2label": maybe(LABELS)})
    labels = about.get("id2label") or dict(network.config).get("id2label")
    if not isinstance(labels, dict) or set(labels) != set(_number_names(count)):
        return None
    return tuple(str(labels[n]) for n in _number_names(count))


def _is_plain_clip(folder: Path) -> bool:
    settings = folder / "text_encoder" / "config.json"
    if (
        not settings.is_file()
        or not (folder / "tokenizer").is_dir()
        or (folder / "text_encoder_2").is_dir()
    ):
        return False
    return "CLIPTextModel" in architectures(settings, read_json(settings))


def read_text_encoder(folder: Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
    """Read CLIP's text encoder and tokenizer from ``text_encoder/`` and ``tokenizer/``.

    Raises:
        ValueError: a file is missing or corrupt; it is named.
    """
    file = folder / "text_encoder" / "config.json"
    about = encoder_settings(file)
    projected = "CLIPTextModelWithProjection" in architectures(file, about)
    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    text = build_tower(file, about, kind, dtype, names=lambda text, tensors: renamed(tensors, text))
    return TextEncoder(
        text, fitting(read_tokenizer(folder / "tokenizer"), text, folder / "tokenizer")
    )
