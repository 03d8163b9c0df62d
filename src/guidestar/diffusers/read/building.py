"""Build a module from settings of unknown origin: refuse too large ones before taking memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...io.documents import as_value_error, shown
from ...networks.memory import MEMORY, MOST_TENSORS, available_memory, count_tensors
from ..objects import Config

_M = TypeVar("_M", bound=nn.Module)

MOST_WHOLE = 10_000_000
"""The largest whole number in a network's settings: vocabularies have up to a million entries."""
MOST_LAYERS = 1000
"""The largest number of layers or blocks."""

_TAKEN: ContextVar[list[int] | None] = ContextVar("taken", default=None)


@contextmanager
def one_budget() -> Iterator[None]:
    """Let all modules that are built in the block share the machine's memory."""
    token = _TAKEN.set([0])
    try:
        yield
    finally:
        _TAKEN.reset(token)


def check_numbers(file: Path, settings: Config) -> None:
    """Refuse whole numbers in a network's settings that no network has.

    Raises:
        ValueError: one above `MOST_WHOLE`, or a number of layers above `MOST_LAYERS`; it is named.
    """
    for key, value in settings.items():
        deep = any(word in str(key) for word in ("layers", "depth", "blocks"))
        _check_number(file, str(key), value, MOST_LAYERS if deep else MOST_WHOLE)


def _check_number(file: Path, key: str, value: object, most: int) -> None:
    if isinstance(value, dict):
        check_numbers(file, {f"{key}.{k}": v for k, v in value.items()})
    elif isinstance(value, list | tuple):
        for item in value:
            _check_number(file, key, item, most)
    elif isinstance(value, int) and abs(value) > most:
        raise ValueError(f"{file}: {key} must be from {-most:,} to {most:,}, not {shown(value)}")


def build_module(
    make: Callable[[], _M],
    where: str,
    dtype: torch.dtype,
    check: Callable[[_M], None] | None = None,
) -> _M:
    """Build a module: first without memory, to count what it needs, then with it.

    Args:
        make: calls the module's constructor.
        where: the beginning of an error's message, e.g. "config.json: refuses these settings".
        dtype: of the parameters in the end.
        check: checks the module without memory (its tensors are on the device "meta").

    Raises:
        ValueError: the constructor fails, the module is above the machine's memory
            (`available_memory`) or has more than `MOST_TENSORS`; or as ``check``.
    """
    sketch = _build_sketch(make, where, dtype)
    if sketch is not None:
        _take(_bytes(sketch, dtype), where)
        if check is not None:
            check(sketch)
        del sketch
    with as_value_error(where), _count_memory(where, dtype):
        return make()


def _build_sketch(make: Callable[[], _M], where: str, dtype: torch.dtype) -> _M | None:
    """Build on the device "meta", which has shapes and no memory; None where the constructor reads
    numbers there.
    """
    try:
        with as_value_error(where), _count_memory(where, dtype), torch.device("meta"):
            return make()
    except ValueError as error:
        if isinstance(error.__cause__, _TooLarge):
            raise ValueError(str(error.__cause__)) from None
        if "meta" in str(error.__cause__).lower():
            return None
        raise


class _TooLarge(Exception):
    """A module grew above what is allowed while it was built."""


@contextmanager
def _count_memory(where: str, dtype: torch.dtype) -> Iterator[None]:
    """Stop a constructor in this thread as soon as it has made too much."""
    most = available_memory()

    def check(size: int, count: int) -> None:
        if count > MOST_TENSORS:
            raise _TooLarge(
                f"{where}: it would have more than {MOST_TENSORS:,} tensors, more than any "
                "network that is read"
            )
        if most is not None and size > most:
            raise _TooLarge(_too_large(where, size, most))

    with count_tensors(lambda tensor: _width(tensor, dtype) * tensor.numel(), check):
        yield


def _width(tensor: Tensor, dtype: torch.dtype) -> int:
    return dtype.itemsize if tensor.is_floating_point() else tensor.element_size()


def _bytes(module: nn.Module, dtype: torch.dtype) -> int:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * _width(t, dtype) for t in tensors.values())


def _take(size: int, where: str) -> None:
    """Count what a module takes, beside those of the same `one_budget`."""
    taken, most = _TAKEN.get(), available_memory()
    so_far = taken[0] if taken is not None else 0
    if most is not None and so_far + size > most:
        raise ValueError(_too_large(where, so_far + size, most))
    if taken is not None:
        taken[0] += size


def _too_large(where: str, size: int, most: int) -> str:
    fault = (
        f"{where}: its networks would take at least {size / 1e9:,.4g} GB, and there are "
        f"{most / 1e9:,.4g} GB"
    )
    return (
        f"{fault}; load it in another dtype, on a larger machine, or set {MEMORY} (in GB) to "
        "try all the same"
    )
