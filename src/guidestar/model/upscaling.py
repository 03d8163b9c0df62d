"""Super-resolution models: bind them to the pictures that they enlarge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.levels import Grid
from ..core.rng import Draw, checked_seeds
from ..guidance import Guidance
from ..guidance.term import Direction
from ..networks.low_resolution import LOW, LowResolution, augmented, low_of
from ..sampling import Solver
from .model import Model, Watch
from .request import Names
from .samples import Samples

USUAL_AUGMENTATION = 0.1
"""The level of the noise in the smaller picture, unless another is chosen or it was trained with
less.
"""
_NONE = f"{LOW}=none"


class Pictured:
    """The encoder of a super-resolution model, bound to the smaller pictures of a run.

    A name is that of the model's other conditions; the picture is always there, unless
    ``low_resolution=none`` is written. The null is without it only if it was left out in training.

    Args:
        encoder: of the model.
        rows: of each sample (`guidestar.networks.low_resolution.augmented`).
    """

    def __init__(self, encoder: Any, rows: Tensor) -> None:
        low = low_of(encoder)
        assert low is not None
        self.low: LowResolution = low
        self.inner, self.pictures = encoder, rows
        self.others: dict[str, Any] = (
            {} if encoder is low else {n: p for n, p in encoder.parts.items() if n != LOW}
        )
        if len(self.others) == 1:
            only = next(iter(self.others.values()))
            for name in ("classes", "index", "tokenizer", "text"):  # what makes it one of its kind
                if hasattr(only, name):
                    setattr(self, name, getattr(only, name))

    def _split(self, name: str | int) -> tuple[dict[str, str], bool]:
        """Return the values of the other conditions, and whether the picture is kept."""
        text = str(name)
        pieces = [p.strip() for p in text.split(";")]
        kept = _NONE not in pieces
        rest = "; ".join(p for p in pieces if p not in (_NONE, "")) if not kept else text
        if len(self.others) == 1:
            (only,) = self.others
            if not rest.strip().startswith(f"{only}="):
                return {only: rest}, kept
        pairs = [p.partition("=") for p in rest.split(";") if p.strip()]
        found = {k.strip(): v.strip() for k, _, v in pairs}
        strange = [k for k in found if k not in self.others]
        if strange:
            known = ", ".join(self.others) or "none beside the picture"
            raise ValueError(f"unknown condition {strange[0]!r}; the conditions are {known}")
        return found, kept

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode names, one, or one for each picture."""
        count = len(self.pictures)
        split = [self._split(n) for n in (names if len(names) == count else [names[0]] * count)]
        if not all(kept for _, kept in split):
            self._need_null()
        rows = {
            n: part.rows([part.parse(given.get(n, "")) for given, _ in split])
            for n, part in self.others.items()
        }
        keep = torch.tensor([kept for _, kept in split]).view(-1, 1, 1, 1)
        return self._made(rows, torch.where(keep, self.pictures, self.low.null_row()))

    def _need_null(self) -> None:
        if not self.low.droppable:
            raise ValueError(
                "this model never learned without its smaller picture, so that cannot be left out "
                "of a pass (pix2pix, low_resolution=none); train it with dropout > 0"
            )

    def _made(self, rows: dict[str, Tensor], pictures: Tensor) -> Condition:
        device = self.low.unknown.device
        moved = {n: t.to(device) for n, t in rows.items()}
        if self.inner is self.low:
            return self.low(pictures.to(device))
        return self.inner({**moved, LOW: pictures.to(device)})

    def null(self, batch: int) -> Condition:
        """Return the null for each picture."""
        count = len(self.pictures)
        rows = {
            n: (row := part.null_row()).expand(count, *row.shape) for n, part in self.others.items()
        }
        null = self.low.null_row().expand_as(self.pictures)
        return self._made(rows, null if self.low.droppable else self.pictures)

    def only(self, name: str | int, part: str) -> str:
        """Return a name with one condition alone, or with the picture alone.

        Raises:
            ValueError: there is no such part, or the picture was never left out in training.
        """
        self._need_null()
        if part == LOW:
            return "; ".join(f"{n}=" for n in self.others)
        if part not in self.others:
            known = ", ".join((*self.others, LOW))
            raise ValueError(f"there is no part {part!r}; the conditions are {known}")
        return f"{part}={self._split(name)[0].get(part, '')}; {_NONE}"


def need_low(model: Model) -> LowResolution:
    """Return what takes the smaller picture.

    Raises:
        ValueError: the model enlarges nothing.
    """
    low = low_of(model.encoder)
    if low is None:
        raise ValueError(
            f"the model {model.name!r} enlarges no pictures; give a super-resolution model "
            "([upscale] in a recipe, or a stage of a cascade)"
        )
    return low


def with_pictures(
    model: Model, pictures: Tensor, *, seeds: Sequence[int], augmentation: float | None = None
) -> Model:
    """Return a super-resolution model, bound to the pictures of a run: an ordinary model.

    Args:
        model: the stage.
        pictures: ``[B, C, h, w]`` in [−1, 1].
        seeds: of each; the noise in the pictures is drawn by them.
        augmentation: the level of that noise, s of ``√(1 − s²) low + s ε``, from 0 to the largest
            of training; by default 0.1, or that if it is less.

    Raises:
        ValueError: pictures of another size or number, or an augmentation outside what was trained.
    """
    low, seeds = need_low(model), checked_seeds(seeds)
    wanted = (low.channels, low.size, low.size)
    if pictures.ndim != 4 or tuple(pictures.shape[1:]) != wanted:
        raise ValueError(
            f"{model.name!r} enlarges pictures of {' x '.join(map(str, wanted))} (channels, "
            f"height, width), not of {' x '.join(map(str, pictures.shape[1:]))}; resize them"
        )
    if len(pictures) != len(seeds):
        raise ValueError(
            f"{len(pictures)} pictures were given for {len(seeds)} seeds; give one each"
        )
    level = min(USUAL_AUGMENTATION, low.largest) if augmentation is None else augmentation
    if not (math.isfinite(level) and 0 <= level <= low.largest):
        raise ValueError(
            f"the augmentation must be from 0 to {low.largest:g}, the largest that {model.name!r} "
            f"was trained with, not {level:g}"
        )
    levels = torch.full((len(seeds),), float(level), dtype=torch.float64)
    rows = augmented(pictures.detach().float().cpu(), levels, Draw(seeds))
    return replace(model, encoder=Pictured(model.encoder, rows))


def planned(model: Model, count: int = 1) -> Model:
    """Return a model that can be planned: a super-resolution model gets black pictures."""
    low = low_of(model.encoder)
    if low is None:
        return model
    black = torch.zeros(count, low.channels, low.size, low.size)
    return with_pictures(model, black, seeds=range(count))


def own_guidance(
    model: Model, guidance: str | Guidance | Direction | None, cond: object
) -> str | Guidance | Direction | None:
    """Return a guidance; where none is given, and no condition, the posts of the model's own."""
    if guidance is not None or cond is not None:
        return guidance
    usual = model.expression(None)
    return Guidance(base=Guidance.resolve_base(Guidance(), conditional=False), posts=usual.posts)


def upscale(
    model: Model,
    pictures: Tensor,
    cond: Names | None = None,
    *,
    augmentation: float | None = None,
    guidance: str | Guidance | Direction | None = None,
    seeds: Sequence[int] | None = None,
    negative: str | int | None = None,
    steps: int | None = None,
    solver: str | Solver | None = None,
    grid: str | Grid | None = None,
    max_rows: int | None = None,
    watch: Watch | None = None,
) -> Samples:
    """Enlarge pictures by a super-resolution model.

    Args:
        model: one that a recipe with ``[upscale]``, or a cascade's stage, trained.
        pictures: ``[B, C, h, w]`` in [−1, 1], of the model's smaller size.
        cond: as in `Model.sample`; None for the picture alone.
        augmentation: level of the noise that is added to the pictures first, from 0 to the largest
            of training; more lets the model correct more. By default 0.1.
        guidance: as in `Model.sample`; the model's own by default.
        seeds: one a picture; by default 0, 1, ….
        negative: as in `Model.sample`.
        steps: as in `Model.sample`.
        solver: as in `Model.sample`.
        grid: as in `Model.sample`.
        max_rows: as in `Model.sample`.
        watch: as in `Model.sample`.

    Raises:
        ValueError: as `with_pictures` and `Model.sample`.
    """
    seeds = list(range(len(pictures))) if seeds is None else list(seeds)
    bound = with_pictures(model, pictures, seeds=seeds, augmentation=augmentation)
    low = need_low(model)
    if cond is None and low.droppable:
        cond = ""  # else the unconditional pass would be without the picture
    found = bound.sample(
        cond,
        guidance=own_guidance(bound, guidance, cond),
        seeds=seeds,
        negative=negative,
        steps=steps,
        solver=solver,
        grid=grid,
        max_rows=max_rows,
        watch=watch,
    )
    lacking = (*found.settings.lacking, "the picture that was enlarged")
    return replace(found, settings=replace(found.settings, lacking=lacking))
