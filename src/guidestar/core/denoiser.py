"""Denoisers: ``denoiser(x_t, level, cond) -> x0``, and the conditions that they get.

Any callable of that signature is a denoiser. `guidestar.networks.network.Network` makes one of a
network that predicts eps, x0, v or a flow velocity, or that is preconditioned as in EDM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .hooks import replaced
from .levels import Level, Value
from .prediction import Prediction

INTERVAL = "interval"
"""The name of a step's share of the flow's time among the conditions of a network that takes it."""


class Condition(Mapping[str, Tensor]):
    """The condition of a network: a frozen mapping of names to tensors ``[B, …]``.

    Names are the network's keyword arguments. All conditions of one model have the same names and
    shapes, so that passes can be joined: an encoder pads to a fixed length and gives the mask.

    Raises:
        TypeError: no mapping, or a value that is no tensor.
        ValueError: a tensor without a first dimension, or first dimensions that differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, **more: Tensor) -> None:
        if tensors is not None and not isinstance(tensors, Mapping):
            raise TypeError(
                "a condition has tensors by name, as in Condition(label=tensor), not a "
                f"{type(tensors).__name__} without a name"
            )
        self._tensors = {**(tensors or {}), **more}
        for name, value in self._tensors.items():
            _check_tensor(name, value)
        sizes = {t.shape[0] for t in self._tensors.values()}
        if len(sizes) > 1:
            raise ValueError(
                "the tensors of a condition must agree in their first dimension, not "
                f"{sorted(sizes)}"
            )

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def with_interval(self, interval: Value, x: Tensor) -> Condition:
        """Add the share of the flow's time that a step covers, of the samples ``x [B, *S]``.

        Args:
            interval: a number, or one for each sample; `Step.interval`.
            x: the samples, for their number, device and dtype (float32 at least).
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(interval, Tensor):
            values = interval.to(x.device, dtype, non_blocking=True).expand(len(x))
        else:
            values = torch.full((len(x),), interval, device=x.device, dtype=dtype)
        return Condition({**self._tensors, INTERVAL: values})

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def batch(self) -> int:
        """Number of samples; 0 for the empty condition, which serves any number."""
        return next((t.shape[0] for t in self._tensors.values()), 0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample's tensor, by name."""
        return {name: tuple(t.shape[1:]) for name, t in self._tensors.items()}

    def take(self, rows: Tensor) -> Condition:
        """Select samples (``rows``: int64 indices)."""
        return Condition({name: t[rows.to(t.device)] for name, t in self._tensors.items()})

    def repeat(self, batch: int) -> Condition:
        """Repeat a condition of one sample for ``batch`` samples.

        Raises:
            ValueError: it has another number of samples.
        """
        if self.batch in (0, batch):
            return self
        if self.batch != 1:
            raise ValueError(
                f"a condition of {self.batch} samples cannot serve {batch} samples; give 1 or "
                f"{batch}"
            )
        return Condition({name: t.expand(batch, *t.shape[1:]) for name, t in self._tensors.items()})

    def to(self, device: torch.device | str) -> Condition:
        """Move every tensor to ``device``."""
        return Condition({name: t.to(device) for name, t in self._tensors.items()})

    @staticmethod
    def join(parts: list[Condition]) -> Condition:
        """Concatenate conditions along the batch.

        Raises:
            ValueError: their names or shapes differ.
        """
        first = parts[0]
        for other in parts:
            if (a := first.shapes) != (b := other.shapes):
                raise ValueError(
                    f"conditions of one model must have the same names and shapes, not {a} and {b}"
                )
        if len(parts) == 1:
            return first
        return Condition({name: torch.cat([c[name] for c in parts]) for name in first})


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name!r} of a condition must be a tensor [B, …], not {type(value).__name__}; write "
            "torch.as_tensor(…)"
        )
    if not value.ndim:
        raise ValueError(
            f"{name!r} of a condition must be a tensor [B, …] with one row a sample, not a single "
            "number; write it as [number]"
        )


class Denoiser(Protocol):
    """Anything that estimates clean data: a network, or a function.

    It returns x0 ``[B, *S]``, or a whole `Prediction` if it has more (a learned variance). An
    attribute ``cpu_rows`` is the largest number of rows of a call that suits it on a CPU.
    """

    def __call__(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor | Prediction:
        """Estimate x0 from ``x_t [B, *S]`` at ``level``, under ``cond``."""
        ...


@contextmanager
def checkpointed(denoiser: Denoiser) -> Iterator[None]:
    """Let the blocks of a network keep only their inputs for a gradient.

    The rest is computed again. Blocks are the members of the network's outermost
    `torch.nn.ModuleList` and `Sequential` containers.

    Raises:
        ValueError: it is no module, or has no blocks.
    """
    blocks = _blocks(denoiser) if isinstance(denoiser, nn.Module) else []
    if not blocks:
        raise ValueError(
            "there is nothing to checkpoint: the network is no torch module, or has no blocks "
            "(ModuleList, Sequential); leave checkpoint out"
        )
    with ExitStack() as stack:
        for block in blocks:
            recompute = lambda forward: partial(checkpoint, forward, use_reentrant=False)
            stack.enter_context(replaced(block, recompute))
        yield


def _blocks(module: nn.Module) -> list[nn.Module]:
    inner = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return inner
    return list(dict.fromkeys(b for child in inner for b in _blocks(child)))
