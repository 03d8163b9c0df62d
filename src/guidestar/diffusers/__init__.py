"""Bridges to other libraries' models; import what you need from its modules
(`guidestar.diffusers.read.network`, …).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .guider import Guider

__all__ = ["Guider"]


def __getattr__(name: str) -> Any:
    if name != "Guider":
        raise AttributeError(f"module 'guidestar.diffusers' has no attribute {name!r}")
    from .guider import Guider

    return Guider
