"""Checkpoints: whole or not there, read without unpickling code, and refused where they are of
another training.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...data.identity import Identity, compare
from ...io.files import Damaged, keep_former, name_write_errors, whole_or_not


def write_checkpoint(state: Mapping[str, Any], path: Path, keep: int) -> None:
    """Write a checkpoint, whole or not at all; ``keep − 1`` former ones stay beside it.

    Raises:
        OSError: it cannot be written; the former checkpoint is intact.
    """
    with whole_or_not(path) as beside:
        with name_write_errors(path), beside.open("wb") as file:
            torch.save(state, file)
        keep_former(path, keep)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling code.

    Raises:
        Damaged: it is none, or is damaged; former ones beside it are named.
    """
    formers = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    hint = (
        f"copy {formers[0].name} over it to go on from there, or remove it to start again"
        if formers
        else "remove it to start again"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # of damaged bytes the unpickler may trip over anything: keys, indices, words
        raise Damaged(f"{path} is not a checkpoint, or a damaged one; {hint}") from error
    if (
        not isinstance(state, dict)
        or not {
            "module",
            "averages",
            "optimiser",
            "done",
            "seconds",
            "loss",
            "settings",
            "made_from",
            "where",
        }
        <= state.keys()
    ):
        raise Damaged(
            f"{path} is not a checkpoint of a training (by this version of guidestar); {hint}"
        )
    return state


def check_same(
    path: Path, state: Mapping[str, Any], now: Mapping[str, Any], *, accept_data: bool = False
) -> None:
    """Refuse a checkpoint of other ``settings`` or ``data``, or ``made_from`` anything else.

    Warn where only the machine differs (``where``).

    Args:
        path: of the checkpoint.
        state: what it holds.
        now: the same entries of the training that is to go on from it.
        accept_data: go on though samples were added, removed or changed.

    Raises:
        ValueError: what differs is named.
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
            "not to the last bit as it would have there",
            stacklevel=3,
        )


def _check_data(path: Path, before: Identity | None, now: Identity, *, accept: bool) -> None:
    """Refuse other data, unless only samples differ and that is accepted."""
    found = ("it does not say on which data", True) if before is None else compare(before, now)
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


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the entries in which two mappings differ."""
    absent = object()
    return sorted(k for k in old.keys() | new.keys() if old.get(k, absent) != new.get(k, absent))
