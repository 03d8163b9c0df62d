"""Checkpoints: written whole or not at all, and read without running code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from ...data.identity import Identity, compare
from ...io.documents import JSONObject
from ...io.files import Damaged, keep_former, name_write_errors, whole_or_not
from .ema import AverageState


class TrainingOrigin(TypedDict):
    """What a checkpoint has in common with the training that goes on from it."""

    settings: Mapping[str, object]
    """`TrainSettings`, by name."""
    made_from: Mapping[str, object]
    """All else that shapes the weights, by name."""
    data: Identity | None
    """The identity of the data; None in old checkpoints."""
    where: Mapping[str, object]
    """Machine, threads, processes, device and versions."""


class CheckpointState(TrainingOrigin):
    """The content of a checkpoint."""

    module: Mapping[str, Tensor]
    averages: Mapping[str, AverageState]
    optimiser: JSONObject
    done: int
    seconds: float
    loss: float


_NEEDED = CheckpointState.__required_keys__ - {"data"}


def write_checkpoint(state: CheckpointState, path: Path, keep: int) -> None:
    """Write a checkpoint, whole or not at all; ``keep − 1`` former ones stay beside it.

    Raises:
        OSError: it cannot be written; the former checkpoint is intact.
    """
    with whole_or_not(path) as beside:
        with name_write_errors(path), beside.open("wb") as file:
            torch.save(state, file)
        keep_former(path, keep)


def read_checkpoint(path: Path) -> CheckpointState:
    """Read a checkpoint without running code from it.

    Raises:
        Damaged: the file is no checkpoint, or damaged; the message names former ones beside it.
    """
    formers = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    hint = (
        f"copy {formers[0].name} over it to go on from there, or remove it to start again"
        if formers
        else "remove it to start again"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged bytes
        raise Damaged(f"{path} is not a checkpoint, or a damaged one; {hint}") from error
    if not isinstance(state, dict) or not state.keys() >= _NEEDED:
        raise Damaged(
            f"{path} is not a checkpoint of a training (by this version of guidestar); {hint}"
        )
    return cast(CheckpointState, state)


def check_same(
    path: Path, state: TrainingOrigin, now: TrainingOrigin, *, accept_data: bool = False
) -> None:
    """Refuse a checkpoint whose ``settings``, ``data`` or ``made_from`` differ.

    Warn where only the machine differs (``where``).

    Args:
        path: the checkpoint's file.
        state: its content.
        now: the same entries of the training that is to go on from it.
        accept_data: go on though samples were added, removed or changed.

    Raises:
        ValueError: an entry differs; the message names it.
    """
    _check_data(path, state.get("data"), now["data"], accept=accept_data)
    changed = _changed(state["settings"], now["settings"]) + _changed(
        state["made_from"], now["made_from"]
    )
    if changed:
        raise ValueError(
            f"{path} was trained with other settings ({', '.join(changed)}); give another --out, "
            "or the recipe it was started with"
        )
    elsewhere = _changed(state["where"], now["where"])
    if elsewhere:
        warnings.warn(
            f"{path} was written with other {', '.join(elsewhere)}; the training goes on, but "
            "its last bits differ from those of an unbroken one",
            stacklevel=3,
        )


def _check_data(path: Path, before: Identity | None, now: Identity | None, *, accept: bool) -> None:
    """Refuse other data, unless only samples differ and that is accepted."""
    found = ("of unknown identity", True) if before is None or now is None else compare(before, now)
    if found is None:
        return
    what, acceptable = found
    if not acceptable:
        raise ValueError(
            f"{path} was trained on other data ({what}); give another --out, or the data it was "
            "started with"
        )
    if not accept:
        raise ValueError(
            f"{path} was trained on other data ({what}); give the data it was started with, "
            "another --out, or --accept-data to go on with these (what was held out before may "
            "then be trained on, unless data.test names data of its own)"
        )
    warnings.warn(f"{path} was trained on other data ({what}), which was accepted", stacklevel=4)


def _changed(old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    """Name the entries in which two mappings differ."""
    absent = object()
    return sorted(k for k in old.keys() | new.keys() if old.get(k, absent) != new.get(k, absent))
