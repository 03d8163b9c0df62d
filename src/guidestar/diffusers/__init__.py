"""Bridges to other libraries' models; import what you need from its modules
(`guidestar.diffusers.read.network`, …).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .guider import Guider

__all__ = ["Guider"]


def __getattr__(name: str) -> type[Guider]:
    if name != "Guider":
        raise AttributeError(f"module 'guidestar.diffusers' has no attribute {name!r}")
    from .guider import Guider

    return Guider
