"""How the samples of a network lie: which of their dimensions are channels, frames, a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleForm:
    """How the samples of a network lie.

    A denoiser has one as its attribute ``form``, where its samples are no ``[b, C, *S]``.

    Args:
        open: maps samples to ``[b, C, *S]``; of a video *S are frames, height and width, of a sound
            times.
        close: the inverse.
    """

    open: Callable[[Tensor], Tensor] = _as_it_is
    close: Callable[[Tensor], Tensor] = _as_it_is


PLAIN = SampleForm()
CHANNELS_LAST = SampleForm(open=lambda x: x.movedim(-1, 1), close=lambda x: x.movedim(1, -1))


def form_of(denoiser: object) -> SampleForm:
    """Return the form of a denoiser's samples: its own, or that of the network in it."""
    found = getattr(denoiser, "form", None) or getattr(getattr(denoiser, "net", None), "form", None)
    return found if isinstance(found, SampleForm) else PLAIN


def weigh_frames(x: Tensor, weights: Tensor, form: SampleForm) -> Tensor:
    """Multiply each frame of a video by its weight.

    Args:
        x: samples ``[b, *T]`` that open to ``[b, C, F, H, W]``.
        weights: numbers at equal distances from the first frame to the last; frames between two
            get the number on the line through them. With F of them each frame has its own.
        form: of the samples.

    Raises:
        ValueError: the samples are no videos.
    """
    video = form.open(x)
    if video.ndim != 5:
        raise ValueError(
            f"frames= weighs the frames of a video [B, C, F, H, W], but the samples here are "
            f"{list(video.shape)}; leave it out"
        )
    own = spread_evenly(weights, video.shape[2]).to(x.device, x.dtype, non_blocking=True)
    return form.close(video * own.reshape(-1, 1, 1))


def spread_evenly(values: Tensor, count: int) -> Tensor:
    """Return ``values`` (float64 ``[n]``) on the line at ``count`` equal distances."""
    at = values.new_tensor([k * (len(values) - 1) / max(1, count - 1) for k in range(count)])
    low, high = at.floor().long(), at.ceil().long()
    share = at - low
    return values[low] * (1 - share) + values[high] * share
