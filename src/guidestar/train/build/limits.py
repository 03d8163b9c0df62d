"""How much a recipe may ask for: the memory of a network is counted before it is built."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...networks.memory import MEMORY, MOST_TENSORS, available_memory, count_tensors

N = TypeVar("N", bound=nn.Module)


class TooLarge(ValueError):
    """A network or a batch that this machine cannot hold."""


class Weighed(Protocol):
    """The settings of a training that decide how often its weights are held."""

    @property
    def power(self) -> tuple[float, ...]:
        """Relative widths of the further averages."""
        ...

    @property
    def precision(self) -> str:
        """The precision: "float32", "bfloat16" or "float64"."""
        ...


def copies_of(training: Weighed) -> int:
    """Return how many copies of its weights, in float32, a part's training holds in one process.

    These are the weights, their gradients, AdamW's two moments and the averages; with FSDP all but
    one are spread over the processes.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        return 1
    return (4 + 1 + len(training.power)) * (2 if training.precision == "float64" else 1)


def within_memory(make: Callable[[], N], copies: int) -> N:
    """Build a network, after it was counted on torch's meta device, which takes no memory.

    Args:
        make: builds it.
        copies: how many copies of its weights the training holds (`copies_of`).

    Raises:
        TooLarge: its weights alone need more memory than there is (`available_memory`).
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
    """Count the parameters of all modules that are built, and stop where they are too many.

    Args:
        copies: how often each parameter is held; 0 counts nothing.
        most: bytes that they may take; by default the `available_memory`.

    Raises:
        TooLarge: they take more than ``most``, or are more than `MOST_TENSORS`.
    """
    if not copies:
        yield
        return
    most = available_memory(gpu=True) if most is None else most

    def size_of(tensor: Tensor) -> int:
        held = copies if isinstance(tensor, nn.Parameter) else 1
        return tensor.numel() * tensor.element_size() * held

    def check(size: int, count: int) -> None:
        if count > MOST_TENSORS:
            raise TooLarge(
                f"a network of these sizes has more than {MOST_TENSORS:,} tensors; give it fewer "
                "layers"
            )
        if most is not None and size > most:
            raise TooLarge(
                f"a network of these sizes needs more than {most / 1e9:.3g} GB to train, which is "
                f"all that there is; make it smaller, or set {MEMORY} (in GB) to try all the same"
            )

    with count_tensors(size_of, check):
        yield


def check_batch(samples: int, each: int) -> None:
    """Refuse a batch whose data alone do not fit into memory.

    Args:
        samples: how many a process takes at once.
        each: bytes of one.

    Raises:
        TooLarge: they need more than the `available_memory`.
    """
    most = available_memory(gpu=True)
    if most is not None and samples * each > most:
        raise TooLarge(
            f"{samples:,} samples at once need {samples * each / 1e9:.3g} GB for the data alone, "
            f"and there are {most / 1e9:.3g} GB; lower batch, raise accumulate, or set {MEMORY} "
            "(in GB) to try all the same"
        )
