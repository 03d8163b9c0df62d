"""Prompts and classes written in an expression, encoded as the pipeline encodes its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import torch
from torch import Tensor

from ...guidance import AND, NOT, Guidance
from ..objects import Arguments, Pipeline
from .families import FAMILIES, Family

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def check_prompt(
    pipe: Pipeline, family: Family, name: str | int, tensors: Iterable[str] = ()
) -> None:
    """Refuse a prompt (or class) within an expression that the pipeline cannot encode.

    Args:
        pipe, family: the pipeline.
        name: the prompt.
        tensors: what a `Condition` in its place would consist of; nothing where none would do.

    Raises:
        ValueError: this family's pipelines cannot, it is without a text encoder, or knows no such
            class.
    """
    kind = type(pipe).__name__
    if not family.encodes:
        raise ValueError(
            f"prompts within an expression are not supported for {kind}; give them to the "
            "pipeline, prompt= and negative_prompt="
        )
    if family.encodes == ("class_labels",):
        label(pipe, name)
    elif not hasattr(pipe, "encode_prompt"):
        raise ValueError(
            f"{kind} takes embeddings, so it cannot encode prompts written in an expression; "
            "give it negative embeddings"
        )
    elif missing := _missing(pipe, family):
        instead = (
            f"give a Condition({', '.join(f'{t}=…' for t in tensors)}) in its place, in Python"
            if tensors
            else "give the pipeline embeddings, prompt_embeds= and negative_prompt_embeds="
        )
        raise ValueError(
            f"{kind} has no text encoder ({', '.join(missing)} missing), so {name!r} within the "
            f"expression cannot be encoded; load it with them, or {instead}"
        )


def _missing(pipe: Pipeline, family: Family) -> list[str]:
    """Return the text encoders and tokenizers that a pipeline is without, and cannot do without;
    where it encodes in another way, that is not known.
    """
    if not pipe.encode_prompt.__module__.startswith("diffusers."):
        return []
    spare = ("text_encoder_3", "tokenizer_3") if family is FAMILIES["SD3Transformer2DModel"] else ()
    if (
        family is FAMILIES["UNet2DConditionModel"]
        and getattr(pipe, "text_encoder_2", None) is not None
    ):  # SDXL's refiner has the second alone
        spare = ("text_encoder", "tokenizer")
    return [
        part
        for e in _ENCODERS
        for part in (e, e.replace("text_encoder", "tokenizer"))
        if part not in spare and getattr(pipe, part, e) is None
    ]


def encode(
    pipe: Pipeline, family: Family, names: list[str | int], arguments: Arguments
) -> dict[str, Tensor]:
    """Encode prompts (or classes) written in an expression, as the pipeline encodes its own;
    `check_prompt` raises where it cannot.
    """
    if family.encodes == ("class_labels",):
        return {"class_labels": torch.tensor([label(pipe, n) for n in names])}
    own = {
        "device": pipe._execution_device,
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    names_of = inspect.signature(pipe.encode_prompt).parameters
    kept = {
        k: arguments[k]
        for k in ("clip_skip", "max_sequence_length", "clean_caption")
        if k in arguments
    }
    given = {
        **dict.fromkeys(n for n, p in names_of.items() if p.default is p.empty),
        **own,
        **kept,
        "prompt": [str(n) for n in names],
    }
    out = pipe.encode_prompt(**{k: v for k, v in given.items() if k in names_of})
    wanted = (
        ("encoder_hidden_states", "", "text_embeds")
        if family is FAMILIES["UNet2DConditionModel"] and len(out) == 4
        else family.encodes
    )
    return {
        name: tensor
        for name, tensor in zip(wanted, out, strict=False)
        if name and tensor is not None
    }


def moved_from(guidance: Guidance) -> frozenset[str | int]:
    """Return the prompts (or classes) written in an expression that it moves away from:
    ``negative=``, and what NOT names.

    Raises:
        ValueError: one of them is a target too (AND); it is named.
    """
    away = {
        n
        for t in guidance.terms
        for n in _list_names(getattr(t, "concept" if isinstance(t, NOT) else "negative", None))
    }
    targets = {
        n
        for t in guidance.terms
        if isinstance(t, AND)
        for n in _list_names(getattr(t, "concept", None))
    }
    if both := away & targets:
        raise ValueError(
            f"the expression moves towards {min(map(repr, both))} and away from it, and the "
            "pipeline passes its network other settings for each; word one of them otherwise"
        )
    return frozenset(away)


def _list_names(given: object) -> tuple[str | int, ...]:
    return tuple(
        n for n in (given if isinstance(given, tuple) else (given,)) if isinstance(n, str | int)
    )


def label(pipe: Pipeline, name: str | int) -> int:
    """Return the index of a class, by a DiT pipeline's own names."""
    if isinstance(name, int):
        return name
    labels = getattr(pipe, "labels", None) or {}
    if name not in labels:
        raise ValueError(
            f"{type(pipe).__name__} has no class {name!r}; pipe.labels lists those it has"
        )
    return labels[name]
