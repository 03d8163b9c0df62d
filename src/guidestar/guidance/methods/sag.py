"""Self-attention guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...core.arguments import check_counts
from ...core.denoiser import Denoiser
from ...core.levels import Step, expand
from ...core.passes import NULL, Inputs, NoisyPoint, Pass, Slot
from ...core.perturbation import Attention, Rows, layers_of
from ...core.prediction import Prediction
from ..bases.blur import blur, picture_axes
from ..expression import register
from ..term import Direction, Live, Rounds, Traits
from ..weights import finite


@register
@dataclass(frozen=True)
class SAG(Direction):
    """Self-attention guidance: away from the prediction for a sample blurred where attention is.

    ``ε̂ = ε + s (ε_u − ε_u(x̃))``, x̃ the blurred sample. With u the unconditional pass, and M the
    places that receive more attention than average in its middle block (the map's mean over heads,
    summed over queries, > threshold):

        D̃ = M ⊙ blur(D_u) + (1 − M) ⊙ D_u;   x̃ = α D̃ + σ ε_u
        ε̂ = ε + s (ε_u − ε_u(x̃)),  that is  D̂ = D + s (D̃ − D_u(x̃))

    The difference is one of ε, as the two passes are at different points: it is **not**
    ``D_u − D_u(x̃)``.

    Args:
        scale: s, usually 0.75.
        masked: blur only where attention is; False blurs everywhere, which needs no map and serves
            any network (blur guidance, section 4.1 of the paper).
        sigma: of the Gaussian, in pixels of the latent, mirrored at the edges.
        radius: the Gaussian is cut off there; 4 are 9 pixels.
        threshold: of the mask; 1 is the average.
        layer: the layer of self-attention of the map; by default the first of the middle block.

    2 evaluations a step, the second in a further round; 1 more where another term has u. No
    gradient. The last two dimensions are blurred, of a sound its one; each frame of a video by
    itself. Vectors have none, and are not guided.

    References:
        Improving Sample Quality of Diffusion Models Using Self-Attention Guidance,
        https://arxiv.org/abs/2210.00939
            Susung Hong, Gyuseong Lee, Wooseok Jang, Seungryong Kim
    """

    masked: bool = True
    sigma: float = 1.0
    radius: int = 4
    threshold: float = 1.0
    layer: str | None = None
    name = "sag"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, self.name)
        if not finite(self.sigma) or self.sigma <= 0 or not finite(self.threshold):
            raise ValueError(
                f"sag: sigma must be positive and threshold a number, not {self.sigma!r} and "
                f"{self.threshold!r}"
            )
        if self.radius < 0:
            raise ValueError(f"sag: the radius must not be negative, but it is {self.radius}")

    @property
    def traits(self) -> Traits:
        # The observed pass is the plain one too, so no term needs that beside it.
        return Traits(later=1, instead=((NULL, self._observed),) if self.masked else ())

    @property
    def _observed(self) -> Pass:
        return Pass(cond=Slot.NULL, perturb=AttentionMap(layer=self.layer))

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return (self._observed if self.masked else NULL,)

    def push(self, live: Live, *predictions: Prediction) -> Rounds:
        (u,), level = predictions, live.step.t
        clean = live.form.open(u.x0)
        axes = picture_axes(clean) if clean.ndim > 2 else range(0)
        blurred = blur(clean, self.sigma, self.radius, axes)
        if self.masked:
            blurred = torch.where(self._mask(u, clean), blurred, clean)
        blurred = live.form.close(blurred)
        x = expand(level.alpha, blurred) * blurred + expand(level.sigma, blurred) * u.eps
        there = Pass(cond=Slot.NULL, point=NoisyPoint(x, level))
        (other,) = yield (there,)
        return blurred - other.x0, live.state

    def _mask(self, u: Prediction, like: Tensor) -> Tensor:
        """Return the mask of the blur ``[b, 1, *grid]``, from the nearest places of the map."""
        received = u.observed
        if received is None:  # no sample has noise, so no network ran
            return torch.zeros_like(like, dtype=torch.bool)
        if like.ndim != received.ndim + 1:
            raise ValueError(
                f"sag blurs a picture's grid, but the samples here are {tuple(like.shape)}, and "
                f"the attention of its layer has {tuple(received.shape[1:])} places; use pag, seg "
                "or slg"
            )
        for dim, (size, small) in enumerate(
            zip(like.shape[2:], received.shape[1:], strict=True), 1
        ):
            received = received.index_select(
                dim, torch.arange(size, device=received.device) * small // size
            )
        return received[:, None] > self.threshold


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """Observes the attention that each place of the picture receives, ``[rows, *grid]``.

    Its mean is 1. The network does not change.

    Args:
        layer: name of the layer of self-attention; by default the first of the middle block.
    """

    layer: str | None = None
    name: ClassVar[str] = "observed"

    @contextmanager
    def __call__(
        self, denoiser: Denoiser, rows: Rows | None = None, inputs: Inputs | None = None
    ) -> Iterator[list[Tensor]]:
        layers = layers_of(denoiser)
        received: list[Tensor] = []
        if getattr(layers, "channels_last", False):
            raise ValueError(
                "sag blurs the dimensions after the channels, but the samples of this network "
                "have their channels last; use pag, seg or slg"
            )

        def attend(a: Attention) -> Tensor:
            received.append(_received_attention(a))
            return a.compute()

        first = layers.find("attention", [self.layer] if self.layer else [])[:1]
        with layers.attending(first, attend, rows):
            yield received


def _received_attention(a: Attention) -> Tensor:
    query, key = a.query[:, :, a.image], a.key[:, :, a.image]
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(dtype) @ key.to(dtype).mT * query.shape[-1] ** -0.5
    return scores.softmax(-1).mean(1).sum(1).reshape(len(query), *a.grid)
