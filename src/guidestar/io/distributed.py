"""Share samples between the processes of ``accelerate launch``; a single process has all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState

_T = TypeVar("_T")


def several() -> PartialState | None:
    """Return accelerate's state where several processes run.

    Returns:
        None for a single process, for which accelerate is not imported.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def own_indices(count: int) -> list[int]:
    """Return the indices of the samples, of ``count``, that this process draws: every n-th of n."""
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
    """Return the numbered samples of all processes, in order; every process must call it."""
    state = several()
    if state is None:
        return sorted(parts, key=lambda p: p[0])
    everyone = _of_all([(i, x.cpu()) for i, x in parts], state.num_processes)
    return sorted((p for part in everyone for p in part), key=lambda p: p[0])


def _of_all(own: _T, processes: int) -> list[_T]:
    """Return the values of all processes, each of which gives its ``own``."""
    everyone = [own] * processes
    torch.distributed.all_gather_object(everyone, own)
    return everyone


def count(number: int) -> int:
    """Return the sum of a number over all processes, which wait for each other."""
    state = several()
    if state is None:
        return number
    return sum(_of_all(number, state.num_processes))


def leave() -> None:
    """Leave the processes that were started together, where there are several.

    A process that ends while its connections are open may be aborted, and the launcher then ends
    the others and reports a failure of what had succeeded.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
