"""Averages of the weights over a training, as tensors by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from .sharded import full_tensor, is_shard, put


class AverageState(TypedDict):
    """What a checkpoint holds of an average."""

    updates: int
    weights: Mapping[str, Tensor]


class Profile(ABC):
    """How much the n-th step counts in an average: ``a ← a + share(n)·(w − a)``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the average."""

    @abstractmethod
    def share(self, n: int) -> float:
        """Return the share of the n-th weights (n from 1)."""


@dataclass(frozen=True, kw_only=True)
class Standard(Profile):
    """Forget exponentially, faster at first: ``share = 1 − min(decay, (1 + n)/(10 + n))``."""

    decay: float = 0.999

    @property
    def name(self) -> str:
        return f"ema-{self.decay:g}"

    def share(self, n: int) -> float:
        return 1 - min(self.decay, (1 + n) / (10 + n))


@dataclass(frozen=True, kw_only=True)
class Power(Profile):
    """Weigh step t by ``t^γ``, so that the profile keeps its shape however long the training:
    ``share = 1 − (1 − 1/n)^{γ+1}``.

    Args:
        gamma: γ, at least 0.

    References:
        Analyzing and Improving the Training Dynamics of Diffusion Models (EDM2), section 3,
        https://arxiv.org/abs/2312.02696
    """

    gamma: float = 6.94

    @staticmethod
    def of_width(width: float) -> Power:
        """Return the profile of relative standard deviation ``width``:
        ``width² = (γ + 1)/((γ + 2)²(γ + 3))``.

        Raises:
            ValueError: the width is outside (0, 0.288], that of γ ≥ 0.
        """
        if not 0 < width <= 12**-0.5:
            raise ValueError(
                f"the relative width of a power-function average is in (0, 0.288], not {width:g}"
            )
        low, high = 0.0, 1e8
        for _ in range(200):  # the width falls as γ rises
            middle = (low + high) / 2
            low, high = (middle, high) if _width(middle) > width else (low, middle)
        return Power(gamma=(low + high) / 2)

    @property
    def name(self) -> str:
        return f"power-{_width(self.gamma):.3g}"

    def share(self, n: int) -> float:
        return 1 - (1 - 1 / n) ** (self.gamma + 1)


def _width(gamma: float) -> float:
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5


class EMA:
    """An average of a module's weights; its buffers are copied.

    Args:
        module: its weights are averaged; they start the average.
        profile: how much each step counts.
    """

    def __init__(self, module: nn.Module, profile: Profile) -> None:
        self.profile, self.updates = profile, 0
        self._averages = {name: p.detach().clone() for name, p in module.named_parameters()}
        self._copies = {name: b.detach().clone() for name, b in _kept_buffers(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Add the weights of ``module`` to the average."""
        self.updates += 1
        weights = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(  # type: ignore[reportPrivateImportUsage]
            list(self._averages.values()), weights, self.profile.share(self.updates)
        )
        for name, buffer in _kept_buffers(module).items():
            self._copies[name].copy_(buffer)

    def weights(self) -> dict[str, Tensor]:
        """Return the average by the module's own names, as its ``state_dict`` has them."""
        return {**self._averages, **self._copies}

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Put the average into ``module`` in the block; its own weights come back bit for bit."""
        # A shard's data cannot be exchanged, so it is kept, and copied over.
        held = {
            n: p.detach().clone() if is_shard(p) else p.data for n, p in module.named_parameters()
        }
        buffers = {name: b.clone() for name, b in _kept_buffers(module).items()}
        try:
            _fill(module, self._averages)
            _copy(module, self._copies)
            yield
        finally:
            _fill(module, held)
            _copy(module, buffers)

    def state_dict(self) -> AverageState:
        """Return what a checkpoint holds of the average."""
        return {
            "updates": self.updates,
            "weights": {name: full_tensor(t) for name, t in self.weights().items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state: AverageState) -> None:
        """Load what `state_dict` returned.

        Raises:
            KeyError: it belongs to another module.
        """
        found = state["weights"]
        if {n: t.shape for n, t in found.items()} != {
            n: t.shape for n, t in self.weights().items()
        }:
            raise KeyError("the average has the weights of another module")
        for name, tensor in self.weights().items():
            put(tensor, found[name])
        self.updates = state["updates"]


def _fill(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a module's weights these data; shards get a copy."""
    for name, p in module.named_parameters():
        if is_shard(p):
            p.detach().copy_(values[name])
        else:
            p.data = values[name]


def _kept_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a ``state_dict`` holds."""
    kept = module.state_dict(keep_vars=True)
    return {name: b for name, b in module.named_buffers() if name in kept}


def _copy(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    for name, buffer in _kept_buffers(module).items():
        buffer.data.copy_(buffers[name])
