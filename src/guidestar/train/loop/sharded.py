"""Full states of modules and optimisers, whether FSDP has sharded them or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...io.documents import JSONObject


def is_sharded(module: nn.Module) -> bool:
    """Return whether a process holds only its shard of the weights."""
    return any(map(is_shard, module.parameters()))


def is_shard(tensor: Tensor) -> bool:
    """Return whether a process holds only its shard of a tensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with all its values; every process must call it, as shards are gathered."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def put(tensor: Tensor, values: Tensor) -> None:
    """Copy all values into a tensor; each process copies its shard."""
    if not is_shard(tensor):
        tensor.copy_(values)
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        mesh, placements = tensor.device_mesh, tensor.placements
        tensor.copy_(distribute_tensor(values.to(tensor.device), mesh, placements))


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's ``state_dict`` with full tensors."""
    return {name: full_tensor(t.detach()) for name, t in module.state_dict().items()}


@torch.no_grad()
def load_module(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `module_state` returned.

    Raises:
        RuntimeError: it belongs to another module.
    """
    if not is_sharded(module):
        module.load_state_dict(state)
        return
    own = module.state_dict()
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state.items()}:
        raise RuntimeError("the weights are of another network")
    for name, tensor in own.items():
        put(tensor, state[name])


def optimiser_state(optimiser: torch.optim.Optimizer) -> JSONObject:
    """Return an optimiser's ``state_dict`` with full tensors."""
    state = optimiser.state_dict()
    return {
        **state,
        "state": {
            i: {k: full_tensor(v) if isinstance(v, Tensor) else v for k, v in s.items()}
            for i, s in state["state"].items()
        },
    }


@torch.no_grad()
def load_optimiser(optimiser: torch.optim.Optimizer, state: JSONObject) -> None:
    """Load what `optimiser_state` returned."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    spread = {
        i: {k: _like(v, parameters[i]) for k, v in s.items()} for i, s in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": spread})


def _like(values: object, parameter: Tensor) -> object:
    """Return values sharded as a parameter is."""
    if not isinstance(values, Tensor) or values.shape != parameter.shape or not is_shard(parameter):
        return values
    spread = torch.empty_like(parameter, requires_grad=False)
    put(spread, values)
    return spread
