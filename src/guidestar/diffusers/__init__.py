"""Bridges to other libraries' models; import what you need from its modules
(`guidestar.diffusers.read.network`, …).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .guider import Guider
    from .layers import list_layers

__all__ = ["Guider", "list_layers"]


def __getattr__(name: str) -> object:
    if name == "Guider":
        from .guider import Guider

        return Guider
    if name == "list_layers":
        from .layers import list_layers

        return list_layers
    raise AttributeError(f"module 'guidestar.diffusers' has no attribute {name!r}")
