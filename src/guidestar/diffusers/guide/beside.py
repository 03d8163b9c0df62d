"""Check that the networks and classifiers beside a pipeline's own are where it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from ..objects import DiffusersNetwork


def check_nets(
    nets: Mapping[str, DiffusersNetwork], main: DiffusersNetwork, device: torch.device
) -> None:
    """Refuse networks of another type or on another device than the pipeline's.

    Args:
        nets: the further networks by name.
        main: the pipeline's.
        device: that it runs on.

    Raises:
        ValueError: one of them is; it is named.
    """
    for name, net in nets.items():
        parameter, own = next(net.parameters()), next(main.parameters())
        if parameter.dtype != own.dtype:
            raise ValueError(
                f"the network {name!r} is in {_word(parameter.dtype)}, but the pipeline's is in "
                f"{_word(own.dtype)}; give one in {_word(own.dtype)}: net.to({own.dtype})"
            )
        if (away := _find_away(net, device)) is not None:
            raise ValueError(
                f"the network {name!r} is on {away}, but the pipeline runs on "
                f"{device}; move it there: net.to('{device}')"
            )


def check_classifiers(classifiers: Mapping[str, object], device: torch.device) -> None:
    """Refuse classifiers on another device than the pipeline's.

    Args:
        classifiers: by name; each may be a module, or hold some.
        device: that the pipeline runs on.

    Raises:
        ValueError: one of them is elsewhere; it is named.
    """
    for name, classifier in classifiers.items():
        for module in _modules_of(classifier):
            if (away := _find_away(module, device)) is not None:
                raise ValueError(
                    f"the classifier {name!r} is on {away}, but the pipeline runs on {device}; "
                    f"move it there: .to('{device}')"
                )


def _modules_of(thing: object) -> Iterator[nn.Module]:
    if isinstance(thing, nn.Module):
        yield thing
    elif hasattr(thing, "__dict__"):
        for part in vars(thing).values():
            if isinstance(part, nn.Module) or hasattr(part, "log_prob"):
                yield from _modules_of(part)


_HOOKS = ("_hf_hook", "_diffusers_hook")
"""Attributes of modules whose weights accelerate, or Diffusers, moves whenever they are called."""


def _find_away(module: nn.Module, device: torch.device) -> torch.device | None:
    """Return where a module is, if that is another device and it stays there."""
    if any(hasattr(part, hook) for part in module.modules() for hook in _HOOKS):
        return None
    return next((p.device for p in module.parameters() if not _same(p.device, device)), None)


def _same(a: torch.device, b: torch.device) -> bool:
    """Tell whether two devices are one; a device without an index is any of its type."""
    return a.type == b.type and (a.index is None or b.index is None or a.index == b.index)


def _word(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


__all__ = ["check_classifiers", "check_nets"]
