"""A network as another one and a difference of low rank, which takes little room.

The difference of a matrix of weights ``W [m, n]`` (of a convolution: its other axes are one) is
``up [m, r] · down [r, n]``; that of all else, such as biases, is kept in full. A matrix for which
``r (m + n) ≥ m n`` is kept in full too, as its factors would take more room.

Reference:
    LoRA, https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..io.files import whole_or_not

DIFFERENCE = "difference.safetensors"
"""The file of a network's difference, in the folder of a variant or a student."""
_UP, _DOWN = ".up", ".down"
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    """Add a difference of rank ``r`` to weights: ``W + up · down``, which starts at exactly W.

    Args:
        weight: ``[m, …]``, of n other numbers each.
        rank: r.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = _sides(weight)
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.down = nn.Parameter(torch.randn(rank, columns).to(weight) / columns**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weights with the difference."""
        return weight + (self.up @ self.down).view_as(weight)


def _sides(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight[0].numel()


def _parametrized(module: nn.Module) -> parametrize.ParametrizationList:
    found = module.get_submodule("parametrizations.weight")
    assert isinstance(found, parametrize.ParametrizationList)
    return found


def adapt(net: nn.Module, rank: int) -> None:
    """Let a network learn differences of low rank: its matrices stand still beside their factors.

    Raises:
        ValueError: the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"the rank of a difference must be at least 1, not {rank}")
    for module in [m for m in net.modules() if isinstance(m, _MATRICES)]:
        rows, columns = _sides(module.weight)
        if rank * (rows + columns) < rows * columns:
            part = LowRank(module.weight.detach(), rank)
            parametrize.register_parametrization(module, "weight", part)
            _parametrized(module).original.requires_grad_(False)


@torch.no_grad()
def difference(net: nn.Module, base: nn.Module) -> dict[str, Tensor]:
    """Return how an adapted network differs from the one it was made of, in tensors by name.

    Matrices give ``NAME.up`` and ``NAME.down``; of all else that differs, ``NAME`` is the
    difference.
    """
    own = dict(base.named_parameters())
    found: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            part = _parametrized(module)[0]
            assert isinstance(part, LowRank)
            found[f"{name}.weight{_UP}"] = part.up.clone()
            found[f"{name}.weight{_DOWN}"] = part.down.clone()
    for name, parameter in net.named_parameters():
        if name in own and not torch.equal(parameter, own[name].to(parameter)):
            found[name] = parameter - own[name].to(parameter)
    return found


@torch.no_grad()
def merge(net: nn.Module) -> None:
    """Turn an adapted network into a plain one of the same output."""
    for module in [*net.modules()]:
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def write_difference(
    tensors: Mapping[str, Tensor], base: nn.Module, file: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write a difference, and a digest of the network that it is to be added to.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    found = {name: t.to(dtype).cpu().contiguous() for name, t in tensors.items()}
    with whole_or_not(file) as beside:
        beside.write_bytes(save(found, {"base": digest(base)}))


def digest(net: nn.Module) -> str:
    """Return a digest of a network's weights, as float16 numbers by name."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(net.state_dict().items()):
        found.update(name.encode())
        numbers = tensor.half() if tensor.is_floating_point() else tensor
        found.update(numbers.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def add_difference(net: nn.Module, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Add a difference to a network: ``W + up · down``, in the network's dtype.

    Args:
        net: the network; its weights are changed.
        tensors: as of `difference`.
        about: what was written with them: ``base``, the digest of the network that they are of.

    Raises:
        ValueError: they are of another network, or do not fit it; nothing was changed.
    """
    if about.get("base") != digest(net):
        raise ValueError(
            "it is the difference to other weights than those of this network; keep the student "
            "in its own teacher's folder, or distil again"
        )
    weights, found = dict(net.named_parameters()), {}
    for name, tensor in tensors.items():
        target = name.removesuffix(_UP).removesuffix(_DOWN)
        if target not in weights:
            raise ValueError(f"the network has no weight {target!r}")
        weight = weights[target]
        if name.endswith(_DOWN):
            if target + _UP not in tensors:
                raise ValueError(f"the factors of {target!r} do not go together")
            continue
        value = tensor.to(weight)
        if name.endswith(_UP):
            down = tensors.get(target + _DOWN)
            if down is None or down.ndim != 2 or value.ndim != 2 or len(down) != value.shape[1]:
                raise ValueError(f"the factors of {target!r} do not go together")
            value = value @ down.to(weight)
        if value.numel() != weight.numel() or len(value) != len(weight):
            raise ValueError(
                f"the difference of {target!r} is of {list(value.shape)}, and the weight of "
                f"{list(weight.shape)}"
            )
        found[target] = value.view_as(weight)
    for target, value in found.items():
        weights[target].add_(value)
