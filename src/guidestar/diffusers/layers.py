"""The names of a pipeline's layers that guidances can perturb."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.perturbation import LayerKind, layers_of

LAYER_KINDS: tuple[LayerKind, ...] = ("attention", "cross", "block")
PLACES = ("unet", "transformer", "transformer_2", "unconditional_transformer")


def list_layers(pipe: object) -> dict[str, dict[LayerKind, tuple[str, ...]]]:
    """List the layers that pag, seg, slg, tpg, sag and nag take as ``layers=``.

    Args:
        pipe: a pipeline of Diffusers, or the path of its folder (of which the settings are read,
            and no weights).

    Returns:
        For each network (``transformer``, …) the names by kind: ``attention`` (pag, seg, sag),
        ``cross`` (nag) and ``block`` (slg, tpg).

    Raises:
        ValueError: there is no such folder, or the layers of its network are not known.
    """
    found = {}
    for place, net in _networks(pipe):
        layers = layers_of(net)
        found[place] = {kind: _names(layers, kind) for kind in LAYER_KINDS}
    if not found:
        raise ValueError(f"{pipe} has no network at {', '.join(PLACES)}")
    return found


def _names(layers: Any, kind: LayerKind) -> tuple[str, ...]:
    return tuple(layers.list_names(kind))


def _networks(pipe: object) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(pipe, str | Path):
        yield from _of_folder(Path(pipe))
        return
    for place in PLACES:
        if isinstance(net := getattr(pipe, place, None), nn.Module):
            yield place, net


def _of_folder(folder: Path) -> Iterator[tuple[str, nn.Module]]:
    """Build the networks of a pipeline's folder without weights."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{folder} is no folder of a pipeline: it has no model_index.json")
    import diffusers

    for place, entry in json.loads(index.read_text()).items():
        if place not in PLACES or not isinstance(entry, list) or entry[0] != "diffusers":
            continue
        kind = getattr(diffusers, str(entry[1]), None)
        if kind is None:
            raise ValueError(f"{index}: Diffusers has no {entry[1]} (of {place})")
        settings = json.loads((folder / place / "config.json").read_text())
        with torch.device("meta"):
            yield place, kind.from_config(settings)


__all__ = ["list_layers"]
