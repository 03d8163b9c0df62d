"""Load the models that are served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..model.model import Model


def load_models(
    folders: Mapping[str, str], *, device: str = "cpu", trust: bool = False
) -> dict[str, Model]:
    """Load models by the names under which they are served; pictures and answers name no folder.

    Args:
        folders: or names of shipped models, by name.
        device: where the networks are.
        trust: as of `load`.
    """
    from ..model.folder import load

    models = {n: load(f, device=device, trust=trust) for n, f in folders.items()}
    return {name: replace(model, name=name) for name, model in models.items()}
