"""The memory that there is, and what the tensors of a module take while it is built."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _modules

MEMORY = "GUIDESTAR_MEMORY"
"""The environment variable that sets how many GB may be taken, in place of the machine's memory."""
MOST_TENSORS = 20_000
"""Most parameters and buffers of one module; the largest networks have some thousands."""


def available_memory(*, gpu: bool = False) -> int | None:
    """Return the bytes that networks may take: `MEMORY`, else the least of what limits them.

    Limits are the machine's memory, the container's and, with ``gpu``, that of the first GPU.

    Args:
        gpu: the networks are moved to the GPU, where there is one.

    Returns:
        Bytes; None where no limit is known.

    Raises:
        ValueError: the environment variable is not a number above 0.
    """
    if given := os.environ.get(MEMORY):
        try:
            size = float(given)
        except ValueError:
            size = 0.0
        if not 0 < size < 1e9:
            raise ValueError(f"{MEMORY} must be a number of GB above 0, not {given!r}")
        return round(size * 1e9)
    limits = [_of_machine(), _of_container()]
    if gpu and torch.cuda.is_available():
        limits.append(torch.cuda.get_device_properties(0).total_memory)
    return min((n for n in limits if n), default=None)


def _of_machine() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _of_container() -> int | None:
    try:
        given = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return None
    return int(given) if given.isdecimal() else None


@contextmanager
def count_tensors(
    size_of: Callable[[Tensor], int], check: Callable[[int, int], None]
) -> Iterator[None]:
    """Count the parameters and buffers of all modules that this thread builds in the block.

    Args:
        size_of: returns the bytes that a tensor takes in the end.
        check: called after each tensor with the bytes and the number of tensors so far; it raises
            where they are too many.
    """
    size, own = 0, threading.get_ident()
    known: dict[int, Tensor] = {}  # torch calls the hook more than once for some

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal size
        if tensor is None or threading.get_ident() != own or id(tensor) in known:
            return
        known[id(tensor)] = tensor
        size += size_of(tensor)
        check(size, len(known))

    hooks = (
        _modules.register_module_parameter_registration_hook(count),
        _modules.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
