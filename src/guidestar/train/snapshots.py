"""Files of a part's weights: its checkpoint, its averages, its early snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..data.source import Source
from ..io.files import whole_or_not
from .build.networks import build_part
from .loop.checkpoints import read_checkpoint
from .loop.ema import EMA
from .objectives.objective import TrainSettings, profiles
from .recipe.parts import PARTS
from .recipe.schema import Recipe

if TYPE_CHECKING:
    pass


def train_settings(recipe: Recipe, part: str) -> TrainSettings:
    """Return how long and how fast a part trains."""
    return TrainSettings(
        **getattr(recipe, part).train.model_dump(), seed=recipe.seed + PARTS.index(part)
    )


def checkpoint(out: Path, part: str) -> Path:
    """Return where a part's checkpoint is kept."""
    return out / "parts" / f"{part}.pt"


def averaged(
    recipe: Recipe, part: str, out: Path, source: Source, average: str | None = None
) -> Any:
    """Return a part with its averaged weights (the first average, or the one named), from its
    checkpoint, frozen.

    Raises:
        ValueError: there is no checkpoint, or the training of this part has not come to its end.
    """
    if not checkpoint(out, part).is_file():
        raise ValueError(f"{out} holds no trained {part!r} yet; train it first (--only {part})")
    module, state = (
        build_part(recipe, part, source, out).module,
        read_checkpoint(checkpoint(out, part)),
    )
    if state["done"] < getattr(recipe, part).train.steps:
        raise ValueError(
            f"{part!r} is trained for {state['done']} of its {getattr(recipe, part).train.steps} "
            f"steps; let it finish first (--only {part})"
        )
    module.load_state_dict(state["module"])
    name = average or next(iter(state["averages"]))
    ema = EMA(module, next(p for p in profiles(train_settings(recipe, part)) if p.name == name))
    ema.load_state_dict(state["averages"][name])
    module.load_state_dict(ema.weights(), strict=False)
    return module.requires_grad_(False).eval()


def snapshot_file(out: Path, part: str, step: int) -> Path:
    """Return where a part's averaged weights after ``step`` steps are kept."""
    return out / "snapshots" / f"{part}-{step:06d}.safetensors"


def snapshot_steps(recipe: Recipe, part: str) -> list[int]:
    """Return after which steps a part's averaged weights are kept."""
    spec = getattr(recipe, part)
    return sorted(
        {max(1, round(share * spec.train.steps)) for share in getattr(spec, "snapshots", ())}
    )


def save_snapshot(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in float16, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save  # its own writing of files hides the reason of a failure

    with whole_or_not(path) as beside:
        beside.write_bytes(
            save(
                {
                    k: (v.half() if v.is_floating_point() else v).cpu().contiguous()
                    for k, v in weights.items()
                }
            )
        )
