"""Find the file of a folder's weights: whole, in shards, or a variant of another precision."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from ...io.documents import is_name, read_json

STEM = "diffusion_pytorch_model"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def weights_file(folder: Path, stem: str = STEM) -> Path:
    """Find the weights of a folder: an index of shards, or else one file.

    Saving in shards leaves an older whole file in place, and saving a whole file removes the shards
    but not their index. So shards come first, unless they are gone. Where the full weights are
    missing, a variant is taken: fp16, or the only one (bf16, non_ema, …).

    Args:
        folder: of the part.
        stem: how the names of its files begin: "diffusion_pytorch_model", or "model" as
            transformers has it.

    Raises:
        ValueError: there are none, there are several variants to choose from, or shards without
            their index; pickled weights, which could run any code, are never read.
    """
    found = _variants(folder, stem)
    if chosen := found.get("", found.get("fp16")) or (
        next(iter(found.values())) if len(found) == 1 else None
    ):
        return chosen
    if found:
        raise ValueError(
            f"{folder}: holds the variants {', '.join(found)} of its weights and none without; "
            "keep one of them"
        )
    names = sorted(f.name for f in folder.iterdir())
    pickles = [name for name in names if Path(name).suffix in _PICKLES]
    if pickles:
        raise ValueError(
            f"{folder / pickles[0]}: pickled weights can run any code and are not read; "
            f"{conversion(folder / pickles[0])}"
        )
    if any(_SHARD.search(name) for name in names):
        raise ValueError(
            f"{folder}: holds shards of weights without their index; copy "
            f"{stem}.safetensors.index.json from where they came from"
        )
    raise ValueError(f"{folder}: holds no weights; expected {stem}.safetensors")


_SHARD = re.compile(r"-\d{5}-of-\d{5}(\.[^.]+)?\.safetensors$")


def _variants(folder: Path, stem: str) -> dict[str, Path]:
    """Return the file to be read of each variant ("": the full weights)."""
    whole, index = {}, {}
    for file in sorted(folder.iterdir()):
        if (v := variant_of(file.name, stem)) is not None:
            (index if file.suffix == ".json" else whole)[v] = file
    kept = {v: file for v, file in index.items() if v not in whole or _has_shards(file)}
    return {**whole, **kept}


def variant_of(name: str, stem: str) -> str | None:
    """Return the variant that a file of weights, or the index of shards, is named by; "" for the
    full one, None for another file.
    """
    found = re.fullmatch(rf"{re.escape(stem)}(?:\.([^.]+))?\.safetensors", name)
    found = found or re.fullmatch(
        rf"{re.escape(stem)}\.safetensors(?:\.([^.]+)\.index|\.index(?:\.([^.]+))?)\.json", name
    )
    return None if found is None or _SHARD.search(name) else next(filter(None, found.groups()), "")


def _has_shards(index: Path) -> bool:
    return any((index.parent / shard).is_file() for shard in shards_of(index).values())


def shards_of(index: Path) -> dict[str, str]:
    """Return the shard that each tensor is in."""
    shards = read_json(index).get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(is_name(s) and s.endswith(".safetensors") for s in shards.values())
    ):
        raise ValueError(
            f"{index}: weight_map should map the name of each tensor to a file of safetensors "
            "beside it"
        )
    return shards


def conversion(file: Path) -> str:
    """Say how a file of pickled weights becomes one of safetensors."""
    target = {f"{STEM}.bin": f"{STEM}.safetensors", "pytorch_model.bin": "model.safetensors"}.get(
        file.name
    )
    if target is None:
        return "save them again with save_pretrained(…, safe_serialization=True)"
    # Loaded with weights_only, which runs no code; copied, since a file of safetensors shares no
    # memory between tensors.
    load = f"w = torch.load({str(file)!r}, weights_only=True, map_location='cpu')"
    keep = (
        "s.save_file({k: v.clone() for k, v in w.items()}, "
        f"{str(file.with_name(target))!r}, {{'format': 'pt'}})"
    )
    return (
        "write them anew with: python -c "
        f"{shlex.quote(f'import torch, safetensors.torch as s; {load}; {keep}')}"
    )
