"""The whole state of a network that FSDP has spread over processes, and of one that it has not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(module: nn.Module) -> bool:
    """Tell whether a process holds only its part of the weights."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered where it is spread (every process must ask)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def put(tensor: Tensor, values: Tensor) -> None:
    """Copy all of a tensor's values into it, each process its part."""
    if not hasattr(tensor, "full_tensor"):
        tensor.copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    spread: Any = tensor
    tensor.copy_(distribute_tensor(values.to(tensor.device), spread.device_mesh, spread.placements))


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's whole ``state_dict``."""
    return {name: full_tensor(t.detach()) for name, t in module.state_dict().items()}


@torch.no_grad()
def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take up what `module_state` returned.

    Raises:
        RuntimeError: it is of another module.
    """
    if not is_sharded(module):
        module.load_state_dict(state)
        return
    own = module.state_dict()
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state.items()}:
        raise RuntimeError("the weights are of another network")
    for name, tensor in own.items():
        put(tensor, state[name])


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's whole ``state_dict``."""
    state = optimiser.state_dict()
    return {
        **state,
        "state": {
            i: {k: full_tensor(v) if isinstance(v, Tensor) else v for k, v in s.items()}
            for i, s in state["state"].items()
        },
    }


@torch.no_grad()
def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take up what `optimiser_state` returned."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    spread = {
        i: {k: _like(v, parameters[i]) for k, v in s.items()} for i, s in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": spread})


def _like(values: Any, parameter: Tensor) -> Any:
    if (
        not isinstance(values, Tensor)
        or values.shape != parameter.shape
        or not hasattr(parameter, "full_tensor")
    ):
        return values
    spread = torch.empty_like(parameter, requires_grad=False)
    put(spread, values)
    return spread
