"""Build a recipe's CLIPs, and load their weights into the parts that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data.latents import pictures_of
from ...data.source import Source, captions_in
from ...diffusers.read.encoders import read_tokenizer
from ...diffusers.read.text_encoder import TextEncoder
from ...io.files import name_write_errors, whole_or_not
from ...networks.caption_tokens import make_tokenizer
from ...networks.clip import CLIP, make_clip, make_vision
from ...networks.conditional import ConditionalModel
from ..objectives.contrastive import Contrastive
from ..objectives.objective import Built
from ..recipe.parts import CLIPPart, NetworkPart, VisionPart
from ..recipe.schema import Recipe
from .captions import captions, text_column
from .limits import copies_of, within_memory
from .schedules import denoising, process


def build_clip(spec: CLIPPart, part: str, source: Source, out: Path | None) -> Built:
    """Make a fresh CLIP, and what trains it; arguments as in `build_part`."""
    return _contrasted(fresh_clip(spec, part, source, out), Contrastive(shift=spec.shift), source)


def build_noisy_clip(recipe: Recipe, spec: VisionPart, source: Source, out: Path | None) -> Built:
    """Make a fresh noise-aware image tower, beside the frozen text tower of the recipe's CLIP."""
    assert recipe.clip is not None  # the recipe was checked
    clip = fresh_clip(recipe.clip, "clip", pictures_of(source), out)
    if source.shape[1] % spec.patch:
        raise ValueError(
            f"noisy_clip.patch: samples of {list(source.shape)} cannot be cut into patches of "
            f"{spec.patch}"
        )
    sizes = spec.model_dump(exclude={"shift", "train"})
    shared = {
        "size": source.shape[1],
        "channels": source.shape[0],
        "embed": recipe.clip.embed,
        "noise_aware": True,
    }
    copies = copies_of(spec.train)
    clip.vision = within_memory(lambda: make_vision(**shared, **sizes), copies)
    if not torch.cuda.is_available():
        clip.vision.tower.set_attn_implementation("eager")
    clip.text.requires_grad_(False)
    objective = Contrastive(
        shift=spec.shift, schedule=process(recipe).schedule, levels=denoising(recipe).levels
    )
    return _contrasted(clip, objective, source)


def _contrasted(clip: CLIP, objective: Contrastive, source: Source) -> Built:
    name = text_column(source)
    return Built(
        module=clip,
        objective=objective,
        prepare=lambda targets: clip.tokens(captions_in(targets, name)),
    )


def fresh_clip(spec: CLIPPart, part: str, source: Source, out: Path | None) -> CLIP:
    """Make a fresh CLIP for the pictures and captions of ``source``; arguments as in `build_part`.

    Raises:
        ValueError: they are no square pictures of 3 channels that the patches fit, or have no
            captions.
    """
    if (
        len(source.shape) != 3
        or source.shape[0] != 3
        or source.shape[1] != source.shape[2]
        or source.shape[1] % spec.patch
    ):
        raise ValueError(
            "CLIP is trained on square pictures of 3 channels, cut into patches of "
            f"{spec.patch}; these are {list(source.shape)}"
        )
    sizes = spec.model_dump(exclude={"vocabulary", "length", "shift", "train"})
    tokenizer, side = _tokenizer(spec, part, source, out), source.shape[1]
    copies = copies_of(spec.train)
    clip = within_memory(lambda: make_clip(tokenizer, size=side, **sizes), copies)
    # For few tokens, plain products are faster than the CPU's fused kernel.
    if not torch.cuda.is_available():
        clip.text.set_attn_implementation("eager")
        clip.vision.tower.set_attn_implementation("eager")
    return clip


def _tokenizer(spec: CLIPPart, part: str, source: Source, out: Path | None) -> Any:
    """Learn a tokenizer from the captions, or read the one in ``out``.

    Learning it again may break ties in another way.
    """
    folder = out / "tokenizers" / part if out else None
    if folder is None or not folder.is_dir():
        made = make_tokenizer(captions(source), vocabulary=spec.vocabulary, length=spec.length)
        if folder is None:
            return made
        with name_write_errors(folder), whole_or_not(folder) as beside:
            made.save_pretrained(beside)
    return read_tokenizer(folder)


def take_from_clip(module: nn.Module, clip: CLIP) -> None:
    """Load the trained ``clip`` into a fresh part.

    Into a noise-aware CLIP go the text tower, the scale and, where it is as large, the image tower;
    into a model the text tower of its encoder.
    """
    if isinstance(module, CLIP):
        module.text.load_state_dict(clip.text.state_dict())
        module.log_scale.data.copy_(clip.log_scale.data)
        own, given = module.vision.tower.state_dict(), clip.vision.tower.state_dict()
        if {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in given.items()}:
            module.vision.tower.load_state_dict(given)
        return
    for part in module.encoder.parts.values() if isinstance(module, ConditionalModel) else ():
        if isinstance(part, TextEncoder):
            part.text.load_state_dict(clip.text.state_dict())


def uses_clip(recipe: Recipe, part: str) -> bool:
    """Return whether a part starts from the recipe's own trained CLIP."""
    own = any(c.encoder == "clip" for c in (recipe.conditions or {}).values())
    return part == "noisy_clip" or (own and isinstance(getattr(recipe, part), NetworkPart))
