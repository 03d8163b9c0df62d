"""Checkpoints: whole or not there, read without unpickling code, and refused where they are of another training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..files import Damaged, keep_former, whole_or_not


def write_checkpoint(state: Mapping[str, Any], path: Path, keep: int) -> None:
    """Write a checkpoint, whole or not at all; ``keep − 1`` former ones stay beside it.

    Raises:
        OSError: it cannot be written; the former checkpoint is intact.
    """
    with whole_or_not(path) as beside:
        with beside.open("wb") as file:
            torch.save(state, file)
        keep_former(path, keep)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling code.

    Raises:
        Damaged: it is none, or is damaged; former ones beside it are named.
    """
    formers = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    hint = f"copy {formers[0].name} over it to go on from there, or remove it to start again" if formers else "remove it to start again"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes the unpickler may trip over anything: keys, indices, words
        raise Damaged(f"{path} is not a checkpoint, or a damaged one; {hint}") from error
    if not isinstance(state, dict) or not {"module", "averages", "optimiser", "done", "seconds", "loss", "settings", "made_from", "where"} <= state.keys():
        raise Damaged(f"{path} is not a checkpoint of a training (by this version of guidestar); {hint}")
    return state


def check_same(path: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other ``settings`` or ``made_from`` anything else; warn where only the machine differs (``where``).

    Raises:
        ValueError: what differs is named.
    """
    changed = _changed(state["settings"], now["settings"]) + _changed(state["made_from"], now["made_from"])
    if changed:
        raise ValueError(f"{path} was trained with other settings ({', '.join(changed)}); give another --out, or the recipe it was started with")
    elsewhere = _changed(state["where"], now["where"])
    if elsewhere:
        warnings.warn(f"{path} was written with other {', '.join(elsewhere)}; the training goes on, but not to the last bit as it would have there", stacklevel=3)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the entries in which two mappings differ."""
    absent = object()
    return sorted(k for k in old.keys() | new.keys() if old.get(k, absent) != new.get(k, absent))
