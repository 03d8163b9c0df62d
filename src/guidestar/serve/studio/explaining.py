"""Each term's push along a run, as pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from torch import Tensor

from ...io.images import to_bytes, to_pil
from ..ticket import Pushes

HALF = 0.92
"""How much of the range from black to white a push may take."""


def maps_of(found: Sequence[Pushes]) -> dict[str, list[tuple[int, str]]]:
    """Return pictures of each term's push of the first sample, at the steps that were kept.

    Grey is no push; each picture is on a scale of its own, ``push · HALF / max |push|``.
    """
    maps: dict[str, list[tuple[int, str]]] = {}
    for pushes in found:
        for term, push in pushes.maps.items():
            maps.setdefault(term, []).append((pushes.step, _picture(push)))
    return maps


def _picture(push: Tensor) -> str:
    shown = push.float()
    shown = shown if shown.shape[0] in (1, 3) else shown.mean(0, keepdim=True)
    most = float(shown.abs().max()) or 1.0
    return base64.b64encode(to_bytes(to_pil((shown * HALF / most)[None])[0])).decode()
