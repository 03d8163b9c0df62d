"""A student that is narrower than its teacher."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...diffusers.export import network_of
from ...networks.conditions import Conditions
from ...networks.network import Network


def narrower(denoiser: Network, encoder: Conditions, width: float) -> tuple[Network, Conditions]:
    """Make a fresh U-Net of a share of the channels, and the embeddings of conditions that fit it.

    Its weights are drawn anew, by PyTorch's global generator.

    Args:
        denoiser: a copy of the teacher's; its network is replaced.
        encoder: of its conditions; those that go into the embedding of the time are made anew.
        width: the share of channels, in (0, 1).

    Raises:
        ValueError: the network is no U-Net of Diffusers, or its channels cannot be cut so.
    """
    old: Any = network_of(denoiser)
    widths = getattr(old, "config", {}).get("block_out_channels")
    if not widths:
        raise ValueError(
            f"student.width: the teacher's network, {type(old).__name__}, has no widths "
            "(block_out_channels), so its student cannot be narrower; leave width out"
        )
    groups = old.config.get("norm_num_groups") or 1
    fewer = [round(w * width) for w in widths]
    if any(w < 1 or w % groups for w in fewer):
        raise ValueError(
            f"student.width: {width:g} makes {fewer} channels of {list(widths)}, which must be "
            f"multiples of the network's {groups} groups; correct width"
        )
    head = min(old.config.get("attention_head_dim") or fewer[0], *fewer)
    changed = {"block_out_channels": fewer, "attention_head_dim": head}
    new = type(old).from_config({**old.config, **changed})
    parent: Any = denoiser
    while parent.net is not old:
        parent = parent.net
    parent.net = new
    before, after = (4 * w[0] for w in (widths, fewer))
    parts = {name: _fitting(part, before, after) for name, part in encoder.parts.items()}
    return denoiser, Conditions(parts)


def _fitting(part: Any, before: int, after: int) -> nn.Module:
    """Return an encoder anew where its width is that of the time's embedding."""
    config = getattr(part, "config", {})
    if config.get("width") != before:
        return part
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    return type(part)(**{**own, "width": after})
