"""How much a recipe may ask for: the memory of a network is counted before it is built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

N = TypeVar("N", bound=nn.Module)
MOST_TENSORS = 200_000
"""Parameters (tensors) of one network: the largest published ones have some thousands."""


class TooLarge(ValueError):
    """A network or a batch that this machine cannot hold."""


def machine_memory() -> int:
    """Return the memory of this machine, or of what this process may use of it, in bytes."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if torch.cuda.is_available():  # where the network goes
        found.append(torch.cuda.get_device_properties(0).total_memory)
    return min(found)


def copies_of(training: Any) -> int:
    """Return how many copies of its weights a part's training holds in one process."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        return 1  # the rest is spread over the processes
    return (4 + 1 + len(training.power)) * (2 if training.precision == "float64" else 1)


def within_memory(make: Callable[[], N], copies: int) -> N:
    """Build a network, after it was counted on torch's meta device, which takes no memory.

    Args:
        make: builds it.
        copies: of its weights that training holds: itself, gradients, two moments, averages.

    Raises:
        TooLarge: its weights alone need more memory than this machine has.
    """
    try:
        with torch.random.fork_rng(devices=[]), count_memory(copies), torch.device("meta"):
            make()
    except TooLarge:
        raise
    except Exception as error:  # some cannot be built there, and are counted as they are built
        if isinstance(error.__cause__, TooLarge):
            raise error.__cause__ from None
        with count_memory(copies):
            return make()
    return make()


@contextmanager
def count_memory(copies: int, most: int | None = None) -> Iterator[None]:
    """Count the parameters of all modules that are built, and stop where they are too many."""
    if not copies:
        yield
        return
    most, seen = machine_memory() if most is None else most, [0, 0]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None:
            return
        seen[0] += parameter.numel() * parameter.element_size() * copies
        seen[1] += 1
        if seen[0] > most or seen[1] > MOST_TENSORS:
            raise TooLarge(
                f"a network of these sizes needs more than {most / 1e9:.3g} GB to train, all "
                f"that this machine has, or more than {MOST_TENSORS:,} layers; make it smaller"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_batch(samples: int, each: int) -> None:
    """Refuse a batch whose data alone do not fit.

    Args:
        samples: that a process takes at once.
        each: bytes of one.

    Raises:
        TooLarge: they do not fit into memory.
    """
    if samples * each > machine_memory():
        raise TooLarge(
            f"{samples:,} samples at once need {samples * each / 1e9:.3g} GB for the data alone, "
            f"and this machine has {machine_memory() / 1e9:.3g}; lower batch, or raise accumulate"
        )
