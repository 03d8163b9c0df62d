"""Share samples out between the processes of ``accelerate launch``; one process has them all."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor


def several() -> Any:
    """Return accelerate's state where several processes run, else None (and accelerate is not
    imported).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def mine(count: int) -> list[int]:
    """Return which of ``count`` samples this process draws: every n-th of n processes."""
    state = several()
    return (
        list(range(count))
        if state is None
        else list(range(state.process_index, count, state.num_processes))
    )


def is_main() -> bool:
    """Return whether this process is the one that writes files and prints."""
    state = several()
    return state is None or state.is_main_process


def gather(parts: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    """Return the numbered samples of all processes, in order."""
    state = several()
    if state is None:
        return sorted(parts, key=lambda p: p[0])
    everyone: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(everyone, [(i, x.cpu()) for i, x in parts])
    return sorted((p for part in everyone for p in part), key=lambda p: p[0])


def count(number: int) -> int:
    """Return the sum of a number over all processes; all of them wait for each other."""
    state = several()
    if state is None:
        return number
    everyone: list[Any] = [None] * state.num_processes
    torch.distributed.all_gather_object(everyone, number)
    return sum(everyone)
